"""The minutes of a plan: what steps cost, and how many of them and of validations fit."""

from __future__ import annotations

import pytest
import torch

from monai_unet.bundles import cost
from monai_unet.bundles.cost import Cost, measure_cost, step_seconds
from monai_unet.bundles.decide import _schedule
from monai_unet.networks import ValidUNet


@pytest.mark.parametrize("minutes", [2, 5, 15, 60, 600])
@pytest.mark.parametrize("validation", [0, 0.5, 23, 180])
def test_training_and_validations_fit_into_the_minutes_and_the_last_epoch_is_validated(minutes, validation):
    found = _schedule(Cost(seconds=1, augmentation=0.25, validation=validation, bytes=0, device="cpu"), minutes)
    epochs, each, interval = (found[key].value for key in ("max_epochs", "steps_per_epoch", "val_interval"))
    validations, rest = divmod(epochs, interval)
    assert rest == 0
    assert 1 <= validations <= 10
    assert validations == 1 or validations * validation <= 0.2 * 60 * minutes
    expected = 60 * minutes - validations * validation
    if expected > 100:
        assert epochs * each * 1.25 == pytest.approx(expected, rel=0.1)


def test_slow_validations_leave_the_time_to_the_training():
    # 27 volumes take 23 s, ten times 3.8 of 5 minutes
    found = _schedule(Cost(seconds=1, augmentation=0, validation=23, bytes=0, device="cpu"), minutes=5)
    assert found["max_epochs"].value == 2 * found["val_interval"].value
    assert found["max_epochs"].value * found["steps_per_epoch"].value >= 240


def test_a_step_is_measured_with_all_its_tiles(monkeypatch):
    network, seen = ValidUNet(2, 1, 2, features=(2, 4)), []
    network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    step_seconds(network, (44, 44), torch.device("cpu"), batch=2)
    assert set(seen) == {(2, 1, 44, 44)}
    monkeypatch.setattr(cost, "_seconds", lambda work, _: (work(), 0.25)[1])
    found = measure_cost(network, (28, 28), (60, 60), 3, torch.device("cpu"), batch=2)
    assert (found.seconds, found.augmentation, found.validation) == (0.25, 2 * 0.25, 3 * 0.25)
