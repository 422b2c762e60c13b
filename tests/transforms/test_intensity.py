"""Gray values page by page: in a stack as alone, whatever a few pixels hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import ClipIntensityPercentiles, NormalizeIntensity

from monai_unet.transforms import NormalizePages, NormalizePagesd, NormalizeVolumed

IMAGE = np.random.default_rng(0).normal(100, 20, (1, 64, 80)).astype(np.float32)


def test_a_slice_has_the_same_values_in_a_stack_as_alone():
    stack = np.stack([IMAGE * fading + 9 * fading for fading in (1, 0.5, 0.1)], axis=1)
    pages = NormalizePages()(stack)
    for page in range(3):
        assert np.array_equal(pages[:, page], NormalizePages()(stack[:, page]))
        np.testing.assert_allclose(pages[:, page], pages[:, 0], atol=1e-3)


@pytest.mark.parametrize("hot", [255, 65535, 3e38, -3e38])
def test_hot_pixels_hardly_change_the_others(hot):
    spoilt = IMAGE.copy()
    spoilt[0, 9, 70:75] = hot  # a thousandth of the image
    good, other = NormalizePages()(IMAGE), NormalizePages()(spoilt)
    change = np.abs(good - other)[spoilt == IMAGE]
    assert change.max() < 1, "at the clipped end"
    assert change[np.abs(good[spoilt == IMAGE]) < 2].max() < 0.05
    assert np.isfinite(other).all()


def test_a_clean_image_is_as_before():
    before = np.asarray(NormalizeIntensity()(IMAGE))
    assert np.abs(NormalizePages()(IMAGE) - before)[np.abs(before) < 2.5].max() < 0.02


def test_each_channel_counts_for_itself_and_a_page_of_one_value_is_0():
    image = np.concatenate([IMAGE, 1000 * IMAGE, np.full_like(IMAGE, 7)])
    red, green, blank = NormalizePages()(image)
    np.testing.assert_allclose(red, green, atol=1e-4)
    assert not blank.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64])
def test_a_tensor_keeps_its_kind_and_its_metadata(dtype):
    image = MetaTensor(torch.from_numpy(IMAGE).to(dtype), meta={"pixel_size_um": [1, 2]})
    found = NormalizePagesd(["image", "none"], allow_missing_keys=True)({"image": image})["image"]
    assert (found.dtype, found.shape) == (torch.float32, image.shape)
    assert found.meta["pixel_size_um"] == [1, 2]


def test_padding_does_not_count_in_a_volume():
    """Whatever share of it is padding, resampled or not: the others have the values that they have without it."""
    volume = np.random.default_rng(1).normal(100, 20, (2, 12, 10, 8)).astype(np.float32)
    alone = NormalizeVolumed("image")({"image": volume})["image"]
    low = volume.min()
    padded = np.pad(volume, ((0, 0), (0, 9), (0, 0), (0, 0)), constant_values=low - 1)
    padded[:, 12] = low - 0.7  # half-way to the padding, as interpolation leaves it
    image = MetaTensor(torch.from_numpy(padded), meta={"padding": low - 0.5})
    found = NormalizeVolumed("image")({"image": image})["image"]
    np.testing.assert_allclose(found[:, :12], alone, atol=1e-5)
    assert torch.equal(found[:, 12:].amax((1, 2, 3)), found[:, :12].amin((1, 2, 3)))
    assert found.meta["padding"] == image.meta["padding"]


def test_a_volume_without_padding_is_nearly_as_with_monai():
    volume = np.random.default_rng(2).normal(100, 20, (1, 20, 30, 40)).astype(np.float32)
    monai = NormalizeIntensity()(ClipIntensityPercentiles(0.1, 99.9, channel_wise=True)(volume))
    np.testing.assert_allclose(NormalizeVolumed("image")({"image": volume})["image"], np.asarray(monai), atol=0.02)
