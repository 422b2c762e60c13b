"""The check of a datalist of volumes and labels before the first step of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import MetaKeys

from monai_unet.data.decoded import keeping_decoded
from monai_unet.data.volumes.checks import corner_distance, voxel_size
from monai_unet.data.volumes.reader import CheckedVolumeReader
from monai_unet.errors import InputError

__all__ = ["check_volume_pairs"]


def check_volume_pairs(items: Sequence[Mapping[str, Any]], label_values: Sequence[int]) -> None:
    """Read every image and label of a MONAI datalist before training starts.

    Each decoded file is kept for the next `CheckedVolumeReader` that reads it, as far as memory allows.

    Raises:
        InputError: naming both files of the first pair in which one cannot be read, the geometries differ by more
            than 1 % of a voxel, or a label is not an integer of ``label_values``.

    >>> import tempfile
    >>> import nibabel as nib, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image, label = f"{folder}/image.nii.gz", f"{folder}/label.nii.gz"
    ...     nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.float32), np.eye(4)), image)
    ...     nib.save(nib.Nifti1Image(np.full((6, 5, 4), 3, np.uint8), np.eye(4)), label)
    ...     check_volume_pairs([{"image": image, "label": label}], label_values=(0, 1, 2))
    Traceback (most recent call last):
    monai_unet.errors.InputError: ...label.nii.gz: label values [3] besides [0, 1, 2] (paired with ...image.nii.gz). ...
    """
    images, labels = CheckedVolumeReader(), CheckedVolumeReader(label_values)
    with keeping_decoded():
        for item in items:
            image_path, label_path = (str(Path(item[key])) for key in ("image", "label"))
            try:
                image, image_meta = images.get_data((image_path,))
                label, label_meta = labels.get_data((label_path,))
            except InputError as error:
                other = label_path if error.path == image_path else image_path
                raise InputError(error.path, f"{error.problem} (paired with {other})", error.cure) from error
            if image.shape != label.shape:
                problem = f"shape {label.shape}, but its image {image_path} has {image.shape}"
                raise InputError(label_path, problem, "Resample the label to its image")
            affine = image_meta[MetaKeys.AFFINE]
            off = corner_distance(affine, label_meta[MetaKeys.AFFINE], image.shape)
            if off > 0.01 * voxel_size(affine).min():
                problem = f"the affine puts corners up to {off:.5g} mm from where its image {image_path} has them"
                raise InputError(label_path, problem, "Resample the label to its image, or correct the wrong header")
