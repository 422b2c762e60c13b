"""Slices of a tilted gantry, or unevenly spaced, onto a straight even grid, and masks on it back onto the slices.

The slices are parallel, so that each is shifted within its plane, and then the grid's are interpolated between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import shift

__all__ = ["bend", "straight_shape", "straighten"]

Array = npt.NDArray[Any]


def straight_shape(
    offsets: Array, size: tuple[int, int], pixel: tuple[float, float], spacing: float
) -> tuple[int, int, int]:
    """Columns, rows, slices of the smallest grid that holds all slices.

    Args:
        offsets: (slices, 3), of each slice's corner from the first's along rows, columns and normal, in mm.
        size: columns, rows of a slice.
        pixel: mm between columns, between rows.
        spacing: mm between slices of the grid.

    >>> straight_shape(np.array([[0, 0, 0], [0, 1.5, 4.0]]), (20, 16), (1.0, 1.0), 2.0)
    (20, 18, 3)
    """
    columns, rows = size + np.ceil(np.ptp(offsets[:, :2], axis=0) / pixel - 1e-6).astype(int)
    return int(columns), int(rows), round(offsets[-1, 2] / spacing) + 1


def straighten(slices: Array, offsets: Array, pixel: tuple[float, float], spacing: float) -> Array:
    """Resample slices (slices, rows, columns) to the grid (columns, rows, slices), linearly; edges continue outside.

    >>> slices, offsets = np.arange(2.0).repeat(6).reshape(2, 2, 3), np.array([[0, 0, 0], [0, 1, 2]])
    >>> straighten(slices, offsets, (1, 1), spacing=1)[0].tolist()  # rows, slices
    [[0.0, 0.5, 1.0], [0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]
    """
    columns, rows, n = straight_shape(offsets, slices.shape[:0:-1], pixel, spacing)
    wider = ((0, 0), (0, rows - slices.shape[1]), (0, columns - slices.shape[2]))
    slices = np.pad(slices, wider, mode="edge")
    pixels = (offsets[:, :2] - offsets[:, :2].min(0)) / pixel
    for k, (x, y) in enumerate(pixels):
        slices[k] = shift(slices[k], (y, x), order=1, mode="nearest")
    along, due = offsets[:, 2], spacing * np.arange(n)
    before = np.clip(np.searchsorted(along, due, side="right") - 1, 0, len(along) - 2)
    weight = np.clip((due - along[before]) / (along[before + 1] - along[before]), 0, 1).astype(slices.dtype)
    volume = slices[before].T * (1 - weight)
    volume += slices[before + 1].T * weight
    return volume


def bend(mask: Array, offsets: Array, size: tuple[int, int], pixel: tuple[float, float], spacing: float) -> Array:
    """Take the labels of the slices (slices, rows, columns) from the nearest voxels of the grid's mask.

    >>> offsets = np.array([[0, 0, 0], [0, 1, 2]])
    >>> bend(np.arange(9).reshape(1, 3, 3), offsets, (1, 2), (1, 1), spacing=1).tolist()
    [[[0], [3]], [[5], [8]]]
    """
    columns, rows = size
    starts = np.rint((offsets[:, :2] - offsets[:, :2].min(0)) / pixel).astype(int)
    numbers = np.clip(np.rint(offsets[:, 2] / spacing).astype(int), 0, mask.shape[2] - 1)
    found = [mask[x : x + columns, y : y + rows, z].T for (x, y), z in zip(starts, numbers, strict=True)]
    return np.stack(found)
