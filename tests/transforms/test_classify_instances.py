"""The class of an object: object by object, and where numbers end."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_unet.object_classes import class_of
from monai_unet.transforms import classify_instances


def test_equals_the_mean_of_each_object():
    rng = np.random.default_rng(0)
    ids, probabilities = rng.integers(0, 30, (1, 20, 30)), rng.random((3, 20, 30))
    named = classify_instances(ids, probabilities)
    for number in range(1, 30):
        own = ids[0] == number
        best = int(np.argmax([channel[own].mean() for channel in probabilities])) + 1
        assert set(named[0][own]) == {(number - 1) * 3 + best}
        assert set(class_of(named[0][own], 3)) == {best}
    assert np.array_equal(named == 0, ids == 0)


def test_of_equal_classes_the_first_and_metadata_stay():
    ids = MetaTensor(torch.tensor([[[1, 0, 2]]]), meta={"filename_or_obj": "a.tif"})
    named = classify_instances(ids, torch.full((2, 1, 3), 0.5))
    assert isinstance(named, MetaTensor)
    assert (named.tolist(), named.meta["filename_or_obj"]) == ([[[1, 0, 3]]], "a.tif")
    assert classify_instances(np.zeros((1, 2, 2), int), np.ones((2, 2, 2))).max() == 0


def test_many_objects_take_a_wider_type():
    ids = np.arange(40_001)[None, None]
    assert classify_instances(ids, np.ones((1, 1, 40_001))).dtype == np.uint16
    named = classify_instances(ids, np.stack([np.zeros((1, 40_001)), np.ones((1, 40_001))]))
    assert (named.dtype, named.max()) == (np.int32, 80_000)


def test_another_shape_is_refused():
    message = "the ids have shape (2, 2), the probabilities of a class (2, 3)"
    with pytest.raises(ValueError, match=re.escape(message)):
        classify_instances(np.ones((1, 2, 2), int), np.ones((2, 2, 3)))
