"""Images larger than memory, read box by box: OME-Zarr, TIFF (including whole slides) and NumPy files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from monai_unet.data.microscopy.pixel_size import pixel_sizes
from monai_unet.data.microscopy.tiff import own_series, several_images
from monai_unet.errors import InputError
from monai_unet.options import require

__all__ = ["LargeImage", "open_large_image"]

TIFFS = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".svs", ".ndpi", ".scn")
#: bytes: reading any voxel of a chunk or strip decodes all of it
LARGEST_CHUNK = 2**28


@dataclass(frozen=True)
class LargeImage:
    """An image on disk, as `open_large_image` returns it.

    Args:
        path: the file or folder.
        shape: ``(C, *spatial)``.
        dtype: of the stored values.
        scale: size of a voxel of this level per spatial axis, in ``unit``; 1 at level 0 where the file has none.
        origin: centre of the first voxel per spatial axis, in ``unit``; 0 at level 0 where the file has none.
        unit: of length, as in OME-NGFF ("micrometer"); None where the file does not give it for X, or where a TIFF
            lacks the voxel size along a spatial axis.
        axes: of the stored array, such as "TCZYX"; "S" are the samples of a colour. Of a lower-case axis, `read` takes
            the first entry.
        open: returns a context with the stored array: anything that takes NumPy's slices.
        repeat: how often `read` returns the one channel that there is: 3 where a network of colours sees a gray image.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/slide.npy", np.arange(12).reshape(3, 4))
    ...     image = open_large_image(f"{folder}/slide.npy", channels=1)
    ...     image.read((slice(1, 3), slice(0, 2))).tolist()
    [[[4, 5], [8, 9]]]
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: tuple[float, ...]
    origin: tuple[float, ...]
    unit: str | None
    axes: str
    open: Callable[[], AbstractContextManager[Any]] = field(repr=False)
    repeat: int = 1

    def read(self, box: Sequence[slice]) -> np.ndarray:
        """Read a box of the spatial axes, (C, *box) of the stored dtype.

        Raises:
            InputError: damaged there.
        """
        spatial = dict(zip("ZYX"[-len(box) :], box, strict=True))
        index = tuple(slice(None) if a in "CS" else spatial.get(a, 0) for a in self.axes)
        try:
            with self.open() as stored:
                array = np.array(stored[index])  # a copy, so that no page of a memory map stays in memory
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged chunks raise exceptions of many kinds
            raise InputError(self.path, f"damaged at {box} ({error})", "Copy or export it again") from error
        left = [a for a, i in zip(self.axes, index, strict=True) if isinstance(i, slice)]
        if not set(left) & set("CS"):
            return np.repeat(array[None], self.repeat, axis=0)
        return np.moveaxis(array, next(i for i, a in enumerate(left) if a in "CS"), 0)


