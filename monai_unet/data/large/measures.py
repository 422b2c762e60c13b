"""Measures of the objects of an image larger than memory, block by block, in the tables of the other predictions."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from monai_unet.data.large.instances import blocks
from monai_unet.data.large.reader import LargeImage, open_large_image
from monai_unet.data.microscopy.measures import (
    NAMES,
    can_measure,
    measure,
    name_classes,
    sum_up_classes,
    sum_up_objects,
    table_rows,
    time_written,
)
from monai_unet.data.tables import read_table, update_table
from monai_unet.object_classes import class_of
from monai_unet.options import require

__all__ = ["measure_large_image"]

logger = logging.getLogger(__name__)


def measure_large_image(
    path: str | os.PathLike[str],
    prediction: str | os.PathLike[str],
    channels: int,
    class_names: Sequence[str] | None = None,
    level: int = 0,
    colour: bool = False,
    object_classes: Sequence[str] = (),
) -> None:
    """Measure what `predict_large_image` has found, into ``measures.csv`` and ``summary.csv`` beside its output.

    The tables are those of `MeasureTables`, and an object's row equals that of `measure` on the whole image. Memory
    holds a block, the objects that begin in it, and some 50 bytes per object of the image. Of an object that is
    longer than a block, which would need more, only ``label``, area, box and ``touches_border`` are written.
    Rows stay as long as ``mask_written`` is the time of the output's ``zarr.json``.

    Args:
        path: the image, as for `open_large_image`.
        prediction: the output, finished.
        channels: of the network, as ``level`` and ``colour`` as they were for the prediction.
        class_names: for classes, of which there is a summary only; None for objects.
        level: of the image's pyramid.
        colour: as for `open_large_image`.
        object_classes: as for `MeasureTables`.

    Raises:
        InputError: as `open_large_image`; a table that is none any more.

    >>> import tempfile, zarr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/slide.npy", np.eye(4, 5))
    ...     labels = zarr.open_group(f"{folder}/out.ome.zarr").create_group("labels")
    ...     _ = labels.create_array("classes/0", data=np.eye(4, 5, dtype=np.uint8))
    ...     measure_large_image(f"{folder}/slide.npy", f"{folder}/out.ome.zarr", 1, ["background", "cell"])
    ...     print((Path(folder) / "summary.csv").read_text())
    image,image_area_px,image_area_um2,background_area_px,...,cell_area_px,cell_area_um2,cell_share,mask_written
    slide.npy,20,,16,,0.8,4,,0.2,20...
    """
    measures, summaries = Path(prediction).parent / "measures.csv", Path(prediction).parent / "summary.csv"
    name, time = Path(path).name, time_written(Path(prediction) / "zarr.json")
    if any(row["image"] == name and row.get("mask_written") == time for row in read_table(summaries, "image")):
        return
    if class_names is None and not can_measure():
        return
    labels = require("zarr", "large").open_group(prediction, mode="r")["labels"]
    array = labels["instances/0" if class_names is None else "classes/0"]
    image = open_large_image(path, channels, array.ndim, level, colour)
    size = image.scale if image.unit == "micrometer" else (math.nan,) * array.ndim
    if class_names is None:
        objects = _objects(array)
        columns = measure(np.zeros((1,) * array.ndim, int), np.zeros((channels, *(1,) * array.ndim)), size)
        columns = name_classes(columns, object_classes)
        update_table(measures, "image", list(columns), {name: _rows(image, size, array, objects, object_classes)})
        present = np.flatnonzero(objects.voxels)
        count, touching, voxels = len(present), objects.touches_border.sum(), objects.voxels.sum()
        summary = sum_up_objects(count, touching, voxels, array.size, size)
        for number, each in enumerate(object_classes, 1):
            summary[f"{each}_objects"] = int((class_of(present + 1, len(object_classes)) == number).sum())
    else:
        counts = np.sum([np.bincount(array[box].ravel(), minlength=256) for box in blocks(array)], axis=0)
        summary = sum_up_classes(class_names, counts, size)
    summary["mask_written"] = time
    update_table(summaries, "image", list(summary), {name: [summary]})


class _Objects(NamedTuple):
    """Of the ids 1 … n; those that no object has have no voxels."""

    voxels: np.ndarray
    #: of the box, (n, dims)
    start: np.ndarray
    #: behind the last voxel, (n, dims)
    stop: np.ndarray
    touches_border: np.ndarray


def _objects(array: Any) -> _Objects:
    parts = []
    for box in blocks(array):
        ids = array[box]
        names, numbers = np.unique(ids[ids > 0], return_inverse=True)
        if len(names):
            compact = np.zeros(ids.shape, np.int32)
            compact[ids > 0] = numbers + 1
            corners = np.array([[[s.start, s.stop] for s in inner] for inner in ndimage.find_objects(compact)])
            parts.append((names - 1, np.bincount(numbers), corners + [[s.start] for s in box]))
    count = max((int(which[-1]) + 1 for which, *_ in parts), default=0)
    voxels = np.zeros(count, np.int64)
    start, stop = np.full((count, array.ndim), np.iinfo(np.int64).max), np.zeros((count, array.ndim), np.int64)
    for which, counts, corners in parts:
        voxels[which] += counts
        start[which] = np.minimum(start[which], corners[..., 0])
        stop[which] = np.maximum(stop[which], corners[..., 1])
    return _Objects(voxels, start, stop, ((start == 0) | (stop == array.shape)).any(axis=1).astype(int))


def _rows(
    image: LargeImage, size: Sequence[float], array: Any, objects: _Objects, object_classes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The row of each object, in the order of the blocks in which their boxes begin."""
    axes, (pixels, micrometres, *_) = "zyx"[-array.ndim :], NAMES[array.ndim]
    long = 0
    for box in tqdm(list(blocks(array)), desc="measures", disable=None):
        first, behind = (np.array([getattr(s, end) for s in box]) for end in ("start", "stop"))
        here = np.flatnonzero(((first <= objects.start) & (objects.start < behind)).all(axis=1))
        fits = (objects.stop[here] - objects.start[here] <= behind - first).all(axis=1)
        if fits.any():
            inner = here[fits]
            offset = objects.start[inner].min(axis=0)
            region = tuple(map(slice, offset.tolist(), objects.stop[inner].max(axis=0).tolist()))
            ids = array[region]
            table = measure(np.where(np.isin(ids, inner + 1), ids, 0), image.read(region), size)
            table["touches_border"] = objects.touches_border[inner]
            for axis, shift, length in zip(axes, offset.tolist(), size, strict=True):
                for column in (f"centroid_{axis}_px", f"box_{axis}_from_px", f"box_{axis}_to_px"):
                    table[column] = table[column] + shift
                table[f"centroid_{axis}_um"] = table[f"centroid_{axis}_um"] + shift * length
            yield from table_rows(name_classes(table, object_classes))
        for number in here[~fits].tolist():
            row = {
                "label": number + 1,
                pixels: objects.voxels[number],
                "touches_border": objects.touches_border[number],
            }
            if object_classes:
                row["class"] = object_classes[class_of(number + 1, len(object_classes)) - 1]
            row[micrometres] = float(objects.voxels[number] * np.prod(size))
            for axis, low, high in zip(axes, objects.start[number], objects.stop[number], strict=True):
                row |= {f"box_{axis}_from_px": low, f"box_{axis}_to_px": high}
            yield row
        long += int((~fits).sum())
    if long:
        logger.warning("%d objects are longer than a block: only their area and box are in measures.csv", long)
