"""Instances as outlines: polygons along the pixels' edges, and the GeoJSON that QuPath opens by drag and drop."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor
from monai.data.image_writer import ImageWriter
from monai.utils import convert_to_numpy
from scipy import ndimage

from monai_unet.data.microscopy.measures import can_measure, doubt_columns, measure
from monai_unet.data.microscopy.reader import MicroscopyReader
from monai_unet.files import replacing
from monai_unet.object_classes import class_of
from monai_unet.options import parse_bool

__all__ = ["OutlinesWriter", "instance_polygons", "outlines"]

Ring = list[list[int]]
Polygon = list[Ring]


def instance_polygons(ids: NdarrayOrTensor) -> dict[int, list[Polygon]]:
    """Outline instances, each as one polygon per 4-connected piece.

    Coordinates are (x, y) = (column, row) in pixels. The pixel in row r and column c covers x from c to c + 1, y from
    r to r + 1; outlines run along the pixels' edges, so a polygon's area is its number of pixels. A polygon is its
    outer ring, of positive shoelace area, followed by its holes, of negative area. Rings are closed and never touch
    themselves: where two pixels of a piece meet at a corner only, the ring crosses from one to the other.

    Args:
        ids: instance ids (H, W), whole numbers of any dtype, 0 = background.

    Returns:
        The polygons of each id, in ascending order of the ids.

    Raises:
        ValueError: not (H, W).

    >>> import numpy as np
    >>> instance_polygons(np.array([[0, 0, 0], [0, 7, 7]]))
    {7: [[[[1, 1], [3, 1], [3, 2], [1, 2], [1, 1]]]]}
    """
    array: np.ndarray = convert_to_numpy(ids)
    if array.ndim != 2:
        raise ValueError(f"instance labels have shape {array.shape}; outlines need (H, W): save a stack page by page")
    names, numbers = np.unique(array[array > 0], return_inverse=True)
    image = np.zeros(array.shape, np.int32)
    image[array > 0] = numbers + 1
    pieces, polygons = np.zeros_like(image), list[Polygon]()
    result: dict[int, list[Polygon]] = {}
    for name, box in zip(names.tolist(), ndimage.find_objects(image), strict=True):
        found, count = ndimage.label(array[box] == name)
        pieces[box][found > 0] = found[found > 0] + len(polygons)
        result[int(name)] = [[] for _ in range(count)]
        polygons += result[int(name)]
    for piece, ring in _rings(pieces):
        polygons[piece - 1].append(ring)
    return result


def _rings(pieces: np.ndarray) -> Iterator[tuple[int, Ring]]:
    """Trace the rings of 4-connected pieces (H, W), each with its piece's number, in the order of their top edges.

    An edge leads from one corner of a pixel to the next, with its piece on the right as seen on the screen. It is known
    by its first corner and its direction: 0 right, 1 down, 2 left, 3 up. Seen from a corner in direction d, the pixel
    ahead on the left is number d of the four around the corner, and the one ahead on the right is number d - 3.
    """
    width = pieces.shape[1] + 2
    pixels = np.pad(pieces, 1).ravel()  # a corner has the index of the pixel to its upper left
    steps = np.array([1, width, -1, -width])
    around = np.array([1, width + 1, width, 0])  # from a corner to its pixels, clockwise from the upper right
    views = [pixels[offset : offset + pixels.size - width - 1] for offset in around]
    starts = [np.flatnonzero((views[d - 3] > 0) & (views[d - 3] != views[d])) for d in range(4)]
    edges = np.sort(np.concatenate([corners * 4 + d for d, corners in enumerate(starts)]))
    corner, direction = np.divmod(edges, 4)
    piece = pixels[corner + around[direction - 3]]

    end = corner + steps[direction]
    left, right = (pixels[end + around[ahead]] == piece for ahead in (direction, direction - 3))
    turn = np.where(left, -1, np.where(right, 0, 1))  # to the left first: that crosses where pixels meet at a corner
    following = np.searchsorted(edges, end * 4 + (direction + turn) % 4)
    is_vertex = np.zeros(len(edges), bool)
    is_vertex[following[turn != 0]] = True

    horizontal = np.flatnonzero(direction % 2 == 0)
    tops = horizontal[np.argsort((corner - direction // 2)[horizontal], kind="stable")]
    rows, columns = (axis.tolist() for axis in np.divmod(corner, width))
    path, vertices, seen = following.tolist(), is_vertex.tolist(), bytearray(len(edges))
    for top in tops.tolist():
        ring, edge = [], top
        while not seen[edge]:
            seen[edge] = True
            if vertices[edge]:
                ring.append([columns[edge], rows[edge]])
            edge = path[edge]
        if ring:
            yield int(piece[top]), [*ring, ring[0]]


def outlines(
    ids: NdarrayOrTensor,
    measures: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] = ("background", "cell"),
) -> dict[str, Any]:
    """Outline instances as a GeoJSON FeatureCollection (RFC 7946), one feature per instance.

    Args:
        ids: instance ids (H, W), whole numbers of any dtype, 0 = background.
        measures: of these instances, as :func:`monai_unet.data.microscopy.measures.measure` returns them.
        class_names: with the background; of several classes of objects, ids say the class as
            `monai_unet.object_classes` has it.

    Returns:
        The polygons of :func:`instance_polygons`, which are pixels as QuPath draws them. Features are in ascending
        order of the ids, of QuPath's type "detection" and of their class; a feature's name is its id, its
        "measurements" are those that are known. An instance in several pieces is a MultiPolygon.

    Raises:
        ValueError: not (H, W).

    >>> import numpy as np
    >>> (cell,) = outlines(np.array([[0, 0, 0], [0, 7, 7]]))["features"]
    >>> cell["properties"]["name"], cell["geometry"]["type"], cell["geometry"]["coordinates"]
    ('7', 'Polygon', [[[1, 1], [3, 1], [3, 2], [1, 2], [1, 1]]])
    """
    features = []
    columns = {column: values.tolist() for column, values in (measures or {}).items()}
    rows = dict(zip(columns.pop("label", []), zip(*columns.values(), strict=True), strict=True))
    for name, polygons in instance_polygons(ids).items():
        geometry: dict[str, Any] = {"type": "Polygon", "coordinates": polygons[0]}
        if len(polygons) > 1:
            geometry = {"type": "MultiPolygon", "coordinates": polygons}
        classification = {"name": class_names[class_of(name, len(class_names) - 1)]}
        properties: dict[str, Any] = {"objectType": "detection", "name": str(name), "classification": classification}
        if name in rows:
            known = zip(columns, rows[name], strict=True)
            properties["measurements"] = {column: value for column, value in known if not math.isnan(value)}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


class OutlinesWriter(ImageWriter):
    """MONAI writer for ``SaveImaged(writer=OutlinesWriter, output_ext=".geojson", resample=False)``.

    Takes instance ids (1, H, W) and writes :func:`outlines`. A killed run leaves nothing under the final name.

    Args:
        overwrite: whether an existing file is replaced, else it is left alone; "true" and "false" are understood.
        reader: reads the image again, as it is in the file, to measure the instances; None: they are not measured.
        class_names: as for :func:`outlines`.

    >>> import json, tempfile
    >>> import numpy as np
    >>> from monai.transforms import SaveImage
    >>> save = {"writer": OutlinesWriter, "output_ext": ".geojson", "resample": False, "separate_folder": False}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = SaveImage(folder, "cells", print_log=False, **save)(np.eye(3)[None], {"filename_or_obj": "a.tif"})
    ...     len(json.loads((Path(folder) / "a_cells.geojson").read_text())["features"])
    1
    """

    def __init__(
        self,
        overwrite: bool | str = True,
        reader: MicroscopyReader | None = None,
        class_names: Sequence[str] = ("background", "cell"),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.overwrite, self.reader, self.class_names = parse_bool("overwrite", overwrite), reader, class_names
        self.image: Any = None
        self.doubt: Any = None

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Take the ids; ``channel_dim`` is None where there is no channel axis."""
        array: np.ndarray = convert_to_numpy(data_array)
        self.data_obj = array if channel_dim is None else np.squeeze(array, channel_dim)

    def set_metadata(self, meta_dict: Any = None, **options: Any) -> None:
        """Take the image's path and the doubt: outlines are in pixels, whose size the viewer takes from the image."""
        self.image, self.doubt = ((meta_dict or {}).get(key) for key in ("filename_or_obj", "doubt"))

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **kwargs: Any) -> None:
        if Path(filename).exists() and not self.overwrite:
            return
        super().write(filename, verbose=verbose)
        measures: dict[str, np.ndarray] | None = None
        if self.reader is not None and can_measure():
            image, meta = self.reader.get_data(self.reader.read(self.image))
            measures = measure(self.data_obj, image, meta["pixel_size_um"])
        if self.doubt is not None:
            measures = {"label": np.array([*self.doubt.objects], int), **(measures or {}), **doubt_columns(self.doubt)}
        with replacing(filename) as partial:
            partial.write_text(json.dumps(outlines(self.data_obj, measures, self.class_names)))
