"""Checks of a volume of any format: all its voxels are there, and its affine puts them on a straight grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_unet.errors import InputError

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]

SAVE_AGAIN = "Copy the file again from its source, or save it again with the software that made it"


def check_length(path: Path, found: int, expected: int, unit: str) -> None:
    """Raise if the header announces another number of bytes than there are."""
    if found != expected:
        fault = "truncated" if found < expected else "followed by other data"
        raise InputError(path, f"{found} {unit} where the header says {expected}: {fault}", SAVE_AGAIN)


def check_affine(path: Path, affine: Affine) -> float:
    """Raise if an affine (4, 4) is not finite, or its voxels have no size or no right angles; return how far off."""
    if not np.isfinite(affine).all():
        raise InputError(path, "the affine holds NaN or Inf", "Correct the header")
    voxel = voxel_size(affine)
    if (voxel < 1e-9).any():
        raise InputError(path, f"voxel size {size_text(voxel)} mm in the affine", "Correct the header")
    cosines = (affine[:3, :3] / voxel).T @ (affine[:3, :3] / voxel)
    if (worst := np.abs(cosines - np.eye(3)).max()) > 1e-3:
        problem = f"sheared or singular affine: its axes meet at {math.degrees(math.acos(min(worst, 1))):.4g} degrees"
        raise InputError(path, problem, "Resample it to a straight grid")
    return float(worst)


def voxel_size(affine: Affine) -> Affine:
    """Length of each voxel edge in mm, shape (3,)."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def size_text(size: Affine) -> str:
    return " x ".join(f"{value:.6g}" for value in size)


def corner_distance(a: Affine, b: Affine, shape: Sequence[int]) -> float:
    """Largest distance in mm between the positions that two affines give to a corner of the volume."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape))])
    return float(np.linalg.norm(corners @ (a - b).T, axis=1).max())
