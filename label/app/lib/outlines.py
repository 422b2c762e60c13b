"""Masks as polygons for QuPath and CVAT, and QuPath's polygons as masks.

The plugins know polygons without holes, in (x, y) pixels: QuPath reads and writes ASAP's XML, CVAT reads JSON.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from monai_unet.data.microscopy.outlines import outlines

COLOR = [255, 210, 0]


def elements(collection: dict[str, Any], label: str, region: list[int] | None = None) -> list[dict[str, Any]]:
    """The outer rings of a GeoJSON collection as MONAI Label's annotation elements, one element per instance.

    Args:
        collection: of `monai_unet.data.microscopy.outlines.outlines`.
        label: the class of all of them.
        region: x, y, width, height in pixels; only instances whose bounding box has its centre there. None for all.
    """
    found = []
    for feature in collection["features"]:
        geometry = feature["geometry"]
        polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        rings = [polygon[0] for polygon in polygons]
        points = np.concatenate([np.asarray(ring) for ring in rings])
        if region is not None:
            centre = (points.min(0) + points.max(0)) / 2 - region[:2]
            if (centre < 0).any() or (centre >= region[2:]).any():
                continue
        found.append({"label": label, "contours": rings})
    return found


def annotation(ids: np.ndarray, label: str, region: list[int] | None = None) -> dict[str, Any]:
    """Instances (H, W) as what MONAI Label's writers of ASAP, DSA and JSON take."""
    x, y, width, height = region or (0, 0, 0, 0)
    found = elements(outlines(ids), label, region)
    return {"location": [x, y], "size": [width, height], "elements": found, "labels": {label: COLOR}}


def mask_of_xml(path: Path, shape: tuple[int, int], instances: bool) -> np.ndarray:
    """QuPath's annotations as a mask (H, W): each polygon its own number, or 1 for all.

    A pixel belongs to the polygon that holds its centre; where polygons overlap, to the later one.

    Args:
        path: ASAP XML, as QuPath's plugin submits it.
        shape: rows and columns of the image.
        instances: whether each polygon is an object of its own.

    Returns:
        uint16, or uint8 where all are 1.
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
        mask[low[1] : high[1], low[0] : high[0]][inside] = number if instances else 1
    return mask if instances else mask.astype(np.uint8)
