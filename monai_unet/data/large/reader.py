"""Images larger than memory: OME-Zarr, TIFF (whole slides too) and NumPy files, read box by box."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_unet.data.microscopy.reader import pixel_sizes
from monai_unet.errors import InputError
from monai_unet.options import require

__all__ = ["LargeImage", "open_large_image"]

TIFFS = (".tif", ".tiff", ".svs", ".ndpi", ".scn")
#: reading any voxel of a chunk or strip decodes all of it
LARGEST_CHUNK = 2**28


@dataclass(frozen=True)
class LargeImage:
    """An image on disk.

    Args:
        path: the file or folder.
        shape: (C, *spatial) of what `read` takes boxes of.
        dtype: of the stored values.
        scale: size of a voxel of this level per spatial axis, in ``unit``; where the file does not tell, 1 at level 0.
        origin: centre of the first voxel per spatial axis, in ``unit``; where the file does not tell, 0 at level 0.
        unit: of length, as in OME-NGFF ("micrometer"); None where the file does not tell it for X, or a TIFF not the
            size along every spatial axis.
        open: context of the array as it is stored, anything that takes NumPy's slices.
        axes: of the stored array, such as "TCZYX"; "S" are the samples of a colour.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: tuple[float, ...]
    origin: tuple[float, ...]
    unit: str | None
    axes: str
    open: Callable[[], AbstractContextManager[Any]] = field(repr=False)

    def read(self, box: Sequence[slice]) -> np.ndarray:
        """The voxels in a box of the spatial axes, as (C, *box) of the stored dtype."""
        spatial = dict(zip("ZYX"[-len(box) :], box, strict=True))
        index = tuple(slice(None) if a in "CS" else spatial.get(a, 0) for a in self.axes)
        try:
            with self.open() as stored:
                array = np.array(stored[index])  # a copy: of a memory map no page stays in memory
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(self.path, f"damaged at {box} ({error})", "Copy or export it again") from error
        left = [a for a, i in zip(self.axes, index, strict=True) if isinstance(i, slice)]
        if not set(left) & set("CS"):
            return array[None]
        return np.moveaxis(array, next(i for i, a in enumerate(left) if a in "CS"), 0)


