"""Outlines for QuPath and CVAT and back, against what their plugins do with them (MONAI Label 0.8.5)."""

from __future__ import annotations

import numpy as np
import pytest
from lib.outlines import annotation, mask_of_xml

IDS = np.array(
    [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 2, 2],
        [0, 0, 0, 2, 2],
        [3, 3, 3, 0, 0],
        [3, 0, 3, 0, 0],
        [3, 3, 3, 0, 4],
    ]
)


def area(ring: list[list[int]]) -> float:
    x, y = np.array(ring, float).T
    return float(abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2)


def test_each_instance_is_an_element_in_pixels_x_first():
    found = annotation(IDS, ["cell"])["elements"]
    assert [element["label"] for element in found] == ["cell"] * 4
    assert [[area(ring) for ring in element["contours"]] for element in found] == [
        [4],
        [4],
        [9],
        [1],
    ]  # the hole of 3 is lost
    x, y = np.array(found[1]["contours"][0]).T
    assert (x.min(), x.max(), y.min(), y.max()) == (3, 5, 1, 3)


def test_an_instance_in_two_pieces_is_one_element_of_two_contours():
    ids = np.array([[1, 0, 1]])
    (element,) = annotation(ids, ["cell"])["elements"]
    assert [area(ring) for ring in element["contours"]] == [1, 1]


def test_only_instances_in_the_region_are_returned():
    for region, count in (([0, 0, 5, 6], 4), ([3, 0, 2, 3], 1), ([0, 3, 3, 3], 1), ([2, 0, 1, 1], 0)):
        assert len(annotation(IDS, ["cell"], region)["elements"]) == count, region
    assert annotation(IDS, ["cell"], [3, 0, 2, 3])["location"] == [3, 0]


def test_nothing_found_is_no_element():
    assert annotation(np.zeros((3, 4), int), ["cell"])["elements"] == []


def as_qupath_submits(rings: list[list[list[int]]], labels: list[str] | None = None) -> str:
    """SubmitLabel.getAnnotationsXml: whole numbers, no closing point."""
    body = "".join(
        f'<Annotation Color="#ffd200" Name="{label}" PartOfGroup="{label}" Type="Polygon"><Coordinates>'
        + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(ring[:-1]))
        + "</Coordinates></Annotation>"
        for ring, label in zip(rings, labels or ["cell"] * len(rings), strict=True)
    )
    return f'<?xml version="1.0"?><ASAP_Annotations><Annotations H="0" W="0">{body}</Annotations></ASAP_Annotations>'


@pytest.mark.parametrize("instances", [True, False])
def test_a_mask_comes_back_from_qupath_pixel_by_pixel(instances, tmp_path):
    rows, columns = np.mgrid[:40, :50]
    ids = np.zeros((40, 50), int)
    ids[np.hypot(rows - 12, columns - 15) < 9] = 1
    ids[np.hypot(rows - 25, columns - 35) < 11] = 2
    ids[30:, :5] = 3
    rings = [element["contours"][0] for element in annotation(ids, ["cell"])["elements"]]
    file = tmp_path / "label.xml"
    file.write_text(as_qupath_submits(rings))
    mask = mask_of_xml(file, ids.shape, instances)
    assert np.array_equal(mask, ids if instances else ids > 0)
    assert mask.dtype == (np.uint16 if instances else np.uint8)


def test_polygons_are_cut_at_the_image_s_border_and_later_ones_are_on_top(tmp_path):
    square = [[-3, -3], [2, -3], [2, 2], [-3, 2], [-3, -3]]
    over = [[1, 0], [9, 0], [9, 1], [1, 1], [1, 0]]
    line = [[0, 0], [3, 0], [0, 0]]
    outside = [[20, 20], [25, 20], [25, 25], [20, 20]]
    file = tmp_path / "label.xml"
    file.write_text(as_qupath_submits([square, over, line, outside]))
    assert mask_of_xml(file, (3, 4), True).tolist() == [[1, 2, 2, 2], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_classes_of_objects_go_to_qupath_and_come_back(tmp_path):
    ids = np.array([[1, 1, 0, 4, 4], [1, 1, 0, 4, 4], [0, 0, 0, 0, 0], [5, 5, 0, 0, 0]])
    found = annotation(ids, ["live", "dead"])
    assert [element["label"] for element in found["elements"]] == ["live", "dead", "live"]
    assert len({tuple(color) for color in found["labels"].values()}) == 2
    file, rings = tmp_path / "label.xml", [element["contours"][0] for element in found["elements"]]
    file.write_text(as_qupath_submits(rings, ["Live", "Dead", "Live"]))
    assert np.array_equal(mask_of_xml(file, ids.shape, True, ["live", "dead"]), ids)
    file.write_text(as_qupath_submits(rings, ["live", "sick", "live"]))
    with pytest.raises(ValueError, match="label.xml: an outline of the class 'sick'. Make it one of live, dead."):
        mask_of_xml(file, ids.shape, True, ["live", "dead"])
