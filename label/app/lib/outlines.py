"""Masks as polygons for QuPath and CVAT, and QuPath's polygons as masks.

The plugins know polygons without holes, in (x, y) pixels: QuPath reads and writes ASAP's XML, CVAT reads JSON.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from monai_unet.data import InputError
from monai_unet.data.microscopy.outlines import instance_polygons
from monai_unet.object_classes import class_of, id_of

COLORS = [[255, 210, 0], [0, 160, 255], [220, 60, 60], [80, 200, 80]]


def annotation(ids: np.ndarray, labels: Sequence[str], region: list[int] | None = None) -> dict[str, Any]:
    """The annotation that MONAI Label's writers of ASAP, DSA and JSON take: the outer rings of each instance.

    Args:
        ids: instance ids (H, W), 0 = background.
        labels: the class of all instances; of several classes, ids say the class (`monai_unet.object_classes`).
        region: x, y, width, height in pixels: leave out instances whose bounding box has its centre elsewhere.
    """
    x, y, width, height = region or (0, 0, 0, 0)
    elements = []
    for number, polygons in instance_polygons(ids).items():
        rings = [polygon[0] for polygon in polygons]
        points = np.concatenate(rings)
        centre = (points.min(0) + points.max(0)) / 2 - (x, y)
        if region is None or ((centre >= 0) & (centre < (width, height))).all():
            elements.append({"label": labels[class_of(number, len(labels)) - 1], "contours": rings})
    colors = {label: COLORS[number % len(COLORS)] for number, label in enumerate(labels)}
    return {"location": [x, y], "size": [width, height], "elements": elements, "labels": colors}


def mask_of_xml(path: Path, shape: tuple[int, int], instances: bool, labels: Sequence[str] = ()) -> np.ndarray:
    """Draw QuPath's annotations as a mask (H, W): a number of its own for each polygon, or 1 for all.

    A pixel belongs to the polygon that contains its centre; where polygons overlap, to the later one.

    Args:
        path: ASAP XML, as QuPath's plugin submits it.
        shape: rows and columns of the image.
        instances: whether each polygon is a separate object.
        labels: of several classes of objects: the class of a polygon, whatever its case, goes into its number.

    Returns:
        uint16, or uint8 where all are 1.

    Raises:
        InputError: a polygon of another class.
    """
    fine = 2  # PIL paints the vertices' pixels: on a grid of half pixels, their centres decide
    mask = np.zeros(shape, np.uint16)
    for number, element in enumerate(ElementTree.parse(path).iter("Annotation"), start=1):
        points = np.array([(float(p.attrib["X"]), float(p.attrib["Y"])) for p in element.iter("Coordinate")])
        if len(points) < 3:
            continue
        low = np.clip(np.floor(np.min(points, 0)).astype(int), 0, shape[::-1])
        high = np.clip(np.ceil(np.max(points, 0)).astype(int), 0, shape[::-1])
        canvas = Image.new("1", tuple((high - low) * fine + 1))
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in (points - low) * fine], fill=1)
        inside = np.asarray(canvas)[1::fine, 1::fine]
        if len(labels) > 1:
            known, label = [name.lower() for name in labels], element.attrib.get("PartOfGroup", "")
            if label.lower() not in known:
                raise InputError(path.name, f"an outline of the class {label!r}", f"Make it one of {', '.join(labels)}")
            number = id_of(number, known.index(label.lower()) + 1, len(labels))
        mask[low[1] : high[1], low[0] : high[0]][inside] = number if instances else 1
    return mask if instances else mask.astype(np.uint8)