def open_large_image(path: str | os.PathLike[str], channels: int, spatial_dims: int = 2, level: int = 0) -> LargeImage:
    """Open an image without reading its voxels.

    Args:
        path: an OME-Zarr 0.4 or 0.5 image (a folder), a TIFF or whole slide that tifffile reads (.tif, .tiff, .svs,
            .ndpi, .scn), or a NumPy file (.npy) of shape (*spatial) or (C, *spatial). TIFFs must be tiled or in strips,
            or uncompressed.
        channels: that the network takes.
        spatial_dims: 2 for (H, W), 3 for (D, H, W). Other axes must have one entry.
        level: of the resolution pyramid, 0 the finest.

    Raises:
        InputError: no such file, no image, no such level, other axes or channels, values that are no real numbers,
            chunks too large to be read one by one.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(path, "there is no such file or folder", "Check the path")
    if path.is_dir():
        opened = _open_zarr(path, level)
    elif path.suffix.lower() in TIFFS:
        opened = _open_tiff(path, level)
    elif path.suffix.lower() == ".npy":
        opened = _open_npy(path, spatial_dims, level)
    else:
        problem = f"{path.suffix or 'a name without suffix'} is not read box by box"
        raise InputError(path, problem, f"Convert it to OME-Zarr, TIFF or .npy; read are {', '.join(TIFFS)}")
    axes, size, dtype, scale, origin, unit, open_array = opened
    wanted = "ZYX"[-spatial_dims:]
    found = dict(zip(axes, size, strict=True))
    others = {axis: n for axis, n in found.items() if axis not in wanted + "CS" and n > 1}
    if others or set(wanted) - set(found) or len(found) < len(axes):
        problem = f"axes {axes} of shape {tuple(size)}, and one image {wanted} is needed"
        raise InputError(path, problem, f"Save the part of interest with axes {wanted}, or C{wanted}, alone")
    counts = [found[axis] for axis in "CS" if found.get(axis, 1) > 1] or [1]
    if math.prod(counts) != channels or len(counts) > 1:
        problem = f"{math.prod(counts)} channels, the network takes {channels}"
        raise InputError(path, problem, f"Save {channels} of them, or train with in_channels={math.prod(counts)}")
    # a lower-case axis is one that `read` takes the first entry of
    axes = "".join(a if a not in "CS" or found[a] == channels != 1 else a.lower() for a in axes)
    if dtype.kind not in "uif":
        raise InputError(path, f"{dtype} values", "Save it as integers or real numbers")
    if min(size) < 1:
        raise InputError(path, f"shape {tuple(size)}: it holds no voxel", "Check the file")
    shape = (channels, *(found[axis] for axis in wanted))
    sizes = tuple(scale.get(axis, 1.0) for axis in wanted)
    starts = tuple(origin.get(axis, 0.0) for axis in wanted)
    return LargeImage(path, shape, dtype, sizes, starts, unit, axes, open_array)


_Opened = tuple[
    str,
    Sequence[int],
    np.dtype[Any],
    Mapping[str, float],
    Mapping[str, float],
    str | None,
    Callable[[], AbstractContextManager[Any]],
]


def _open_zarr(path: Path, level: int) -> _Opened:
    zarr = require("zarr", "large")
    cure = "Name the folder of an OME-Zarr image, the one whose metadata hold multiscales"
    try:
        group = zarr.open_group(path, mode="r")
    except Exception as error:  # zarr raises what its many stores and formats lead it to
        raise InputError(path, f"not an OME-Zarr image ({type(error).__name__}: {error})", cure) from error
    attributes = dict(group.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        inside = ", ".join(sorted(group)[:4])
        raise InputError(path, f"no image: its metadata hold no multiscales (inside: {inside or 'nothing'})", cure)
    image = multiscales[0]
    levels = image.get("datasets", [])
    _check_level(path, level, len(levels))
    try:
        array = group[levels[level]["path"]]
        size, dtype, chunks = array.shape, array.dtype, array.chunks
    except (KeyError, AttributeError, ValueError) as error:
        raise InputError(path, f"level {level} is announced and missing ({error})", "Copy it again") from error
    axes = [{"name": a} if isinstance(a, str) else a for a in image.get("axes", [])]
    names = "".join(str(axis["name"]).upper() for axis in axes)
    if len(names) != len(size):
        raise InputError(path, f"axes {names or 'not told'}, and the array has shape {size}", "Write it as version 0.4")
    _check_chunk(path, math.prod(chunks) * dtype.itemsize)
    scale, origin = np.ones(len(names)), np.zeros(len(names))
    for part in (levels[level], image):  # the level's own transformations, then those of all levels
        for step in part.get("coordinateTransformations", []):
            factor = np.array(step.get("scale", 1.0))
            scale, origin = scale * factor, origin * factor + step.get("translation", 0.0)
    sizes, starts = (dict(zip(names, values.tolist(), strict=True)) for values in (scale, origin))
    units = [axis.get("unit") for axis in axes if axis["name"].upper() == "X"]
    return names, size, np.dtype(dtype), sizes, starts, units[0] if units else None, lambda: nullcontext(array)


def _open_tiff(path: Path, level: int) -> _Opened:
    tifffile = require("tifffile", "large")
    try:
        with tifffile.TiffFile(path) as tif:
            series = tif.series[0]
            page, levels = series.keyframe, len(series.levels)
            turned = int(page.tags.valueof(274, default=1)) != 1
            plain = int(page.photometric) in (1, 2) or (int(page.photometric) == 6 and int(page.compression) == 7)
            chunk = page.chunks
            mapped = series.dataoffset is not None and level == 0
            sizes = pixel_sizes(tif, page)
    except Exception as error:  # tifffile raises whatever a damaged file leads it to
        raise InputError(path, f"damaged, or not a TIFF ({error})", "Copy or export it again") from error
    _check_level(path, level, levels)
    if turned or not plain or page.bitspersample < 8:
        problem = f"{page.photometric.name}, {page.bitspersample} bits, {'turned' if turned else 'upright'}"
        raise InputError(path, problem, "Save it as gray or RGB of 8 bits or more, upright")
    finest, series = series.shape, series.levels[level]
    if mapped:
        offset, dtype = series.dataoffset, series.dtype.newbyteorder(tif.byteorder)
    else:
        _check_chunk(path, math.prod(chunk) * page.dtype.itemsize)
        zarr = require("zarr", "large")

    @contextmanager
    def open_array() -> Iterator[Any]:
        if mapped:
            yield np.memmap(path, dtype, "r", offset, series.shape)
            return
        with tifffile.TiffFile(path) as opened, opened.series[0].aszarr(level=level) as store:
            yield zarr.open_array(store, mode="r")

    axes = "".join("Z" if a in "IQ" else a for a in series.axes)
    fine = {a: sizes.get(told, 1.0) for a, told in zip(axes, series.axes, strict=True)}
    scale = {a: fine[a] * (n / max(k, 1)) for a, n, k in zip(axes, finest, series.shape, strict=True)}
    origin = {a: (scale[a] - fine[a]) / 2 for a in axes}  # a voxel stands for a block of level 0
    unit = "micrometer" if all(a in sizes for a in series.axes if a in "ZIQYX") else None
    return axes, series.shape, series.dtype, scale, origin, unit, open_array


def _open_npy(path: Path, spatial_dims: int, level: int) -> _Opened:
    _check_level(path, level, 1)

    def open_array() -> AbstractContextManager[Any]:
        return nullcontext(np.load(path, mmap_mode="r", allow_pickle=False))

    try:
        with open_array() as array:
            shape, dtype = array.shape, array.dtype
    except (OSError, ValueError, EOFError) as error:
        raise InputError(path, f"damaged, or not a NumPy array ({error})", "Save it again") from error
    axes = "ZYX"[-spatial_dims:] if len(shape) == spatial_dims else "C" + "ZYX"[-spatial_dims:]
    return axes if len(axes) == len(shape) else "?" * len(shape), shape, dtype, {}, {}, None, open_array


def _check_level(path: Path, level: int, levels: int) -> None:
    if not 0 <= level < levels:
        few = f"levels 0 to {levels - 1}" if levels > 1 else "one level, 0" if levels else "no level at all"
        raise InputError(path, f"it has no level {level}: {few}", "Choose one of these")


def _check_chunk(path: Path, size: int) -> None:
    if size > LARGEST_CHUNK:
        problem = f"its chunks are of {size / 2**20:.0f} MiB, and each is decoded whole"
        raise InputError(path, problem, f"Save it in chunks (or tiles) of at most {LARGEST_CHUNK >> 20} MiB")
