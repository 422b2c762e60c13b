"""What `prepare` writes, and the checksums it keeps: nothing half-written, nothing rewritten without need."""

from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from monai_unet.files import replacing
from monai_unet.options import require

__all__ = ["Store", "load", "sha256"]


def sha256(*arrays: np.ndarray) -> str:
    """SHA-256 over dtype, shape and little-endian pixels, so that a file saved in another way still agrees."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def load(path: Path) -> np.ndarray:
    """Pixels as stored in a TIFF, or voxels as stored in a NIfTI file (without its scaling)."""
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel as nib

        return np.asanyarray(nib.load(path).dataobj.get_unscaled())  # type: ignore[attr-defined]
    return np.asarray(require("tifffile", "microscopy").imread(path))


class Store:
    """The output folder of one dataset.

    Args:
        folder: where files go; names are relative to it.
        bar: a progress bar, advanced by every array that is counted.
    """

    def __init__(self, folder: Path, bar: Any) -> None:
        self.folder, self.bar, self._digest = folder, bar, hashlib.sha256()

    @property
    def checksum(self) -> str:
        """SHA-256 over all arrays counted so far."""
        return self._digest.hexdigest()

    def count(self, *arrays: np.ndarray) -> None:
        """Let arrays enter the dataset's checksum."""
        self._digest.update(sha256(*arrays).encode())
        self.bar.update(len(arrays))

    def write(self, name: str | Path, data: bytes) -> str:
        """Write a file unless it is there with the same bytes: temporary name, sync, move. Returns its path."""
        path = self.folder / name
        if not (path.is_file() and path.read_bytes() == data):
            with replacing(path) as part:
                part.write_bytes(data)
        return str(path)

    def image(self, name: str, array: np.ndarray) -> str:
        """Write a 2-D uint8 array as PNG, or uint16 as TIFF, by the suffix of the name. Returns its path."""
        buffer = io.BytesIO()
        if name.endswith(".png"):
            require("PIL.Image", "microscopy").fromarray(array).save(buffer, "PNG")
        else:
            require("tifffile", "microscopy").imwrite(buffer, array, compression="zlib", metadata=None)
        return self.write(name, buffer.getvalue())

    def volume(self, name: str, array: np.ndarray, affine: np.ndarray) -> str:
        """Write a 3-D array and its affine to RAS millimetres as .nii.gz. Returns its path."""
        import nibabel as nib

        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, 1)
        return self.write(name, gzip.compress(image.to_bytes(), mtime=0))
