"""Ids that say the class: by hand, and back from them to the files that they were joined from."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from monai_unet.errors import InputError
from monai_unet.object_classes import class_of, join_classes


def test_classes_by_hand():
    assert [class_of(number, 3) for number in range(8)] == [0, 1, 2, 3, 1, 2, 3, 1]
    assert class_of(np.array([0, 200, 255], np.uint8), 2).tolist() == [0, 2, 1], "0 - 1 wraps in unsigned integers"
    assert class_of(torch.tensor([0, 5, 6]), 2).tolist() == [0, 1, 2]
    assert class_of(np.array([0, 7, 10**9]), 1).tolist() == [0, 1, 1]


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("as_type", [np.asarray, torch.as_tensor])
def test_joined_labels_come_apart_again(classes, as_type):
    rng = np.random.default_rng(classes)
    owner, ids = rng.integers(0, classes + 1, (20, 30)), rng.integers(1, 40, (20, 30))
    labels = np.stack([np.where(owner == c, ids, 0) for c in range(1, classes + 1)])
    joined = np.asarray(join_classes(as_type(labels)))
    assert joined.shape == (1, 20, 30)
    for c in range(1, classes + 1):
        own = class_of(joined[0], classes) == c
        assert np.array_equal(own, owner == c)
        assert np.array_equal(np.where(own, (joined[0] - 1) // classes + 1, 0), labels[c - 1])


def test_a_pixel_of_two_classes_is_refused():
    labels = np.array([[[1, 1, 0]], [[0, 2, 2]]])
    message = (
        "a.tif and b.tif: pixels that belong to objects of two classes: 1. Take each of them away from one of the two"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        join_classes(labels, ("a.tif", "b.tif"))
