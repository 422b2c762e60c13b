"""Section 3.1: the field is the paper's, and everything else in the same sampling grid is exact."""

from __future__ import annotations

import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy import ndimage

from monai_unet.transforms import RandElasticDeformation, RandElasticDeformationd

SIZES = [(1, 1), (1, 7), (8, 8), (37, 52), (101, 255), (5, 6, 7), (16, 1, 9)]


def drawn(image: torch.Tensor, seed: int = 0, **parameters) -> RandElasticDeformation:
    transform = RandElasticDeformation(**parameters).set_random_state(seed)
    transform.randomize(image)
    return transform


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 255


def cubic_convolution(nodes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Slow oracle: Keys' kernel, a = -0.75, node by node, the outermost nodes repeated beyond the corners."""

    def kernel(t: float, a: float = -0.75) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    grid, out = nodes.shape[1:], np.zeros((len(nodes), *size))
    for voxel in np.ndindex(*size):
        position = [i * (g - 1) / (n - 1) for i, g, n in zip(voxel, grid, size, strict=True)]
        for offset in np.ndindex(*(4,) * len(size)):
            node = [math.floor(p) - 1 + o for p, o in zip(position, offset, strict=True)]
            weight = math.prod(kernel(p - k) for p, k in zip(position, node, strict=True))
            out[(slice(None), *voxel)] += (
                weight * nodes[(slice(None), *(min(max(k, 0), g - 1) for k, g in zip(node, grid, strict=True)))]
            )
    return out


@pytest.mark.parametrize(
    ("grid_size", "size"), [(3, (17, 24)), (2, (9, 9)), (5, (12, 31)), (3, (7, 6, 9)), ((2, 4, 5), (3, 8, 9))]
)
def test_field_is_the_cubic_convolution_of_its_node_vectors(grid_size: Any, size: tuple[int, ...]) -> None:
    transform = drawn(torch.zeros(1, *size), grid_size=grid_size)
    assert transform.nodes.shape == (len(size), *np.broadcast_to(grid_size, len(size)))
    np.testing.assert_allclose(transform.displacement(size), cubic_convolution(transform.nodes, size), atol=2e-5)


def test_field_passes_through_the_node_vectors_at_corners_and_centre() -> None:
    transform = drawn(torch.zeros(1, 101, 201))
    field = transform.displacement((101, 201))
    np.testing.assert_allclose(field[:, ::50, ::100], transform.nodes, rtol=1e-6)


def test_node_displacements_have_the_papers_standard_deviation() -> None:
    image = torch.zeros(1, 4, 4)
    transform = RandElasticDeformation().set_random_state(0)
    nodes = []
    for _ in range(3000):
        transform.randomize(image)
        nodes.append(transform.nodes)
    values = np.stack(nodes)  # 54,000 numbers: standard error 0.043 of the mean, 0.030 of the deviation
    assert abs(values.mean()) < 0.15
    assert abs(values.std() - 10) < 0.1
    assert abs(np.corrcoef(values[:, 0].ravel(), values[:, 1].ravel())[0, 1]) < 0.025


def test_sigma_per_axis_and_in_millimetres() -> None:
    image = MetaTensor(torch.zeros(1, 8, 8, 8), affine=torch.diag(torch.tensor([0.5, 2.0, -4.0, 1.0])))
    plain = drawn(image, sigma=1.0).nodes
    np.testing.assert_allclose(drawn(image, sigma=(1, 0, 3)).nodes, plain * np.array([1, 0, 3]).reshape(3, 1, 1, 1))
    in_mm = drawn(image, sigma=8.0, sigma_in_mm=True).nodes
    np.testing.assert_allclose(in_mm, plain * np.array([16, 4, 2]).reshape(3, 1, 1, 1))


def test_output_reads_the_image_where_the_field_points() -> None:
    image = torch.as_tensor(ndimage.gaussian_filter(noise(1, 40, 50).numpy(), (0, 2, 2)))
    transform = drawn(image, sigma=4.0)
    where = np.indices((40, 50)) + transform.displacement((40, 50)).numpy()
    expected = ndimage.map_coordinates(image[0], where, order=1, mode="mirror")  # scipy's "mirror": numpy's "reflect"
    np.testing.assert_allclose(transform(image, randomize=False)[0], expected, atol=2e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_sigma_zero_is_the_identity(size: tuple[int, ...], mode: str) -> None:
    image = noise(2, *size)
    assert torch.equal(RandElasticDeformation(sigma=0, mode=mode)(image), image)


def test_small_sigma_is_nearly_the_identity() -> None:
    # a field with no systematic part: MONAI's Rand2DElastic shifts odd sizes by half a pixel here
    image = noise(1, 101, 255)
    assert (RandElasticDeformation(sigma=1e-6).set_random_state(0)(image) - image).abs().max() < 0.02


@pytest.mark.parametrize("size", SIZES)
def test_flips_are_exact(size: tuple[int, ...]) -> None:
    image = noise(2, *size)
    axes = list(range(1, image.ndim))
    assert torch.equal(RandElasticDeformation(sigma=0, flip_prob=1)(image), image.flip(axes))
    only_last = RandElasticDeformation(sigma=0, flip_prob=[0] * (len(size) - 1) + [1])
    assert torch.equal(only_last(image), image.flip(axes[-1]))


def test_flip_probability_holds_per_axis() -> None:
    transform = RandElasticDeformation(sigma=0, flip_prob=(0.25, 0.75)).set_random_state(0)
    image, flips = torch.zeros(1, 2, 2), []
    for _ in range(2000):
        transform.randomize(image)
        flips.append(transform.flips)
    np.testing.assert_allclose(np.mean(flips, axis=0), (0.25, 0.75), atol=0.03)


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_quarter_turns_are_exact(quarters: int, mode: str) -> None:
    for n in (8, 33):
        image = noise(2, n, n)
        transform = drawn(image, sigma=0, mode=mode)
        transform.angles = np.array([quarters * math.pi / 2])
        assert torch.equal(transform(image, randomize=False), torch.rot90(image, quarters, (1, 2)))


def test_quarter_turn_about_each_axis_of_a_cube() -> None:
    image = noise(1, 6, 6, 6)
    for axis, plane in ((0, (2, 3)), (1, (3, 1)), (2, (1, 2))):
        transform = drawn(image, sigma=0)
        transform.angles = np.eye(3)[axis] * math.pi / 2
        assert torch.equal(transform(image, randomize=False), torch.rot90(image, 1, plane))


def test_rotation_and_shift_stay_in_range_and_fill_it() -> None:
    image = torch.zeros(1, 4, 4)
    transform = RandElasticDeformation(rotate_range=0.5, translate_range=(3, 0)).set_random_state(0)
    angles, shifts = [], []
    for _ in range(2000):
        transform.randomize(image)
        angles.append(transform.angles[0])
        shifts.append(transform.shift)
    assert 0.49 < np.max(angles) <= 0.5
    assert -0.5 <= np.min(angles) < -0.49
    np.testing.assert_allclose(np.max(np.abs(shifts), axis=0), (3, 0), atol=0.01)


@pytest.mark.parametrize(
    ("size", "tile"), [((9, 12), (21, 16)), ((3, 5), (12, 31)), ((1, 4), (6, 5)), ((4, 5, 3), (9, 5, 8))]
)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_beyond_the_edge_the_image_is_mirrored(size: tuple[int, ...], tile: tuple[int, ...], mode: str) -> None:
    image = noise(1, *size)
    before = [(t + 1 - n) // 2 for n, t in zip(size, tile, strict=True)]
    pad = [(b, t - n - b) for b, n, t in zip(before, size, tile, strict=True)]
    expected = np.pad(image.numpy(), [(0, 0), *pad], mode="reflect")
    np.testing.assert_array_equal(RandElasticDeformation(sigma=0, mode=mode, spatial_size=tile)(image), expected)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_half_voxel_shifts_mirror_about_the_outermost_voxels(mode: str) -> None:
    image = torch.tensor([[[10.0, 20.0, 40.0]]])
    transform = drawn(image, sigma=0, mode=mode)
    transform.shift = np.array([0.0, -2.25])
    # reads -2.25, -1.25, -0.25: mirrored 2.25 -> 1.75, 1.25, 0.25
    expected = {"bilinear": [35.0, 25.0, 12.5], "nearest": [40.0, 20.0, 10.0]}[mode]
    np.testing.assert_allclose(transform(image, randomize=False)[0, 0], expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 5), (3, 7), (24, 31), (90, 80)])
@pytest.mark.parametrize("tile", [None, (6, 5), (1, 1)])
def test_voxels_are_read_from_the_mirrored_image(
    size: tuple[int, ...], tile: tuple[int, ...] | None, mode: str
) -> None:
    """Oracle: the image is padded by mirroring as far as the field reaches, and read there without any padding mode."""
    image, far = noise(1, *size), 60
    transform = drawn(image, mode=mode, spatial_size=tile, random_center=True, flip_prob=0.5, rotate_range=0.1)
    coordinates, _ = transform.coordinates(size)
    assert coordinates.min() > 4 - far
    assert coordinates.max() < min(size) + far - 4
    padded = torch.as_tensor(np.pad(image.numpy(), [(0, 0), (far, far), (far, far)], mode="reflect"))
    last = torch.tensor([padded.shape[2] - 1, padded.shape[1] - 1])
    grid = (coordinates + far).flip(0).movedim(0, -1)[None] / last * 2 - 1
    expected = torch.nn.functional.grid_sample(padded[None], grid, mode=mode, padding_mode="zeros", align_corners=True)
    np.testing.assert_allclose(transform(image, randomize=False), expected[0], atol=0.02)  # float32 grids, of 0 … 255


def test_keys_of_different_padding_modes_are_independent() -> None:
    image, modes = noise(1, 20, 30), ["reflection", "zeros", "border"]
    deform = RandElasticDeformationd(modes, mode=["bilinear", "nearest", "nearest"], padding_mode=modes)
    together = deform.set_random_state(0)(dict.fromkeys(modes, image))
    for mode, how in zip(modes, ["bilinear", "nearest", "nearest"], strict=True):
        alone = RandElasticDeformation(mode=how, padding_mode=mode).set_random_state(0)(image)
        np.testing.assert_array_equal(together[mode], alone)


@pytest.mark.parametrize(("padding_mode", "expected"), [("border", [5, 5, 5, 6, 7, 7]), ("zeros", [0, 0, 5, 6, 7, 0])])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_other_padding_modes(padding_mode: str, expected: list[int], mode: str) -> None:
    image = torch.tensor([[[5, 6, 7]]])
    transform = RandElasticDeformation(sigma=0, mode=mode, padding_mode=padding_mode, spatial_size=(1, 6))
    assert transform(image)[0, 0].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.bool])
