"""How large a pixel is and how long a frame takes, as the many kinds of TIFF state it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from monai_unet.errors import InputError

__all__ = ["pixel_sizes"]

# µm per unit, in the spellings of OME-XML, ImageJ and microscopes
UNITS = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0}
UNITS |= {"\\u00B5m": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
SECONDS = {"µs": 1e-6, "μs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
#: µm per pixel (1200 dpi): a plain TIFF resolution above that is one for printing, set by an editor
PRINT_RESOLUTION = 21
#: tags and descriptions of microscopes, in their order of trust: tifffile's name, section, keys of Y, X and Z, µm
MICROSCOPES = (
    ("fei", "Scan", ("PixelHeight", "PixelWidth", ""), 1e6),
    ("fei", "EScan", ("PixelHeight", "PixelWidth", ""), 1e6),
    ("sis", "", ("pixelsizey", "pixelsizex", ""), 1e6),  # Olympus
    ("tvips", "", ("PixelSizeY", "PixelSizeX", ""), 1e-3),
    ("lsm", "", ("VoxelSizeY", "VoxelSizeX", "VoxelSizeZ"), 1e6),
    ("stk", "", ("YCalibration", "XCalibration", ""), "CalibrationUnits"),  # MetaMorph
    ("metaseries", "PlaneInfo", ("spatial-calibration-y", "spatial-calibration-x", ""), "spatial-calibration-units"),
    ("micromanager", "Summary", ("PixelSize_um", "PixelSize_um", "z-step_um"), 1.0),
)


def pixel_sizes(tif: Any, series: Any) -> dict[str, float]:
    """Find the µm per axis in OME-XML, a microscope's tags, ImageJ's description or the resolution tags, in this order.

    Args:
        tif: a `tifffile.TiffFile`.
        series: the image, one of ``tif.series``; each image of an OME-TIFF states its own sizes.

    Returns:
        The sizes of the axes "Z", "Y" and "X" that are stated and plausible, and as "T" the seconds per frame.

    Raises:
        InputError: the file states something that is not a number, such as "0,25".

    >>> import tempfile
    >>> import numpy as np, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, unit = Path(folder) / "a.tif", {"unit": "um"}
    ...     tifffile.imwrite(path, np.zeros((8, 6), np.uint8), imagej=True, resolution=(4, 2), metadata=unit)
    ...     with tifffile.TiffFile(path) as tif:
    ...         pixel_sizes(tif, tif.series[0])
    {'Y': 0.5, 'X': 0.25}
    """
    sizes = _ome(tif, series) if tif.is_ome else _microscope(tif) or _imagej_or_plain(tif, series.keyframe)
    return {axis: abs(size) for axis, size in sizes.items() if math.isfinite(size) and size}


def _number(tif: Any, name: str, value: Any) -> float:
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError) as error:
        path = Path(tif.filehandle.path)
        problem = f"{name} is {str(value)!r}, which is not a number"
        cure = "Correct it in the software that wrote it: decimals follow a point, without a unit"
        raise InputError(path, problem, cure) from error


def _ome(tif: Any, series: Any) -> dict[str, float]:
    try:
        elements = ElementTree.fromstring(tif.ome_metadata or "").iter()
    except ElementTree.ParseError:  # tifffile reads the pixels nevertheless
        return {}
    stated = [_stated(tif, element.attrib) for element in elements if element.tag.rpartition("}")[2] == "Pixels"]
    if len(stated) == len(tif.series):
        return next(sizes for sizes, one in zip(stated, tif.series, strict=True) if one is series)
    # of images that are not in the file it is unknown which these are
    return stated[0] if stated and all(sizes == stated[0] for sizes in stated) else {}


def _stated(tif: Any, pixels: Mapping[str, str]) -> dict[str, float]:
    names = {"Z": "PhysicalSizeZ", "Y": "PhysicalSizeY", "X": "PhysicalSizeX", "T": "TimeIncrement"}
    sizes = {}
    for axis, name in names.items():
        units, default = (SECONDS, "s") if axis == "T" else (UNITS, "µm")
        unit = units.get(pixels.get(f"{name}Unit", default))
        if name in pixels and unit:
            sizes[axis] = _number(tif, name, pixels[name]) * unit
    return sizes


def _microscope(tif: Any) -> dict[str, float]:
    """What the first of the microscopes states that has left its mark in the file."""
    if tif.is_svs and (found := re.search(r"\bMPP = ([\d.]+)", tif.pages[0].description)):
        return dict.fromkeys("YX", float(found[1]))
    if tif.is_sem:  # Zeiss
        stated = tif.sem_metadata.get("ap_image_pixel_size") or tif.sem_metadata.get("ap_pixel_size", ("", None))
        size = _number(tif, *stated[:2])
        return dict.fromkeys("YX", size * UNITS.get("".join(stated[2:]), math.nan))
    for kind, section, keys, unit in MICROSCOPES:
        stated = (getattr(tif, f"{kind}_metadata") or {}) if getattr(tif, f"is_{kind}") else {}
        stated = (stated.get(section) or {}) if section else stated
        if keys[1] in stated:
            scale = UNITS.get(str(stated.get(unit)), math.nan) if isinstance(unit, str) else unit
            return {axis: _number(tif, key, stated.get(key)) * scale for axis, key in zip("YXZ", keys, strict=True)}
    return {}


def _imagej_or_plain(tif: Any, page: Any) -> dict[str, float]:
    resolution = {axis: page.tags.valueof(tag) or (0, 0) for axis, tag in (("Y", 283), ("X", 282))}
    per_unit = {axis: n / d for axis, (n, d) in resolution.items() if n and d}
    imagej = (tif.imagej_metadata or {}) if tif.is_imagej else {}
    interval = {"T": _number(tif, "finterval", imagej.get("finterval")) * SECONDS.get(imagej.get("tunit", "s"), 1.0)}
    word = str(imagej.get("unit"))
    if word in UNITS and word != "cm":
        z_size = _number(tif, "spacing", imagej.get("spacing")) * UNITS[word]
        return interval | {"Z": z_size, **{axis: UNITS[word] / density for axis, density in per_unit.items()}}
    # ImageJ takes inch and cm from the resolution tags, and writes them as its own
    tag = {"inch": 2, "cm": 3}.get(word) or int(page.tags.valueof(296, default=1))
    unit = {2: 25400.0, 3: 1e4}.get(tag, math.nan)
    plain = {axis: unit / density for axis, density in per_unit.items() if unit / density <= PRINT_RESOLUTION}
    return interval | plain
