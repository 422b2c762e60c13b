"""The weight map next to the target it weights, as MONAI's trainer takes them: one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.utils.enums import CommonKeys
from torch import Tensor

__all__ = ["PrepareTarget"]


class PrepareTarget:
    """Join a target and its weight map for the loss; a ``prepare_batch`` of MONAI's `SupervisedTrainer`.

    The trainer calls ``loss(prediction, target)``, with no place for a weight. With this, transforms and checks see
    both under their own names, and only `PixelWeightedCrossEntropyLoss` sees them joined.

    Args:
        target: key of the class indices, ``(B, 1, *spatial)``.
        weight: key of the weight map, ``(B, 1, *spatial)``.

    >>> tile = {"image": torch.zeros(4, 3, 8, 8), "classes": torch.ones(4, 1, 2, 2), "weight": torch.rand(4, 1, 2, 2)}
    >>> image, target = PrepareTarget(target="classes", weight="weight")(tile)
    >>> image.shape, target.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4, 2, 2, 2]))
    """

    def __init__(self, target: str, weight: str) -> None:
        self.target = target
        self.weight = weight

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return image ``(B, C, *spatial)`` and joined target ``(B, 2, *spatial)``; ``kwargs`` go to `Tensor.to`."""
        image, target, weight = (
            batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)
            for key in (CommonKeys.IMAGE, self.target, self.weight)
        )
        return image, torch.cat([target, weight], dim=1)
