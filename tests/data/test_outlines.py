"""Outlines: by hand, and drawn again by another library."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Polygon
from monai.data import MetaTensor
from monai.transforms import SaveImage
from scipy import ndimage

from monai_unet.data.microscopy.outlines import OutlinesWriter, outlines


def area(ring: list[list[int]]) -> float:
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def polygons(feature: dict) -> list[list[list[list[int]]]]:
    geometry = feature["geometry"]
    return [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]


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
    (feature,) = outlines(np.eye(2, dtype=int))["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert [area(polygon[0]) for polygon in feature["geometry"]["coordinates"]] == [1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_the_polygons_drawn_again_are_the_instances(seed: int) -> None:
    """Ragged instances with holes, corners that touch and gaps in the ids; no ring meets itself."""
    rng = np.random.default_rng(seed)
    ids = ndimage.label(rng.random((30, 40)) < 0.6)[0] * 3
    y, x = np.mgrid[:30, :40]
    centres = np.stack([x.ravel(), y.ravel()], 1) + 0.5
    features = outlines(ids)["features"]
    assert [int(feature["properties"]["name"]) for feature in features] == np.unique(ids[ids > 0]).tolist()
    holes = 0
    for feature in features:
        mask = ids == int(feature["properties"]["name"])
        inside = np.zeros(ids.size, bool)
        for outer, *inner in polygons(feature):
            assert area(outer) > 0
            assert all(area(ring) < 0 for ring in inner)
            holes += len(inner)
            for ring in (outer, *inner):
                assert len({tuple(point) for point in ring}) == len(ring) - 1, "a ring passes no corner twice"
                inside ^= Polygon(ring).contains_points(centres)
        assert np.array_equal(inside.reshape(ids.shape), mask)
        assert sum(area(ring) for polygon in polygons(feature) for ring in polygon) == mask.sum()
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


def test_a_stack_is_refused() -> None:
    with pytest.raises(ValueError, match=r"have shape \(2, 3, 3\); outlines need \(H, W\): save a stack page by page"):
        outlines(np.zeros((2, 3, 3), int))
