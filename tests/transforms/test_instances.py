"""Instances are separated without losing any, and found again: drawn by hand, and on random touching cells."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose
from scipy import ndimage

from monai_unet.transforms import LabelInstances, LabelInstancesd, SeparateInstances, SeparateInstancesd


def drawing(*rows: str) -> np.ndarray:
    """'.' is background, a digit an instance."""
    return np.array([[[0 if c == "." else int(c) for c in row] for row in rows]])


def touching_cells(size: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """Random cells that touch each other: the Voronoi regions of random points, cut off at a distance."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros(size, dtype=int)
    spots = rng.choice(seeds.size, 20 * count, replace=False)
    for number, spot in enumerate(spots):  # at least 7 apart, so that no cell is a sliver
        where = np.unravel_index(spot, size)
        if not seeds[tuple(slice(max(i - 7, 0), i + 8) for i in where)].any():
            seeds[where] = number + 1
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    ids = np.where(distance < 5.7, seeds[tuple(nearest)], 0)
    for number in np.unique(ids)[1:]:  # one piece each, as cells are
        pieces, n = ndimage.label(ids == number)
        if n > 1:
            ids[(pieces != pieces[seeds == number]) & (pieces > 0)] = 0
    return ids[None]


def jaccard_of_best_matches(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    pairs = np.zeros((truth.max() + 1, found.max() + 1))
    np.add.at(pairs, (truth.ravel(), found.ravel()), 1)
    either = pairs.sum(1, keepdims=True) + pairs.sum(0, keepdims=True) - pairs
    scores = (pairs[:, 1:] / np.maximum(either[:, 1:], 1)).max(1)
    return scores[1:][pairs.sum(1)[1:] > 0]


def test_carves_the_later_voxel_of_each_touching_pair() -> None:
    cells = drawing(
        "11122.",
        "11122.",
        "33322.",
        "33344.",
        "33344.",
    )
    expected = drawing(
        "111.2.",
        "111.2.",
        "....2.",
        "333...",
        "333.4.",
    )
    np.testing.assert_array_equal(SeparateInstances(keep_ids=True)(cells), expected)


def test_diagonal_neighbours_are_separated_on_request() -> None:
    cells = drawing(
        "111..",
        "111..",
        "...22",
        "..222",
    )
    np.testing.assert_array_equal(SeparateInstances(keep_ids=True)(cells), cells)
    expected = drawing(
        "111..",
        "111..",
        "....2",
        "..222",
    )
    np.testing.assert_array_equal(SeparateInstances(connectivity=2, keep_ids=True)(cells), expected)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("1111111122222222......", "111111.....22222......"),  # along the ridge, the later cell's first voxel
        ("111111111.2222222.....", "11111111.....2222....."),  # a gap of one is widened to five
        ("111.........222.......", "111.........222......."),  # and one that is wide enough is left
    ],
)
def test_a_corridor_of_the_given_width(row: str, expected: str) -> None:
    separated = SeparateInstances(keep_ids=True, width=5)(np.repeat(drawing(row), 9, axis=1))
    np.testing.assert_array_equal(separated, np.repeat(drawing(expected), 9, axis=1))


@pytest.mark.parametrize("width", [3, 5])
def test_a_wide_ridge_loses_no_instance_and_can_be_given_back(width: int) -> None:
    for seed in range(3):
        ids = touching_cells((150, 160), 100, seed)
        mask = SeparateInstances(width=width)(ids)
        found = LabelInstances(grow=width)(mask).astype(int)
        truth = np.unique(ids, return_inverse=True)[1]
        assert found.max() == truth.max()
        assert mask.sum() < SeparateInstances()(ids).sum()
        ridge_lost = jaccard_of_best_matches(truth, LabelInstances(grow=0)(mask).astype(int))
        assert jaccard_of_best_matches(truth, found).mean() > 1.1 * ridge_lost.mean()  # of cells 9 voxels wide


