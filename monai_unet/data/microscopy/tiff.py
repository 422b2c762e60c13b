"""TIFF in: one image or one stack, whole or refused, as it looks on the screen; and its pixel size."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from monai_unet.data.decoded import Decoded
from monai_unet.errors import InputError
from monai_unet.options import require

__all__ = ["load_tiff", "pixel_sizes"]

PREDICT = "Predict with configs/inference_large.yaml (docs/large_images.md), or export the region of interest as TIFF"
RECOPY = "Copy or export the file again from its source"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# µm per unit, in the spellings of OME-XML and ImageJ
UNITS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4}
UNITS |= {"\\u00B5m": 1.0, "Å": 1e-4, "m": 1e6, "inch": 25400.0}
#: µm per pixel (1200 dpi): a plain TIFF resolution above that is one for printing, set by an editor
PRINT_RESOLUTION = 21
# TIFF orientation → transpose rows and columns first, then flip rows, flip columns
ORIENTATIONS = {1: "", 2: "x", 3: "yx", 4: "y", 5: "t", 6: "tx", 7: "tyx", 8: "ty"}


def load_tiff(path: Path, label: bool = False) -> Decoded:
    """Decode a TIFF that holds one image or one stack, upright, and as displayed unless it is a label.

    Returns:
        ``(C, H, W)`` or ``(C, Z, H, W)`` in the file's dtype, and µm per axis "Z", "Y", "X" where the file states it.

    Raises:
        InputError: whole slides, a truncated file, several different images, complex values, other colours than gray
            and RGB, more than one page axis.

    >>> import tempfile
    >>> import numpy as np, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tifffile.imwrite(Path(folder) / "a.tif", np.zeros((3, 8, 6), np.uint8), photometric="minisblack")
    ...     load_tiff(Path(folder) / "a.tif").array.shape
    (1, 3, 8, 6)
    """
    with require("tifffile", "microscopy").TiffFile(path) as tif:
        if tif.is_svs or tif.is_ndpi or tif.is_scn:
            raise InputError(path, "whole-slide images are not read here", PREDICT)
        _check_complete(path, tif)
        series, page = tif.series[0], tif.series[0].keyframe
        if len({(s.shape, s.dtype, s.axes, s.keyframe.photometric) for s in tif.series}) > 1 or (
            len(tif.series) > 1 and (tif.is_ome or series.ndim > 3)
        ):
            shapes = ", ".join(str(series.shape) for series in tif.series[:4])
            raise InputError(path, f"{len(tif.series)} images of shapes {shapes}", "Save each as a file of its own")
        if series.dtype.kind == "c":
            raise InputError(path, f"{series.dtype} values", "Save magnitude or phase as a real image")
        array, axes = series.asarray(), series.axes
        if len(tif.series) > 1:  # pages written one after the other are a stack, too
            array, axes = np.stack([one.asarray() for one in tif.series]), "I" + axes
        if not label:
            array, axes = _as_displayed(path, page, array, axes)
        channel, pages = ([axis for axis in axes if axis in group] for group in ("CS", "ZTIQ"))
        if len(channel) > 1 or len(pages) > 1 or len(axes) != len(channel) + len(pages) + 2:
            problem = f"axes {axes} of shape {series.shape}: one page axis and one channel axis at most"
            raise InputError(path, problem, "Split it, for example with Image > Hyperstacks in Fiji")
        array = array.transpose([axes.index(axis) for axis in (*channel, *pages, "Y", "X")])
        array = array if channel else array[None]
        has_alpha = bool(channel) and any(int(kind) in (1, 2) for kind in page.extrasamples)
        array = drop_opaque_alpha(array, has_alpha)
        sizes = pixel_sizes(tif, page)
        turn = ORIENTATIONS[page.tags.valueof(274, default=1)]
        if "t" in turn:
            array = array.swapaxes(-1, -2)
            sizes = {{"Y": "X", "X": "Y"}.get(axis, axis): size for axis, size in sizes.items()}
        array = np.flip(array, tuple({"y": -2, "x": -1}[axis] for axis in turn.strip("t")))
        sizes = {axis: size for axis, size in sizes.items() if axis != "Z" or pages == ["Z"]}
        return Decoded(array, sizes, one_file=not series.is_multifile)


def _as_displayed(path: Path, page: Any, array: np.ndarray, axes: str) -> tuple[np.ndarray, str]:
    """Expand a palette, stretch less than 8 bits to 0…255, and make white the largest value."""
    color = int(page.photometric)
    if color == 3:
        table = page.colormap if page.colormap.max() < 256 else page.colormap >> 8
        return np.moveaxis(table.astype(np.uint8)[:, array], 0, -1), axes + "S"
    if color > 3 and not (color == 6 and int(page.compression) in (6, 7)):  # tifffile makes JPEG's YCbCr RGB
        raise InputError(path, f"colours are stored as {page.photometric.name}", "Convert it to RGB or grayscale")
    if page.bitspersample < 8:
        array = array.astype(np.uint8) * np.uint8(255 // (2**page.bitspersample - 1))
    if color == 0:
        if array.dtype.kind != "u":
            raise InputError(path, f"{array.dtype} with an inverted lookup table", "Save it with a plain gray one")
        array = array.dtype.type(2 ** max(page.bitspersample, 8) - 1) - array
    return array, axes


def drop_opaque_alpha(array: np.ndarray, has_alpha: bool) -> np.ndarray:
    """Drop the last channel where it is an alpha channel that hides nothing."""
    opaque = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    return array[:-1] if has_alpha and (array[-1] == opaque).all() else array


def _check_complete(path: Path, tif: Any) -> None:
    """Raise for a file that tifffile would load in part, or with zeros in place of missing parts."""
    cure = f"{RECOPY}: it is not complete"
    tifffile = require("tifffile", "microscopy")
    form, file, size = tif.tiff, tif.filehandle, path.stat().st_size
    for page in (tif.pages[0], tif.pages[len(tif.pages) - 1]):
        file.seek(page.offset)
        (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
        for start in range(file.tell(), file.tell() + count * form.tagsize, form.tagsize):
            file.seek(start)
            (code,) = struct.unpack(form.byteorder + "H", file.read(2))
            if code >= 32768:  # a private tag, which does not matter
                continue
            try:
                tifffile.TiffTag.fromfile(tif, offset=start)
            except tifffile.TiffFileError as error:  # TiffFile leaves such a tag out
                raise InputError(path, f"truncated or damaged TIFF: its tag {code} cannot be read", cure) from error
        file.seek(page.offset + form.tagnosize + count * form.tagsize)
    if any(file.read(form.offsetsize)):  # a next page is announced, and tifffile did not find it
        raise InputError(path, f"truncated TIFF: the list of pages breaks off after page {len(tif.pages)}", cure)
    for series in tif.series:
        declared, found = len(series.pages), sum(page is not None for page in series.pages)
        if tif.is_imagej:
            declared = int(tif.imagej_metadata.get("images", 1))
            found = math.prod(n for n, axis in zip(series.shape, series.axes, strict=True) if axis not in "YXS")
        if found < declared:
            raise InputError(path, f"{declared} images declared, {found} found", cure)
        end = 0 if series.dataoffset is None else series.dataoffset + series.nbytes
        for page in series.pages:
            end = max(end, *(o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)))
            if not all(page.databytecounts):
                raise InputError(path, "strips without data, which would be read as zeros", cure)
        if end > size and not series.is_multifile:
            raise InputError(path, f"truncated TIFF: its pixels end at byte {end}, the file at {size}", cure)


def pixel_sizes(tif: Any, page: Any) -> dict[str, float]:
    """Find the µm per axis in OME-XML, Aperio's or ImageJ's description or the resolution tags, in this order.

    Args:
        tif: a `tifffile.TiffFile`.
        page: the page to which the resolution tags belong.

    Returns:
        The sizes of the axes "Z", "Y" and "X" that are stated and plausible.

    >>> import tempfile
    >>> import numpy as np, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, unit = Path(folder) / "a.tif", {"unit": "um"}
    ...     tifffile.imwrite(path, np.zeros((8, 6), np.uint8), imagej=True, resolution=(4, 2), metadata=unit)
    ...     with tifffile.TiffFile(path) as tif:
    ...         pixel_sizes(tif, tif.pages[0])
    {'Y': 0.5, 'X': 0.25}
    """
    sizes = _stated_sizes(tif, page).items()
    return {axis: abs(size) for axis, size in sizes if math.isfinite(size) and size}


def _stated_sizes(tif: Any, page: Any) -> dict[str, float]:
    if tif.is_ome:
        pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", tif.ome_metadata or "")
        stated = dict(re.findall(r'(\w+)="([^"]+)"', pixels[0] if pixels else ""))
        units = {axis: UNITS.get(stated.get(f"PhysicalSize{axis}Unit", "µm"), math.nan) for axis in "ZYX"}
        return {axis: float(stated.get(f"PhysicalSize{axis}", math.nan)) * unit for axis, unit in units.items()}
    if tif.is_svs and (found := re.search(r"\bMPP = ([\d.]+)", page.description)):
        return dict.fromkeys("YX", float(found[1]))
    resolution = {axis: page.tags.valueof(tag) or (0, 0) for axis, tag in (("Y", 283), ("X", 282))}
    per_unit = {axis: n / d for axis, (n, d) in resolution.items() if n and d}
    imagej = (tif.imagej_metadata or {}) if tif.is_imagej else {}
    if imagej.get("unit") in UNITS:
        unit = UNITS[imagej["unit"]]
        z_size = unit * float(imagej.get("spacing", math.nan))
        return {"Z": z_size, **{axis: unit / density for axis, density in per_unit.items()}}
    unit = {2: 25400.0, 3: 1e4}.get(int(page.tags.valueof(296, default=1)), math.nan)
    return {axis: unit / density for axis, density in per_unit.items() if unit / density <= PRINT_RESOLUTION}
