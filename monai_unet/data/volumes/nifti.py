"""NIfTI in: nibabel decodes, and faults that it ignores are refused, such as two affines that disagree."""

from __future__ import annotations

import gzip
import io
import logging
import math
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from monai_unet.data.decoded import Decoded
from monai_unet.data.volumes.checks import check_affine, check_length, corner_distance, size_text, voxel_size
from monai_unet.errors import InputError
from monai_unet.memory import available_bytes

NIFTI = (".nii", ".nii.gz")

logger = logging.getLogger(__name__)


def unpack(path: Path, content: bytes) -> bytes:
    """Decompress what is compressed, whatever its name, to the end, where the checksum is.

    Raises:
        InputError: the memory that is free does not hold it.
    """
    if content[:2] != b"\x1f\x8b":
        return content
    limit = (available_bytes(torch.device("cpu")) or sys.maxsize) // 2
    unpacked = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        while chunk := stream.read(1 << 24):
            unpacked += chunk
            if len(unpacked) > limit:
                problem = f"{len(content) / 2**20:.3g} MiB that unpack to more than half of the free memory"
                raise InputError(path, problem, "Check it with gzip -l, or use a machine with more memory")
    return bytes(unpacked)


def kind_of(content: bytes) -> type[nib.Nifti1Image]:
    """NIfTI-1 or NIfTI-2, by the length of the header."""
    is_nifti2 = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))
    return nib.Nifti2Image if is_nifti2 else nib.Nifti1Image


def load_nifti(path: Path, content: bytes) -> Decoded:
    """Decode NIfTI-1 or NIfTI-2: voxels (i, j, k, ...) and the affine to RAS millimetres.

    Args:
        path: of the file, for messages.
        content: all of the file, uncompressed.
    """
    kind = kind_of(content)
    header = kind.header_class(content[: kind.header_class.template_dtype.itemsize], check=False)
    shape = header.get_data_shape()
    n_bytes = math.prod(map(int, shape)) * header.get_data_dtype().itemsize
    check_length(path, len(content), int(header["vox_offset"]) + n_bytes, "bytes")
    voxel = np.array(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(voxel).all() and (voxel > 0).all()):
        raise InputError(path, f"voxel size {size_text(voxel)} mm", "Correct pixdim in the header")
    if (unit := header.get_xyzt_units()[0]) not in ("mm", "unknown"):
        raise InputError(path, f"lengths in {unit}, not mm", "Convert the header to mm")
    if np.isinf(header["scl_slope"]):  # nibabel would leave the values unscaled
        raise InputError(path, "scl_slope is Inf", "Correct it in the header")
    image = kind.from_bytes(content)
    forms = [form for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)) if code]
    if not forms:
        raise InputError(path, "neither sform nor qform is set: the orientation is unknown", "Set one of them")
    for form in forms:
        check_affine(path, form)
    off = corner_distance(forms[0], forms[-1], (*shape, 1, 1)[:3])
    if off > 0.01 * voxel.min() and header["sform_code"] != header["qform_code"]:  # of two spaces, such as a template's
        logger.warning("sform and qform are of different spaces, up to %.5g mm apart: the sform counts", off)
        voxel = voxel_size(forms[0])  # pixdim belongs to the qform
    elif off > 0.01 * voxel.min():
        problem = f"sform and qform disagree by up to {off:.5g} mm"
        raise InputError(path, problem, "Delete the wrong one, or copy the right one over it")
    affine = np.array(image.affine, dtype=np.float64)
    if np.abs(voxel_size(affine) / voxel - 1).max() > 0.01:
        problem = f"pixdim says voxels of {size_text(voxel)} mm, the affine {size_text(voxel_size(affine))} mm"
        raise InputError(path, problem, "Correct the header")
    array = np.asanyarray(image.dataobj)
    return Decoded(array.astype(array.dtype.newbyteorder("="), copy=False), affine)
