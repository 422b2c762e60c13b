"""NIfTI, NRRD and MetaImage in: ``CheckedVolumeReader`` for MONAI's ``LoadImaged``.

nibabel and SimpleITK decode. Faults that they ignore are refused: non-finite values or affines, two affines in one file
that disagree, damage that only a checksum or the length reveals. NRRD and MetaImage need SimpleITK.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_unet.data.decoded import Decoded, decoded_once
from monai_unet.data.volumes.checks import SAVE_AGAIN, Affine, Array, check_affine, corner_distance
from monai_unet.data.volumes.itk import META, NRRD, load_itk
from monai_unet.data.volumes.nifti import NIFTI, load_nifti, unpack
from monai_unet.errors import InputError

__all__ = ["CheckedVolumeReader"]

logger = logging.getLogger(__name__)


class CheckedVolumeReader(ImageReader):
    """One 3-D NIfTI, NRRD or MetaImage volume, or ``InputError``; of several channels if the network takes these.

    The array is indexed (i, j, k) as the file stores it, in the file's dtype (float64 where NIfTI scales); the affine
    maps these indices to RAS millimetres: for NIfTI they are those of MONAI's ``NibabelReader``. Trailing axes of
    length 1 are dropped. Of several channels, the array is (C, i, j, k): each is a file of its own, on the same grid,
    or they are the last axis of a 4-D NIfTI. Metadata: ``affine``, ``original_affine``, ``spatial_shape``, ``space``,
    ``original_channel_dim``.

    Args:
        label_values: for labels, the values allowed; any other, and any fraction, is an error.
        channels: the channels the network takes; None for any number, one of which is (1, i, j, k) then.

    Raises:
        InputError: from ``get_data``, never from ``read``: ``LoadImage`` silently tries other readers when ``read``
            fails.

    >>> import tempfile
    >>> import nibabel as nib, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.diag([0.5, 0.5, 2.5, 1])), f"{folder}/ct.nii.gz")
    ...     array, meta = CheckedVolumeReader().get_data([f"{folder}/ct.nii.gz"])
    >>> array.shape, meta["affine"].diagonal().tolist()
    ((6, 5, 4), [0.5, 0.5, 2.5, 1.0])
    """

    def __init__(self, label_values: Sequence[int] | None = None, channels: int | None = 1) -> None:
        self.label_values, self.channels = label_values, channels

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether each name ends as NIfTI, NRRD or MetaImage do."""
        return all(str(f).lower().endswith((*NIFTI, *NRRD, *META)) for f in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Return the paths only; ``get_data`` opens the file."""
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[Array, dict[str, Any]]:
        """The volume, shape (i, j, k) or (C, i, j, k), and its metadata."""
        if self.channels == 1 and len(img) != 1:
            raise InputError(img[0], f"one of {len(img)} files, but one volume is required", "Give one file")
        array, affine = self._load(img[0])
        for path in img[1:]:
            channel, other = self._load(path)
            shapes = f"shape {channel.shape[1:]}, but {img[0]} has {array.shape[1:]}"
            off = corner_distance(affine, other, array.shape[1:])
            if channel.shape[1:] != array.shape[1:] or off > 1e-3:
                found = (
                    shapes if channel.shape[1:] != array.shape[1:] else f"corners {off:.5g} mm from those of {img[0]}"
                )
                raise InputError(path, found, "Resample the channels of a volume to one grid")
            array = np.concatenate([array, channel])
        if self.channels not in (None, len(array)):
            problem = f"{len(array)} channels, the network takes {self.channels}"
            cure = f"Give volumes of {self.channels} channels, or train with in_channels={len(array)}"
            raise InputError(img[0], problem, cure)
        return array[0] if self.channels == 1 else array, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(array.shape[1:]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel" if self.channels == 1 else 0,
        }

    def _load(self, path: str) -> tuple[Array, Affine]:
        """Decode and check one file: (C, i, j, k), and the affine."""
        array, affine, _ = _decode(Path(path))
        if array.dtype.kind not in "iuf":
            raise InputError(path, f"{array.dtype} values, not one number per voxel", "Convert it to one channel")
        while array.ndim > 3 and array.shape[-1] == 1:
            array = array[..., 0]
        if self.channels != 1 and array.ndim == 5 and array.shape[3] == 1:  # NIfTI's vectors
            array = array[:, :, :, 0]
        if array.ndim != 3 and (array.ndim != 4 or self.channels == 1):
            raise InputError(path, f"{array.ndim}-D, shape {array.shape}: 3-D is required", "Save one volume per file")
        if array.dtype.kind == "f" and (bad := np.count_nonzero(~np.isfinite(array))):
            raise InputError(path, f"{bad} of {array.size} voxels are NaN or Inf", "Replace them, or mask the image")
        if (shear := check_affine(Path(path), affine)) > 1e-4:
            logger.warning("axes %.2g degrees off right angles: taken as straight", math.degrees(math.asin(shear)))
        if self.label_values is not None:
            _check_labels(path, array, self.label_values)
        return np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None], affine


@decoded_once
def _decode(path: Path) -> Decoded:
    """Decode one file: its array as stored, and the affine to RAS millimetres."""
    name = path.name.lower()
    if not name.endswith((*NIFTI, *NRRD, *META)):
        raise InputError(path, "not named as NIfTI, NRRD or MetaImage", "Convert it to .nii.gz")
    try:
        content = unpack(path, path.read_bytes())
        return (load_nifti if name.endswith(NIFTI) else load_itk)(path, content)
    except (InputError, ImportError, MemoryError):
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, f"truncated or damaged: {error}", SAVE_AGAIN) from error
    except Exception as error:
        text = f": {error}" if name.endswith(NIFTI) else ""  # those of other headers may be a patient's name
        raise InputError(path, f"not readable ({type(error).__name__}{text})", SAVE_AGAIN) from error


def _check_labels(path: str, array: Array, allowed: Sequence[int]) -> None:
    values = np.unique(array)
    if (fractions := values[values != np.round(values)]).size:
        problem = f"{fractions.size} fractional label values, such as {fractions[0]:.6g}"
        raise InputError(path, problem, "Resample labels with nearest-neighbour interpolation")
    if (strange := values[~np.isin(values, allowed)]).size:
        problem = f"label values {strange[:8].astype(int).tolist()} besides {sorted(allowed)}"
        raise InputError(path, problem, "Map the labels to the allowed values")
