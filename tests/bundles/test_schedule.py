"""The minutes of a plan: steps and validations that fit into them."""

from __future__ import annotations

import pytest

from monai_unet.bundles.cost import Cost
from monai_unet.bundles.decide import _schedule


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
