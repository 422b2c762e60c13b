"""The files that `prepare` writes, whole and only where they differ, and the checksum of their arrays."""

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
    """Hash dtype, shape and little-endian pixels: the SHA-256 does not depend on how a file was saved.

    >>> sha256(np.eye(2, dtype=">u2")) == sha256(np.eye(2, dtype="<u2")) != sha256(np.eye(2))
    True
    """
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def load(path: Path) -> np.ndarray:
    """Read the stored pixels of a TIFF or PNG, or the stored voxels of a NIfTI file (without its scaling).

    >>> import tempfile, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tifffile.imwrite(f"{folder}/a.tif", np.eye(2, dtype=np.uint8))
    ...     load(Path(folder, "a.tif")).tolist()
    [[1, 0], [0, 1]]
    """
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel as nib

        return np.asanyarray(nib.load(path).dataobj.get_unscaled())  # type: ignore[attr-defined]
    if path.suffix == ".png":
        with require("PIL.Image", "microscopy").open(path) as image:
            return np.asarray(image)
    return np.asarray(require("tifffile", "microscopy").imread(path))


class Store:
    """The output folder of one data set.

    Args:
        folder: names of files are relative to it.
        bar: a progress bar, advanced by every array of the checksum.

    >>> import tempfile
    >>> from tqdm import tqdm
    >>> with tempfile.TemporaryDirectory() as folder, tqdm(disable=True) as bar:
    ...     store, pixels = Store(Path(folder), bar), np.zeros((4, 4), np.uint8)
    ...     store.add_to_checksum(pixels)
    ...     Path(store.image("slices/a.png", pixels)).is_file(), store.checksum[:8]
    (True, '3a67a25f')
    """

    def __init__(self, folder: Path, bar: Any) -> None:
        self.folder, self.bar, self._digest = folder, bar, hashlib.sha256()

    @property
    def checksum(self) -> str:
        """SHA-256 over all arrays added so far."""
        return self._digest.hexdigest()

    def add_to_checksum(self, *arrays: np.ndarray) -> None:
        """Add arrays to the checksum of the data set."""
        self._digest.update(sha256(*arrays).encode())
        self.bar.update(len(arrays))

    def write(self, name: str | Path, data: bytes) -> str:
        """Write a file unless it exists with the same bytes; return its path."""
        path = self.folder / name
        if not (path.is_file() and path.read_bytes() == data):
            with replacing(path) as part:
                part.write_bytes(data)
        return str(path)

    def image(self, name: str, array: np.ndarray) -> str:
        """Write a 2-D uint8 array as PNG, or uint16 as TIFF, by the suffix of the name; return its path."""
        buffer = io.BytesIO()
        if name.endswith(".png"):
            require("PIL.Image", "microscopy").fromarray(array).save(buffer, "PNG")
        else:
            require("tifffile", "microscopy").imwrite(buffer, array, compression="zlib", metadata=None)
        return self.write(name, buffer.getvalue())

    def volume(self, name: str, array: np.ndarray, affine: np.ndarray) -> str:
        """Write a 3-D array and its affine to RAS millimetres as .nii.gz; return its path."""
        import nibabel as nib

        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, 1)
        return self.write(name, gzip.compress(image.to_bytes(), mtime=0))