def test_an_image_without_contacts_has_no_corridor() -> None:
    lone = drawing(".111.", ".111.", ".111.")
    np.testing.assert_array_equal(SeparateInstances(keep_ids=True, width=5)(lone), lone)
    np.testing.assert_array_equal(SeparateInstances(keep_ids=True, width=5)(0 * lone), 0 * lone)


@pytest.mark.parametrize("connectivity", [1, 2])
@pytest.mark.parametrize("size", [(90, 100), (30, 32, 34)])
def test_no_two_instances_stay_connected(size: tuple[int, ...], connectivity: int) -> None:
    ids = touching_cells(size, 60, seed=connectivity)
    carved = SeparateInstances(connectivity, keep_ids=True)(ids)[0]
    structure = ndimage.generate_binary_structure(len(size), connectivity)
    lowest = ndimage.minimum_filter(np.where(carved, carved, 10**6), footprint=structure)
    highest = ndimage.maximum_filter(carved, footprint=structure)
    assert (lowest[carved > 0] == highest[carved > 0]).all()
    assert set(np.unique(carved)) == set(np.unique(ids))
    assert ((carved == ids[0]) | (carved == 0)).all()
    # thin: except for fragments that were cut off, every carved voxel touched another instance
    apart = ndimage.minimum_filter(np.where(ids[0], ids[0], 10**6), footprint=structure) == ndimage.maximum_filter(
        ids[0], footprint=structure
    )
    assert ((carved != ids[0]) & apart).mean() < 0.001


@pytest.mark.parametrize("connectivity", [1, 2])
@pytest.mark.parametrize("size", [(150, 160), (40, 42, 44)])
def test_labelling_recovers_the_separated_instances(size: tuple[int, ...], connectivity: int) -> None:
    for seed in range(3):
        ids = touching_cells(size, 100, seed)
        mask = SeparateInstances(connectivity)(ids)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        found = LabelInstances(connectivity)(mask).astype(int)
        truth = np.unique(ids, return_inverse=True)[1]
        assert found.max() == truth.max() > 30
        scores = jaccard_of_best_matches(truth, found)  # of cells some 9 voxels wide
        ridge_lost = jaccard_of_best_matches(truth, LabelInstances(connectivity, grow=0)(mask).astype(int))
        assert scores.mean() > max(0.91, ridge_lost.mean())
        assert scores.min() > 0.7


