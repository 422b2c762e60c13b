"""An image larger than memory at the pixel size of the task, and results back on its own grid: box by box.

As MONAI's `Spacing` and its inverse do for a whole image: the first voxels of both grids coincide, and values lie
linearly between their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from monai_unet.data.large.reader import LargeImage

__all__ = ["at_voxel_size", "between_voxels"]


def between_voxels(
    read: Callable[[tuple[slice, ...]], np.ndarray], box: Sequence[slice], step: Sequence[float], size: Sequence[int]
) -> np.ndarray:
    """Interpolate a box of a grid whose voxel i lies at ``step · i`` of an array.

    Args:
        read: returns a box of the array, ``(C, *box)``; called once, for no more than is needed.
        box: of the grid.
        step: per axis.
        size: of the array, per axis; what would lie beyond the last voxel has its value.

    Returns:
        ``(C, *box)`` float32.

    >>> array = np.array([[0.0, 10, 20]])
    >>> between_voxels(lambda box: array[(slice(None), *box)], (slice(1, 6),), step=(0.5,), size=(3,)).tolist()
    [[5.0, 10.0, 15.0, 20.0, 20.0]]
    """
    at = [(np.arange(s.start, s.stop) * d).clip(0, n - 1) for s, d, n in zip(box, step, size, strict=True)]
    low = [np.minimum(x.astype(int), max(n - 2, 0)) for x, n in zip(at, size, strict=True)]
    part = tuple(slice(int(i[0]), min(int(i[-1]) + 2, n)) for i, n in zip(low, size, strict=True))
    values = read(part)
    for axis, (x, i, s) in enumerate(zip(at, low, part, strict=True), 1):
        share = (x - i).reshape(-1, *(1,) * (values.ndim - 1 - axis)).astype(np.float32)
        first, second = i - s.start, np.minimum(i + 1, s.stop - 1) - s.start
        values = values.take(first, axis) * (1 - share) + values.take(second, axis) * share
    return values.astype(np.float32, copy=False)


def at_voxel_size(image: LargeImage, scale: Sequence[float]) -> LargeImage:
    """Return the same image with voxels of another size, which are computed where they are read.

    Args:
        image: with a known size of its voxels.
        scale: the new size per spatial axis, in the image's unit.

    >>> import tempfile
    >>> from monai_unet.data.large.reader import open_large_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/slide.npy", 2 * np.arange(12).reshape(3, 4))
    ...     image = at_voxel_size(open_large_image(f"{folder}/slide.npy", channels=1), (1, 0.5))
    ...     image.shape, image.read((slice(1, 2), slice(0, 4))).tolist()
    ((1, 3, 7), [[[8.0, 9.0, 10.0, 11.0]]])
    """
    step = tuple(new / old for new, old in zip(scale, image.scale, strict=True))
    shape = tuple(int(np.rint((n - 1) / d + 1)) for n, d in zip(image.shape[1:], step, strict=True))
    grid = _Grid(image, step)
    return replace(
        image,
        shape=(image.shape[0], *shape),
        dtype=np.dtype(np.float32),
        scale=tuple(scale),
        axes="C" + "ZYX"[-len(step) :],
        open=lambda: nullcontext(grid),
        repeat=1,
    )


@dataclass(frozen=True)
class _Grid:
    """What a `LargeImage` opens: takes slices."""

    image: LargeImage
    step: tuple[float, ...]

    def __getitem__(self, index: Any) -> Any:
        return between_voxels(self.image.read, index[1:], self.step, self.image.shape[1:])