def test_labels_keep_dtype_and_label_set(dtype: torch.dtype) -> None:
    high = {torch.uint8: 255, torch.uint16: 65535, torch.bool: 1}.get(dtype, 2**31 - 1)
    values = torch.tensor([0, 1, high - 1, high])
    label = values[torch.randint(0, 4, (1, 60, 60), generator=torch.Generator().manual_seed(0))].to(dtype)
    out = RandElasticDeformation(mode="nearest", rotate_range=3.0).set_random_state(1)(label)
    assert out.dtype == dtype
    assert set(out.flatten().tolist()) == set(label.flatten().tolist())
    assert not torch.equal(out.to(torch.int64), label.to(torch.int64))


def test_ids_beyond_float32_survive() -> None:
    ids = torch.tensor([[[2**24 + 1, 2**24 + 3], [2**53 + 1, 2**53 + 3]]])
    out = RandElasticDeformation(sigma=0, mode="nearest", flip_prob=(1, 0))(ids)
    assert out.tolist() == ids.flip(1).tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64, torch.float16, torch.float64])
@pytest.mark.parametrize("sigma", [0, 3])
def test_interpolated_images_are_float32_of_the_same_values(dtype: torch.dtype, sigma: float) -> None:
    image = torch.arange(200, 236).reshape(1, 6, 6)
    if dtype == torch.uint16:
        image = image + 60000
    image = image.to(dtype)
    transform = drawn(image, sigma=sigma)
    out = transform(image, randomize=False)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, transform(image.to(torch.float32), randomize=False))