def dumbbell(bar: int) -> np.ndarray:
    """Two squares of 21 voxels, five apart, joined by a bar; a speck and a cell cut by the image's edge."""
    mask = np.zeros((1, 40, 70), np.uint8)
    mask[0, 10:31, 5:26] = mask[0, 10:31, 31:52] = 1
    mask[0, 20 - bar // 2 : 21 + bar // 2, 26:31] = 1
    mask[0, 3:6, 3:6] = 1
    mask[0, 15:30, 66:] = 1
    return mask


def test_components_are_split_at_thin_necks() -> None:
    mask = dumbbell(bar=7)
    assert LabelInstances(grow=0)(mask).max() == 3
    split = LabelInstances(grow=0, neck=5)(mask)
    assert split.max() == 4
    np.testing.assert_array_equal(split > 0, mask > 0)
    left, right = (split[0][20, column] for column in (15, 41))
    np.testing.assert_array_equal(split[0][10:31, 5:28] == left, mask[0][10:31, 5:28] > 0)
    np.testing.assert_array_equal(split[0][10:31, 29:52] == right, mask[0][10:31, 29:52] > 0)
    assert len(np.unique(split[0][3:6, 3:6])) == 1, "without a core: whole"
    assert split[0][3, 3] > 0
    assert LabelInstances(grow=0, neck=5)(dumbbell(bar=13)).max() == 3, "no thinner than twice 5"
    np.testing.assert_array_equal(LabelInstances(grow=0, neck=5)(np.zeros_like(mask)), 0)


def test_a_pinhole_does_not_make_a_neck() -> None:
    whole = np.zeros((1, 42, 17), np.uint8)
    whole[0, 1:-1, 1:-1] = 1
    mask = whole.copy()
    mask[0, 20, 6:11] = 0  # five voxels, with necks of five on both sides
    assert LabelInstances(grow=0, neck=4)(mask).max() == 2
    assert LabelInstances(grow=0, neck=4, fill_holes=True, min_size=5)(mask).max() == 2, "as large as the smallest cell"
    np.testing.assert_array_equal(LabelInstances(grow=0, neck=4, fill_holes=True, min_size=6)(mask), whole)


def test_balls_that_overlap_a_little_are_split() -> None:
    grid = np.moveaxis(np.indices((30, 30, 60)), 0, -1)
    balls = [np.linalg.norm(grid - (14, 14, z), axis=-1) < 10 for z in (12, 30, 49)]
    mask = (balls[0] | balls[1] | balls[2])[None].astype(np.uint8)
    found = LabelInstances(grow=0, neck=6)(mask)[0]
    assert LabelInstances(grow=0)(mask).max() < found.max() == 3
    for number, ball in enumerate(balls, start=1):
        assert ((found == number) & ball).sum() > 0.97 * ball.sum()


def test_components_are_split_where_the_network_doubts() -> None:
    """Two blobs joined by a doubtful bridge, one that has no sure voxel, one with a bright speck beside its core."""
    sure = np.zeros((1, 12, 40))
    sure[0, 2:10, 2:10] = sure[0, 2:10, 14:22] = 0.9
    sure[0, 4:8, 10:14] = 0.6
    sure[0, 2:10, 24:28] = 0.6
    sure[0, 2:10, 30:36], sure[0, 5:7, 36:40], sure[0, 5, 38] = 0.9, 0.6, 0.9
    for core in (0, 0.5, 0.95):
        assert LabelInstances(core=core)(sure).max() == 3, "nothing, or nothing else, is sure"
    found = LabelInstances(core=0.7, min_size=2, grow=0)(sure)[0]
    assert found.max() == 4
    np.testing.assert_array_equal(found > 0, sure[0] > 0)
    left, right = found[5, 5], found[5, 18]
    assert (found[4:8, 10:12] == left).all(), "each voxel belongs to the nearest core"
    assert (found[4:8, 12:14] == right).all()
    assert len(np.unique(found[2:10, 24:28])) == len(np.unique(found[5:7, 30:40])) == 1, "no core; a speck is none"
    assert LabelInstances(core=0.7, grow=0)(sure).max() == 5, "a core may be of one voxel"
    assert LabelInstances(core=0.7, neck=3, grow=0)(sure).max() == 4, "cores are deep within what is sure"
    assert LabelInstances(core=0.7, neck=3, grow=0).in_pixels_of((0.5, 0.5)).core == 0.7


@pytest.mark.parametrize("ridge", ["diagonal", "corner", "ring"])
def test_a_doubtful_ridge_is_no_hole(ridge: str) -> None:
    y, x = np.indices((40, 40))
    r = np.hypot(y - 20, x - 20)
    doubtful = {"diagonal": y == x, "corner": np.abs(np.hypot(y, x) - 25) < 1, "ring": np.abs(r - 9) < 1}[ridge]
    cells = r < 19 if ridge == "ring" else np.ones((40, 40))
    p = np.where(doubtful, 0.6, 0.9) * cells
    for fill_holes in (False, True):
        found = LabelInstances(core=0.7, min_size=100, fill_holes=fill_holes, grow=0)(p[None])
        assert found.max() == 2


@pytest.mark.parametrize("spacing", [None, (3, 1)])
@pytest.mark.parametrize("connectivity", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_the_parts_around_cores_are_those_of_a_slow_search(
    seed: int, connectivity: int, spacing: tuple[int, int] | None
) -> None:
    random = np.random.default_rng(seed)
    p = ndimage.gaussian_filter(random.random((26, 31)), 1.5)
    p = ((p - p.min()) / np.ptp(p)) * (p > np.median(p))
    found = LabelInstances(connectivity, min_size=3, core=0.75, grow=0, spacing=spacing)(p[None])[0]
    filled = LabelInstances(connectivity, min_size=3, core=0.75, grow=0, spacing=spacing, fill_holes=True)(p[None])[0]
    assert filled.max() == found.max(), "a doubtful ridge is no hole"
    structure = ndimage.generate_binary_structure(2, connectivity)
    components, _ = ndimage.label(p > 0, structure)
    regions, _ = ndimage.label(p > 0.75, structure)
    expected = 0
    for number in range(1, components.max() + 1):
        inside = components == number
        own = [n for n in np.unique(regions[inside]) if n and (regions == n).sum() >= 3]
        if inside.sum() < 3:
            assert not found[inside].any()
        elif not own:
            assert len(np.unique(found[inside])) == 1
        else:
            for voxel in np.argwhere(inside):
                apart = {n: (np.argwhere(regions == n) - voxel) * (spacing or (1, 1)) for n in own}
                distance = {n: np.hypot(*apart[n].T).min() for n in own}
                nearest = [n for n in own if distance[n] == min(distance.values())]
                names = {found[tuple(np.argwhere(regions == n)[0])] for n in nearest}
                assert found[tuple(voxel)] in names or not found[tuple(voxel)], "a part of two voxels is dropped"
        expected += max(len(own), 1) if inside.sum() >= 3 else 0
    assert len(np.unique(found[found > 0])) == expected > 3


def test_a_mask_may_be_its_own_probability() -> None:
    mask = dumbbell(bar=7)
    np.testing.assert_array_equal(LabelInstances(neck=5, core=0)(mask), LabelInstances(neck=5)(mask))
    np.testing.assert_array_equal(LabelInstances(neck=5, core=0.7)(mask), LabelInstances(neck=5)(mask))


#: planes three times as far apart as pixels
PLANES = (3, 1, 1)


@pytest.mark.parametrize(("axis", "expected"), [(0, 1), (1, 3), (2, 3)])
def test_a_corridor_is_as_wide_across_planes_as_within_them(axis: int, expected: int) -> None:
    """Of three pixels, but of one plane at least."""
    cells = np.moveaxis(np.repeat([1, 2], 8) * np.ones((6, 12, 1), int), -1, axis)[None]
    carved = SeparateInstances(width=3, keep_ids=True, spacing=PLANES)(cells)
    background = (carved[0] == 0).any(axis=tuple(other for other in range(3) if other != axis))
    assert background.sum() == expected
    assert (LabelInstances(grow=3, spacing=PLANES)((carved > 0).astype(int)) > 0).all(), "and is given back"


@pytest.mark.parametrize(("axis", "gap", "filled"), [(0, 1, True), (0, 2, False), (2, 3, True), (2, 4, False)])
def test_across_planes_fewer_are_given_back(axis: int, gap: int, filled: bool) -> None:
    row = np.repeat([1, 0, 1], [6, gap, 6])
    mask = np.moveaxis(row * np.ones((3, 4, 1), int), -1, axis)[None]
    assert (LabelInstances(grow=3, spacing=PLANES)(mask) > 0).all() == filled


def test_a_ridge_goes_to_the_nearest_by_true_distances() -> None:
    """A plane is three pixels away: farther than two pixels."""
    mask = np.zeros((1, 2, 1, 6), int)
    mask[0, 0, 0, :2] = mask[0, 1, 0, 2:] = 1
    found = LabelInstances(grow=3, spacing=PLANES)(mask)[0, :, 0]
    assert found[1].tolist() == [found[1, 5]] * 6
    assert LabelInstances(grow=3)(mask)[0, 1, 0, 0] == found[0, 0]


def test_flat_stacks_are_split_by_their_true_widths() -> None:
    """Four planes are twelve pixels high: no neck. Counted as four, no voxel is deeper than two, and nothing a core."""
    mask = np.zeros((1, 6, 18, 40), int)
    mask[:, 1:5, 1:17, 1:17] = mask[:, 1:5, 1:17, 22:38] = mask[:, 1:5, 7:11, 17:22] = 1
    assert LabelInstances(neck=2)(mask).max() == 1
    found = LabelInstances(neck=2, spacing=PLANES)(mask)
    assert found.max() == 2
    assert np.ptp(np.bincount(found.ravel())[1:]) <= 16, "cut in the middle of the bridge"
    mask[:, 1:5, 7:11, 17:22], mask[:, 1:2, 1:17, 17:22] = 0, 1  # as wide as they are, a plane thick: three pixels
    assert LabelInstances(neck=2, spacing=PLANES)(mask).max() == 1
    assert LabelInstances(neck=3, spacing=PLANES)(mask).max() == 2


def test_rules_of_flat_voxels_hold_for_cubes() -> None:
    grid = np.moveaxis(np.indices((10, 30, 60)), 0, -1) * PLANES
    mask = np.any([np.linalg.norm(grid - (13, 14, x), axis=-1) < 10 for x in (12, 30, 49)], axis=0)[None].astype(int)
    rules = LabelInstances(grow=1, neck=5.5, spacing=PLANES)
    flat, cubes = rules(mask).repeat(3, 1), rules.in_pixels_of((1 / 3, 1, 1))(mask.repeat(3, 1))
    assert flat.max() == cubes.max() == 3
    assert (jaccard_of_best_matches(flat, cubes) > 0.97).all()


def test_given_back_cells_touch_again_and_outlines_stay() -> None:
    mask = drawing(
        "........",
        ".111.11.",
        ".111.11.",
        ".111....",
        "........",
    )
    expected = drawing(
        "........",
        ".111222.",
        ".111222.",  # equally near both: the later one's, as SeparateInstances carves
        ".111....",
        "........",
    )
    out = LabelInstances()(mask)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(LabelInstances(grow=0)(mask) > 0, mask > 0)
    wide = drawing("11..22")
    np.testing.assert_array_equal(LabelInstances(grow=1)(wide), drawing("11..22"))
    np.testing.assert_array_equal(LabelInstances(grow=2)(wide), drawing("111222"))
    np.testing.assert_array_equal(LabelInstances(grow=3)(drawing("1....")), drawing("1...."))


def test_separated_cells_are_restored_except_for_the_voxel_where_three_meet() -> None:
    cells = drawing("111222", "111222", "111222", "333333", "333333")
    expected = drawing("111222", "111222", "111222", "333.33", "333333")
    np.testing.assert_array_equal(LabelInstances()(SeparateInstances()(cells)), expected)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("1111", "2222"), ("1111", "....")),  # both one voxel wide: the later is lost
        (("12",), ("1.",)),
        (("1111", "1111", "2222"), ("1111", "....", "2222")),  # the wider neighbour is carved
        (("1111", "1211", "1111"), ("..11", ".2.1", "..11")),
        (("1111", "2222", "3333"), ("1111", "....", "3333")),
        (("1111", "222."), ("...1", "222.")),  # cut down to one voxel, but there
        (("1111.", ".2222"), ("1111.", "....2")),  # voxels without contact stay anyway
    ],
)
def test_narrow_instances_stay_if_they_can(cells: tuple[str, ...], expected: tuple[str, ...]) -> None:
    np.testing.assert_array_equal(SeparateInstances(keep_ids=True)(drawing(*cells)), drawing(*expected))


