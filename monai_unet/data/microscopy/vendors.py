"""Files as Zeiss, Leica and Nikon write them, through the readers that the extra "vendors" brings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from monai_unet.data.decoded import Decoded
from monai_unet.data.microscopy.tiff import arrange
from monai_unet.errors import InputError
from monai_unet.options import require

__all__ = ["VENDORS"]


def _one(path: Path, scenes: int, names: str = "") -> None:
    if scenes != 1:
        problem = f"{scenes} scenes or positions" + (f": {names}" if names else "")
        raise InputError(path, problem, "Save the one to be segmented as a file of its own, for example as OME-TIFF")


def _load_czi(path: Path) -> Decoded:
    with require("czifile", "vendors").CziFile(path) as czi, warnings.catch_warnings():
        warnings.simplefilter("error")  # czifile only warns of a tile that it cannot place
        _one(path, dict(zip(czi.axes, czi.shape, strict=True)).get("S", 1))
        array = czi.asarray(max_workers=1)  # its threads swallow exceptions
        distances = ElementTree.fromstring(czi.metadata()).iterfind(".//Scaling/Items/Distance")
        metres = {one.get("Id", ""): one.findtext("Value") for one in distances}
        axes = czi.axes.replace("S", "s").replace("0", "S")  # to czifile, 0 is the colour and S the scene
    return _decoded(path, array, axes, {axis: 1e6 * float(value or math.nan) for axis, value in metres.items()})


def _load_lif(path: Path) -> Decoded:
    with require("liffile", "vendors").LifFile(path) as lif:
        images = list(lif.images)
        _one(path, len(images), ", ".join(image.name for image in images[:4]))
        (image,) = images
        steps = {axis: 1e6 * float(abs(at[1] - at[0])) for axis, at in image.coords.items() if len(at) > 1}
        return _decoded(path, image.asarray(), "".join(image.dims), steps)


def _load_nd2(path: Path) -> Decoded:
    with require("nd2", "vendors").ND2File(path) as nd2:
        _one(path, nd2.sizes.get("P", 1))
        sizes = {axis.upper(): float(value) for axis, value in nd2.voxel_size()._asdict().items()}
        return _decoded(path, nd2.asarray(), "".join(nd2.sizes), sizes)


def _decoded(path: Path, array: np.ndarray, axes: str, micrometres: dict[str, float]) -> Decoded:
    array, pages = arrange(path, array, axes)
    sizes = {axis: size for axis, size in micrometres.items() if axis in ("Y", "X", pages) and axis != "T" and size > 0}
    return Decoded(array, sizes | ({"T": math.nan} if pages == "T" else {}))


#: how a file begins, and its loader
VENDORS: dict[bytes, Callable[[Path], Decoded]] = {
    b"ZISRAWFILE": _load_czi,
    b"\x70\0\0\0": _load_lif,
    b"\xda\xce\xbe\x0a": _load_nd2,
}