def open_large_image(
    path: str | os.PathLike[str], channels: int, spatial_dims: int = 2, level: int = 0, colour: bool = False
) -> LargeImage:
    """Open an image without reading its voxels.

    Args:
        path: an OME-Zarr 0.4 or 0.5 image (a folder), a TIFF or whole slide that tifffile reads (.tif, .tiff, .btf,
            .tf2, .tf8, .lsm, .svs, .ndpi, .scn), or a NumPy file (.npy) of shape ``(*spatial)`` or ``(C, *spatial)``.
            TIFFs must be uncompressed, or in tiles or strips. Of several images in a file, those of less than a tenth
            of the largest (a thumbnail, a slide's label) do not count.
        channels: of the network.
        spatial_dims: 2 for (H, W), 3 for (D, H, W). Other axes must have one entry.
        level: of the resolution pyramid, 0 is the finest.
        colour: whether the network's three channels are red, green and blue: a gray image enters them all.

    Raises:
        InputError: no such file, not an image, several images, no such level, other axes or channels, complex or
            boolean values, chunks too large to be decoded.

    >>> import tempfile, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     slide = np.zeros((30, 40), np.uint16)
    ...     tifffile.imwrite(f"{folder}/slide.ome.tif", slide, metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})
    ...     image = open_large_image(f"{folder}/slide.ome.tif", channels=1)
    >>> image.shape, image.scale, image.unit
    ((1, 30, 40), (0.5, 0.5), 'micrometer')
    """
    path = Path(path)
    if not path.exists():
        raise InputError(path, "no such file or folder", "Check the path")
    if path.is_dir():
        stored = _open_zarr(path, level)
    elif path.suffix.lower() in TIFFS:
        stored = _open_tiff(path, level)
    elif path.suffix.lower() == ".npy":
        stored = _open_npy(path, spatial_dims, level)
    else:
        problem = f"{path.suffix or 'a name without suffix'} cannot be read box by box"
        raise InputError(path, problem, f"Convert it to OME-Zarr, TIFF ({', '.join(TIFFS)}) or .npy")
    axes, size, wanted = stored.axes, stored.shape, "ZYX"[-spatial_dims:]
    found = dict(zip(axes, size, strict=True))
    others = {axis: n for axis, n in found.items() if axis not in wanted + "CS" and n > 1}
    if others or set(wanted) - set(found) or len(found) < len(axes):
        problem = f"it has axes {axes} of shape {size}; one image {wanted} is needed"
        raise InputError(path, problem, f"Save only the part of interest, with axes {wanted} or C{wanted}")
    counts = [found[axis] for axis in "CS" if found.get(axis, 1) > 1] or [1]
    repeat = 3 if colour and channels == 3 and counts == [1] else 1
    if math.prod(counts) * repeat != channels or len(counts) > 1:
        problem = f"it has {math.prod(counts)} channels, the network takes {channels}"
        raise InputError(path, problem, f"Save {channels} of them, or train with in_channels={math.prod(counts)}")
    axes = "".join(a if a not in "CS" or found[a] == channels != 1 else a.lower() for a in axes)
    if stored.dtype.kind not in "uif":
        raise InputError(path, f"its values are {stored.dtype}", "Save it as integers or real numbers")
    if min(size) < 1:
        raise InputError(path, f"it has shape {size}, without a voxel", "Check the file")
    spatial = [stored.axes.index(axis) for axis in wanted]
    scale, origin = (tuple(values[i] for i in spatial) for values in (stored.scale, stored.origin))
    shape = (channels, *(size[i] for i in spatial))
    return replace(stored, shape=shape, scale=scale, origin=origin, axes=axes, repeat=repeat)


