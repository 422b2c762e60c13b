"""The rows of docs/faults.md that need the bundle and its command line; the others are in training/test_faults.py."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monai_unet.datasets import prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BUNDLE = Path(__file__).parents[2] / "bundles" / "em_membrane_segmentation"
CONFIGS = [str(BUNDLE / "configs" / name) for name in ("train.yaml", "multi_gpu_train.yaml")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare("em_phantom", output=tmp_path_factory.mktemp("phantom")).parent


@contextmanager
def training(data: Path, folder: Path, *arguments: str, processes: int = 1) -> Iterator[subprocess.Popen]:
    """The bundle's training as a user types it, 3 epochs of 20 steps; its output goes to ``said.txt``."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", CONFIGS[0]]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += ["-m", "monai.bundle", "run", "--config_file", str(CONFIGS)]
    options = {
        "bundle_root": BUNDLE,
        "dataset_dir": data,
        "output_dir": folder / "out",
        "features": "[2, 3, 4]",
        "tile_size": 100,
        "max_epochs": 3,
        "steps_per_epoch": 20,
        "val_interval": 3,
        "device": "cpu",
    }
    if processes > 1:
        del options["device"]  # each process has its own
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "said.txt").open("a") as said:
        process = subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(file: Path, process: subprocess.Popen) -> None:
    while not file.exists():
        assert process.poll() is None, "it ended too early"
        time.sleep(0.05)


def store(folder: Path, question: str) -> list[tuple]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return list(database.execute(question))


def test_the_bundle_is_stopped_and_continued_on_the_command_line(data, tmp_path):
    with training(data, tmp_path, "--resume", "auto") as process:
        wait_for(tmp_path / "out" / "checkpoints" / "step_00000020.pt", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    said = (tmp_path / "said.txt").read_text()
    assert "the state is saved, --resume true continues" in said
    assert "Traceback" not in said
    assert store(tmp_path, "select status from runs") == [("KILLED",)]
    with training(data, tmp_path, "--resume", "true") as process:
        assert process.wait() == 0
    assert store(tmp_path, "select status from runs") == [("FINISHED",)]
    steps = [step for (step,) in store(tmp_path, "select step from metrics where key = 'Loss' order by step")]
    assert steps == list(range(1, 61))  # none lost, none repeated


def rank_of(process: Path) -> str | None:
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((entry[5:].decode() for entry in environment if entry.startswith(b"RANK=")), None)


def test_a_dead_process_ends_the_others_within_a_minute(data, tmp_path):
    with training(data, tmp_path, processes=2) as agent:
        wait_for(tmp_path / "out" / "checkpoints" / "step_00000020.pt", agent)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        ranks = {rank_of(Path("/proc") / child): int(child) for child in children}
        os.kill(ranks["1"], signal.SIGKILL)
        start = time.monotonic()
        assert agent.wait(60) != 0
        assert not Path(f"/proc/{ranks['0']}").exists()
        print(f"all ended {time.monotonic() - start:.1f} s after the death of one")
    said = (tmp_path / "said.txt").read_text()
    assert "Signal 9 (SIGKILL)" in said
    assert "another process of this training run has died" in said
    assert store(tmp_path, "select status from runs") == [("FAILED",)]
    with training(data, tmp_path, "--resume", "true", processes=2) as agent:
        assert agent.wait() == 0
    assert store(tmp_path, "select status from runs") == [("FINISHED",)]
    steps = {step for (step,) in store(tmp_path, "select step from metrics where key = 'Loss'")}
    assert steps == set(range(1, 61))