def test_an_instance_cut_in_two_keeps_its_larger_part() -> None:
    cells = drawing("1111...", "2222222", "2......")
    separated = drawing("1111...", "....222", ".......")
    out = SeparateInstances(keep_ids=True)(cells)
    assert LabelInstances()(out).max() == 2
    np.testing.assert_array_equal(out, separated)
    apart = drawing("22.2", "....", "1111")  # was in two pieces before: stays so
    np.testing.assert_array_equal(SeparateInstances(keep_ids=True)(apart), apart)


def test_degenerate_images() -> None:
    empty = np.zeros((1, 4, 5), dtype=np.uint16)
    for transform in (
        SeparateInstances(),
        SeparateInstances(keep_ids=True),
        LabelInstances(fill_holes=True, min_size=2),
    ):
        np.testing.assert_array_equal(transform(empty), empty)
        assert transform(np.ones((1, 4, 5), dtype=int)).min() == 1  # one cell that fills the image
        assert transform(np.ones((1, 1, 1), dtype=int)).shape == (1, 1, 1)
    one = empty.copy()
    one[0, 3, 4] = 65535  # one voxel, in the corner
    np.testing.assert_array_equal(SeparateInstances()(one), one > 0)
    np.testing.assert_array_equal(SeparateInstances(keep_ids=True)(one), one)
    np.testing.assert_array_equal(LabelInstances()(one), one > 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.float32])