def _open_zarr(path: Path, level: int) -> LargeImage:
    zarr = require("zarr", "large")
    cure = "Give the folder of an OME-Zarr image, the one whose metadata has multiscales"
    try:
        group = zarr.open_group(path, mode="r")
    except MemoryError:
        raise
    except Exception as error:  # zarr's many stores and formats raise exceptions of many kinds
        raise InputError(path, f"not an OME-Zarr image ({type(error).__name__}: {error})", cure) from error
    attributes = dict(group.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        inside = ", ".join(sorted(group)[:4])
        raise InputError(path, f"not an image: its metadata has no multiscales (inside: {inside or 'nothing'})", cure)
    if len(multiscales) > 1:
        problem = f"{len(multiscales)} images: its metadata has several multiscales"
        raise InputError(path, problem, "Save the one to be segmented as an image of its own")
    image = multiscales[0]
    levels = image.get("datasets", [])
    _check_level(path, level, len(levels))
    try:
        array = group[levels[level]["path"]]
        size, dtype, chunks = array.shape, array.dtype, array.chunks
    except (KeyError, AttributeError, ValueError) as error:
        raise InputError(path, f"level {level} is in the metadata but missing ({error})", "Copy it again") from error
    axes = [{"name": a} if isinstance(a, str) else a for a in image.get("axes", [])]
    names = "".join(str(axis["name"]).upper() for axis in axes)
    if len(names) != len(size):
        problem = f"its axes are {names or 'unknown'}, and the array has shape {size}"
        raise InputError(path, problem, "Write it as version 0.4 or 0.5")
    _check_chunk(path, math.prod(chunks) * dtype.itemsize)
    scale, origin = np.ones(len(names)), np.zeros(len(names))
    for part in (levels[level], image):  # the level's own transformations, then those of all levels
        for step in part.get("coordinateTransformations", []):
            factor = np.array(step.get("scale", 1.0))
            scale, origin = scale * factor, origin * factor + step.get("translation", 0.0)
    units = [axis.get("unit") for axis in axes if axis["name"].upper() == "X"]
    unit = units[0] if units else None
    places = tuple(scale.tolist()), tuple(origin.tolist())
    return LargeImage(path, size, np.dtype(dtype), *places, unit, names, lambda: nullcontext(array))


def _open_tiff(path: Path, level: int) -> LargeImage:
    tifffile = require("tifffile", "large")
    try:
        with tifffile.TiffFile(path) as tif:
            number, series = _main_series(path, tif)
            page, levels = series.keyframe, len(series.levels)
            rotated = int(page.tags.valueof(274, default=1)) != 1
            plain = int(page.photometric) in (1, 2) or (int(page.photometric) == 6 and int(page.compression) == 7)
            chunk = page.chunks
            mapped = series.dataoffset is not None and level == 0
            sizes = pixel_sizes(tif, series)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # tifffile raises exceptions of many kinds for a damaged file
        raise InputError(path, f"damaged, or not a TIFF ({error})", "Copy or export it again") from error
    _check_level(path, level, levels)
    if rotated or not plain or page.bitspersample < 8:
        problem = f"it is {page.photometric.name}, {page.bitspersample} bits, {'rotated' if rotated else 'upright'}"
        raise InputError(path, problem, "Save it upright, as gray or RGB of 8 bits or more")
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
        with tifffile.TiffFile(path) as opened, opened.series[number].aszarr(level=level) as store:
            yield zarr.open_array(store, mode="r")

    fine = [sizes.get(axis, 1.0) for axis in series.axes]
    scale = tuple(f * (n / max(k, 1)) for f, n, k in zip(fine, finest, series.shape, strict=True))
    origin = tuple((s - f) / 2 for s, f in zip(scale, fine, strict=True))  # a voxel covers a block of level 0
    unit = "micrometer" if all(a in sizes for a in series.axes if a in "ZIQYX") else None
    axes = series.axes.replace("I", "Z").replace("Q", "Z")  # plain pages
    return LargeImage(path, series.shape, series.dtype, scale, origin, unit, axes, open_array)


def _main_series(path: Path, tif: Any) -> tuple[int, Any]:
    """The one large image of a file, with its number: others are a thumbnail, the slide's label or an overview."""
    images = own_series(tif)
    largest = max(image.size for image in images)
    main = [image for image in images if 10 * image.size > largest]
    if len(main) > 1:
        raise InputError(path, several_images(main), "Save the one to be segmented as a file of its own")
    return next(number for number, series in enumerate(tif.series) if series is main[0]), main[0]


def _open_npy(path: Path, spatial_dims: int, level: int) -> LargeImage:
    _check_level(path, level, 1)
    load = partial(np.load, path, mmap_mode="r", allow_pickle=False)
    try:
        shape, dtype = (array := load()).shape, array.dtype
    except (OSError, ValueError, EOFError) as error:
        raise InputError(path, f"damaged, or not a NumPy array ({error})", "Save it again") from error
    n, axes = len(shape), "CZYX" if spatial_dims == 3 else "CYX"
    axes = axes[-n:] if n in (spatial_dims, spatial_dims + 1) else "?" * n
    return LargeImage(path, shape, dtype, (1.0,) * n, (0.0,) * n, None, axes, lambda: nullcontext(load()))


def _check_level(path: Path, level: int, levels: int) -> None:
    if not 0 <= level < levels:
        found = f"levels 0 to {levels - 1}" if levels > 1 else "only level 0" if levels else "no levels"
        raise InputError(path, f"it has no level {level}, {found}", "Choose one it has")


def _check_chunk(path: Path, size: int) -> None:
    if size > LARGEST_CHUNK:
        problem = f"its chunks have {size / 2**20:.0f} MiB, and each is decoded as a whole"
        raise InputError(path, problem, f"Save it in chunks (or tiles) of at most {LARGEST_CHUNK >> 20} MiB")
