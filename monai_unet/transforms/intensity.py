"""Gray values of zero mean and unit variance, page by page, with the rarest of them clipped."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy

__all__ = ["Intensities", "NormalizePages", "NormalizePagesd", "NormalizeVolumed"]

#: percent: of 1,000 pixels, the darkest and the brightest are clipped: hot pixels are, and hardly anything of an image
CLIPPED = (0.1, 99.9)


class Intensities(NamedTuple):
    """Where the gray values of a page are clipped, and mean and standard deviation of the clipped values.

    >>> Intensities.of(np.array([1, 3, 1, 3, 1, 3]))
    Intensities(low=1.0, high=3.0, mean=2.0, std=1.0)
    """

    low: float
    high: float
    mean: float
    std: float

    @classmethod
    def of(cls, values: np.ndarray) -> Intensities:
        """Measure the values of any shape, all of them finite."""
        values = np.asarray(values, np.float64)
        # values that occur: between the last good one and a hot pixel's, any other would be nearly as hot
        low = np.percentile(values, CLIPPED[0], method="higher")
        high = np.percentile(values, CLIPPED[1], method="lower")
        low, high = min(low, high), max(low, high)  # of two pixels
        clipped = values.clip(low, high)
        return cls(float(low), float(high), float(clipped.mean()), float(clipped.std()) or 1.0)

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Clip and scale, in the same shape, float32."""
        return ((np.asarray(values, np.float64).clip(self.low, self.high) - self.mean) / self.std).astype(np.float32)


class NormalizePages(Transform):
    """Give each channel of each page zero mean and unit variance, after clipping at the percentiles 0.1 and 99.9.

    A slice has the same values in a stack as alone, stacks that fade are even, and a few hot pixels do not matter. A
    page of one value becomes 0. Not in the paper.

    >>> stack = np.random.default_rng(0).normal(100, 20, (1, 3, 64, 64)).astype(np.float32)
    >>> stack[0, 1, 5, 5] = 3e38
    >>> pages = NormalizePages()(stack)
    >>> [round(float(page.std()), 2) for page in pages[0]]
    [1.0, 1.0, 1.0]
    >>> np.array_equal(pages[:, 1], NormalizePages()(stack[:, 1]))
    True
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Normalise (C, H, W) or (C, Z, H, W) of any real dtype; float32 of the same kind and shape returns."""
        array: np.ndarray = convert_to_numpy(img)
        pages = array.reshape(-1, *array.shape[-2:])
        normal = np.stack([Intensities.of(page).normalize(page) for page in pages]).reshape(array.shape)
        return convert_to_dst_type(normal, img, dtype=torch.float32 if isinstance(img, torch.Tensor) else np.float32)[0]


class NormalizePagesd(MapTransform):
    """Dictionary version of `NormalizePages`.

    Args:
        keys: the images, each with its own statistics.
        allow_missing_keys: leave out the keys that an item lacks.

    >>> NormalizePagesd("image")({"image": np.array([[[1.0, 3.0]]])})["image"].tolist()
    [[[-1.0, 1.0]]]
    """

    backend = NormalizePages.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalize = NormalizePages()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the images under the keys."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.normalize(d[key])
        return d


class NormalizeVolumed(MapTransform):
    """Give each channel of a volume zero mean and unit variance, after clipping at the percentiles 0.1 and 99.9.

    Voxels below the image's metadata ``padding``, which `DicomSeriesReader` sets where a scanner has padded its slices,
    do not count and become as dark as the darkest of the others. Not in the paper.

    Args:
        keys: the images ``(C, *spatial)``, `MetaTensor` if padding is to be known; float32 returns.

    >>> import torch
    >>> from monai.data import MetaTensor
    >>> volume = MetaTensor(torch.tensor([[[[1.0, 3.0, -2.0]]]]), meta={"padding": 0.5})
    >>> NormalizeVolumed("image")({"image": volume})["image"].tolist()
    [[[[-1.0, 1.0, -1.0]]]]
    """

    backend = NormalizePages.backend

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the images under the keys."""
        d = dict(data)
        for key in self.key_iterator(d):
            array: np.ndarray = convert_to_numpy(d[key])
            padding = getattr(d[key], "meta", {}).get("padding", -np.inf)
            normal = [Intensities.of(channel[channel >= padding]).normalize(channel) for channel in array]
            d[key] = convert_to_dst_type(np.stack(normal), d[key], dtype=torch.float32)[0]
        return d
