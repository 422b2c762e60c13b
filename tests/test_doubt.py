"""The doubt about a mask: closed forms, empty masks, and a Monte Carlo experiment that the number must predict."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_unet.doubt import doubt, temper
from monai_unet.metrics.calibration import Bin, calibration_error, fit_temperature, reliability
from monai_unet.transforms import Doubtd


def test_the_number_is_the_share_of_wrong_pixels_that_calibrated_probabilities_lead_to() -> None:
    """Truth is drawn from the probabilities; two objects, the smaller of which is surer."""
    random = np.random.default_rng(0)
    ids = np.repeat([0, 7, 300], [40_000, 20_000, 60_000]).reshape(200, 600)
    probability = np.where(ids == 7, random.uniform(0.8, 1, ids.shape), random.uniform(0.5, 1, ids.shape))
    truth = random.random(ids.shape) < probability
    found = doubt(ids, probability, {"threshold": 0.2, "object_threshold": 0.2})
    assert found.image == pytest.approx((~truth[ids > 0]).mean(), abs=0.005)
    assert found.objects == pytest.approx({7: 0.1, 300: 0.25}, abs=0.005)
    assert (found.look, found.objects_look) == (True, {7: False, 300: True})
    assert doubt(ids, probability, {"threshold": 0.22}).look is False
    sizes = {name: (ids == name).mean() for name in found.objects}
    assert found.image == pytest.approx(sum(found.objects[n] * size for n, size in sizes.items()) / sum(sizes.values()))


def test_masks_without_anything_and_without_a_rule() -> None:
    nothing = doubt(np.zeros((4, 5)), np.full((4, 5), 0.3), {"threshold": 0.9})
    assert (nothing.image, nothing.look, nothing.objects) == (1.0, True, {})
    sure = doubt(np.ones((1, 3, 4, 5), np.uint8), np.ones((1, 3, 4, 5), np.float32))
    assert sure.image == pytest.approx(0, abs=1e-6)
    assert (sure.look, sure.objects_look, sure.text) == (None, {1: None}, "doubt 0.00")
    with pytest.raises(ValueError, match=re.escape("the mask has shape (2, 3), the probability (3, 2)")):
        doubt(np.ones((2, 3)), np.ones((3, 2)))


def test_the_doubt_travels_with_the_mask_and_leaves_it_alone() -> None:
    mask = MetaTensor(torch.tensor([[[0, 2], [1, 1]]]), meta={"filename_or_obj": "a.tif"})
    item = Doubtd("pred", rule={"temperature": 2.0})({"pred": mask, "probability": torch.full((1, 2, 2), 0.9)})
    assert torch.equal(item["pred"], mask)
    assert item["pred"].meta["doubt"] is item["doubt"]
    assert item["doubt"].objects == pytest.approx({1: 0.25, 2: 0.25}), "at temperature 2, odds of 9 become 3"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_again_and_calibrates(temperature: float) -> None:
    """Truth drawn from probabilities whose logits have then been multiplied."""
    random = np.random.default_rng(1)
    true = random.beta(0.5, 0.5, 200_000)
    truth = random.random(len(true)) < true
    stated = temper(true, 1 / temperature)
    assert fit_temperature(stated, truth) == pytest.approx(temperature, rel=0.02)
    before, after = (calibration_error(reliability(temper(stated, t), truth)) for t in (1, temperature))
    assert after < 0.005
    assert temperature == 1 or before > 5 * after


def test_reliability_and_error_as_a_loop_finds_them() -> None:
    random = np.random.default_rng(2)
    probability, truth = np.append(random.random(500), [0, 1, 0.5]), np.append(random.random(500) < 0.3, [1, 0, 1]) > 0
    bins, error = reliability(probability, truth), 0.0
    for number in range(10):
        inside = [i for i, p in enumerate(probability) if number <= 10 * p < number + 1 or (number == 9 and p == 1)]
        predicted, found = (sum(float(values[i]) for i in inside) / len(inside) for values in (probability, truth))
        assert bins[number] == pytest.approx(Bin(len(inside), predicted, found))
        error += len(inside) / len(probability) * abs(predicted - found)
    assert calibration_error(bins) == pytest.approx(error)


def test_a_temperature_of_perfect_and_of_hopeless_probabilities_stays_in_its_bounds() -> None:
    sure = np.array([1e-9, 1 - 1e-9, 0.2, 0.8])
    assert fit_temperature(sure, sure > 0.5) == pytest.approx(0.1, rel=0.01)
    assert fit_temperature(sure, sure < 0.5) == pytest.approx(10, rel=0.01)
