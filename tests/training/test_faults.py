"""The fault table of docs/faults.md, row by row: what was lost, whether the curve is the same, how the MLflow run ends.

Each training run is a process of its own, forked after the imports, with its MLflow run in SQLite.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow.tracking  # noqa: F401 - imported once, before the forks
import pytest
from tiny_training import items, train

from monai_unet.tracking import Tracking
from monai_unet.training import Guards, checkpoints

if sys.platform == "win32":
    pytest.skip("each training run is a forked process", allow_module_level=True)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

FORK = multiprocessing.get_context("fork")
EPOCHS, STEPS = 40, 10
FILLER = "filler"


def _training(folder: Path, fault: Callable[..., None], kwargs: dict) -> None:
    logging.disable(logging.CRITICAL)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder.parent}/mlflow.db"
    os.chdir(folder.parent)
    with (folder.parent / "curve.jsonl").open("a", buffering=1) as curve:

        def on_step(engine):
            curve.write(json.dumps([engine.state.iteration, engine.state.output[0]["loss"]]) + "\n")
            fault(engine)

        train(
            folder,
            epochs=EPOCHS,
            steps=STEPS,
            batch_size=1,
            val_interval=4,
            tracking=Tracking("faults", {"seed": 5}, folder.parent / "spool"),
            handlers=lambda network: [Guards(network)],
            on_step=on_step,
            **kwargs,
        )


class Faults:
    """Training runs that fail, one after the other, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "out"
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(self, fault: Callable[..., None] = lambda engine: None, **kwargs):
        kwargs.setdefault("resume", "auto")
        process = FORK.Process(target=_training, args=(self.folder, fault, kwargs))
        process.start()
        return process

    def finish(self, **kwargs) -> None:
        process = self.start(**kwargs)
        process.join()
        assert process.exitcode == 0

    def curve(self) -> list[tuple[int, float]]:
        """Return every step in the order in which it was made, repeated ones included."""
        file = self.folder.parent / "curve.jsonl"
        return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    def repeated(self) -> int:
        """Return how many steps had to be repeated."""
        steps = [step for step, _ in self.curve()]
        return len(steps) - len(set(steps))

    def runs(self) -> list[str]:
        if not (self.folder.parent / "mlflow.db").exists():  # to open it would create it, without MLflow's tables
            return []
        with sqlite3.connect(self.folder.parent / "mlflow.db") as store:
            made = store.execute("select name from sqlite_master where name = 'runs'").fetchall()
            return [status for (status,) in store.execute("select status from runs")] if made else []

    def tracked(self) -> list[tuple[int, float]]:
        with sqlite3.connect(self.folder.parent / "mlflow.db") as store:
            return list(store.execute("select step, value from metrics where key = 'Loss' order by step"))

    def steps(self) -> list[int]:
        return sorted(int(path.stem[5:]) for path in (self.folder / "checkpoints").glob("step_*.pt"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> set[tuple[int, float]]:
    faults = Faults(tmp_path_factory.mktemp("uninterrupted"))
    faults.finish(resume=False)
    curve = faults.curve()
    assert [step for step, _ in curve] == list(range(1, EPOCHS * STEPS + 1))
    assert faults.runs() == ["FINISHED"]
    assert faults.tracked() == curve
    return set(curve)


@pytest.fixture
def faults(tmp_path) -> Faults:
    return Faults(tmp_path)


def check(faults: Faults, uninterrupted: set[tuple[int, float]]) -> None:
    """After all faults the curve is the same, also where steps were repeated, in one run, which has finished."""
    assert set(faults.curve()) == uninterrupted
    assert faults.runs() == ["FINISHED"]
    assert faults.tracked() == sorted(uninterrupted)


def wait_for(condition: Callable[[], bool], process) -> bool:
    while process.is_alive():
        if condition():
            return True
    return False


def test_killed_at_20_random_moments_of_training(faults, uninterrupted):
    moments = random.Random(0)
    for _ in range(20):
        target = len(faults.curve()) + moments.randint(1, 2 * STEPS)
        process = faults.start()
        assert wait_for(lambda target=target: len(faults.curve()) >= target, process)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        # no more than the steps since the last checkpoint, which the next run repeats
        assert faults.curve()[-1][0] - max(faults.steps(), default=0) <= STEPS
        assert faults.runs() in ([], ["RUNNING"])  # none yet, if it was too soon for the first message
    faults.finish()
    print(f"{faults.repeated()} of {EPOCHS * STEPS} steps repeated after 20 kills")
    assert faults.repeated() <= 20 * STEPS
    check(faults, uninterrupted)


def test_killed_20_times_inside_a_save(faults, uninterrupted, monkeypatch):
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_SECONDS", 0)  # a save after every step: more saves to hit
    folder = faults.folder / "checkpoints"
    saves = random.Random(0)
    kills = 0
    while kills < 20:
        target = len(faults.curve()) + saves.randint(1, 12)
        process = faults.start()
        assert wait_for(lambda target=target: len(faults.curve()) >= target, process)
        left = set(folder.glob(".*.partial*"))
        assert wait_for(lambda left=left: bool(set(folder.glob(".*.partial*")) - left), process)
        process.kill()
        process.join()
        kills += bool(set(folder.glob(".*.partial*")) - left)  # else the file was whole and in its place before
    faults.finish()
    assert not list(folder.glob(".*"))
    print(f"{faults.repeated()} of {EPOCHS * STEPS} steps repeated after 20 kills")
    check(faults, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(number, faults, uninterrupted):
    def fault(engine):
        if engine.state.iteration == 23:
            os.kill(os.getpid(), number)

    process = faults.start(fault)
    process.join()
    assert process.exitcode == 128 + number
    assert faults.runs() == ["KILLED"]
    assert faults.steps()[-1] == 23
    faults.finish()
    assert faults.repeated() == 0
    check(faults, uninterrupted)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "out"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_full_while_saving(small_disk, tmp_path, uninterrupted):
    faults = Faults(tmp_path)

    def fault(engine):
        if engine.state.iteration == 25:
            with (small_disk / FILLER).open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))

    process = faults.start(fault)
    process.join()
    assert process.exitcode == 1
    assert faults.steps() == [10, 20]
    assert not list((faults.folder / "checkpoints").glob(".*"))
    assert faults.runs() == ["FAILED"]
    (small_disk / FILLER).unlink()
    faults.finish()
    assert faults.repeated() == 10
    check(faults, uninterrupted)


def test_nan_in_the_data(faults, uninterrupted):
    data = items()

    def fault(engine):
        if engine.state.iteration == 25:
            for item in engine.data_loader.dataset.dataset._cache:
                item["image"][:] = float("nan")

    process = faults.start(fault, data=data)
    process.join()
    assert process.exitcode == 1
    assert faults.steps() == [10, 20]
    assert faults.runs() == ["FAILED"]
    faults.finish()
    assert faults.repeated() == 5
    check(faults, uninterrupted)


def test_broken_newest_checkpoint(faults, uninterrupted):
    def fault(engine):
        if engine.state.iteration == 45:
            os.kill(os.getpid(), signal.SIGKILL)

    process = faults.start(fault)
    process.join()
    assert faults.steps() == [30, 40]
    path = faults.folder / "checkpoints" / "step_00000040.pt"
    path.write_bytes(path.read_bytes()[:5000])
    faults.finish()
    assert faults.repeated() == 15
    check(faults, uninterrupted)
