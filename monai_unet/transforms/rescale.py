"""Images at the pixel size of the task: a network knows its objects at one magnification only. Not in the paper."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import InvertibleTransform, MapTransform, Spacing
from monai.utils import convert_to_numpy, ensure_tuple_rep

from monai_unet.errors import InputError
from monai_unet.options import parse_bool

__all__ = ["RescaleToPixelSized", "relative_pixel_size"]

logger = logging.getLogger(__name__)

#: pixel sizes that differ by less than this share count as equal: augmentation covers them
TOLERANCE = 0.1
#: a pixel size that differs by more than this factor is a mistake, such as nm for µm
LARGEST_FACTOR = 8


def relative_pixel_size(image: Any, pixel_size_um: Sequence[float]) -> np.ndarray:
    """Divide the pixel size of an image by that of a task.

    Args:
        image: as `MicroscopyReader` and MONAI's `LoadImaged` load it, ``(C, *spatial)``.
        pixel_size_um: of the task, per axis; the last axes of the image if it has more.

    Returns:
        One number per axis of the task: 1 for sizes that are equal within a tenth, all NaN if one is unknown.

    >>> size = torch.tensor([0.5, 0.26])
    >>> image = MetaTensor(torch.zeros(1, 8, 8), torch.diag(torch.cat([size, torch.ones(1)])), {"pixel_size_um": size})
    >>> relative_pixel_size(image, (0.25, 0.25)).tolist()
    [2.0, 1.0]
    """
    task = np.asarray(pixel_size_um, float)
    known = np.asarray(getattr(image, "meta", {}).get("pixel_size_um", ()), float)[-len(task) :]
    if len(known) < len(task) or not (np.isfinite(known) & (known > 0)).all():
        return np.full(len(task), np.nan)
    ratio = _own_size(image)[-len(task) :] / task
    return np.where(np.abs(ratio - 1) > TOLERANCE, ratio, 1.0)


class RescaleToPixelSized(MapTransform, InvertibleTransform):
    """Rescale an image whose pixel size is known, and differs from the task's by more than a tenth, with ``Spacingd``.

    ``Invertd`` brings a prediction back to the image's grid. Of an unknown pixel size a warning is logged, once, and
    the image is left as it is.

    Args:
        keys: the image, whose pixel size counts for all keys, and labels on its grid, which keep values and dtype.
        pixel_size_um: µm per axis of the task, of the last axes if an image has more, such as pages; None: nothing is
            rescaled.
        mode: "bilinear", or "nearest" for labels; for all keys, or one per key.
        enabled: if false, nothing is rescaled, and of another pixel size a warning is logged, once; "true" and "false"
            are understood.
        allow_missing_keys: skip absent keys.

    Raises:
        InputError: from the call, a pixel size that is more than 8 times that of the task, or less than an eighth.

    >>> size = {"pixel_size_um": np.array([0.5, 0.5])}
    >>> image = MetaTensor(torch.rand(1, 20, 30), torch.diag(torch.tensor([0.5, 0.5, 1])), size)
    >>> rescale = RescaleToPixelSized("image", pixel_size_um=(0.25, 0.25))
    >>> item = rescale({"image": image})
    >>> item["image"].shape, rescale.inverse(item)["image"].shape
    (torch.Size([1, 39, 59]), torch.Size([1, 20, 30]))
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixel_size_um: Sequence[float] | None,
        mode: str | Sequence[str] = "bilinear",
        enabled: bool | str = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixel_size_um = None if pixel_size_um is None else tuple(map(float, pixel_size_um))
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.enabled = parse_bool("rescale", enabled)
        self.said: set[str] = set()
        size = self.pixel_size_um or ()
        #: by the number of axes; MONAI keeps the size of an axis where it finds 0
        self.spacing = {n: Spacing((0.0,) * (n - len(size)) + size) for n in (2, 3) if 0 < len(size) <= n}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Rescale the images under the keys: float32, labels of the dtype that they have."""
        d = dict(data)
        present = list(self.key_iterator(d, self.mode))
        if self.pixel_size_um is None or not present:
            return d
        image = d[present[0][0]]
        if not self._differs(image):
            return d
        for key, mode in present:
            same_grid = MetaTensor(torch.as_tensor(d[key]).clone())
            same_grid.affine = image.affine
            d[key] = self._rescale(same_grid, mode)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring back to its own pixel size what has been rescaled."""
        d = dict(data)
        for key in self.key_iterator(d):
            operations = d[key].applied_operations
            if operations and operations[-1]["class"] == "SpatialResample":
                d[key] = self.spacing[d[key].ndim - 1].inverse(d[key])
        return d

    def _rescale(self, image: MetaTensor, mode: str) -> torch.Tensor:
        spacing = self.spacing[image.ndim - 1]
        if mode != "nearest":
            return spacing(image, mode=mode)
        # Spacing returns float32, which cannot hold every label, but the number of each
        values, numbers = image.as_tensor().unique(return_inverse=True)
        out: Any = spacing(MetaTensor(numbers, meta=image.meta, applied_operations=image.applied_operations), mode=mode)
        return MetaTensor(values[out.as_tensor().long()], meta=out.meta, applied_operations=out.applied_operations)

    def _differs(self, image: Any) -> bool:
        ratio = relative_pixel_size(image, self.pixel_size_um or ())
        name = str(getattr(image, "meta", {}).get("filename_or_obj", "the image"))
        task = _micrometres(self.pixel_size_um or ())
        if np.isnan(ratio).any():
            self._say_once(name, f"its pixel size is unknown, and taken for the task's, {task}")
            return False
        if (ratio == 1).all():
            return False
        if not self.enabled:
            self._say_once(name, f"its pixel size is not the task's, {task}, and --rescale false leaves it as it is")
            return False
        if ratio.max() > LARGEST_FACTOR or ratio.min() < 1 / LARGEST_FACTOR:
            own = _micrometres(_own_size(image)[-len(ratio) :])
            cure = "Correct the pixel size in the file, or leave the image as it is with --rescale false"
            raise InputError(name, f"a pixel size of {own}, that of the task is {task}", cure)
        return True

    def _say_once(self, name: str, text: str) -> None:
        if text not in self.said:
            logger.warning("%s: %s (this is said once)", name, text)
        self.said.add(text)


def _own_size(image: Any) -> np.ndarray:
    """By the affine, which has followed all transforms."""
    size: np.ndarray = affine_to_spacing(convert_to_numpy(image.affine), r=image.ndim - 1)
    return size


def _micrometres(size: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in size) + " µm"
