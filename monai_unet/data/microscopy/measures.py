"""What a mask is for: each object measured by scikit-image, each image summed up, in pixels and in micrometres."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor
from monai.utils import convert_to_numpy

from monai_unet.data.microscopy.reader import MicroscopyReader
from monai_unet.data.tables import read_table, update_table
from monai_unet.doubt import Doubt, doubt
from monai_unet.errors import InputError
from monai_unet.object_classes import class_of
from monai_unet.options import require

__all__ = [
    "MeasureTables",
    "can_measure",
    "doubt_columns",
    "measure",
    "name_classes",
    "sum_up_classes",
    "sum_up_objects",
    "table_rows",
    "time_written",
]

logger = logging.getLogger(__name__)

#: per number of axes: the size of an object in pixels and in µm, and its outline's
NAMES = {2: ("area_px", "area_um2", "perimeter_px", "perimeter_um")}
NAMES[3] = ("volume_vx", "volume_um3", "surface_px2", "surface_um2")
#: per number of axes: the unit of densities, and µm² or µm³ in it
DENSITY = {2: ("mm2", 1e6), 3: ("mm3", 1e9)}
PROPERTIES = ("label", "num_pixels", "centroid", "bbox", "extent", "intensity_mean", "intensity_min", "intensity_max")

Table = dict[str, np.ndarray]


def can_measure() -> bool:
    """Whether scikit-image is installed; if not, a warning says how to install it.

    >>> can_measure() in (True, False)
    True
    """
    try:
        require("skimage.measure", "microscopy")
    except ImportError as error:
        logger.warning("objects are not measured: %s", error)
        return False
    return True


def measure(ids: NdarrayOrTensor, image: NdarrayOrTensor, pixel_size_um: Sequence[float] | np.ndarray) -> Table:
    """Measure each object with `skimage.measure.regionprops_table`.

    Args:
        ids: (H, W) or (Z, H, W), whole numbers of any dtype, 0 = background.
        image: ``(C, *spatial)`` of any dtype, as it is in the file.
        pixel_size_um: µm per axis; NaN where it is unknown: then all that is in µm is NaN.

    Returns:
        A column per measure, in ascending order of the ids, ``label``:

        - ``area_px``, ``area_um2`` (in 3-D ``volume_vx``, ``volume_um3``);
        - ``centroid_y_px``, ``centroid_x_px`` (and z), where the centre of the first pixel is 0, and in ``_um``;
        - the box, ``box_y_from_px`` to ``box_y_to_px``, which is the first pixel behind it;
        - ``perimeter_px`` through the centres of the outermost pixels (of discs 5 % too long), ``perimeter_um`` where
          pixels are square; in 3-D ``surface_px2``, ``surface_um2`` by marching cubes (of balls up to 10 % too large);
        - ``eccentricity`` of the ellipse with the same second moments, in µm where they are known (2-D only);
        - ``extent``, the share of the box that the object fills;
        - ``touches_border``, 0 or 1: it may be larger than what is seen of it;
        - of the values of channel 1, ``mean_1``, ``minimum_1``, ``maximum_1``, and ``integrated_1``, their sum.

    Raises:
        ImportError: scikit-image is missing.
        ValueError: an image of another shape.

    >>> cells = np.array([[0, 0, 0, 0], [0, 7, 7, 0], [0, 0, 0, 0]])
    >>> table = measure(cells, 10 * cells[None], pixel_size_um=(0.5, 0.5))
    >>> {name: table[name].tolist() for name in ("label", "area_px", "area_um2", "centroid_x_px", "mean_1")}
    {'label': [7], 'area_px': [2], 'area_um2': [0.5], 'centroid_x_px': [1.5], 'mean_1': [70.0]}
    """
    skimage = require("skimage.measure", "microscopy")
    labels: np.ndarray = np.asarray(convert_to_numpy(ids)).astype(np.int64)
    channels: np.ndarray = np.asarray(convert_to_numpy(image)).astype(np.float64)
    if channels.shape[1:] != labels.shape:
        raise ValueError(f"the image has shape {channels.shape[1:]}, its objects {labels.shape}")
    dims, axes = labels.ndim, "zyx"[-labels.ndim :]
    size = np.asarray(pixel_size_um, float)
    known = bool((size > 0).all())
    spacing = tuple(size.tolist()) if known else (1.0,) * dims

    def outline(mask: np.ndarray) -> float:
        return float(skimage.perimeter(mask, 4)) if dims == 2 else _surface(mask, (1.0,) * dims)

    def surface(mask: np.ndarray) -> float:
        return _surface(mask, spacing) if known else math.nan

    found = skimage.regionprops_table(
        labels,
        np.moveaxis(channels, 0, -1),
        (*PROPERTIES, "eccentricity") if dims == 2 else PROPERTIES,
        spacing=spacing,
        extra_properties=[outline] if dims == 2 else [outline, surface],
    )
    pixels, micrometres, outline_px, outline_um = NAMES[dims]
    square = spacing[0] if known and math.isclose(*spacing[-2:], rel_tol=1e-3) else math.nan
    start, stop = (np.array([found[f"bbox-{axis + end}"] for axis in range(dims)]) for end in (0, dims))
    table = {"label": found["label"], pixels: found["num_pixels"]}
    table[micrometres] = found["num_pixels"] * (math.prod(spacing) if known else math.nan)
    for number, axis in enumerate(axes):
        table[f"centroid_{axis}_px"] = found[f"centroid-{number}"] / spacing[number]
    for number, axis in enumerate(axes):
        table[f"centroid_{axis}_um"] = found[f"centroid-{number}"] * (1 if known else math.nan)
    for number, axis in enumerate(axes):
        table |= {f"box_{axis}_from_px": start[number], f"box_{axis}_to_px": stop[number]}
    table |= {outline_px: found["outline"], outline_um: found["outline"] * square if dims == 2 else found["surface"]}
    table |= {name: found[name] for name in ("eccentricity", "extent") if name in found}
    table["touches_border"] = ((start == 0) | (stop == np.array(labels.shape)[:, None])).any(0).astype(int)
    for channel in range(len(channels)):
        mean, low, high = (found[f"intensity_{kind}-{channel}"] for kind in ("mean", "min", "max"))
        table |= {f"mean_{channel + 1}": mean, f"minimum_{channel + 1}": low, f"maximum_{channel + 1}": high}
        table[f"integrated_{channel + 1}"] = mean * found["num_pixels"]
    return table


def name_classes(table: Table, object_classes: Sequence[str]) -> Table:
    """Add the column ``class`` behind the ids that say it; without names, there is none.

    >>> name_classes({"label": np.array([1, 4]), "area_px": np.array([9, 8])}, ["live", "dead"])["class"].tolist()
    ['live', 'dead']
    """
    if not object_classes:
        return table
    numbers = class_of(table["label"], len(object_classes)) - 1
    return {"label": table["label"], "class": np.array(object_classes)[numbers], **table}


def doubt_columns(found: Doubt) -> Table:
    """The columns ``doubt`` and ``look`` (0 or 1, NaN without a threshold) of objects, in ascending order of their ids.

    >>> doubt_columns(Doubt(0.2, None, {3: 0.1, 7: 0.4}, {3: False, 7: True}))
    {'doubt': array([0.1, 0.4]), 'look': array([0., 1.])}
    """
    return {
        "doubt": np.array([*found.objects.values()]),
        "look": np.array([*found.objects_look.values()], float),
    }


def _surface(mask: np.ndarray, spacing: tuple[float, ...]) -> float:
    skimage = require("skimage.measure", "microscopy")
    corners, faces, _, _ = skimage.marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=spacing)
    return float(skimage.mesh_surface_area(corners, faces))


class MeasureTables:
    """The tables ``measures.csv``, a row per object, and ``summary.csv``, a row per image, of a folder of predictions.

    They are read from the masks as they are on disk. Rows of images that a run leaves alone stay as long as
    ``mask_written`` is the time of the mask, earlier or later; images without such rows, as after a killed run or in
    the tables of earlier versions, are measured.

    Args:
        folder: of the predictions.
        reader: reads the images; intensities are those of the file.
        class_names: of the values of masks of classes, of which there is ``summary.csv`` only; None for objects.
        rule: as for :func:`monai_unet.doubt.doubt`.
        object_classes: names of the classes of objects, where there are several: ids say the class as
            `monai_unet.object_classes` has it. Then there is a column ``class``, and the objects of each are counted.

    Raises:
        InputError: a table that is none any more; from `add`, a mask of another shape than its image.

    >>> import tempfile, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image, mask = f"{folder}/a.tif", f"{folder}/a_label.tif"
    ...     tifffile.imwrite(image, np.zeros((4, 5), np.uint8))
    ...     tifffile.imwrite(mask, np.eye(4, 5, dtype=np.uint8))
    ...     tables = MeasureTables(folder, MicroscopyReader(), ["background", "cell"])
    ...     tables.add(image, mask)
    ...     tables.write()
    ...     print((Path(folder) / "summary.csv").read_text())
    image,image_area_px,image_area_um2,background_area_px,...,cell_area_px,cell_area_um2,cell_share,mask_written
    a.tif,20,,16,,0.8,4,,0.2,20...
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        reader: MicroscopyReader,
        class_names: Sequence[str] | None = None,
        rule: Mapping[str, Any] | None = None,
        object_classes: Sequence[str] = (),
    ) -> None:
        self.reader, self.class_names, self.rule, self.object_classes = reader, class_names, rule, object_classes
        self.enabled = class_names is not None or can_measure()
        self.summary_path, self.measures_path = Path(folder) / "summary.csv", Path(folder) / "measures.csv"
        self.known = {row["image"]: row.get("mask_written") for row in read_table(self.summary_path, "image")}
        next(read_table(self.measures_path, "image"), None)  # refused before the first image, not after the last
        if class_names is None and not self.measures_path.exists():
            self.known = {}
        self.measures, self.summaries = dict[str, Table](), dict[str, dict[str, Any]]()
        self.doubts = dict[str, Doubt]()

    def add(
        self,
        image: str | os.PathLike[str],
        mask: str | os.PathLike[str],
        probability: str | os.PathLike[str] | None = None,
    ) -> None:
        """Measure the objects of an image, or the areas of its classes, unless its rows are those of this mask.

        With the probability of foreground, there are the columns ``doubt`` and ``look``, too.
        """
        name, time = Path(image).name, time_written(mask)
        if not self.enabled or self.known.get(name) == time:
            return
        array, meta = self.reader.get_data(self.reader.read(image))
        labels = MicroscopyReader(1, label=True)
        ids = labels.get_data(labels.read(mask))[0][0].astype(np.int64)
        if ids.shape != array.shape[1:]:
            problem = f"shape {ids.shape}, but its image {image} has {array.shape[1:]}"
            raise InputError(mask, problem, "Predict it again with --overwrite true")
        found = None
        if probability is not None:
            plain = MicroscopyReader(1)
            found = self.doubts[name] = doubt(ids, plain.get_data(plain.read(probability))[0][0], self.rule)
        size = meta["pixel_size_um"]
        if self.class_names is not None:
            counts = np.bincount(ids.ravel(), minlength=len(self.class_names))
            summary = sum_up_classes(self.class_names, counts, size)
        else:
            table = self.measures[name] = name_classes(measure(ids, array, size), self.object_classes)
            covered, touching = table[NAMES[ids.ndim][0]].sum(), table["touches_border"].sum()
            summary = sum_up_objects(len(table["label"]), touching, covered, ids.size, size)
            summary |= {f"{each}_objects": int((table["class"] == each).sum()) for each in self.object_classes}
            if found is not None:
                table |= doubt_columns(found)
        if found is not None:
            summary |= {"doubt": found.image, "look": math.nan if found.look is None else int(found.look)}
        self.summaries[name] = summary | {"mask_written": time}

    def write(self) -> None:
        """Write what has been added; without anything new, the files are left alone."""
        for path, found, rows in (
            (self.measures_path, self.measures, {name: table_rows(table) for name, table in self.measures.items()}),
            (self.summary_path, self.summaries, {name: [row] for name, row in self.summaries.items()}),
        ):
            if found:
                columns = dict.fromkeys(column for table in found.values() for column in table)
                update_table(path, "image", list(columns), rows)