def test_kept_ids_keep_dtype_and_gaps(dtype: type) -> None:
    high = min(np.iinfo(dtype).max, 2**40) if dtype != np.float32 else 2**20
    cells = np.where(drawing("1122", "1122") == 1, 7, high).astype(dtype)
    out = SeparateInstances(keep_ids=True)(cells)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, np.array([[[7, 7, 0, high]] * 2]))


def test_seventy_thousand_instances() -> None:
    ids = np.zeros((1, 530, 530), dtype=np.int64)
    ids[0, ::2, ::2] = np.arange(265 * 265).reshape(265, 265) * 30_000 + 2**31
    np.testing.assert_array_equal(SeparateInstances(keep_ids=True)(ids), ids)
    found = LabelInstances(min_size=1, grow=0)(SeparateInstances()(ids))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[ids > 0], np.arange(1, 265 * 265 + 1))
    assert LabelInstances(grow=0)(np.uint8(ids[:, :400] > 0)).dtype == np.uint16  # 53,000 fit


def test_crowded_single_voxels() -> None:
    # every voxel its own instance: as many stay as can be apart on a chequerboard
    out = SeparateInstances()(np.arange(1, 401).reshape(1, 20, 20))
    np.testing.assert_array_equal(out[0], np.indices((20, 20)).sum(0) % 2 == 0)


