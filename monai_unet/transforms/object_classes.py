"""The class of each predicted object: that of the highest mean probability over its pixels. Not in the paper.

A single pixel may be likelier of another class than its object; labelling each class by itself would cut such objects
into pieces. HoVer-Net (Graham et al. 2019) and StarDist decide by object, too.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_numpy

from monai_unet.object_classes import id_of

__all__ = ["ClassifyInstancesd", "classify_instances"]


def classify_instances(ids: NdarrayOrTensor, probabilities: NdarrayOrTensor) -> NdarrayOrTensor:
    """Give each instance of an image the id that says its class, as `monai_unet.object_classes` has it.

    Args:
        ids: ``(1, *spatial)``, 1 … n, 0 = background, as `LabelInstances` returns them.
        probabilities: of the classes without the background, ``(K, *spatial)``.

    Returns:
        Instance i of class c has the id (i − 1) K + c; of two equally likely classes it has the first. uint16, or int32
        where they do not fit; of the array type of ``ids``, a MetaTensor keeps its metadata.

    Raises:
        ValueError: another shape of the probabilities.

    >>> probabilities = np.array([[[0.9, 0.3, 0.1, 0.2]], [[0.1, 0.6, 0.1, 0.8]]])
    >>> classify_instances(np.array([[[1, 1, 0, 2]]]), probabilities)
    array([[[1, 1, 0, 4]]], dtype=uint16)
    """
    numbers: np.ndarray = np.asarray(convert_to_numpy(ids))[0].astype(np.int64)
    each: np.ndarray = np.asarray(convert_to_numpy(probabilities))
    if each.shape[1:] != numbers.shape:
        raise ValueError(f"the ids have shape {numbers.shape}, the probabilities of a class {each.shape[1:]}")
    sums = np.stack([np.bincount(numbers.ravel(), channel.ravel()) for channel in each])
    named = id_of(np.arange(sums.shape[1]), sums.argmax(0) + 1, len(each))
    out = named[numbers][None].astype(np.uint16 if named.max() <= np.iinfo(np.uint16).max else np.int32)
    return convert_to_dst_type(out, ids, dtype=out.dtype)[0]


class ClassifyInstancesd(MapTransform):
    """Classify the instances under some keys: `classify_instances`.

    Args:
        keys: items of instance ids.
        probability_key: of the classes' probabilities.
        allow_missing_keys: skip absent keys.

    >>> item = {"pred": np.array([[[1, 0]]]), "class_probability": np.array([[[0.2, 0.1]], [[0.7, 0.1]]])}
    >>> ClassifyInstancesd("pred")(item)["pred"]
    array([[[2, 0]]], dtype=uint16)
    """

    def __init__(
        self, keys: KeysCollection, probability_key: str = "class_probability", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.probability_key = probability_key

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Replace the ids of each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = classify_instances(d[key], d[self.probability_key])
        return d
