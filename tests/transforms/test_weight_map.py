"""Eq. 2, against hand-computed values and one whole-image distance transform per object."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy import ndimage

from monai_unet.transforms import BorderWeightMap, BorderWeightMapd, SeparateInstancesd


def brute_force(ids: np.ndarray, w0: float = 10.0, sigma: float = 5.0, spacing=None) -> np.ndarray:
    """Slow oracle of the border term: whole-image transforms, all of them kept, sorted per voxel."""
    objects = [n for n in np.unique(ids) if n]
    if len(objects) < 2:
        return np.zeros(ids.shape)
    distances = [ndimage.distance_transform_edt(ids != n, sampling=spacing) for n in objects]
    d1, d2 = np.sort(distances, axis=0)[:2]
    return w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))


def discs(size: int, per_side: int, seed: int = 0) -> np.ndarray:
    """per_side² discs on a jittered lattice: (1, size, size)."""
    rng = np.random.default_rng(seed)
    ids, step = np.zeros((1, size, size), dtype=np.int32), size / per_side
    rows, columns = np.ogrid[:size, :size]
    for number in range(per_side**2):
        row, column = (np.array(divmod(number, per_side)) + 0.5 + rng.uniform(-0.2, 0.2, 2)) * step
        ids[0][(rows - row) ** 2 + (columns - column) ** 2 < (rng.uniform(0.2, 0.5) * step) ** 2] = number + 1
    return ids


def test_by_hand_two_voxels_in_a_row() -> None:
    ids = np.array([[[1, 0, 0, 0, 2, 0]]])
    out = BorderWeightMap(w0=10, sigma=5, class_weights=None)(ids)
    sums = [0 + 4, 1 + 3, 2 + 2, 3 + 1, 4 + 0, 5 + 1]  # d1 + d2, foreground included
    np.testing.assert_allclose(out[0, 0], [1 + 10 * math.exp(-(s**2) / 50) for s in sums], rtol=1e-6)
    assert out.dtype == np.float32


def test_second_nearest_object_not_second_nearest_voxel() -> None:
    ids = np.array([[[1, 1, 0, 0, 0, 2]]])
    out = BorderWeightMap(w0=1, sigma=5, class_weights=(0, 0))(ids)
    assert out[0, 0, 2] == pytest.approx(math.exp(-((1 + 3) ** 2) / 50))


def test_class_weights() -> None:
    ids = np.array([[[1, 0, 0, 0], [0, 0, 0, 0]]])  # one object: no border term
    np.testing.assert_allclose(BorderWeightMap()(ids), np.where(ids, 8 / 2, 8 / 14), rtol=1e-6)
    np.testing.assert_array_equal(BorderWeightMap(class_weights=(0.5, 3))(ids), np.where(ids, 3, 0.5))
    np.testing.assert_array_equal(BorderWeightMap(class_weights=None)(ids), np.ones(ids.shape))


def test_w0_zero_leaves_the_class_weights() -> None:
    ids = discs(64, 3)
    out = BorderWeightMap(w0=0)(ids)
    assert set(np.unique(out)) == {
        np.float32(ids.size / (2 * (ids > 0).sum())),
        np.float32(ids.size / (2 * (ids == 0).sum())),
    }


@pytest.mark.parametrize("w0", [10.0, 50.0, 1e-7])
@pytest.mark.parametrize("sigma", [0.5, 5.0, 12.0])
def test_equals_brute_force(w0: float, sigma: float) -> None:
    for seed in range(3):
        ids = discs(150, 3 + seed, seed)
        out = BorderWeightMap(w0, sigma, class_weights=(0, 0))(ids)
        np.testing.assert_allclose(out[0], brute_force(ids[0], w0, sigma), atol=1e-4, rtol=0)


def test_equals_brute_force_on_scattered_nested_and_split_objects() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 6, (1, 60, 70)) * (rng.random((1, 60, 70)) < 0.02)  # each object in many pieces
    np.testing.assert_allclose(BorderWeightMap(class_weights=(0, 0))(ids)[0], brute_force(ids[0]), atol=1e-4)
    ring = np.ones((1, 40, 40), dtype=int)
    ring[0, 10:30, 10:30] = 0
    ring[0, 18:22, 18:22] = 2
    np.testing.assert_allclose(BorderWeightMap(class_weights=(0, 0))(ring)[0], brute_force(ring[0]), atol=1e-4)


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 2.5), (0.2, 0.3, 0.7)])
def test_three_dimensions_and_spacing(spacing: tuple[float, ...] | None) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(1, 9, (1, 24, 20, 16)) * (rng.random((1, 24, 20, 16)) < 0.01)
    out = BorderWeightMap(sigma=2.0, class_weights=(0, 0), spacing=spacing)(ids)
    np.testing.assert_allclose(out[0], brute_force(ids[0], sigma=2.0, spacing=spacing), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32])
def test_only_the_partition_counts_not_the_ids(dtype: type) -> None:
    ids = discs(64, 3)
    out = BorderWeightMap()(ids)
    high = 200 if dtype == np.uint8 else 60_000 if dtype == np.uint16 else 2**24 if dtype == np.float32 else 2**31 - 100
    renamed = np.where(ids > 0, (np.int64(10) - ids) * 3 + high, 0).astype(dtype)  # gaps, large, other order
    np.testing.assert_array_equal(BorderWeightMap()(renamed), out)


def test_degenerate_images() -> None:
    empty = np.zeros((1, 5, 6), dtype=np.uint16)
    np.testing.assert_array_equal(BorderWeightMap()(empty), np.where(empty, 1, 0.5))  # the absent class has weight 1
    np.testing.assert_array_equal(BorderWeightMap()(empty + 1), np.full(empty.shape, 0.5))
    np.testing.assert_array_equal(BorderWeightMap()(empty + 2**15), np.full(empty.shape, 0.5))  # no background, sparse
    np.testing.assert_array_equal(BorderWeightMap(class_weights=None)(np.ones((1, 1, 1))), [[[1]]])
    edge = np.zeros((1, 9, 9), dtype=int)
    edge[0, 0, 0], edge[0, -1, -1] = 1, 2
    np.testing.assert_allclose(BorderWeightMap(class_weights=(0, 0))(edge)[0], brute_force(edge[0]), atol=1e-4)


def test_far_apart_ids_by_the_ten_thousand() -> None:
    ids = np.zeros((1, 260, 260), dtype=np.int64)
    ids[0, ::2, ::2] = np.arange(130 * 130).reshape(130, 130) * 120_000 + 2**31
    out = BorderWeightMap(w0=1, sigma=0.5, class_weights=(0, 0))(ids)
    # on an object 0 + 2, between two 1 + 1, in the middle of four √2 + √2
    for voxel, total in (((100, 100), 2), ((100, 101), 2), ((101, 101), 2 * math.sqrt(2))):
        assert out[0][voxel] == pytest.approx(math.exp(-(total**2) / 0.5), rel=1e-4)


def test_ignored_voxels_have_no_weight_and_do_not_count_in_the_class_frequencies() -> None:
    ids = np.zeros((1, 4, 10), int)
    ids[0, :, :2], ids[0, :, 8:] = 1, 2
    ignore = np.zeros_like(ids)
    ignore[0, :, 8:] = 255  # this leaves 8 voxels of a cell and 24 of background
    out = BorderWeightMap(w0=0)(ids, ignore)[0]
    np.testing.assert_allclose(out[0], [2, 2, *[2 / 3] * 6, 0, 0], rtol=1e-6)
    border = BorderWeightMap(class_weights=None)(ids, ignore)[0]
    np.testing.assert_array_equal(border[:, 8:], 0)
    assert border[0, 4] == pytest.approx(1 + 10 * math.exp(-(7**2) / 50), rel=1e-5)  # its cell still has a border
    chain = BorderWeightMapd("label", w0=0, ignore_key="ignore")
    np.testing.assert_array_equal(chain({"label": ids, "ignore": ignore})["weight"][0], out)
    with pytest.raises(ValueError, match=re.escape("ignore has shape (1, 4, 9); it must be the labels', (1, 4, 10)")):
        BorderWeightMap()(ids, ignore[:, :, :9])


def test_each_class_of_objects_has_its_weight_and_all_have_borders() -> None:
    """Three voxels of class 1, two of class 2, five of background; ids that are renumbered keep their class."""
    ids = np.array([[[1, 1, 0, 0, 4, 4, 0, 0, 0, 3]]])
    for labels in (ids, ids * 1001):  # of an odd multiple, the parity stays
        weights = BorderWeightMap(w0=0, class_weights=[1, 2, 5], classes=2)(labels)
        np.testing.assert_array_equal(weights[0, 0], [2, 2, 1, 1, 5, 5, 1, 1, 1, 2])
        balanced = BorderWeightMap(w0=0, classes=2)(labels)[0, 0]
        np.testing.assert_allclose(balanced[[2, 0, 4]], [10 / (3 * 5), 10 / (3 * 3), 10 / (3 * 2)], rtol=1e-6)
    plain, weighted = BorderWeightMap(class_weights=None), BorderWeightMap(class_weights=[0, 0, 0], classes=2)
    np.testing.assert_allclose(weighted(ids) + 1, plain(ids), rtol=1e-6)
    with pytest.raises(
        ValueError, match=re.escape("class_weights is (1, 2); use 'balanced', 3, the background's first")
    ):
        BorderWeightMap(class_weights=(1, 2), classes=2)


def test_array_types_and_meta_data() -> None:
    ids = discs(32, 2)
    meta = MetaTensor(torch.as_tensor(ids), affine=torch.diag(torch.tensor([2.0, 3, 1, 1])), meta={"name": "a"})
    out = BorderWeightMap()(meta)
    assert isinstance(out, MetaTensor)
    assert out.dtype == torch.float32
    assert out.meta["name"] == "a"
    np.testing.assert_array_equal(out.numpy(), BorderWeightMap()(ids))
    assert type(BorderWeightMap()(torch.as_tensor(ids))) is torch.Tensor


def test_dictionary_form_adds_the_weights() -> None:
    ids = discs(64, 3)
    chain = Compose([SeparateInstancesd("label", keep_ids=True), BorderWeightMapd("label", w0=3.0, output_key="w")])
    out = chain({"label": ids})
    np.testing.assert_array_equal(out["w"], BorderWeightMap(w0=3.0)(out["label"]))
    assert BorderWeightMapd("label")({"label": ids}).keys() == {"label", "weight"}
    assert BorderWeightMapd("label", allow_missing_keys=True)({"image": ids}).keys() == {"image"}
    with pytest.raises(KeyError, match="label"):
        BorderWeightMapd("label")({"image": ids})
    with pytest.raises(
        ValueError, match=re.escape("keys is ('a', 'b'); use one key, its weights go to output_key 'weight'")
    ):
        BorderWeightMapd(["a", "b"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"w0": -1}, "w0 is -1; it must be finite and at least 0, the paper's is 10"),
        ({"sigma": 0}, "sigma is 0; it must be finite and above 0, the paper's is 5"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"class_weights": "balance"}, "class_weights is 'balance'; use 'balanced', a pair"),
        ({"class_weights": (1, 2, 3)}, "class_weights is (1, 2, 3); use 'balanced', a pair"),
        ({"class_weights": (-1, 2)}, "class_weights is (-1, 2); use 'balanced', a pair"),
        ({"spacing": (1, 0)}, "spacing is (1, 0); voxel sizes are above 0"),
    ],
)
def test_bad_parameters(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BorderWeightMap(**parameters)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((1, 3, 3), -2), "instance labels hold -2; they must be at least 0, 0 = background"),
        (np.full((1, 3, 3), 0.5), "instance labels hold fractional or non-finite values; they must be whole numbers"),
        (np.full((1, 3, 3), np.nan), "fractional or non-finite values"),
        (np.full((1, 3, 3), np.inf), "fractional or non-finite values"),
        (np.zeros((2, 3, 3), int), "instance labels have shape (2, 3, 3); they must be (1, H, W) or (1, H, W, D)"),
        (np.zeros((3, 3), int), "instance labels have shape (3, 3)"),
        (np.zeros((1, 0, 3), int), "instance labels have shape (1, 0, 3)"),
    ],
)
def test_bad_labels(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BorderWeightMap()(labels)


def test_spacing_of_another_rank() -> None:
    ids = np.array([[[1, 0, 2]]])
    with pytest.raises(ValueError, match=re.escape("spacing is (1, 1, 1); use 2 numbers for this image")):
        BorderWeightMap(spacing=(1, 1, 1))(ids)
