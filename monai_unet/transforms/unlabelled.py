"""Parts that nobody has labelled: weight 0 in the loss, and left out of the metrics.

Sparse annotation is the subject of the 3-D U-Net (Çiçek et al. 2016, section 2): "Setting the weights of unlabeled
pixels to zero makes it possible to learn from only the labelled ones". For a metric, MONAI's ``MaskIntensityd`` clears
prediction and reference there, both one-hot, so that MONAI's ``DiceMetric`` counts labelled voxels only.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy

__all__ = ["ClassWeightMap", "ClassWeightMapd", "SplitUnlabelled", "SplitUnlabelledd"]

#: the label of what is not labelled, as in Cityscapes, PASCAL VOC and many others
UNLABELLED = 255


class SplitUnlabelled(Transform):
    """Split labels into classes, 0 where nothing is labelled, and a mask of what is not.

    Args:
        value: the label that means "not labelled".

    >>> classes, ignore = SplitUnlabelled()(np.array([[[0, 1, 255, 2]]]))
    >>> classes.tolist(), ignore.tolist()
    ([[[0, 1, 0, 2]]], [[[0, 0, 1, 0]]])
    """

    def __init__(self, value: int = UNLABELLED) -> None:
        self.value = value

    def __call__(
        self, labels: NdarrayOrTensor, ignore: NdarrayOrTensor | None = None
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Split the labels of one image.

        Args:
            labels: ``(1, *spatial)``, whole numbers of any dtype.
            ignore: ``(1, *spatial)``, not 0 where nothing is labelled either.

        Returns:
            The classes and the mask, 1 where nothing is labelled, both of the labels' shape, dtype and array type; a
            MetaTensor keeps its metadata.

        Raises:
            ValueError: ``ignore`` has another shape.
        """
        array: np.ndarray = convert_to_numpy(labels)
        unknown = array == self.value
        if ignore is not None:
            if tuple(ignore.shape) != array.shape:
                raise ValueError(f"ignore has shape {tuple(ignore.shape)}; it must be the labels', {array.shape}")
            unknown = unknown | (convert_to_numpy(ignore) != 0)
        classes = np.where(unknown, array.dtype.type(0), array)
        mask = unknown.astype(array.dtype)
        return convert_to_dst_type(classes, labels)[0], convert_to_dst_type(mask, labels)[0]


class SplitUnlabelledd(MapTransform):
    """Dictionary form of `SplitUnlabelled`: every item has a mask ``ignore`` afterwards.

    Args:
        keys: the one key of the labels.
        ignore_key: the mask; where an item has one already, both count.
        allow_missing_keys: do nothing if the key is absent.
        value: as for `SplitUnlabelled`.

    >>> item = SplitUnlabelledd("label")({"label": np.array([[[1, 255, 2]]]), "ignore": np.array([[[255, 0, 0]]])})
    >>> item["label"].tolist(), item["ignore"].tolist()
    ([[[0, 0, 2]]], [[[1, 1, 0]]])
    """

    def __init__(
        self,
        keys: KeysCollection,
        ignore_key: str = "ignore",
        allow_missing_keys: bool = False,
        value: int = UNLABELLED,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ignore_key, self.split = ignore_key, SplitUnlabelled(value)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Replace the labels, and add or extend the mask."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], d[self.ignore_key] = self.split(d[key], d.get(self.ignore_key))
        return d


class ClassWeightMap(Transform):
    """Weigh each voxel by its class, and by 0 where nothing is labelled: w_c of Eq. 2, without the border term.

    Args:
        class_weights: a weight per class.

    Raises:
        ValueError: a weight is negative or not finite; from the call, a label that has no weight.

    >>> ClassWeightMap([0.5, 1, 2])(np.array([[[0, 1, 2, 2]]]), ignore=np.array([[[0, 0, 0, 1]]]))
    array([[[0.5, 1. , 2. , 0. ]]], dtype=float32)
    """

    def __init__(self, class_weights: Sequence[float]) -> None:
        weights = np.asarray(class_weights, np.float32)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"class_weights is {class_weights!r}; use finite numbers of at least 0, one per class")
        self.class_weights = weights

    def __call__(self, labels: NdarrayOrTensor, ignore: NdarrayOrTensor | None = None) -> NdarrayOrTensor:
        """Weigh the labels of one image: ``(1, *spatial)`` → float32 of the same shape, array type and metadata."""
        array: np.ndarray = convert_to_numpy(labels)
        if array.size and not (array.min() >= 0 and array.max() < len(self.class_weights)):
            raise ValueError(
                f"labels from {array.min()} to {array.max()}, but {len(self.class_weights)} class_weights; "
                "give one per class"
            )
        weights = self.class_weights[array.astype(np.int64)]
        if ignore is not None:
            weights = weights * (convert_to_numpy(ignore) == 0)
        return convert_to_dst_type(weights, labels, dtype=np.float32)[0]


class ClassWeightMapd(MapTransform):
    """Dictionary form of `ClassWeightMap`: ``data[output_key] = weights of data[keys]``.

    Args:
        keys: the one key of the classes, which are kept.
        class_weights: as for `ClassWeightMap`.
        output_key: key for the weights.
        ignore_key: item that is not 0 where nothing is labelled; None if all is.
        allow_missing_keys: do nothing if the key is absent.

    >>> item = {"label": np.array([[[0, 1, 1]]]), "ignore": np.array([[[0, 0, 1]]])}
    >>> ClassWeightMapd("label", class_weights=[0.5, 1], ignore_key="ignore")(item)["weight"].tolist()
    [[[0.5, 1.0, 0.0]]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        class_weights: Sequence[float],
        output_key: str = "weight",
        ignore_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_key, self.ignore_key = output_key, ignore_key
        self.weigh = ClassWeightMap(class_weights)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add the weights."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.output_key] = self.weigh(d[key], d[self.ignore_key] if self.ignore_key else None)
        return d
