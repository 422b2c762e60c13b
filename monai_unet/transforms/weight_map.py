"""Eq. 2: the weight of each voxel, high on the narrow background between touching objects."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy import ndimage

from monai_unet.transforms.instances import instance_ids

__all__ = ["BorderWeightMap", "BorderWeightMapd"]

#: the most that cutting off far distances may take from a weight: a tenth of the promised 1e-4
NEGLIGIBLE = 1e-5


class BorderWeightMap(Transform):
    """Instance labels to weights: ``w(x) = w_c(x) + w0 · exp(−(d1(x) + d2(x))² / 2σ²)``.

    d1 and d2 are the Euclidean distances from x to the nearest and to the second-nearest object, 0 inside the
    object; the term is added at every voxel, foreground too, as Eq. 2 is written. With fewer than two objects there
    is no border term. Objects that touch are set apart first by :py:class:`SeparateInstances` with ``keep_ids``.

    Each object's distance transform is taken within its bounding box plus the distance at which the term has fallen
    to 1e-5, so that the cost follows the objects' sizes, not objects × image; the result equals one whole-image
    transform per object within 1e-4.

    Args:
        w0: height of the border term; 0 leaves the class weights. The authors' 2019 plugin uses w0 = 50, sigma = 6,
            and a second background term that is not built here.
        sigma: its width, in voxels, or in the unit of ``spacing``.
        class_weights: w_c. "balanced": N / (2 N_c) with N_c the class's voxels of N in this image, 1 for a class
            that is absent (the paper says no more than that w_c balances the frequencies); a pair (background,
            foreground); or None for 1 everywhere.
        spacing: voxel size per axis, for distances in that unit; None for voxels.

    Raises:
        ValueError: a parameter is out of range; labels are negative, fractional, or of several channels; ignore has
            another shape.

    Source: Ronneberger et al. 2015, Eq. 2.
    """

    def __init__(
        self,
        w0: float = 10.0,
        sigma: float = 5.0,
        class_weights: str | Sequence[float] | None = "balanced",
        spacing: Sequence[float] | None = None,
    ) -> None:
        if not 0 <= w0 < np.inf:
            raise ValueError(f"w0 is {w0!r}; it must be finite and at least 0, the paper's is 10")
        if not 0 < sigma < np.inf:
            raise ValueError(f"sigma is {sigma!r}; it must be finite and above 0, the paper's is 5")
        if isinstance(class_weights, str):
            valid = class_weights == "balanced"
        else:
            valid = class_weights is None or (len(class_weights) == 2 and min(class_weights) >= 0)
        if not valid:
            raise ValueError(
                f"class_weights is {class_weights!r}; use 'balanced', a pair (background, foreground) of numbers of "
                "at least 0, or None"
            )
        if spacing is not None and min(spacing) <= 0:
            raise ValueError(f"spacing is {spacing!r}; voxel sizes are above 0")
        self.w0, self.sigma, self.class_weights, self.spacing = w0, sigma, class_weights, spacing

    def __call__(self, labels: NdarrayOrTensor, ignore: NdarrayOrTensor | None = None) -> NdarrayOrTensor:
        """
        Args:
            labels: instance ids (1, H, W) or (1, H, W, D), whole numbers of any dtype, 0 = background.
            ignore: (1, *spatial), not 0 where nothing is known: no weight there, and no part in the frequencies.

        Returns:
            weights (1, *spatial) float32, of the labels' array type; a MetaTensor keeps its meta data.
        """
        ids = instance_ids(labels)
        known = np.ones(ids.shape, bool) if ignore is None else convert_to_numpy(ignore)[0] == 0
        if known.shape != ids.shape:
            raise ValueError(f"ignore has shape {(1, *known.shape)}; it must be the labels', {(1, *ids.shape)}")
        weights = self._class_weights(ids > 0, known)
        if self.w0 > 0:
            weights += self._border_term(ids)
        weights *= known
        return convert_to_dst_type(weights[None], labels, dtype=np.float32)[0]

    def _class_weights(self, foreground: np.ndarray, known: np.ndarray) -> np.ndarray:
        pair = self.class_weights if self.class_weights is not None else (1.0, 1.0)
        if isinstance(pair, str):
            counts = np.bincount(foreground[known], minlength=2)
            pair = [counts.sum() / (2 * n) if n else 1.0 for n in counts.tolist()]
        return np.where(foreground, np.float32(pair[1]), np.float32(pair[0]))

    def _border_term(self, ids: np.ndarray) -> np.ndarray:
        spacing = np.ones(ids.ndim) if self.spacing is None else np.asarray(self.spacing, dtype=float)
        if len(spacing) != ids.ndim:
            raise ValueError(f"spacing is {self.spacing!r}; use {ids.ndim} numbers for this image")
        # further from the second-nearest object than this, the term is below NEGLIGIBLE whatever d1 is
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
    """Dictionary form of :py:class:`BorderWeightMap`: ``data[output_key] = weights of data[key]``.

    Args:
        keys: the one key of the instance labels, which stay as they are.
        output_key: where the weights go.
        ignore_key: item that is not 0 where nothing is known; None: everything is.
        allow_missing_keys: do nothing when the key is absent.

    The other arguments are those of :py:class:`BorderWeightMap`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        w0: float = 10.0,
        sigma: float = 5.0,
        class_weights: str | Sequence[float] | None = "balanced",
        spacing: Sequence[float] | None = None,
        output_key: str = "weight",
        allow_missing_keys: bool = False,
        ignore_key: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys is {self.keys!r}; use one key, its weights go to output_key {output_key!r}")
        self.output_key, self.ignore_key = output_key, ignore_key
        self.weight_map = BorderWeightMap(w0, sigma, class_weights, spacing)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add the weights; see :py:meth:`BorderWeightMap.__call__`."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.output_key] = self.weight_map(d[key], d[self.ignore_key] if self.ignore_key else None)
        return d
