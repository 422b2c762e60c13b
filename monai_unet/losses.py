"""Eq. 1 of the paper: pixel-wise softmax and weighted cross entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_unet.options import parse_choice

__all__ = ["PixelWeightedCrossEntropyLoss"]


class PixelWeightedCrossEntropyLoss(_Loss):
    """The paper's energy, ``E = −Σₓ w(x) · log p_{ℓ(x)}(x)``, where p is the softmax over the classes.

    The paper prints it without the minus sign. The weight map is the second channel of the target, because MONAI's
    trainer calls ``loss(pred, target)``. A voxel of weight 0 is ignored: neither loss nor gradient depends on it,
    whatever its class index.

    Args:
        reduction: "mean" divides the sum by Σₓ w(x), as `torch.nn.CrossEntropyLoss` does with class weights, so that
            learning rates depend neither on tile size nor on the scale of the weights; "sum" is Eq. 1 to the letter;
            "none" returns the summands, ``(B, *spatial)``.
        class_weights: the factors of the classes that the weight map contains, one per class, background first.
            Weights make rare classes learnt sooner, but also found too often: a network so trained gives a class of
            weight w the probability w · p, normalised, where p is the right one. If they are given, the logits have
            log w added within the loss, so that the network's own are those of p. None: nothing is added, as in the
            paper. A class of weight 0 is not learnt.

    Attributes:
        added: what is added to the logits, one number per class; empty for nothing.

    Shapes:
        input: logits ``(B, K, *spatial)``, float.
        target: ``(B, 1 or 2, *spatial)``: class index in 0 … K − 1, and optionally the weight, ≥ 0 (default: 1).

    Raises:
        ValueError: another reduction; class weights that are not one finite number of at least 0 per class; a target
            whose shape does not fit the logits; a class index outside 0 … K − 1.

    Source: Ronneberger et al. 2015, Eq. 1. That weights act as other frequencies of the classes would, and how to undo
    that: Saerens et al. 2002, Neural Computation 14(1), doi:10.1162/089976602753284446.

    >>> import math
    >>> logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).reshape(1, 2, 1, 2)  # p of class 0: 1/2 and 3/4
    >>> target = torch.tensor([[1.0, 0.0], [2.0, 3.0]]).reshape(1, 2, 1, 2)  # classes 1 and 0, weights 2 and 3
    >>> PixelWeightedCrossEntropyLoss("sum")(logits, target)  # 2 · log 2 + 3 · log 4/3
    tensor(2.2493)
    """

    def __init__(self, reduction: str = "mean", class_weights: Sequence[float] | None = None) -> None:
        super().__init__(reduction=parse_choice("reduction", reduction, ("mean", "sum", "none")))
        weights = list(class_weights or ())
        if not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"class_weights is {class_weights}; use finite numbers of at least 0, one per class")
        self.added = [math.log(weight) if weight else 0.0 for weight in weights]

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        batch, classes, *spatial = input.shape
        if target.shape not in [(batch, channels, *spatial) for channels in (1, 2)]:
            raise ValueError(
                f"target of shape {tuple(target.shape)} does not fit logits of shape {tuple(input.shape)}; "
                f"it must be {(batch, '1 or 2', *spatial)}: class index, and weight"
            )
        index = target[:, 0].long()
        weight = target[:, 1].float() if target.shape[1] == 2 else torch.ones_like(index, dtype=torch.float32)
        index = index.where(weight > 0, 0)  # an ignored voxel may have any index, such as 255
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < classes:
            raise ValueError(
                f"target holds class indices from {int(index.min())} to {int(index.max())}; "
                f"logits of {classes} classes allow 0 to {classes - 1}"
            )
        logits = input.float()
        if self.added:
            if len(self.added) != classes:
                raise ValueError(f"{len(self.added)} class_weights for {classes} classes; give one per class")
            logits = logits + logits.new_tensor(self.added).reshape(1, classes, *[1] * len(spatial))
        summands = weight * F.cross_entropy(logits, index, reduction="none")
        summands = summands.where(weight > 0, 0)  # 0 · inf would be NaN
        if self.reduction == "none":
            return summands
        if self.reduction == "sum":
            return summands.sum()
        return summands.sum() / weight.sum().clamp(min=1e-12)
