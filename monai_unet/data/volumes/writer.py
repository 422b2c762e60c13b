"""Masks out as NIfTI, NRRD or MetaImage, on exactly the grid of the volume they were made from.

NRRD and MetaImage need the extra ``volumes``: ``pip install "monai_unet[volumes]"``.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_unet.data.volumes.nifti import NIFTI, kind_of, unpack
from monai_unet.files import replacing
from monai_unet.options import require

__all__ = ["write_volume"]


def write_volume(path: str | os.PathLike[str], mask: npt.NDArray[np.uint8], source: str | os.PathLike[str]) -> None:
    """Write a mask in the source's format, whole or not at all.

    NIfTI keeps sform, qform, their codes and the units bit by bit; NRRD and MetaImage keep origin, spacing and
    direction. Everything else in a header (descriptions, names, extensions) is left out.

    Args:
        path: the file, with the suffix of the format; NIfTI is compressed where it ends in .gz.
        mask: (i, j, k) as `CheckedVolumeReader` indexes the source.
        source: the volume.

    Raises:
        ValueError: the mask and the source differ in shape.

    >>> import tempfile
    >>> import nibabel as nib, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scan = nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.diag([0.5, 0.5, 2.5, 1]))
    ...     nib.save(scan, f"{folder}/scan.nii.gz")
    ...     write_volume(f"{folder}/mask.nii.gz", np.ones((6, 5, 4), np.uint8), f"{folder}/scan.nii.gz")
    ...     nib.load(f"{folder}/mask.nii.gz").affine.diagonal().tolist()
    [0.5, 0.5, 2.5, 1.0]
    """
    (_write_nifti if str(source).lower().endswith(NIFTI) else _write_itk)(Path(path), mask, Path(source))


def _write_nifti(path: Path, mask: npt.NDArray[np.uint8], source: Path) -> None:
    content = unpack(source, source.read_bytes())  # nibabel would believe the suffix
    image: Any = kind_of(content).from_bytes(content)  # nibabel's own types do not know the formats' headers
    _check(mask, image.shape)
    header = type(image.header)(endianness=image.header.endianness)
    header.set_data_shape(mask.shape)
    header.set_data_dtype(np.uint8)
    for field in (f for f in header if f.startswith(("qform", "sform", "quatern", "qoffset", "srow"))):
        header[field] = image.header[field]
    header["pixdim"][:4] = image.header["pixdim"][:4]
    header.set_xyzt_units(image.header.get_xyzt_units()[0])
    content = type(image)(mask, None, header).to_bytes()
    with replacing(path) as partial:
        partial.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _write_itk(path: Path, mask: npt.NDArray[np.uint8], source: Path) -> None:
    sitk = require("SimpleITK", "volumes")
    image = sitk.ReadImage(source)
    _check(mask, image.GetSize())
    result = sitk.GetImageFromArray(np.ascontiguousarray(mask.T))
    result.SetSpacing(image.GetSpacing())
    result.SetOrigin(image.GetOrigin())
    result.SetDirection(image.GetDirection())
    with replacing(path) as partial:
        sitk.WriteImage(result, partial, useCompression=True)


def _check(mask: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    expected = (*shape, 1, 1, 1)[:3]
    if mask.shape != expected:
        raise ValueError(f"the mask has shape {mask.shape}, its source {expected}: bring it back to the source's grid")