def test_min_size_drops_specks_and_renumbers() -> None:
    mask = drawing("1..11", "1....", "...11", "1..11")
    np.testing.assert_array_equal(LabelInstances(min_size=2, grow=0)(mask), drawing("1..22", "1....", "...33", "...33"))
    np.testing.assert_array_equal(LabelInstances(min_size=5, grow=0)(mask), np.zeros_like(mask))


def test_holes_are_filled_cell_by_cell() -> None:
    mask = drawing(
        "111.111",
        "1.1.1.1",
        "111.111",
        ".......",
        "1111111",
    )
    expected = drawing(
        "111.222",
        "111.222",
        "111.222",
        ".......",
        "3333333",
    )
    np.testing.assert_array_equal(LabelInstances(fill_holes=True, grow=0)(mask), expected)
    # a nucleus that floats in the hole stays; so does a pocket between cells
    nested = drawing("11111", "1...1", "1.1.1", "1...1", "11111")
    out = LabelInstances(fill_holes=True, grow=0)(nested)
    np.testing.assert_array_equal(out, drawing("11111", "11111", "11211", "11111", "11111"))
    leaky = drawing("11.", "1.1", "111")  # the hole leaks out between diagonal neighbours
    np.testing.assert_array_equal(LabelInstances(fill_holes=True, grow=0)(leaky), leaky)
    closed = LabelInstances(connectivity=2, fill_holes=True, grow=0)(drawing(".1.", "1.1", ".1."))
    np.testing.assert_array_equal(closed, drawing(".1.", "111", ".1."))


def test_connectivity_of_the_components() -> None:
    mask = drawing("11..", "11..", "..11")
    assert LabelInstances()(mask).max() == 2
    assert LabelInstances(connectivity=2)(mask).max() == 1
    voxels = np.zeros((1, 2, 2, 2), dtype=bool)
    voxels[0, 0, 0, 0] = voxels[0, 1, 1, 1] = True
    assert [LabelInstances(c)(voxels).max() for c in (1, 2, 3)] == [2, 2, 1]


