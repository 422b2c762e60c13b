"""Outlines: by hand, against a slow walk of one piece at a time, and drawn again by another library."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Polygon
from monai.data import MetaTensor
from monai.transforms import SaveImage
from scipy import ndimage

from monai_unet.data.microscopy.outlines import OutlinesWriter, instance_polygons, outlines


def area(ring: list[list[int]]) -> float:
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def walked(piece: np.ndarray) -> list[list[list[int]]]:
    """The rings of one 4-connected piece in an array of its own, edge by edge: the outer one, then the holes."""
    edges: dict[tuple[int, int, int, int], None] = {}  # (x, y, dx, dy), the piece to the right on the screen
    rows, columns = (np.diff(np.pad(piece, 1).astype(int), axis=axis) for axis in (0, 1))
    for y, x in np.argwhere(rows[:, 1:-1]).tolist():
        edges[(x, y, 1, 0) if rows[y, x + 1] > 0 else (x + 1, y, -1, 0)] = None
    for y, x in np.argwhere(columns[1:-1]).tolist():
        edges[(x, y + 1, 0, -1) if columns[y + 1, x] > 0 else (x, y, 0, 1)] = None
    left, rings = dict(edges), []
    while left:
        edge, path = next(iter(left)), []
        while edge in left:
            del left[edge]
            path.append(edge)
            x, y, dx, dy = edge
            edge = next(e for e in ((x + dx, y + dy, *d) for d in ((dy, -dx), (dx, dy), (-dy, dx))) if e in edges)
        ring = [[x, y] for (x, y, *d), (_, _, *before) in zip(path, path[-1:] + path, strict=False) if d != before]
        rings.append([*ring, ring[0]])
    return rings


@pytest.mark.parametrize("seed", range(8))
def test_all_at_once_equals_one_piece_at_a_time(seed: int) -> None:
    """Ids that fill the image up to its border, in many pieces, with holes and with pixels that touch at corners."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 2 + seed // 2, rng.integers(1, 25, 2)) * 300
    expected = {}
    for name in np.unique(ids[ids > 0]).tolist():
        pieces, count = ndimage.label(ids == name)
        expected[name] = [walked(pieces == piece) for piece in range(1, count + 1)]
    assert instance_polygons(ids) == expected


def test_one_pixel_in_row_2_and_column_5() -> None:
    ids = np.zeros((4, 8), np.uint16)
    ids[2, 5] = 900
    (feature,) = outlines(ids)["features"]
    (ring,) = feature["geometry"]["coordinates"]
    assert feature["geometry"]["type"] == "Polygon"
    assert ring[0] == ring[-1]
    assert len(ring) == 5
    assert {tuple(point) for point in ring} == {(5, 2), (6, 2), (6, 3), (5, 3)}
    assert area(ring) == 1
    assert feature["properties"] == {"objectType": "detection", "name": "900", "classification": {"name": "cell"}}


def test_a_hole_and_the_image_s_edges() -> None:
    ids = np.ones((3, 4), int)
    ids[1, 1:3] = 0
    (feature,) = outlines(ids)["features"]
    outer, hole = feature["geometry"]["coordinates"]
    assert {tuple(point) for point in outer} == {(0, 0), (4, 0), (4, 3), (0, 3)}
    assert {tuple(point) for point in hole} == {(1, 1), (3, 1), (3, 2), (1, 2)}
    assert (area(outer), area(hole)) == (12, -2)


def test_no_instance_and_an_instance_in_two_pieces() -> None:
    assert outlines(np.zeros((3, 3), int)) == {"type": "FeatureCollection", "features": []}
    (feature,) = outlines(np.eye(2))["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert [area(polygon[0]) for polygon in feature["geometry"]["coordinates"]] == [1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_the_polygons_drawn_again_are_the_instances(seed: int) -> None:
    """Ragged instances with holes, corners that touch and gaps in the ids; no ring meets itself."""
    rng = np.random.default_rng(seed)
    ids = ndimage.label(rng.random((30, 40)) < 0.6)[0] * 3
    y, x = np.mgrid[:30, :40]
    centres = np.stack([x.ravel(), y.ravel()], 1) + 0.5
    found = instance_polygons(ids)
    assert list(found) == np.unique(ids[ids > 0]).tolist()
    holes = 0
    for name, polygons in found.items():
        mask = ids == name
        inside = np.zeros(ids.size, bool)
        for outer, *inner in polygons:
            assert area(outer) > 0
            assert all(area(ring) < 0 for ring in inner)
            holes += len(inner)
            for ring in (outer, *inner):
                assert len({tuple(point) for point in ring}) == len(ring) - 1, "a ring passes no corner twice"
                inside ^= Polygon(ring).contains_points(centres)
        assert np.array_equal(inside.reshape(ids.shape), mask)
        assert sum(area(ring) for polygon in polygons for ring in polygon) == mask.sum()
    assert holes > 5


def test_save_image_writes_them(tmp_path) -> None:
    ids = torch.zeros((1, 5, 6), dtype=torch.int32)
    ids[0, 1:3, 2:6] = 4
    meta = {"filename_or_obj": "plate.tif", "affine": torch.eye(3)}
    save = SaveImage(tmp_path, "", ".geojson", writer=OutlinesWriter, resample=False, separate_folder=False)
    save(MetaTensor(ids.to(torch.uint16), meta=meta))
    (file,) = tmp_path.iterdir()
    assert file.name == "plate.geojson"
    assert json.loads(file.read_text()) == outlines(ids[0])


def test_ids_say_the_class(tmp_path) -> None:
    ids = np.zeros((1, 4, 6), np.uint16)
    ids[0, 0, 0], ids[0, 2, 1:4], ids[0, 0, 4] = 1, 4, 5
    writer = partial(OutlinesWriter, class_names=["background", "live", "dead"])
    save = SaveImage(tmp_path, "", ".geojson", writer=writer, resample=False, separate_folder=False)
    save(MetaTensor(torch.as_tensor(ids.astype(int)), meta={"filename_or_obj": "plate.tif", "affine": torch.eye(3)}))
    found = [feature["properties"] for feature in json.loads((tmp_path / "plate.geojson").read_text())["features"]]
    assert [(each["name"], each["classification"]) for each in found] == [
        ("1", {"name": "live"}),
        ("4", {"name": "dead"}),
        ("5", {"name": "live"}),
    ]


def test_a_stack_is_refused() -> None:
    with pytest.raises(ValueError, match=r"have shape \(2, 3, 3\); outlines need \(H, W\): save a stack page by page"):
        outlines(np.zeros((2, 3, 3), int))
