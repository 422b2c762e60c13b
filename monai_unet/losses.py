"""Eq. 1 of the paper: pixel-wise softmax and weighted cross entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

__all__ = ["PixelWeightedCrossEntropyLoss"]


class PixelWeightedCrossEntropyLoss(_Loss):
    """E = −Σₓ w(x) · log p_{ℓ(x)}(x), with p the softmax over the classes (Eq. 1; its missing minus sign supplied).

    The weight map travels in the target's second channel, because MONAI's trainer calls ``loss(pred, target)``.
    A voxel of weight 0 is ignored: neither loss nor gradient depends on it, whatever its class index.

    Args:
        reduction: "mean" divides the sum by Σₓ w(x), as `torch.nn.CrossEntropyLoss` does with class weights, so that
            learning rates do not depend on tile size or weight scale; "sum" is Eq. 1 to the letter; "none" returns
            the summands, ``(B, *spatial)``.

    Shapes:
        input: logits ``(B, K, *spatial)``, float.
        target: ``(B, 1 or 2, *spatial)``: class index in 0 … K − 1; the weight, ≥ 0, where there is a second channel
            (else 1 everywhere).

    Raises:
        ValueError: for a target whose shape does not fit the logits, or a class index outside 0 … K − 1.
    """

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction is {reduction!r}; it must be "mean", "sum" or "none"')
        super().__init__(reduction=reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        batch, classes, *spatial = input.shape
        if (
            target.ndim != input.ndim
            or target.shape[1] not in (1, 2)
            or [batch, *spatial]
            != [
                target.shape[0],
                *target.shape[2:],
            ]
        ):
            raise ValueError(
                f"target of shape {tuple(target.shape)} does not fit logits of shape {tuple(input.shape)}; "
                f"it must be {(batch, '1 or 2', *spatial)}: class index, and weight"
            )
        index = target[:, 0].long()
        weight = (
            target[:, 1].float() if target.shape[1] == 2 else index.new_ones(index.shape, dtype=input.dtype).float()
        )
        index = index.where(weight > 0, 0)  # what is ignored may carry any index, 255 for instance
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < classes:
            raise ValueError(
                f"target holds class indices from {int(index.min())} to {int(index.max())}; "
                f"logits of {classes} classes allow 0 to {classes - 1}"
            )
        summands = weight * F.cross_entropy(input.float(), index, reduction="none")
        summands = summands.where(weight > 0, 0)  # 0 · inf would be NaN
        if self.reduction == "none":
            return summands
        if self.reduction == "sum":
            return summands.sum()
        return summands.sum() / weight.sum().clamp(min=1e-12)
