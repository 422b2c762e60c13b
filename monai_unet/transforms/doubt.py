"""The doubt about a predicted mask, beside it in its item."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform

from monai_unet.doubt import doubt

__all__ = ["Doubtd"]


class Doubtd(MapTransform):
    """Add :func:`monai_unet.doubt.doubt` of a mask to its item as ``doubt``, and to the mask's metadata, for writers.

    Args:
        keys: of the mask, ``(1, *spatial)``.
        probability_key: of the probability of foreground, ``(1, *spatial)``.
        rule: as for `doubt`.
        allow_missing_keys: skip absent keys.

    >>> import torch
    >>> item = {"pred": torch.tensor([[0, 1, 1]]), "probability": torch.tensor([[0.1, 0.9, 0.7]])}
    >>> Doubtd("pred", rule={"threshold": 0.1})(item)["doubt"].text
    'doubt 0.20: look at it'
    """

    def __init__(
        self,
        keys: KeysCollection,
        probability_key: str = "probability",
        rule: Mapping[str, Any] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.probability_key, self.rule = probability_key, rule

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the doubt."""
        item = dict(data)
        for key in self.key_iterator(item):
            item["doubt"] = doubt(item[key], item[self.probability_key], self.rule)
            if isinstance(item[key], MetaTensor):
                item[key].meta["doubt"] = item["doubt"]
        return item