def test_bicubic_in_two_dimensions_is_sharper_than_bilinear() -> None:
    ramp = torch.arange(20.0).square().reshape(1, 1, 20)
    transform = drawn(ramp, sigma=0, mode="bicubic")
    transform.shift = np.array([0.0, 0.5])
    middle = transform(ramp, randomize=False)[0, 0, 5:15]
    truth = (torch.arange(5.0, 15.0) + 0.5).square()
    assert (middle - truth).abs().max() < 0.2  # bilinear is off by 0.25
    with pytest.raises(ValueError, match="mode 'bicubic' is for 2-D images, this one has 3 axes; use 'bilinear'"):
        RandElasticDeformation(mode="bicubic")(torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize("size", [(60, 70), (16, 18, 20)])
def test_image_label_and_weight_get_the_same_field(size: tuple[int, ...]) -> None:
    # an image of its own coordinates shows where each voxel came from
    where = torch.as_tensor(np.indices(size), dtype=torch.float32) + 100  # mirrored back, never below 100
    data = {"image": where, "weight": 2 * where, "label": where.to(torch.int32)}
    transform = RandElasticDeformationd(
        ["image", "label", "weight"],
        sigma=2.0,
        mode=["bilinear", "nearest", "bilinear"],
        rotate_range=1.0,
        flip_prob=0.5,
        random_center=True,
        spatial_size=tuple(n + 5 for n in size),
    ).set_random_state(3)
    out = transform(data)
    assert out["label"].dtype == torch.int32
    torch.testing.assert_close(out["weight"], 2 * out["image"])
    assert (out["label"] - out["image"]).abs().max() <= 1.0  # half a voxel, and as much again where mirrored
    single = RandElasticDeformation(
        sigma=2.0, rotate_range=1.0, flip_prob=0.5, random_center=True, spatial_size=tuple(n + 5 for n in size)
    ).set_random_state(3)
    assert torch.equal(single(where), out["image"])


def test_random_centre_is_uniform_over_the_image() -> None:
    image = torch.arange(5)[None, None]
    transform = RandElasticDeformation(sigma=0, mode="nearest", random_center=True, spatial_size=1).set_random_state(0)
    counts = np.bincount([int(transform(image)) for _ in range(2000)], minlength=5)
    assert counts.sum() == 2000
    np.testing.assert_allclose(counts, 400, atol=80)


def test_a_share_of_the_tiles_is_centred_on_foreground_and_the_rest_as_before() -> None:
    image, foreground = torch.arange(1000).reshape(1, 20, 50), np.array([[3, 7], [3, 8], [19, 49], [0, 0]])
    tile = {"sigma": 0, "mode": "nearest", "random_center": True, "spatial_size": 1}
    deform = RandElasticDeformationd("image", foreground_prob=0.4, foreground_key="cells", **tile)
    plain = RandElasticDeformationd("image", **tile)
    values = []
    for seed in range(500):
        values.append(int(deform.set_random_state(seed)({"image": image, "cells": foreground})["image"]))
        if values[-1] not in (157, 158, 999, 0):
            assert values[-1] == int(plain.set_random_state(seed)({"image": image})["image"])
    for voxel in (157, 158, 999, 0):
        assert 30 < values.count(voxel) < 70  # 500 * 0.4 / 4 = 50, standard deviation 6.7
    without = deform.set_random_state(7)({"image": image, "cells": foreground[:0]})["image"]
    assert torch.equal(without, plain.set_random_state(7)({"image": image})["image"])


def test_scaling_magnifies_about_the_centre_one_factor_for_all_axes_or_one_each() -> None:
    """On a ramp along each axis, the value at a voxel is the position it reads: its offset divided by the factor."""
    ramps = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in (21, 31, 41)], indexing="ij"))
    middle = torch.tensor([10.0, 15.0, 20.0])
    seen = []
    for seed in range(40):
        for ranges, count in ((0.3, 1), ((0.3, 0.2, 0.0), 2)):
            transform = RandElasticDeformation(sigma=0, scale_range=ranges).set_random_state(seed)
            inner = transform(ramps)[:, 4:-4, 6:-6, 8:-8]
            step = torch.stack([inner[axis].diff(dim=axis).mean() for axis in range(3)])
            np.testing.assert_allclose(step, 1 / transform.scale, atol=1e-4)
            np.testing.assert_allclose(inner[:, 6, 9, 12], middle, atol=1e-4)
            assert len(set(transform.scale.tolist()) - {1.0}) == count
            seen.append(transform.scale)
    assert np.all(np.abs(np.array(seen) - 1) <= 0.3)
    assert np.min(seen) < 0.75
    assert np.max(seen) > 1.25
    transform = drawn(ramps, scale_range=0.0)
    assert transform.R.uniform() == drawn(ramps).R.uniform(), "without scaling there is no further draw"