def test_tensors_meta_data_and_loader() -> None:
    cells = MetaTensor(torch.as_tensor(drawing("1122", "1122"), dtype=torch.uint16), meta={"name": "a"})
    chain = Compose([SeparateInstancesd("cells"), LabelInstancesd("cells")])
    out = chain({"cells": cells})["cells"]
    assert isinstance(out, MetaTensor)
    assert out.dtype == torch.uint16
    assert out.meta["name"] == "a"
    assert out.numpy().max() == 2  # torch has no max of uint16
    assert cells.tolist() == drawing("1122", "1122").tolist()  # the input is not written to
    (batch,) = DataLoader([{"cells": out}, {"cells": out}], batch_size=2)
    assert batch["cells"].shape == (2, 1, 2, 4)


def test_dictionary_forms() -> None:
    cells = drawing("1122", "1122")
    data = {"a": cells, "b": cells, "name": "kept"}
    out = SeparateInstancesd(["a", "b"], connectivity=2, keep_ids=True)(data)
    np.testing.assert_array_equal(out["b"], SeparateInstances(2, keep_ids=True)(cells))
    found = LabelInstancesd("a", connectivity=2, min_size=3, fill_holes=True, grow=0)({"a": out["a"]})
    np.testing.assert_array_equal(found["a"], drawing("11..", "11.."))
    for transform in (SeparateInstancesd, LabelInstancesd):
        assert transform("c", allow_missing_keys=True)(data).keys() == data.keys()
        with pytest.raises(KeyError, match="c"):
            transform("c")(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SeparateInstances(connectivity=0),
            "connectivity is 0; use 1 (faces), 2 (edges) or 3 (corners, in 3-D)",
        ),
        (lambda: SeparateInstances(width=4), "width is 4; it must be an odd number of voxels, 3 for one"),
        (lambda: SeparateInstances(width=0), "width is 0; it must be an odd number of voxels, 1 for one"),
        (lambda: SeparateInstances(spacing=(3, 0, 1)), "spacing is (3, 0, 1); the sides of a voxel are above 0"),
        (lambda: LabelInstances(spacing=(1, -1)), "spacing is (1, -1); the sides of a voxel are above 0"),
        (lambda: LabelInstances(connectivity=8), "connectivity is 8; use 1 (faces)"),
        (lambda: LabelInstances(min_size=-1), "min_size is -1; it must be at least 0, which turns it off"),
        (lambda: LabelInstances(neck=-1), "neck is -1; it must be at least 0, which turns it off"),
        (lambda: LabelInstances(core=70), "core is 70; it must be a probability, from 0 to 1"),
        (lambda: LabelInstances(core=0)(np.full((1, 2, 2), 2)), "values that are no probabilities from 0 to 1"),
        (lambda: LabelInstances(core=0)(np.full((1, 2, 2), -0.5)), "values that are no probabilities from 0 to 1"),
        (lambda: LabelInstances(core=0.7)(np.full((1, 2, 2), np.nan)), "values that are no probabilities from 0 to 1"),
        (lambda: LabelInstances(grow=-2), "grow is -2; it must be at least 0, which turns it off"),
        (lambda: SeparateInstances()(np.full((1, 2, 2), -1)), "instance labels hold -1; they must be at least 0"),
        (lambda: SeparateInstances()(np.full((1, 2, 2), 1.5)), "instance labels hold fractional or non-finite values"),
        (
            lambda: SeparateInstances()(np.zeros((3, 2, 2))),
            "instance labels have shape (3, 2, 2); they must be (1, H, W)",
        ),
        (lambda: LabelInstances()(np.full((1, 2, 2), 0.7)), "binarise first, as with AsDiscrete(threshold=0.5)"),
        (lambda: LabelInstances()(np.zeros((2, 2, 2))), "the mask has shape (2, 2, 2); it must be (1, H, W)"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
