"""Instances as outlines: GeoJSON that QuPath opens by drag and drop."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor
from monai.data.image_writer import ImageWriter
from monai.utils import convert_to_numpy
from scipy import ndimage

from monai_unet.files import replacing

__all__ = ["OutlinesWriter", "outlines"]

Ring = list[list[int]]


def outlines(ids: NdarrayOrTensor) -> dict[str, Any]:
    """The outlines of instances as a GeoJSON FeatureCollection (RFC 7946), one feature per instance.

    Coordinates are (x, y) = (column, row) in pixels. The pixel in row r and column c covers x from c to c + 1, y from
    r to r + 1, as QuPath draws it; outlines run along the pixels' edges, so a polygon's area is its number of pixels.
    The outer ring has a positive shoelace area, holes a negative one. An instance in several 4-connected pieces is a
    MultiPolygon.

    Args:
        ids: instance ids (H, W), whole numbers of any dtype, 0 = background.

    Returns:
        features in the order of the ids, of QuPath's type "detection" and class "cell"; a feature's name is its id.

    Raises:
        ValueError: not (H, W).
    """
    array: np.ndarray = convert_to_numpy(ids)
    if array.ndim != 2:
        raise ValueError(f"instance labels have shape {array.shape}; outlines need (H, W): save a stack page by page")
    names, numbers = np.unique(array[array > 0], return_inverse=True)
    image = np.zeros(array.shape, np.int32)
    image[array > 0] = numbers + 1
    features = []
    for number, (name, box) in enumerate(zip(names.tolist(), ndimage.find_objects(image), strict=True), start=1):
        pieces, count = ndimage.label(image[box] == number)
        corner = np.array([box[1].start, box[0].start])
        polygons = [list(_rings(pieces == piece, corner)) for piece in range(1, count + 1)]
        geometry: dict[str, Any] = {"type": "Polygon", "coordinates": polygons[0]}
        if count > 1:
            geometry = {"type": "MultiPolygon", "coordinates": polygons}
        properties = {"objectType": "detection", "name": str(int(name)), "classification": {"name": "cell"}}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def _rings(piece: np.ndarray, corner: np.ndarray) -> Iterator[Ring]:
    """The closed rings of one 4-connected piece (H, W), moved by corner: the outer one, then the holes'.

    Each edge between a pixel of the piece and one outside is walked once, the piece to the right on the screen. Where
    two pixels of the piece meet at a corner only, the walk crosses from one to the other: so a ring touches itself
    nowhere, which makes the polygon valid.
    """
    edges: dict[tuple[int, int, int, int], None] = {}  # (x, y, dx, dy) in reading order, the outer ring's first
    padded = np.pad(piece, 1).astype(np.int8)
    rows = np.diff(padded, axis=0)[:, 1:-1]  # 1 where a pixel of the piece lies below the line, −1 above it
    columns = np.diff(padded, axis=1)[1:-1]  # 1 where one lies right of the line, −1 left of it
    for y, x in np.argwhere(rows).tolist():
        edges[(x, y, 1, 0) if rows[y, x] > 0 else (x + 1, y, -1, 0)] = None
    for y, x in np.argwhere(columns).tolist():
        edges[(x, y + 1, 0, -1) if columns[y, x] > 0 else (x, y, 0, 1)] = None
    left = dict(edges)
    while left:
        edge = next(iter(left))
        path = []
        while edge in left:
            del left[edge]
            path.append(edge)
            x, y, dx, dy = edge
            ahead = ((x + dx, y + dy, *turn) for turn in ((dy, -dx), (dx, dy), (-dy, dx)))
            edge = next(step for step in ahead if step in edges)
        steps = np.array(path)
        turned = (steps[:, 2:] != np.roll(steps[:, 2:], 1, axis=0)).any(1)
        ring = (steps[turned, :2] + corner).tolist()
        yield [*ring, ring[0]]


class OutlinesWriter(ImageWriter):
    """MONAI writer for ``SaveImaged(writer=OutlinesWriter, output_ext=".geojson", resample=False)``.

    Takes instance ids (1, H, W) and writes :func:`outlines`. A killed run leaves nothing under the final name.
    """

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Take the ids; ``channel_dim`` None says that there is no channel axis."""
        array: np.ndarray = convert_to_numpy(data_array)
        self.data_obj = outlines(array if channel_dim is None else np.squeeze(array, channel_dim))

    def set_metadata(self, meta_dict: Any = None, **options: Any) -> None:
        """Nothing: outlines are in pixels, and the viewer knows their size from the image."""

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **kwargs: Any) -> None:
        super().write(filename, verbose=verbose)
        with replacing(filename) as partial:
            partial.write_text(json.dumps(self.data_obj))
