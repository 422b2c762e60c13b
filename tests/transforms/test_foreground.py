"""Tiles around foreground: each class, however small, has as many voxels in the list as any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_unet.transforms import ForegroundVoxels, ForegroundVoxelsd


@pytest.mark.parametrize("size", [(23, 31), (9, 10, 11)])
def test_each_class_has_as_many_voxels_all_of_them_its_own(size: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 4, 70000], p=[0.7, 0.25, 0.04, 0.01], size=(1, *size))
    voxels = ForegroundVoxels(samples=6)(torch.as_tensor(labels))
    assert voxels.shape == (18, len(size))
    assert labels[0][tuple(voxels.T)].tolist() == [1] * 6 + [4] * 6 + [70000] * 6
    first, *_, last = np.argwhere(labels[0] == 1)
    assert np.array_equal(voxels[[0, 5]], [first, last])


def test_without_foreground_there_is_none() -> None:
    assert ForegroundVoxels()(np.zeros((1, 4, 5), np.uint8)).shape == (0, 2)
    assert ForegroundVoxels()(np.ones((1, 4, 5)), ignore=np.ones((1, 4, 5))).shape == (0, 2)


def test_labelled_background_counts_where_parts_are_not_labelled() -> None:
    item = {"label": np.array([[[0, 0, 3, 3]]]), "ignore": np.array([[[255, 0, 0, 255]]])}
    find = ForegroundVoxelsd("label", output_key="voxels", ignore_key="ignore", samples=1)
    assert find(item)["voxels"].tolist() == [[0, 1], [0, 2]]
    assert find({**item, "ignore": np.zeros((1, 1, 4))})["voxels"].tolist() == [[0, 2]]


def test_at_least_one_sample() -> None:
    with pytest.raises(ValueError, match="samples is 0; use at least 1 voxel per class"):
        ForegroundVoxels(samples=0)
