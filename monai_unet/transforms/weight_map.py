"""Eq. 2 of the paper: the weight map, high on the narrow background between touching objects."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy import ndimage

from monai_unet.object_classes import class_of
from monai_unet.transforms.instances import instance_ids

__all__ = ["BorderWeightMap", "BorderWeightMapd"]

#: border terms below this are cut off: a tenth of the documented accuracy of 1e-4
NEGLIGIBLE = 1e-5


class BorderWeightMap(Transform):
    """Compute the weight map of Eq. 2 from instance labels.

    ::

        w(x) = w_c(x) + w0 · exp(−(d1(x) + d2(x))² / 2σ²)

    d1 and d2 are the Euclidean distances from x to the nearest and to the second-nearest object, 0 inside it. The term
    is added at every voxel, foreground included, as in Eq. 2; with fewer than two objects there is none. Separate
    touching objects first, with `SeparateInstances` and ``keep_ids``.

    The distances to each object are computed in its bounding box plus a margin, beyond which the term is below 1e-5.
    The time thus depends on the size of the objects, not on objects × image, and the result equals one distance
    transform of the whole image per object within 1e-4.

    Args:
        w0: height of the border term; 0 leaves the class weights. The authors' 2019 plugin uses w0 = 50, sigma = 6
            and a second background term, which is not implemented here.
        sigma: width σ of the border term, in voxels or in the unit of ``spacing``.
        class_weights: w_c. "balanced" is N / (2 N_c), where N_c of the N voxels of this image belong to the class, and
            1 for an absent class (the paper only says that w_c balances the class frequencies); a pair (background,
            foreground); None for 1 everywhere.
        spacing: voxel size per axis, for distances in its unit; None for voxels.
        classes: of the objects; of several, ids say the class as `monai_unet.object_classes` has it, ``class_weights``
            has a number for each behind that of the background, and "balanced" is N / ((classes + 1) N_c).

    Raises:
        ValueError: a parameter is out of range; labels are negative, fractional, or of several channels; ``ignore`` has
            another shape.

    Source: Ronneberger et al. 2015, Eq. 2 and section 3.

    >>> labels = np.array([[[1, 0, 0, 0, 2]]])  # d1 + d2 = 4 everywhere: 1 + 10 · exp(−4² / 50)
    >>> BorderWeightMap(w0=10, sigma=5, class_weights=None)(labels).round(2)
    array([[[8.26, 8.26, 8.26, 8.26, 8.26]]], dtype=float32)
    """

    def __init__(
        self,
        w0: float = 10.0,
        sigma: float = 5.0,
        class_weights: str | Sequence[float] | None = "balanced",
        spacing: Sequence[float] | None = None,
        classes: int = 1,
    ) -> None:
        if not 0 <= w0 < np.inf:
            raise ValueError(f"w0 is {w0!r}; it must be finite and at least 0, the paper's is 10")
        if not 0 < sigma < np.inf:
            raise ValueError(f"sigma is {sigma!r}; it must be finite and above 0, the paper's is 5")
        if isinstance(class_weights, str):
            valid = class_weights == "balanced"
        else:
            valid = class_weights is None or (len(class_weights) == classes + 1 and min(class_weights) >= 0)
        if not valid:
            many = "a pair (background, foreground)" if classes == 1 else f"{classes + 1}, the background's first,"
            raise ValueError(
                f"class_weights is {class_weights!r}; use 'balanced', {many} of numbers of at least 0, or None"
            )
        if spacing is not None and min(spacing) <= 0:
            raise ValueError(f"spacing is {spacing!r}; voxel sizes are above 0")
        self.w0, self.sigma, self.class_weights, self.spacing = w0, sigma, class_weights, spacing
        self.classes = classes

    def __call__(self, labels: NdarrayOrTensor, ignore: NdarrayOrTensor | None = None) -> NdarrayOrTensor:
        """Compute the weights of one image.

        Args:
            labels: instance ids (1, H, W) or (1, H, W, D), whole numbers of any dtype, 0 = background.
            ignore: ``(1, *spatial)``, not 0 where the label is unknown: these voxels get weight 0 and do not count in
                the class frequencies.

        Returns:
            weights ``(1, *spatial)`` float32, of the labels' array type; a MetaTensor keeps its metadata.
        """
        ids = instance_ids(labels)
        known = np.ones(ids.shape, bool) if ignore is None else convert_to_numpy(ignore)[0] == 0
        if known.shape != ids.shape:
            raise ValueError(f"ignore has shape {(1, *known.shape)}; it must be the labels', {(1, *ids.shape)}")
        classes = class_of(convert_to_numpy(labels)[0], self.classes).astype(np.int64)  # ids may be renumbered
        weights = self._class_weights(classes, known)
        if self.w0 > 0:
            weights += self._border_term(ids)
        weights *= known
        return convert_to_dst_type(weights[None], labels, dtype=np.float32)[0]

    def _class_weights(self, classes: np.ndarray, known: np.ndarray) -> np.ndarray:
        each = self.class_weights if self.class_weights is not None else [1.0] * (self.classes + 1)
        if isinstance(each, str):
            counts = np.bincount(classes[known], minlength=self.classes + 1)
            each = [counts.sum() / (len(counts) * n) if n else 1.0 for n in counts.tolist()]
        return np.asarray(each, np.float32)[classes]

    def _border_term(self, ids: np.ndarray) -> np.ndarray:
        spacing = np.ones(ids.ndim) if self.spacing is None else np.asarray(self.spacing, dtype=float)
        if len(spacing) != ids.ndim:
            raise ValueError(f"spacing is {self.spacing!r}; use {ids.ndim} numbers for this image")
        # farther than this from the second-nearest object, the term is below NEGLIGIBLE whatever d1 is
        reach = self.sigma * np.sqrt(2 * max(np.log(self.w0 / NEGLIGIBLE), 0.0))
        margin = np.ceil(reach / spacing).astype(int).tolist()
        nearest = np.full(ids.shape, np.inf, dtype=np.float32)
        second = nearest.copy()
        for number, box in enumerate(ndimage.find_objects(ids), start=1):
            if box is None:
                continue
            window = tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, margin, strict=True))
            distance = ndimage.distance_transform_edt(ids[window] != number, sampling=spacing).astype(np.float32)
            d1, d2 = nearest[window], second[window]
            np.minimum(d2, np.maximum(d1, distance), out=d2)
            np.minimum(d1, distance, out=d1)
        return np.float32(self.w0) * np.exp(-((nearest + second) ** 2) / np.float32(2 * self.sigma**2))


class BorderWeightMapd(MapTransform):
    """Dictionary form of `BorderWeightMap`: ``data[output_key] = weights of data[keys]``.

    Args:
        keys: the one key of the instance labels, which are kept.
        output_key: key for the weights.
        ignore_key: item that is not 0 where the label is unknown; None if it is known everywhere.
        allow_missing_keys: do nothing if the key is absent.
        args, kwargs: as for `BorderWeightMap`.

    Raises:
        ValueError: several keys; as `BorderWeightMap`.

    >>> weigh = BorderWeightMapd("label", w0=10, sigma=5, class_weights=None)
    >>> weigh({"label": np.array([[[1, 0, 0, 0, 2]]])})["weight"].round(2)
    array([[[8.26, 8.26, 8.26, 8.26, 8.26]]], dtype=float32)
    """

    def __init__(
        self,
        keys: KeysCollection,
        *args: Any,
        output_key: str = "weight",
        ignore_key: str | None = None,
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys is {self.keys!r}; use one key, its weights go to output_key {output_key!r}")
        self.output_key, self.ignore_key = output_key, ignore_key
        self.weight_map = BorderWeightMap(*args, **kwargs)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add the weights, as `BorderWeightMap` computes them."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.output_key] = self.weight_map(d[key], d[self.ignore_key] if self.ignore_key else None)
        return d
