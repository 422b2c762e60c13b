"""DICOM SEG written by the package instead of MONAI Label.

MONAI Label's own conversion fails on an empty mask, and names segments by their rank among the values found: a mask of
the posterior part only would be stored as the anterior one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from monai_unet.data.dicom.series import read_series
from monai_unet.networks import load_task


def seg_writer(metadata: dict[str, Any], weights: Path) -> Callable[..., str]:
    """Make a replacement for ``monailabel.datastore.utils.convert.nifti_to_dicom_seg``.

    Args:
        metadata: of the bundle; its ``algorithm`` is that of `write_seg`.
        weights: that are served; with the metadata they name the segments, as in `segments_of`.
    """
    from monai_unet.data.dicom.segmentation import segments_of, write_seg  # needed only if there are segments to write

    def nifti_to_dicom_seg(series_dir: str, label: str, label_info: Any = None, **_: Any) -> str:
        series = read_series([series_dir])
        mask = on_grid(label, series.affine, series.shape)
        with tempfile.NamedTemporaryFile(suffix=".dcm", delete=False) as file:
            path = Path(file.name)
        write_seg(path, mask, series, segments_of(load_task(weights), metadata), metadata["algorithm"])
        return str(path)

    return nifti_to_dicom_seg


def in_order_of(mask: np.ndarray, affine: Any, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Reorient a mask to the axes of a NIfTI file of the same volume; returns it and the file's affine."""
    image: Any = nib.load(file)
    turn = io_orientation(np.linalg.inv(image.affine) @ np.asarray(affine))
    turned: np.ndarray = apply_orientation(mask, turn)
    if turned.shape != image.shape[:3]:
        raise ValueError(f"the mask has {turned.shape} voxels, {file} has {image.shape}")
    return turned, image.affine


def on_grid(label: str, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Read a label file onto the grid of ``affine``: flipped and turned, never resampled.

    Raises:
        ValueError: the file is on another grid.
    """
    image: Any = nib.load(label)
    if image.ndim == 4 and image.shape[3] == 1:
        image = image.slicer[..., 0]
    turn = io_orientation(np.linalg.inv(affine) @ image.affine)
    turned = image.as_reoriented(turn)
    mask: np.ndarray = np.rint(apply_orientation(np.asanyarray(image.dataobj), turn)).astype(np.uint8)
    corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in mask.shape), 1]]).T
    if mask.shape != tuple(shape) or np.abs(turned.affine @ corners - affine @ corners).max() > 0.01:
        raise ValueError(f"the label has {mask.shape} voxels on a grid that is not the series' {tuple(shape)}")
    return mask
