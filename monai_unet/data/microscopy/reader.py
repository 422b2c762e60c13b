"""Microscopy images in: PNG, JPEG and TIFF, one image or a stack of pages (the EM stack of section 4).

Arrays are channel-first with row-major axes, ``(C, H, W)`` or ``(C, Z, H, W)``: row and column of the array are
row and column on the screen, never transposed. Whatever cannot be read exactly raises `InputError`.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.misc import ensure_tuple

from monai_unet.errors import InputError
from monai_unet.options import require

__all__ = ["MicroscopyReader"]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
LARGE = (".zarr", ".svs", ".ndpi", ".scn")  # OME-Zarr and whole slides: box by box (large_reader.py), not here
OUT_OF_SCOPE = (*LARGE, ".mrxs")  # not read here
EXPORT = "Export the region of interest as TIFF, for example from QuPath or Fiji"
PREDICT = "Predict with configs/inference_large.yaml (docs/large_images.md), or export the region of interest as TIFF"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RECOPY = "Copy or export the file again from its source"
# µm per unit, in the spellings of OME-XML and ImageJ
UNITS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4}
UNITS |= {"\\u00B5m": 1.0, "Å": 1e-4, "m": 1e6, "inch": 25400.0}
# TIFF orientation → transpose rows and columns first, then flip rows, flip columns
ORIENTATIONS = {1: "", 2: "x", 3: "yx", 4: "y", 5: "t", 6: "tx", 7: "tyx", 8: "ty"}


class MicroscopyReader(ImageReader):
    """MONAI reader for ``LoadImaged(reader=MicroscopyReader(channels=1))``.

    PNG (1 to 16 bit), JPEG, and TIFF of any layout tifffile knows: several pages, ImageJ, OME, BigTIFF, LZW, deflate
    and zstd. The format is told by the content, not by the name. A stack is one page axis (Z, time or plain pages);
    OME axes are mapped by their names. Values stay as they are, with four rules of display undone: MINISWHITE is
    inverted, less than 8 bits are stretched to 0…255, a palette is expanded (to gray where it is gray), an opaque
    alpha channel is dropped. The orientation tag is honoured.

    The array is ``(C, H, W)`` or ``(C, Z, H, W)``; float32, and int64 where the file holds integers of 32 or 64 bits.
    LoadImaged turns everything into float32 unless told otherwise: for labels above 2^24 give it ``dtype=np.int64``.

    The metadata hold ``original_channel_dim`` 0, ``spatial_shape``, ``pixel_size_um`` (µm per array axis, NaN where the
    file does not tell) and an affine with the pixel size on its diagonal, in array order (1 where unknown). Plain TIFF
    resolution counts only below 21 µm per pixel (1200 dpi): above that it is the print resolution of an editor.

    Args:
        channels: the channels the network takes; None for any number.

    Raises:
        InputError: missing, empty, truncated or damaged file, not an image, NaN or Inf, complex values, another number
            of channels, more than one page axis, pages of different shapes, OME-Zarr and whole slides.
    """

    def __init__(self, channels: int | None = 1) -> None:
        self.channels = channels

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        return all(Path(name).suffix.lower() in SUFFIXES for name in ensure_tuple(filename))

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Only note the paths: LoadImage answers an exception raised here by trying other readers, silently."""
        return tuple(Path(name) for name in ensure_tuple(data))

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Read the noted files; several files of one item are joined along the channels."""
        arrays, sizes = zip(*map(_load, img), strict=True)
        for path, array in zip(img, arrays, strict=True):
            if array.shape[1:] != arrays[0].shape[1:]:
                problem = f"shape {array.shape[1:]}, but {img[0]} has {arrays[0].shape[1:]}"
                raise InputError(path, problem, "The channels of one item must have one shape")
        array = np.concatenate(arrays)
        if self.channels is not None and len(array) != self.channels:
            problem = f"{len(array)} channels, the network takes {self.channels}"
            cure = "Convert it to grayscale" if self.channels == 1 else f"Give images of {self.channels} channels"
            raise InputError(img[0], problem, f"{cure}, or train with in_channels={len(array)}")
        spacing = np.array([sizes[0].get(axis, np.nan) for axis in "ZYX"[-(array.ndim - 1) :]])
        affine = np.diag([*np.nan_to_num(spacing, nan=1.0), 1.0])
        return array, {
            "original_channel_dim": 0,
            "spatial_shape": np.array(array.shape[1:]),
            "pixel_size_um": spacing,
            "affine": affine,
            "original_affine": affine.copy(),
        }


def _load(path: Path) -> tuple[np.ndarray, dict[str, float]]:
    """Decode and check one file: array ``(C, H, W)`` or ``(C, Z, H, W)``, and µm per axis "Z", "Y", "X"."""
    if path.suffix.lower() in OUT_OF_SCOPE:
        problem = "OME-Zarr and whole-slide images are not read here"
        raise InputError(path, problem, PREDICT if path.suffix.lower() in LARGE else EXPORT)
    if not path.exists():
        raise InputError(path, "there is no such file", "Check the path")
    if path.is_dir():
        raise InputError(path, "is a folder, not an image", "Name the files, or list them with list_images")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check its permissions") from error
    if not head:
        raise InputError(path, "the file is empty (0 bytes)", RECOPY)
    if not head.startswith((*TIFF_MAGIC, b"\x89PNG", b"\xff\xd8\xff")):
        raise InputError(path, f"not a PNG, JPEG or TIFF image (it starts with {head[:8]!r})", "Convert it to TIFF")
    try:
        array, sizes = (_load_tiff if head.startswith(TIFF_MAGIC) else _load_pillow)(path)
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever a damaged stream leads them to
        raise InputError(path, f"truncated or damaged image ({error})", RECOPY) from error
    if array.size == 0 or array.dtype.kind not in "buif":
        raise InputError(
            path, f"{array.dtype} values of shape {array.shape}", "Export it as 8- or 16-bit or float TIFF"
        )
    if array.dtype.kind in "iu" and array.dtype.itemsize >= 4:
        return array.astype(np.int64), sizes  # float32 would merge labels above 2^24
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        problem = f"{bad} of {array.size} values are NaN, infinite or beyond float32"
        raise InputError(path, problem, "Replace them in the software that wrote the image")
    return array, sizes


def _load_pillow(path: Path) -> tuple[np.ndarray, dict[str, float]]:
    image_module, data = require("PIL.Image", "microscopy"), path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", image_module.DecompressionBombWarning)  # a large scan is no attack
        with image_module.open(io.BytesIO(data)) as image:
            if image.format == "PNG" and b"IEND" not in data:
                raise InputError(path, f"truncated PNG: {len(data)} bytes without the end mark", RECOPY)
            if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
                raise InputError(path, f"an animation of {image.n_frames} frames", "Export a multi-page TIFF")
            if image.format == "PNG" and data[24] == 16 and data[25] != 0:  # Pillow cuts 16-bit colour to 8 bits
                array = require("imagecodecs", "microscopy").png_decode(data)
            else:
                image.load()
                upright = require("PIL.ImageOps", "microscopy").exif_transpose(image)
                array = np.asarray(upright.convert({"1": "L", "P": "RGB"}.get(image.mode, image.mode)))
                if image.mode == "P" and (array == array[..., :1]).all():
                    array = array[..., 0]
    if array.ndim == 2:
        return array[None], {}
    return _drop_opaque(np.moveaxis(array, -1, 0), alpha=array.shape[-1] in (2, 4)), {}


def _drop_opaque(array: np.ndarray, alpha: bool) -> np.ndarray:
    """Drop the last channel where it is an alpha channel that hides nothing."""
    opaque = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    return array[:-1] if alpha and (array[-1] == opaque).all() else array


def _load_tiff(path: Path) -> tuple[np.ndarray, dict[str, float]]:
    tifffile = require("tifffile", "microscopy")
    with tifffile.TiffFile(path) as tif:
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
        if len(tif.series) > 1:  # one page written after the other is a stack, too
            array, axes = np.stack([one.asarray() for one in tif.series]), "I" + axes
        color = int(page.photometric)
        if color == 3:
            table = page.colormap if page.colormap.max() < 256 else page.colormap >> 8
            array, axes = np.moveaxis(table.astype(np.uint8)[:, array], 0, -1), axes + "S"
            if (table == table[:1]).all():
                array, axes = array[..., 0], axes[:-1]
        elif color > 3 and not (color == 6 and int(page.compression) in (6, 7)):  # tifffile makes JPEG's YCbCr RGB
            raise InputError(path, f"colours are stored as {page.photometric.name}", "Convert it to RGB or grayscale")
        elif page.bitspersample < 8:
            array = array.astype(np.uint8) * np.uint8(255 // (2**page.bitspersample - 1))
        if color == 0:
            if array.dtype.kind != "u":
                raise InputError(path, f"{array.dtype} with an inverted lookup table", "Save it with a plain gray one")
            array = array.dtype.type(2 ** max(page.bitspersample, 8) - 1) - array
        channel, pages = ([axis for axis in axes if axis in group] for group in ("CS", "ZTIQ"))
        if len(channel) > 1 or len(pages) > 1 or len(axes) != len(channel) + len(pages) + 2:
            problem = f"axes {axes} of shape {series.shape}: one page axis and one channel axis at most"
            raise InputError(path, problem, "Split it, for example with Image > Hyperstacks in Fiji")
        array = array.transpose([axes.index(axis) for axis in (*channel, *pages, "Y", "X")])
        array = array if channel else array[None]
        array = _drop_opaque(array, alpha=bool(channel) and any(int(kind) in (1, 2) for kind in page.extrasamples))
        sizes = pixel_sizes(tif, page)
        turn = ORIENTATIONS[page.tags.valueof(274, default=1)]
        if "t" in turn:
            array = array.swapaxes(-1, -2)
            sizes = {{"Y": "X", "X": "Y"}.get(axis, axis): size for axis, size in sizes.items()}
        array = np.flip(array, tuple({"y": -2, "x": -1}[axis] for axis in turn.strip("t")))
        return array, {axis: size for axis, size in sizes.items() if axis != "Z" or pages == ["Z"]}


def _check_complete(path: Path, tif: Any) -> None:
    """Raise for a file that tifffile would load in part, or with zeros in place of what is missing."""
    cure = f"{RECOPY}: it is not complete"
    form, file, size = tif.tiff, tif.filehandle, path.stat().st_size
    for page in (tif.pages[0], tif.pages[len(tif.pages) - 1]):
        file.seek(page.offset)
        (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
        for start in range(file.tell(), file.tell() + count * form.tagsize, form.tagsize):
            file.seek(start)
            (code,) = struct.unpack(form.byteorder + "H", file.read(2))
            if code < 32768 and not _readable(tif, start):  # tifffile leaves such a tag out; private ones do not matter
                raise InputError(path, f"truncated or damaged TIFF: its tag {code} cannot be read", cure)
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


def _readable(tif: Any, start: int) -> bool:
    tifffile = require("tifffile", "microscopy")
    try:
        tifffile.TiffTag.fromfile(tif, offset=start)
    except tifffile.TiffFileError:
        return False
    return True


def pixel_sizes(tif: Any, page: Any) -> dict[str, float]:
    """µm per axis, from OME-XML, Aperio's or ImageJ's description or the resolution tags, in this order."""
    sizes: dict[str, float] = {}
    if tif.is_ome:
        pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", tif.ome_metadata or "")
        for axis in "ZYX" if pixels else "":
            size = re.search(rf'PhysicalSize{axis}="([^"]+)"', pixels[0])  # type: ignore[index]
            unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', pixels[0])  # type: ignore[index]
            sizes[axis] = float(size[1]) * UNITS.get(unit[1] if unit else "µm", math.nan) if size else math.nan
        return _plausible(sizes)
    if tif.is_svs and (found := re.search(r"\bMPP = ([\d.]+)", page.description)):
        return _plausible(dict.fromkeys("YX", float(found[1])))
    resolution = {axis: page.tags.valueof(tag) for axis, tag in (("Y", 283), ("X", 282))}
    per_unit = {axis: n / d for axis, (n, d) in ((a, r or (0, 0)) for a, r in resolution.items()) if n and d}
    imagej = (tif.imagej_metadata or {}) if tif.is_imagej else {}
    if imagej.get("unit") in UNITS:
        factor = UNITS[imagej["unit"]]
        sizes = {axis: factor / density for axis, density in per_unit.items()}
        return _plausible({"Z": factor * float(imagej.get("spacing", math.nan)), **sizes})
    factor = {2: 25400.0, 3: 1e4}.get(int(page.tags.valueof(296, default=1)), math.nan)
    return {axis: size for axis, size in _plausible({a: factor / d for a, d in per_unit.items()}).items() if size <= 21}


def _plausible(sizes: Mapping[str, float]) -> dict[str, float]:
    return {axis: abs(size) for axis, size in sizes.items() if math.isfinite(size) and size}