def test_with_prob_zero_the_tile_is_cut_out_unchanged() -> None:
    image = noise(1, 20, 20)
    transform = RandElasticDeformation(prob=0.0, spatial_size=11, rotate_range=3.0, flip_prob=1, translate_range=5)
    assert torch.equal(transform(image), image[:, 4:15, 4:15])
    often = RandElasticDeformationd("image", prob=0.3).set_random_state(0)
    changed = [not torch.equal(often({"image": image})["image"], image) for _ in range(400)]
    assert 0.23 < np.mean(changed) < 0.37


def test_array_types_and_meta_data_are_kept() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
    image = MetaTensor(noise(1, 12, 12), affine=affine, meta={"filename_or_obj": "a.png"})
    out = RandElasticDeformation().set_random_state(0)(image)
    assert isinstance(out, MetaTensor)
    assert torch.equal(out.affine, affine.to(out.affine))
    assert out.meta["filename_or_obj"] == "a.png"
    array = RandElasticDeformation().set_random_state(0)(image.numpy()[:, ::-1].copy()[:, ::-1])  # negative strides
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, out.numpy())
    assert type(RandElasticDeformation()(image.as_tensor())) is torch.Tensor


def test_a_seed_determines_all_draws() -> None:
    def run(seed: int) -> torch.Tensor:
        first = RandElasticDeformationd("image", rotate_range=1.0, translate_range=3, flip_prob=0.5, random_center=True)
        compose = Compose([first, RandElasticDeformationd("image")])
        compose.set_random_state(seed)
        return torch.stack([compose({"image": noise(1, 16, 16)})["image"] for _ in range(2)])

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert not torch.equal(*run(1))


