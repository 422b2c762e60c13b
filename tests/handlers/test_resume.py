"""A training that is interrupted and continued is the training that was not interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_training import train

from monai_unet.handlers import TrainingStopped

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def interrupt(number: int = signal.SIGTERM, at: int = 0):
    """Asks this process to stop in step ``at``, as a scheduler or the user would."""

    def on_step(engine):
        if engine.state.iteration == at:
            os.kill(os.getpid(), number)

    return on_step


def stopped(folder: Path, at: int, **kwargs) -> dict[int, float]:
    with pytest.raises(TrainingStopped, match=f"after step {at}; the state is saved, --resume true") as error:
        train(folder, on_step=interrupt(at=at), **kwargs)
    assert list(error.value.curve)[-1] == at
    return error.value.curve


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)["network"]


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
    assert list(second) == list(range(at + 1, 13))  # nothing was lost, nothing done twice
    before, after = (torch.load(f / "checkpoints" / "step_00000012.pt", weights_only=True) for f in (folder, tmp_path))
    assert all(torch.equal(before["network"][name], after["network"][name]) for name in before["network"])
    assert before["best"] == after["best"]
    assert (folder / "model.pt").exists()


def test_with_two_workers_and_other_validations_the_curve_is_the_same(whole, tmp_path):
    first = stopped(tmp_path, 6, workers=2)
    second = train(tmp_path, workers=2, val_interval=3, resume="auto")
    assert {**first, **second} == whole[1]


def test_stopped_in_a_validation_it_validates_again(whole, tmp_path):
    def on_validation(engine):
        if engine.state.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped, match="SIGINT after step 8"):
        train(tmp_path, on_validation=on_validation)
    train(tmp_path, resume="true")
    histories = [
        torch.load(f / "checkpoints" / "step_00000012.pt", weights_only=True)["best"] for f in (whole[0], tmp_path)
    ]
    assert histories[0] == histories[1]
    assert [epoch for epoch, _ in histories[1]["history"]] == [1, 2, 3]


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stopped(tmp_path, 2)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
