"""Microscopy images in: PNG, JPEG and TIFF, one image or a stack of pages (the EM stack of section 4).

Arrays are channel-first with row-major axes, ``(C, H, W)`` or ``(C, Z, H, W)``: row and column of the array are
row and column on the screen, never transposed. Whatever cannot be read exactly raises `InputError`.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.misc import ensure_tuple

from monai_unet.data.channels import channel_files
from monai_unet.data.decoded import Decoded, decoded_once
from monai_unet.data.microscopy.scenes import choose_scene, scene_of
from monai_unet.data.microscopy.tiff import PREDICT, RECOPY, TIFF_MAGIC, drop_opaque_alpha, load_tiff
from monai_unet.data.microscopy.vendors import VENDORS
from monai_unet.errors import InputError
from monai_unet.options import parse_bool, require

__all__ = ["MicroscopyReader"]

SUFFIXES = (".png", ".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".czi", ".lif", ".nd2", ".jpg", ".jpeg")
#: OME-Zarr and whole slides, which are read box by box (monai_unet.data.large), not here
LARGE = (".zarr", ".svs", ".ndpi", ".scn")
OUT_OF_SCOPE = (*LARGE, ".mrxs")
#: contrast of an empty channel relative to the one that has a picture: noise, and what JPEG spreads from it
EMPTY = 0.05
EXPORT = "Export the region of interest as TIFF, for example from QuPath or Fiji"


class MicroscopyReader(ImageReader):
    """MONAI reader for ``LoadImaged(reader=MicroscopyReader(channels=1))``.

    Reads PNG (1 to 16 bit), JPEG, and TIFF of any layout that tifffile knows: several pages, ImageJ, OME, BigTIFF, LSM,
    LZW, deflate and zstd; with the extra "vendors" also CZI, LIF and ND2. The content decides on the format, not the
    name. A stack is one page axis (Z, time or plain pages); OME axes are mapped by their names. Values of an image are
    those on the screen: MINISWHITE is inverted, less than 8 bits are stretched to 0…255, a palette is expanded. Values
    of a label are those in the file, whatever table displays them. An opaque alpha channel is dropped, three channels
    that are shades of one colour are one channel for a network (or label) of one, and the orientation tag is honoured.

    The array is ``(C, H, W)`` or ``(C, Z, H, W)``; int64 where the file holds integers of 32 or 64 bits, else float32.
    LoadImaged turns everything into float32 by default: for labels above 2^24 give it ``dtype=np.int64``.

    The metadata are ``original_channel_dim`` 0, ``spatial_shape``, ``pixel_size_um`` (µm per array axis, NaN where the
    file does not state it) and an affine with the pixel size on its diagonal, in array order (1 where unknown); of a
    series over time, ``frame_interval_s`` too. The plain resolution of a TIFF counts only up to 21 µm per pixel (1200
    dpi); above that it is an editor's print resolution.

    Where a file holds several scenes or positions, plate#2.lif, if there is no such file, is the second of plate.lif;
    results are then named after it.

    Args:
        channels: the channels the network takes; None for any number. Where it takes several, a.tif stands for the
            files a_0000.tif, a_0001.tif … if there is no a.tif itself; results are then named after a.tif.
        label: whether the files are labels, whose values are read as they are stored.
        colour: whether the network's three channels are red, green and blue: a gray image enters them all, as it is
            shown on any screen, and so does the only channel that has a picture, as of a stain shown in blue. Three
            stains are not colours. "true" and "false" are understood.

    Raises:
        InputError: missing, empty, truncated or damaged file, not an image, NaN or Inf, complex values, another number
            of channels, more than one page axis, pages of different shapes, OME-Zarr and whole slides.

    >>> import tempfile
    >>> import numpy as np, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "cells.tif"
    ...     tifffile.imwrite(path, np.zeros((40, 30), np.uint16), resolution=(20000, 20000), resolutionunit=3)
    ...     reader = MicroscopyReader(channels=1)
    ...     array, meta = reader.get_data(reader.read(path))
    >>> array.shape, array.dtype, meta["pixel_size_um"].tolist()
    ((1, 40, 30), dtype('float32'), [0.5, 0.5])
    """

    def __init__(self, channels: int | None = 1, label: bool = False, colour: bool | str = False) -> None:
        self.channels, self.label, self.colour = channels, label, parse_bool("colour", colour)

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        return all(Path(name).suffix.lower() in SUFFIXES for name in ensure_tuple(filename))

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Return the paths only: if this raised an exception, LoadImage would silently try other readers."""
        return tuple(Path(name) for name in ensure_tuple(data))

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Decode the files; several files of one item are joined along the channels."""
        parts = channel_files(img[0], self.channels or 1)
        if len(img) == 1 and len(parts) > 1 and parts[0].is_file() and not img[0].exists():
            img = parts
        files = [(_decode_label if self.label else _decode_image)(path) for path in img]
        shape = files[0].array.shape[1:]
        for path, file in zip(img, files, strict=True):
            if file.array.shape[1:] != shape:
                problem = f"shape {file.array.shape[1:]}, but {img[0]} has {shape}"
                raise InputError(path, problem, "The channels of one item must have one shape")
        array = np.concatenate([file.array for file in files])
        if self.channels == 1 and len(array) == 3:
            array = _one_colour(array, exact=self.label)
        if len(array) == 3 and not self.label and (self.channels == 1 or self.colour):
            array = _without_empty(array)
        if self.colour and self.channels == 3 and len(array) == 1:
            array = np.repeat(array, 3, axis=0)
        if self.channels is not None and len(array) != self.channels:
            problem = f"{len(array)} channels, the network takes {self.channels}"
            cure = "Convert it to grayscale" if self.channels == 1 else f"Give images of {self.channels} channels"
            if self.colour:
                cure = f"Save the channel that is to be segmented as a gray image, or {cure[0].lower()}{cure[1:]}"
            cure += f", or train with in_channels={len(array)}"
            if self.label:  # shades of gray made from colours are no numbers of cells
                problem = f"labels of {len(array)} channels, such as a coloured mask"
                cure = "Save the numbers of the cells or classes themselves, as one channel"
            raise InputError(img[0], problem, cure)
        spacing = np.array([files[0].geometry.get(axis, np.nan) for axis in "ZYX"[-len(shape) :]])
        affine = np.diag([*np.nan_to_num(spacing, nan=1.0), 1.0])
        over_time = {"frame_interval_s": files[0].geometry["T"]} if "T" in files[0].geometry else {}
        return array, {
            **over_time,
            "original_channel_dim": 0,
            "spatial_shape": np.array(shape),
            "pixel_size_um": spacing,
            "affine": affine,
            "original_affine": affine.copy(),
        }


def _decode(path: Path, label: bool) -> Decoded:
    """Decode and check one file: array ``(C, H, W)`` or ``(C, Z, H, W)``, and µm per axis "Z", "Y", "X"."""
    path, scene = scene_of(path)
    suffix = path.suffix.lower()
    if suffix in OUT_OF_SCOPE:
        problem = "OME-Zarr and whole-slide images are not read here"
        raise InputError(path, problem, PREDICT if suffix in LARGE else EXPORT)
    if path.is_symlink() and not path.exists():
        raise InputError(path, f"a broken link: there is no {path.readlink()}", "Copy the file itself there")
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
    vendor = next((load for magic, load in VENDORS.items() if head.startswith(magic)), None)
    if vendor is None and not head.startswith((*TIFF_MAGIC, b"\x89PNG", b"\xff\xd8\xff")):
        raise InputError(path, f"not a PNG, JPEG or TIFF image (it starts with {head[:8]!r})", "Convert it to TIFF")
    try:
        if vendor is not None:
            decoded = vendor(path, scene)
        elif head.startswith(TIFF_MAGIC):
            decoded = load_tiff(path, label, scene)
        else:
            choose_scene(path, [""], scene)
            decoded = Decoded(_load_png_or_jpeg(path, label), {})
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # a damaged stream may make a decoder raise anything
        raise InputError(path, f"truncated or damaged image ({error})", RECOPY) from error
    array = decoded.array
    if array.size == 0 or array.dtype.kind not in "buif":
        problem = f"{array.dtype} values of shape {array.shape}"
        raise InputError(path, problem, "Export it as 8- or 16-bit or float TIFF")
    if array.dtype.kind in "iu" and array.dtype.itemsize >= 4:
        return decoded._replace(array=array.astype(np.int64))  # float32 would merge labels above 2^24
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if bad := np.count_nonzero(~np.isfinite(array)):
        problem = f"{bad} of {array.size} values are NaN, infinite or beyond float32"
        raise InputError(path, problem, "Replace them in the software that wrote the image")
    return decoded._replace(array=array)


_decode_image = decoded_once(partial(_decode, label=False))
_decode_label = decoded_once(partial(_decode, label=True))


def _one_colour(array: np.ndarray, exact: bool) -> np.ndarray:
    """Return one of three channels, the brightest, if they are shades of one colour (be it gray), else all three.

    Shades are rounded to whole numbers, unless they are ``exact``: a second channel of 0 and 1 counts labels above 255.
    """
    peaks = array.reshape(3, -1).max(1)
    brightest = array[peaks.argmax()][None]
    for channel, peak in zip(array, peaks, strict=True):
        rounding = 0 < peak < peaks.max() and not exact
        if (np.abs(channel - brightest[0] * (peak / max(peaks.max(), 1))) > rounding).any():
            return array
    return brightest


def _without_empty(array: np.ndarray) -> np.ndarray:
    """Return the one channel of three that has a picture, else all.

    A stain shown in blue leaves red and green empty but for noise. Normalised, that would be as strong as the stain.
    """
    contrast = array.reshape(len(array), -1).std(1)
    alone = len(array) == 3 and (contrast > EMPTY * contrast.max()).sum() == 1
    return array[contrast.argmax()][None] if alone else array


def _load_png_or_jpeg(path: Path, label: bool) -> np.ndarray:
    pillow, data = require("PIL.Image", "microscopy"), path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # a large scan is not an attack
        with pillow.open(io.BytesIO(data)) as image:
            if label and image.format == "JPEG":
                raise InputError(
                    path, "a JPEG, which does not keep the numbers of labels", "Save labels as PNG or TIFF"
                )
            if image.format == "PNG" and b"IEND" not in data:
                raise InputError(path, f"truncated PNG: {len(data)} bytes without the end mark", RECOPY)
            if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
                raise InputError(path, f"an animation of {image.n_frames} frames", "Export a multi-page TIFF")
            if image.format == "PNG" and data[24] == 16 and data[25] != 0:  # Pillow cuts 16-bit colour to 8 bits
                array = require("imagecodecs", "microscopy").png_decode(data)
            else:
                image.load()
                upright = require("PIL.ImageOps", "microscopy").exif_transpose(image)
                shown = {"1": "L"} if label else {"1": "L", "P": "RGB"}
                array = np.asarray(upright.convert(shown.get(image.mode, image.mode)))
                if label and image.format == "PNG" and data[24] < 8 and image.mode != "P":
                    array = array // (255 // (2 ** data[24] - 1))  # Pillow stretches less than 8 bits
    if array.ndim == 2:
        return array[None]
    return drop_opaque_alpha(np.moveaxis(array, -1, 0), has_alpha=array.shape[-1] in (2, 4))
