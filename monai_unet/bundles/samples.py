"""An image of a data set with its labels, read and checked, whatever files it is kept in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.utils.enums import MetaKeys
from monai.utils.misc import ensure_tuple

from monai_unet.bundles.kinds import UNLABELLED
from monai_unet.data import CheckedVolumeReader, MicroscopyReader
from monai_unet.data.microscopy.reader import SUFFIXES
from monai_unet.data.microscopy.tiff import TIFF_MAGIC
from monai_unet.data.volumes.checks import corner_distance, voxel_size
from monai_unet.errors import InputError
from monai_unet.object_classes import join_classes
from monai_unet.options import require

__all__ = ["Sample", "read_sample"]


class Sample(NamedTuple):
    """An item of a data set as its files have it, volumes with their axes in the order of the patient's.

    >>> Sample(np.zeros((1, 4, 5)), np.zeros((4, 5)), 1, np.zeros((4, 5), bool), "2-D", np.ones(2), "uint8", False).form
    '2-D'
    """

    #: (C, *spatial)
    image: np.ndarray
    #: (*spatial), whole numbers; of objects of several classes, as `monai_unet.object_classes` has them
    label: np.ndarray
    #: of objects: how many label files there are
    classes: int
    #: (*spatial), bool
    ignore: np.ndarray
    #: "2-D", "3-D" or "3-D volumes"
    form: str
    #: per axis, in µm or mm; NaN where it is unknown
    spacing: np.ndarray
    #: as stored
    dtype: str
    #: whether the channels are red, green and blue
    colour: bool


def read_sample(item: Mapping[str, Any]) -> Sample:
    """Read and check one item.

    Args:
        item: ``image`` (a path, or one per channel), ``label`` (a path, or one per class of objects), and ``ignore`` if
            parts are not labelled.

    Raises:
        InputError: one of its files is bad, or they do not fit together.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (5, 4), 7).save(path := f"{folder}/a.png")
    ...     sample = read_sample({"image": path, "label": path})
    >>> sample.image.shape, sample.form, sample.dtype
    ((1, 4, 5), '2-D', 'uint8')
    """
    files = ensure_tuple(item["image"])
    microscopy = Path(files[0]).suffix.lower() in SUFFIXES
    image, spacing, affine = (_read_microscopy if microscopy else _read_volume)(files)
    arrays: dict[str, list[np.ndarray]] = {"label": [], "ignore": []}
    for key, path in ((name, path) for name in arrays for path in ensure_tuple(item.get(name, ()))):
        if microscopy:
            array = MicroscopyReader(1, label=True).get_data((Path(path),))[0][0]
        else:
            array, meta = CheckedVolumeReader().get_data((str(path),))
        if array.shape != image.shape[1:]:
            problem = f"labels of shape {array.shape}, the image {files[0]} has {image.shape[1:]}"
            raise InputError(path, problem, "Pair every image with the labels drawn on it")
        if not microscopy and corner_distance(affine, meta[MetaKeys.AFFINE], array.shape) > 0.01 * spacing.min():
            problem = f"its affine puts corners elsewhere than that of its image {files[0]}"
            raise InputError(path, problem, "Resample the labels to the image, or correct the wrong header")
        whole = array.astype(np.int64)
        if (wrong := array[array != whole]).size:
            problem = f"{wrong.size} fractional values, such as {wrong[0]:.6g}"
            raise InputError(path, problem, "Save labels as whole numbers, and resample them to the nearest neighbour")
        if (least := whole.min()) < 0:
            problem = f"labels below 0: {least}"
            cure = f"Save borders and whatever is background as 0, and what is not labelled as {UNLABELLED}"
            raise InputError(path, problem, cure)
        arrays[key].append(whole)
    label = join_classes(np.stack(arrays["label"]), ensure_tuple(item["label"]))[0]
    ignore = (arrays["ignore"] or [np.zeros(())])[0] > 0
    if not microscopy:
        axes = np.argsort(nib.orientations.io_orientation(affine)[:, 0])
        image, label, spacing = image.transpose(0, *(axes + 1)), label.transpose(axes), spacing[axes]
        ignore = ignore.transpose(axes) if ignore.ndim else ignore
    form = f"{label.ndim}-D" + ("" if microscopy else " volumes")
    dtype, colour = _stored(Path(files[0])) if microscopy else ("", False)
    ignore = np.broadcast_to(ignore, label.shape)
    classes = len(arrays["label"])
    return Sample(image, label, classes, ignore, form, spacing, dtype or image.dtype.name, colour and len(image) == 3)


def _read_microscopy(files: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, meta = MicroscopyReader(None).get_data(tuple(map(Path, files)))
    if "frame_interval_s" in meta:
        problem = f"a series over time of {image.shape[1]} frames"
        raise InputError(files[0], problem, "Save each frame as a file of its own, and its labels too")
    return image, meta["pixel_size_um"], meta[MetaKeys.AFFINE]


def _read_volume(files: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, meta = CheckedVolumeReader(channels=None).get_data(tuple(map(str, files)))
    if 1 in image.shape[1:]:
        problem = f"a volume of one slice, shape {image.shape[1:]}"
        raise InputError(files[0], problem, "Save 2-D images and their labels as TIFF or PNG")
    return image, voxel_size(meta[MetaKeys.AFFINE]), meta[MetaKeys.AFFINE]


def _stored(path: Path) -> tuple[str, bool]:
    """The type of the values in a file, "" if unknown, and whether it holds colours."""
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(TIFF_MAGIC):
        with require("tifffile", "microscopy").TiffFile(path) as tif:
            page = tif.pages[0]
            return page.dtype.name, int(page.photometric) in (2, 3, 6)
    if not head.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        return "", False
    with require("PIL.Image", "microscopy").open(path) as image:
        deep = head.startswith(b"\x89PNG") and head[24] == 16  # its bits per sample
        return "uint16" if deep else "uint8", image.mode not in ("1", "L", "LA", "I", "I;16", "F")
