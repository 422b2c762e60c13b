"""The check of a datalist of volumes and labels before the first step of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai.utils import MetaKeys, ensure_tuple

from monai_unet.data.decoded import keeping_decoded
from monai_unet.data.volumes.checks import corner_distance, voxel_size
from monai_unet.data.volumes.reader import CheckedVolumeReader
from monai_unet.errors import InputError, raise_problems

__all__ = ["check_volume_pairs"]


def check_volume_pairs(
    items: Sequence[Mapping[str, Any]], label_values: Sequence[int], channels: int | None = 1
) -> None:
    """Read every image and label of a MONAI datalist before training starts.

    Each decoded file is kept for the next `CheckedVolumeReader` that reads it, as far as memory allows.

    Args:
        items: ``[{"image": path, "label": path}, ...]``; ``image`` may be a list of files, one per channel. Where an
            item has a mask ``ignore`` as well, it is checked like the label, for 0 and 255, or 0 and 1.
        label_values: the values a label may have, such as (0, 1, 2); with 255 for what is not labelled.
        channels: the channels the network takes; None for any number.

    Raises:
        InputError: with the problems of all pairs, naming both files: one cannot be read, the geometries differ by more
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
    with keeping_decoded():
        raise_problems("datalist", [p for item in items for p in _problems(item, label_values, channels)])


def _problems(item: Mapping[str, Any], label_values: Sequence[int], channels: int | None) -> Iterator[InputError]:
    image_path = str(ensure_tuple(item["image"])[0])
    image = None
    try:
        reader = CheckedVolumeReader(channels=channels)
        image, image_meta = reader.get_data(reader.read(item["image"]))
    except InputError as error:
        yield InputError(error.path, f"{error.problem} (paired with {item['label']})", error.cure)
    for key, values in {"label": label_values, "ignore": (0, 1, 255)}.items():
        if key not in item:
            continue
        path = str(item[key])
        try:
            label, label_meta = CheckedVolumeReader(values).get_data((path,))
        except InputError as error:
            yield InputError(error.path, f"{error.problem} (paired with {image_path})", error.cure)
            continue
        if image is None:
            continue
        if image.shape[-3:] != label.shape:
            problem = f"shape {label.shape}, but its image {image_path} has {image.shape[-3:]}"
            yield InputError(path, problem, "Resample the label to its image")
            continue
        affine = image_meta[MetaKeys.AFFINE]
        off = corner_distance(affine, label_meta[MetaKeys.AFFINE], label.shape)
        if off > 0.01 * voxel_size(affine).min():
            problem = f"the affine puts corners up to {off:.5g} mm from where its image {image_path} has them"
            yield InputError(path, problem, "Resample the label to its image, or correct the wrong header")
