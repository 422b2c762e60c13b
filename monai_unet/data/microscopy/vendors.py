"""Files as Zeiss, Leica and Nikon write them, through the readers that the extra "vendors" brings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from monai_unet.data.decoded import Decoded
from monai_unet.data.microscopy.scenes import choose_scene
from monai_unet.data.microscopy.tiff import arrange
from monai_unet.options import require

__all__ = ["VENDORS"]


def _load_czi(path: Path, scene: int | None) -> Decoded:
    with require("czifile", "vendors").CziFile(path) as czi, warnings.catch_warnings():
        warnings.simplefilter("error")  # czifile only warns of a tile that it cannot place
        blocks = czi.filtered_subblock_directory
        scenes = [dict(zip(block.axes, block.start, strict=True)).get("S", 0) for block in blocks]
        numbers = sorted(set(scenes))
        number = numbers[choose_scene(path, [""] * len(numbers), scene)]
        czi.filtered_subblock_directory = [b for b, s in zip(blocks, scenes, strict=True) if s == number]
        array = czi.asarray(max_workers=1)  # its threads swallow exceptions
        distances = ElementTree.fromstring(czi.metadata()).iterfind(".//Scaling/Items/Distance")
        metres = {one.get("Id", ""): one.findtext("Value") for one in distances}
        axes = czi.axes.replace("S", "s").replace("0", "S")  # to czifile, 0 is the colour and S the scene
    return _decoded(path, array, axes, {axis: 1e6 * float(value or math.nan) for axis, value in metres.items()})


def _load_lif(path: Path, scene: int | None) -> Decoded:
    with require("liffile", "vendors").LifFile(path) as lif:
        images = list(lif.images)
        image = images[choose_scene(path, [image.name for image in images], scene)]
        steps = {axis: 1e6 * float(abs(at[1] - at[0])) for axis, at in image.coords.items() if len(at) > 1}
        return _decoded(path, image.asarray(), "".join(image.dims), steps)


def _load_nd2(path: Path, scene: int | None) -> Decoded:
    with require("nd2", "vendors").ND2File(path) as nd2:
        position = choose_scene(path, [""] * nd2.sizes.get("P", 1), scene)
        sizes = {axis.upper(): float(value) for axis, value in nd2.voxel_size()._asdict().items()}
        return _decoded(path, nd2.asarray(position), "".join(nd2.sizes), sizes)


def _decoded(path: Path, array: np.ndarray, axes: str, micrometres: dict[str, float]) -> Decoded:
    array, pages = arrange(path, array, axes)
    sizes = {axis: size for axis, size in micrometres.items() if axis in ("Y", "X", pages) and axis != "T" and size > 0}
    return Decoded(array, sizes | ({"T": math.nan} if pages == "T" else {}))


#: how a file begins, and its loader
VENDORS: dict[bytes, Callable[[Path, int | None], Decoded]] = {
    b"ZISRAWFILE": _load_czi,
    b"\x70\0\0\0": _load_lif,
    b"\xda\xce\xbe\x0a": _load_nd2,
}
