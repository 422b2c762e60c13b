"""TIFF in: one image or one stack, whole or refused, as it looks on the screen."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_unet.data.decoded import Decoded
from monai_unet.data.microscopy.pixel_size import pixel_sizes
from monai_unet.data.microscopy.scenes import choose_scene
from monai_unet.errors import InputError
from monai_unet.options import require

__all__ = ["arrange", "load_tiff", "own_series"]

PREDICT = "Predict with configs/inference_large.yaml (docs/large_images.md), or export the region of interest as TIFF"
RECOPY = "Copy or export the file again from its source"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# TIFF orientation → transpose rows and columns first, then flip rows, flip columns
ORIENTATIONS = {1: "", 2: "x", 3: "yx", 4: "y", 5: "t", 6: "tx", 7: "tyx", 8: "ty"}


def load_tiff(path: Path, label: bool = False, scene: int | None = None) -> Decoded:
    """Decode a TIFF that holds one image or one stack, upright, and as displayed unless it is a label.

    Of several images, ``scene`` chooses one by its number, from 1 on.

    Returns:
        ``(C, H, W)`` or ``(C, Z, H, W)`` in the file's dtype, and µm per axis "Z", "Y", "X" where the file states it;
        of a series over time "T", the seconds per frame, NaN where they are unknown.

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
        images = own_series(tif)
        _check_complete(path, tif, images)
        if len({(s.shape, s.dtype, s.axes, s.keyframe.photometric) for s in images}) > 1 or (
            len(images) > 1 and (tif.is_ome or images[0].ndim > 3)
        ):
            scenes = [", ".join(filter(None, (s.name, " x ".join(map(str, s.shape))))) for s in images]
            images = [images[choose_scene(path, scenes, scene)]]
        else:
            choose_scene(path, [""], scene)
        series, page = images[0], images[0].keyframe
        if series.dtype.kind == "c":
            raise InputError(path, f"{series.dtype} values", "Save magnitude or phase as a real image")
        array, axes = series.asarray(), series.axes
        if len(images) > 1:  # pages written one after the other are a stack, too
            array, axes = np.stack([one.asarray() for one in images]), "I" + axes
        if label and int(page.compression) in (6, 7):
            problem = "compressed as JPEG, which does not keep the numbers of labels"
            raise InputError(path, problem, "Save labels without loss")
        if not label:
            array, axes = _as_displayed(path, page, array, axes)
        array, pages = arrange(path, array, axes)
        has_alpha = any(int(kind) in (1, 2) for kind in page.extrasamples)
        array = drop_opaque_alpha(array, has_alpha)
        sizes = pixel_sizes(tif, series)
        turn = ORIENTATIONS[page.tags.valueof(274, default=1)]
        if "t" in turn:
            array = array.swapaxes(-1, -2)
            sizes = {{"Y": "X", "X": "Y"}.get(axis, axis): size for axis, size in sizes.items()}
        array = np.flip(array, tuple({"y": -2, "x": -1}[axis] for axis in turn.strip("t")))
        sizes = {axis: size for axis, size in sizes.items() if axis in ("Y", "X", pages)}
        if pages == "T":
            sizes.setdefault("T", math.nan)
        return Decoded(array, sizes, one_file=not series.is_multifile)


def arrange(path: Path, array: np.ndarray, axes: str) -> tuple[np.ndarray, str]:
    """Transpose an array to ``(C, H, W)`` or ``(C, Z, H, W)``; axes of one entry may be missing or go.

    Returns:
        The array, and the letter of its page axis: "Z", "T", or "I" and "Q" of unknown ones; "" where there is none.

    Raises:
        InputError: more than one page axis or channel axis.

    >>> array, pages = arrange(Path("a.czi"), np.zeros((1, 5, 2, 8, 6)), "STCYX")
    >>> array.shape, pages
    ((2, 5, 8, 6), 'T')
    """
    shape = array.shape
    spare = tuple(i for i, axis in enumerate(axes) if axis not in "YX" and array.shape[i] == 1)
    array, left = array.squeeze(spare), "".join(axis for i, axis in enumerate(axes) if i not in spare)
    channel, pages = ([axis for axis in left if axis in group] for group in ("CS", "ZTIQ"))
    if len(channel) > 1 or len(pages) > 1 or len(left) != len(channel) + len(pages) + 2:
        problem = f"axes {axes} of shape {shape}: one page axis and one channel axis at most"
        raise InputError(path, problem, "Split it, for example with Image > Hyperstacks in Fiji")
    array = array.transpose([left.index(axis) for axis in (*channel, *pages, "Y", "X")])
    return array if channel else array[None], "".join(pages)


def own_series(tif: Any) -> list[Any]:
    """The images of a `tifffile.TiffFile`, without thumbnails of an LSM and the other files of an OME-TIFF.

    >>> import tempfile
    >>> import numpy as np, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tifffile.TiffWriter(Path(folder) / "a.ome.tif") as file:
    ...         for scene in (np.zeros((8, 6), np.uint8), np.zeros((4, 3), np.uint8)):
    ...             file.write(scene)
    ...     with tifffile.TiffFile(Path(folder) / "a.ome.tif") as tif:
    ...         several_images(own_series(tif))
    '2 images of shapes (8, 6), (4, 3)'
    """
    if tif.is_lsm:
        return list(tif.series[:1])
    # files of positions side by side each list the images of all
    own = [s for s in tif.series if any(page is not None and page.parent is tif for page in s.pages)]
    return own if tif.is_ome and own else list(tif.series)


def several_images(images: Sequence[Any]) -> str:
    """Say how many images a file holds, and how large the first ones are."""
    more = ", …" if len(images) > 4 else ""
    return f"{len(images)} images of shapes {', '.join(str(image.shape) for image in images[:4])}{more}"


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


def _check_complete(path: Path, tif: Any, images: Sequence[Any]) -> None:
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
    for series in images:
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