def sum_up_objects(
    count: int, touching: int, covered: int, voxels: int, pixel_size_um: Sequence[float] | np.ndarray
) -> dict[str, Any]:
    """Sum up an image of ``count`` objects: a row of ``summary.csv``.

    Args:
        count: of the objects.
        touching: as many touch the image's border.
        covered: pixels of all of them.
        voxels: of the image.
        pixel_size_um: µm per axis; NaN where it is unknown.

    >>> sum_up_objects(5, touching=1, covered=50, voxels=200, pixel_size_um=(0.5, 0.5))["objects_per_mm2"]
    100000.0
    """
    dims, voxel = len(pixel_size_um), float(np.prod(pixel_size_um))
    (pixels, micrometres, *_), (unit, scale) = NAMES[dims], DENSITY[dims]
    return {
        "objects": int(count),
        "touching_border": int(touching),
        f"image_{pixels}": voxels,
        f"image_{micrometres}": voxels * voxel,
        f"objects_{pixels}": int(covered),
        f"objects_{micrometres}": covered * voxel,
        "share": covered / voxels,
        f"objects_per_{unit}": count / (voxels * voxel) * scale,
    }


def sum_up_classes(
    class_names: Sequence[str], counts: np.ndarray, pixel_size_um: Sequence[float] | np.ndarray
) -> dict[str, Any]:
    """Sum up the classes of an image: a row of ``summary.csv``.

    Args:
        class_names: of the values from 0.
        counts: pixels of each value; those beyond the last class, as of masks of 0 and 255, are of the last class.
        pixel_size_um: µm per axis; NaN where it is unknown.

    >>> sum_up_classes(["background", "cell"], np.array([6, 2]), (0.5, 0.5))["cell_area_um2"]
    0.5
    """
    (pixels, micrometres, *_), voxel = NAMES[len(pixel_size_um)], float(np.prod(pixel_size_um))
    last, voxels = len(class_names) - 1, int(counts.sum())
    summary: dict[str, Any] = {f"image_{pixels}": voxels, f"image_{micrometres}": voxels * voxel}
    for class_name, count in zip(class_names, [*counts[:last].tolist(), int(counts[last:].sum())], strict=True):
        summary |= {f"{class_name}_{pixels}": count, f"{class_name}_{micrometres}": count * voxel}
        summary[f"{class_name}_share"] = count / voxels
    return summary


def time_written(path: str | os.PathLike[str]) -> str:
    """When a file was last written, UTC to the nanosecond: the column ``mask_written`` of ``summary.csv``.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as mask:
    ...     os.utime(mask.name, ns=(0, 10**18 + 5))
    ...     time_written(mask.name)
    '2001-09-09T01:46:40.000000005'
    """
    return str(np.datetime64(Path(path).stat().st_mtime_ns, "ns"))


def table_rows(table: Table) -> Iterator[dict[str, Any]]:
    """Go through a table of columns row by row.

    >>> list(table_rows({"label": np.array([1, 2]), "area_px": np.array([20, 30])}))
    [{'label': 1, 'area_px': 20}, {'label': 2, 'area_px': 30}]
    """
    for values in zip(*(column.tolist() for column in table.values()), strict=True):
        yield dict(zip(table, values, strict=True))
