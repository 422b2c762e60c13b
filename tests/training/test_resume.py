"""A training run that is interrupted and resumed equals the uninterrupted one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import Dataset
from monai.transforms import Compose, RandScaleIntensityd
from platforms import POSIX
from tiny_training import train

from monai_unet.data import InputError
from monai_unet.networks import load_task
from monai_unet.training import Checkpoints, SeededDataset, SeededSampler, TrainingStopped

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def interrupt(number: int = signal.SIGTERM, at: int = 0):
    """Ask this process to stop in step ``at``, as a scheduler or the user would."""

    def on_step(engine):
        if engine.state.iteration == at:
            signal.raise_signal(number)

    return on_step


def stopped(folder: Path, at: int, **kwargs) -> dict[int, float]:
    with pytest.raises(TrainingStopped, match=f"after step {at}; the state is saved, --resume true") as error:
        train(folder, on_step=interrupt(at=at), **kwargs)
    assert list(error.value.curve)[-1] == at
    return error.value.curve


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "step_00000012.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[int, float]]:
    folder = tmp_path_factory.mktemp("whole")
    curve = train(folder)
    assert list(curve) == list(range(1, 13))
    assert len(set(curve.values())) == 12
    return folder, curve


# in mid-epoch, at an epoch's end before its validation, in the last step
@pytest.mark.parametrize("at", [1, 3, 4, 6, 8, 12])
def test_stopped_anywhere_it_continues_bit_for_bit(at, whole, tmp_path):
    folder, curve = whole
    first = stopped(tmp_path, at)
    second = train(tmp_path, resume=True)
    assert {**first, **second} == curve
    assert list(second) == list(range(at + 1, 13))  # nothing is lost or repeated
    before, after = last(folder), last(tmp_path)
    assert all(torch.equal(before["network"][name], after["network"][name]) for name in before["network"])
    assert before["best"] == after["best"]
    kept = load_task(tmp_path / "model.pt")["trained"]
    whole_kept = load_task(folder / "model.pt")["trained"]
    assert [kept[name] for name in ("seed", "steps", "epochs")] == [whole_kept[n] for n in ("seed", "steps", "epochs")]
    assert kept["seed"] == 5
    assert kept["steps"] == 4 * kept["epochs"]


def test_the_time_before_an_interruption_counts(tmp_path):
    stopped(tmp_path, 4)
    (newest,) = (tmp_path / "checkpoints").glob("step_*4.pt")
    content = torch.load(newest, weights_only=True)
    assert 0 < content["seconds"] < 60
    torch.save({**content, "seconds": 1000.0}, newest)
    train(tmp_path, resume=True)
    assert last(tmp_path)["seconds"] > 1000


def test_with_two_workers_and_other_validations_the_curve_is_the_same(whole, tmp_path):
    first = stopped(tmp_path, 6, workers=2)
    second = train(tmp_path, workers=2, val_interval=3, resume="auto")
    assert {**first, **second} == whole[1]


@POSIX
def test_a_signal_to_all_processes_of_a_job_leaves_the_workers_at_work(whole, tmp_path):
    def fault(engine):
        if engine.state.iteration == 6:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGTERM)
            time.sleep(0.5)  # a worker that has died breaks the run now
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingStopped, match="SIGTERM after step 6") as error:
        train(tmp_path, workers=2, on_step=fault)
    assert error.value.code == 143
    assert {**error.value.curve, **train(tmp_path, resume=True)} == whole[1]


def test_stopped_in_a_validation_it_validates_again(whole, tmp_path):
    validations = []

    def on_validation(engine):
        validations.append((engine.state.epoch, engine.state.best_metric_epoch))
        if len(validations) == 3:  # the second epoch's first image
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingStopped, match="SIGINT after step 8"):
        train(tmp_path, on_validation=on_validation)
    train(tmp_path, resume="true", on_validation=on_validation)
    assert last(whole[0])["best"] == last(tmp_path)["best"]
    assert [epoch for epoch, _ in validations] == [1, 1, 2, 2, 2, 3, 3]
    assert validations[3] == (2, 1)  # what MONAI's evaluator logs as the best so far


def test_global_random_numbers_leave_no_trace(whole, tmp_path):
    def draw(engine):
        random.seed(engine.state.iteration)
        np.random.seed(engine.state.iteration)  # noqa: NPY002
        torch.manual_seed(engine.state.iteration)

    assert train(tmp_path, on_step=draw, on_validation=draw) == whole[1]


def test_a_checkpoint_with_the_fields_of_earlier_versions_is_resumed(whole, tmp_path):
    first = stopped(tmp_path, 6)
    path = tmp_path / "checkpoints" / "step_00000006.pt"
    content = torch.load(path, weights_only=True)
    content["rng"] = {"torch": torch.get_rng_state()}
    content["validator"] = {"best_metric": 0.5, "best_metric_epoch": 1}
    content["best"]["history"] = [(1, 0.5)]
    torch.save(content, path)
    assert {**first, **train(tmp_path, resume=True)} == whole[1]


def test_signal_handlers_are_restored(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stopped(tmp_path, 2)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# --- where to resume from ---


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["network"]["head.weight"].numpy().tobytes()
    content[content.index(weight)] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch itself does not notice


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [_flip_a_bit, _cut])
def test_a_corrupt_newest_checkpoint_is_skipped_with_a_warning(spoil, whole, tmp_path, caplog):
    first = stopped(tmp_path, 10)  # after the checkpoints of the steps 4 and 8
    spoil(tmp_path / "checkpoints" / "step_00000010.pt")
    second = train(tmp_path, resume=True)
    assert "step_00000010.pt is corrupt and skipped" in caplog.text
    assert list(second) == [9, 10, 11, 12]
    assert {**first, **second} == whole[1]
    assert all(first[step] == second[step] for step in (9, 10))


@pytest.mark.parametrize("resume", ["true", "auto"])
def test_only_corrupt_checkpoints_are_an_error(resume, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (4, 8):
        (folder / f"step_{step:08d}.pt").write_bytes(b"half a file")
    with pytest.raises(InputError, match="none of its 2 checkpoints can be read. Remove the folder to train"):
        train(tmp_path, resume=resume)


def test_nothing_to_resume_is_an_error_when_asked_for_and_a_start_when_automatic(whole, tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint to resume from. Name the --output_dir of"):
        train(tmp_path, resume="True")
    assert train(tmp_path, resume="auto") == whole[1]


def test_resuming_a_complete_run_does_nothing(whole, tmp_path):
    train(tmp_path)
    before = files(tmp_path)
    assert train(tmp_path, resume="auto") == {}
    assert files(tmp_path) == before


def test_a_new_run_keeps_each_previous_one_with_its_model(tmp_path):
    stopped(tmp_path, 6)
    former, model = files(tmp_path), (tmp_path / "model.pt").read_bytes()
    stopped(tmp_path, 2)
    assert files(tmp_path) == ["step_00000000.pt", "step_00000002.pt"]
    first = tmp_path / "previous_1"
    assert files(first) == former
    assert (first / "model.pt").read_bytes() == (tmp_path / "model.pt").read_bytes() == model  # none better so far
    train(tmp_path, learning_rate=0.02)
    assert files(tmp_path / "previous_2") == ["step_00000000.pt", "step_00000002.pt"]
    assert (tmp_path / "model.pt").read_bytes() != model
    assert (first / "model.pt").read_bytes() == model


@pytest.mark.parametrize("resume", [False, "auto"])
def test_a_model_without_checkpoints_is_kept_too(resume, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"the bundle's own")
    train(tmp_path, epochs=1, resume=resume)
    assert (tmp_path / "previous_1" / "model.pt").read_bytes() == b"the bundle's own"
    train(tmp_path, epochs=2, resume="auto")
    assert not (tmp_path / "previous_2").exists()


def test_what_a_killed_save_left_is_removed(tmp_path):
    stopped(tmp_path, 6)
    for name in ("checkpoints/.step_00000007.123.partial.pt", ".model.123.partial.pt"):
        (tmp_path / name).write_bytes(b"half")
    train(tmp_path, resume=True)
    assert not list(tmp_path.rglob(".*.partial*"))


def test_the_last_two_and_the_best_are_kept(tmp_path, monkeypatch):
    values = iter([0.5, 0.2, 0.4, 0.3, 0.6])
    monkeypatch.setattr("monai_unet.training.checkpoints.float", lambda value: next(values), raising=False)
    train(tmp_path, epochs=5, steps=2)
    assert files(tmp_path) == ["step_00000004.pt", "step_00000008.pt", "step_00000010.pt"]
    best = torch.load(tmp_path / "checkpoints" / "step_00000010.pt", weights_only=True)["best"]
    assert best == {"best": 0.2, "epoch": 2, "file": "step_00000004.pt"}
    chosen = torch.load(tmp_path / "checkpoints" / "step_00000004.pt", weights_only=True)["network"]
    published = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(chosen[name], published[name]) for name in published)


def test_a_checkpoint_every_other_epoch_at_the_best_and_at_the_end(tmp_path, monkeypatch):
    values = iter([0.5, 0.6, 0.4, 0.5, 0.6])
    written = []
    monkeypatch.setattr("monai_unet.training.checkpoints.float", lambda value: next(values), raising=False)
    save = Checkpoints.save

    def noted(self, epoch_ended):
        written.append(self.trainer.state.epoch)
        save(self, epoch_ended)

    monkeypatch.setattr(Checkpoints, "save", noted)
    train(tmp_path, epochs=5, steps=1, interval=2)
    assert written == [0, 1, 2, 3, 4, 5]  # the third is the best
    written.clear()
    values = iter([0.5, 0.6, 0.7, 0.8, 0.9])
    train(tmp_path, epochs=5, steps=1, interval=2)
    assert written == [0, 1, 2, 4, 5]


def test_a_long_epoch_is_saved_before_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_unet.training.checkpoints.SAVE_EVERY_SECONDS", 0)
    train(tmp_path, epochs=1, steps=4)
    assert files(tmp_path) == ["step_00000003.pt", "step_00000004.pt"]


# --- changed hyperparameters ---


def learning_rates(folder: Path, **kwargs) -> dict[int, float]:
    rates = {}

    def on_step(engine):
        rates[engine.state.iteration] = engine.optimizer.param_groups[0]["lr"]

    train(folder, on_step=on_step, **kwargs)
    return rates


def test_a_changed_hyperparameter_is_refused_unless_allowed(whole, tmp_path, caplog):
    stopped(tmp_path, 6)
    with pytest.raises(
        InputError,
        match=r"have changed since it was written \(learning_rate: 0.01 → 0.05\). Set them back, or continue "
        "with --resume_changed true",
    ):
        train(tmp_path, learning_rate=0.05, resume=True)
    rates = learning_rates(tmp_path, learning_rate=0.05, resume=True, resume_changed="true")
    assert "changed on resuming: learning_rate: 0.01 → 0.05" in caplog.text
    # after the scheduler's step, on the new cosine as if it had been followed from the start
    expected = {step: 0.05 * (1 + np.cos(np.pi * step / 12)) / 2 for step in range(7, 13)}
    assert rates == pytest.approx(expected)
    assert last(tmp_path)["changes"] == ["step 6: learning_rate: 0.01 → 0.05"]
    assert last(tmp_path)["parameters"]["learning_rate"] == 0.05


def test_a_longer_run_is_always_accepted_and_follows_the_longer_cosine(tmp_path, caplog):
    train(tmp_path, epochs=2)
    rates = learning_rates(tmp_path, epochs=4, resume=True)
    assert "changed on resuming: max_epochs: 2 → 4" in caplog.text
    assert rates == pytest.approx({s: 0.01 * (1 + np.cos(np.pi * s / 16)) / 2 for s in range(9, 17)}, abs=1e-12)


def test_another_optimizer_starts_afresh_when_allowed(tmp_path, caplog):
    stopped(tmp_path, 6)
    curve = train(tmp_path, optimizer=torch.optim.SGD, resume=True, resume_changed=True)
    assert "the checkpoint's optimizer is of another kind: its state is not used" in caplog.text
    assert list(curve) == list(range(7, 13))


def test_another_network_is_an_error_even_when_allowed(tmp_path):
    stopped(tmp_path, 6)
    with pytest.raises(InputError, match="it holds another network"):
        train(tmp_path, features=(2, 3, 5), resume=True, resume_changed=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"resume": "yes"}, "resume is 'yes'; it must be true, auto or false"),
        ({"resume_changed": "auto"}, "resume_changed is 'auto'; it must be true or false"),
    ],
)
def test_other_words_are_refused(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **kwargs)


# --- the run in MLflow ---


class Run:
    """The part of `Tracking` that `Checkpoints` uses."""

    def __init__(self) -> None:
        self.run_id = "run-7"
        self.resumed: list[str] = []

    def resume(self, run_id: str) -> None:
        self.resumed.append(run_id)


def test_the_run_is_continued(tmp_path):
    stopped(tmp_path, 6, tracking=Run())
    run = Run()
    train(tmp_path, tracking=run, resume=True)
    assert run.resumed == ["run-7"]


# --- the draws ---


def test_two_processes_share_the_draws_of_one(monkeypatch):
    alone = SeededSampler(range(10), 6, seed=1).draws(3)
    assert len(alone) == 6
    shares = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        shares.append(SeededSampler(range(10), 3, seed=1).draws(3))
    assert [draw for pair in zip(*shares, strict=True) for draw in pair] == alone


def test_draws_differ_between_epochs_and_seeds_and_are_uniform():
    sampler = SeededSampler(range(5), 2000, seed=1)
    assert sampler.draws(1) != sampler.draws(2)
    assert sampler.draws(1) != SeededSampler(range(5), 2000, seed=2).draws(1)
    indices, seeds = zip(*sampler.draws(1), strict=True)
    assert np.bincount(indices).min() > 320  # 400 expected, 4.5 standard deviations
    assert len(set(seeds)) == 2000


def test_weights_say_how_often_an_item_is_drawn():
    sampler = SeededSampler(range(4), 3000, seed=1, weights=[1, 0, 3, 1])
    counts = np.bincount([index for index, _ in sampler.draws(1)], minlength=4)
    assert counts[1] == 0
    assert counts.tolist() == pytest.approx([600, 0, 1800, 600], abs=120)  # 4.5 standard deviations
    assert sampler.draws(1) != sampler.draws(2)


@pytest.mark.parametrize("weights", [[1, 1], [0, 0, 0], [1, -1, 1], [1, float("nan"), 1]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights are \[.*\]; use 3 numbers of at least 0, not all 0"):
        SeededSampler(range(3), 4, seed=1, weights=weights)


def test_an_item_depends_on_its_draw_alone():
    data = [{"image": torch.ones(1, 2)}, {"image": torch.full((1, 2), 2.0)}]
    dataset = SeededDataset(Dataset(data, Compose([RandScaleIntensityd("image", 0.5, prob=1.0)])))
    first = dataset[1, 7]["image"]
    assert not torch.equal(first, dataset[1, 8]["image"])
    assert torch.equal(first, dataset[1, 7]["image"])
    assert torch.allclose(first, 2 * dataset[0, 7]["image"])


@pytest.mark.parametrize(("samples", "seed"), [(0, 1), (1, -1)])
def test_impossible_samplers_are_refused(samples, seed):
    with pytest.raises(ValueError, match=f"seed is {seed} and num_samples {samples}; use a seed >= 0 and num_samples"):
        SeededSampler(range(3), samples, seed)
