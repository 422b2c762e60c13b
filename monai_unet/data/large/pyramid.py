"""Pyramids of OME-Zarr 0.5: coarser and coarser copies of an array, with the size and position of their voxels."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from monai_unet.data.large.reader import LargeImage

__all__ = ["write_pyramid"]

#: voxels per axis of the coarsest level, at most
SCREEN = 1024


def write_pyramid(group: Any, image: LargeImage) -> None:
    """Add levels that are half as large each, until one fits on a screen, and the OME metadata of all levels.

    Probabilities are averaged; of labels, every second voxel is kept.

    Args:
        group: zarr group of OME-Zarr 0.5; its array "0" is the finest level: probabilities ``(C, *spatial)``, or labels
            ``(*spatial)``.
        image: the image that was segmented; the levels get its voxel size and position.

    >>> import contextlib, pathlib, numpy as np, zarr
    >>> slide = LargeImage(pathlib.Path("a.tif"), (1, 20, 3000), np.dtype("u1"), (0.5, 0.5), (0, 0), "micrometer", "YX",
    ...                    contextlib.nullcontext)
    >>> labels = zarr.create_group({})
    >>> _ = labels.create_array("0", shape=(20, 3000), dtype="uint8", dimension_names=("y", "x"))
    >>> write_pyramid(labels, slide)
    >>> [labels[level].shape for level in "012"]
    [(20, 3000), (10, 1500), (5, 750)]
    >>> labels.attrs["ome"]["multiscales"][0]["datasets"][2]
    {'path': '2', 'coordinateTransformations': [{'type': 'scale', 'scale': [2.0, 2.0]}]}
    """
    dims = len(image.scale)
    channels = group["0"].ndim - dims
    levels = [group["0"]]
    while max((fine := levels[-1]).shape[channels:]) > SCREEN:
        shape = (*fine.shape[:channels], *(math.ceil(n / 2) for n in fine.shape[channels:]))
        chunks = tuple(min(c, n) for c, n in zip(fine.chunks, shape, strict=True))
        new = {"dtype": fine.dtype, "dimension_names": fine.metadata.dimension_names, "overwrite": True}
        coarse = group.create_array(str(len(levels)), shape=shape, chunks=chunks, **new)
        for start in product(*(range(0, n, c) for n, c in zip(shape, chunks, strict=True))):
            box = [slice(s, min(s + c, n)) for s, c, n in zip(start, chunks, shape, strict=True)]
            part = fine[(*box[:channels], *(slice(2 * b.start, 2 * b.stop) for b in box[channels:]))]
            coarse[tuple(box)] = _mean(part) if channels else part[(slice(None, None, 2),) * dims]
        levels.append(coarse)
    unit = {"unit": image.unit} if image.unit else {}
    axes = [{"name": "c", "type": "channel"}] * channels
    axes += [{"name": name, "type": "space", **unit} for name in "zyx"[-dims:]]
    datasets = []
    for level in range(len(levels)):
        scale = [s * 2**level for s in image.scale]
        steps = [{"type": "scale", "scale": [1.0] * channels + scale}]
        # the mean of two voxels is centred between them, the one of two labels that is kept stays where it was
        shift = (2**level - 1) / 2 if channels else 0
        translation = [o + s * shift for o, s in zip(image.origin, image.scale, strict=True)]
        if any(translation):
            steps.append({"type": "translation", "translation": [0.0] * channels + translation})
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    multiscales = [{"name": "probability" if channels else "labels", "axes": axes, "datasets": datasets}]
    labels: dict[str, Any] = {} if channels else {"image-label": {"colors": []}}
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales, **labels}


def _mean(array: np.ndarray) -> np.ndarray:
    """Means of 2^d voxels, ``(C, *spatial)`` of half the size; the last voxel of an odd axis is its own neighbour."""
    padded = np.pad(array, [(0, 0), *((0, n % 2) for n in array.shape[1:])], mode="edge").astype(np.float32)
    split = padded.reshape(array.shape[0], *(k for n in padded.shape[1:] for k in (n // 2, 2)))
    return np.rint(split.mean(axis=tuple(range(2, split.ndim, 2)))).astype(array.dtype)