def test_survives_pickling_for_a_loader_worker() -> None:
    transform = RandElasticDeformationd(["image"], rotate_range=1.0).set_random_state(5)
    twin = pickle.loads(pickle.dumps(transform))
    data = {"image": noise(1, 16, 16)}
    assert torch.equal(transform(data)["image"], twin(data)["image"])


def test_keys_may_be_missing_only_if_allowed() -> None:
    data = {"image": noise(1, 8, 8), "name": "kept"}
    out = RandElasticDeformationd(["label", "image"], mode=["nearest", "bilinear"], allow_missing_keys=True)(data)
    assert set(out) == {"image", "name"}
    assert RandElasticDeformationd(["label"], allow_missing_keys=True)(data) == data
    with pytest.raises(KeyError, match="label"):
        RandElasticDeformationd(["label", "image"])(data)


def test_keys_of_different_shapes_are_refused() -> None:
    data = {"image": torch.zeros(1, 8, 8), "label": torch.zeros(1, 8, 9)}
    with pytest.raises(ValueError, match=re.escape("spatial shapes differ: {'image': (8, 8), 'label': (8, 9)}")):
        RandElasticDeformationd(["image", "label"])(data)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"grid_size": 1}, "grid_size is 1; it must be a whole number of at least 2, the paper's is 3"),
        ({"grid_size": 3.5}, "grid_size is 3.5; it must be a whole number"),
        ({"grid_size": (1, 3, 3)}, "grid_size is (1, 3, 3); it must be a whole number of at least 2"),
        ({"foreground_prob": 1.5}, "foreground_prob is 1.5; a probability is in 0 ... 1"),
        ({"foreground_prob": 0.3}, "foreground_prob is 0.3, but tiles have a fixed centre; use random_center"),
        ({"sigma": -1.0}, "sigma is -1.0; a standard deviation is finite and at least 0, the paper's is 10"),
        ({"sigma": (1.0, math.nan)}, "sigma is (1.0, nan)"),
        ({"prob": 1.5}, "prob is 1.5; a probability is in 0 ... 1"),
        ({"flip_prob": -0.1}, "flip_prob is -0.1; a probability is in 0 ... 1"),
        ({"mode": "cubic"}, "mode is 'cubic'; it must be bilinear, nearest or bicubic"),
        ({"mode": 3}, "mode is 3; it must be bilinear, nearest or bicubic"),
        ({"padding_mode": "mirror"}, "padding_mode is 'mirror'; it must be reflection, border or zeros"),
        ({"spatial_size": (0, 5)}, "spatial_size is (0, 5); use at least 1 voxel per axis, or None"),
        ({"scale_range": 1.0}, "scale_range is 1.0; it must be at least 0, which turns it off, and below 1"),
        ({"scale_range": (0.1, -0.1)}, "scale_range is (0.1, -0.1); it must be at least 0, which"),
        ({"rotate_range": math.inf}, "rotate_range is inf; it must be finite, 0 turns it off"),
        ({"translate_range": math.nan}, "translate_range is nan; it must be finite"),
    ],
)
def test_bad_parameters(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RandElasticDeformation(**parameters)
    with pytest.raises(ValueError, match=re.escape(message)):
        RandElasticDeformationd("image", **parameters)


@pytest.mark.parametrize(
    ("parameters", "image", "message"),
    [
        ({}, torch.zeros(5), "got an array of shape (5,); it must be (C, H, W) or (C, H, W, D)"),
        ({}, torch.zeros(5, 5), "got an array of shape (5, 5); it must be (C, H, W) or (C, H, W, D)"),
        ({"sigma": (1, 2, 3)}, torch.zeros(1, 5, 5), "sigma is (1, 2, 3); use one number, or 2 for this image"),
        ({"grid_size": (3, 3)}, torch.zeros(1, 5, 5, 5), "grid_size is (3, 3); use one number, or 3 for this image"),
        ({"scale_range": (0.1, 0.1)}, torch.zeros(1, 5, 5, 5), "scale_range is (0.1, 0.1); use one number, or 3"),
        ({"spatial_size": (4, 4)}, torch.zeros(1, 5, 5, 5), "spatial_size is (4, 4); use one number, or 3"),
        ({"sigma_in_mm": True}, torch.zeros(1, 5, 5), "sigma_in_mm needs a MetaTensor, whose affine holds the voxel"),
    ],
)
def test_images_that_do_not_fit_the_parameters(parameters: dict, image: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RandElasticDeformation(**parameters)(image)


def test_gpu_equals_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = noise(2, 64, 65)
    for mode in ("bilinear", "nearest"):
        transform = drawn(image, mode=mode, rotate_range=1.0)
        out = transform(image.cuda(), randomize=False)
        assert out.is_cuda
        differs = (out.cpu() - transform(image, randomize=False)).abs() > 0.05
        assert differs.float().mean() < (1e-3 if mode == "nearest" else 1e-9)  # ties may round either way
