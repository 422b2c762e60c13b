"""What training starts from: the biases of the head, or the weights of another training (fine-tuning)."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_unet.errors import InputError
from monai_unet.networks import ValidUNet, load_network

__all__ = ["init_head", "init_weights"]

#: the weights of the first convolution, (features, channels, *kernel)
FIRST = "encoder.0.conv1.weight"

logger = logging.getLogger(__name__)


def init_head(network: ValidUNet | nn.Module, class_weights: str | Sequence[float] | None) -> None:
    """Start a fresh network for a `PixelWeightedCrossEntropyLoss` that undoes class weights: biases of −log w.

    The loss adds log w to the logits. With these biases, it sees what it would see without either, so that training
    begins with all classes alike instead of unlearning the weights first.

    Args:
        network: a `ValidUNet`, wrapped or not.
        class_weights: as of the loss; nothing is done for None or "balanced", and for a class of weight 0.

    >>> network = ValidUNet(2, 1, 2, features=(4, 8))
    >>> init_head(network, [1, 5])
    >>> network.head.bias.data
    tensor([ 0.0000, -1.6094])
    """
    if class_weights is None or isinstance(class_weights, str):
        return
    own: Any = getattr(network, "module", network)
    with torch.no_grad():
        own.head.bias -= own.head.bias.new_tensor([math.log(each) if each else 0.0 for each in class_weights])


def init_weights(network: ValidUNet | nn.Module, path: str | os.PathLike[str] | None) -> None:
    """Start a fresh network from the weights of a checkpoint; a resumed training replaces them by its own.

    Where the numbers of classes differ, the head keeps its initial values. A network of one channel takes the weights
    of a colour network with the first convolution summed over red, green and blue: the same network, for a gray image
    that would be given to all three. Both are logged in one line.

    Args:
        network: a `ValidUNet`, wrapped or not.
        path: as of `load_network`; None to do nothing.

    Raises:
        InputError: the file is missing or damaged; another dimension, width, depth, kernels, strides, normalisation or
            number of channels.

    >>> import tempfile, torch
    >>> colour, gray = ValidUNet(2, 3, 2, features=(4, 8)), ValidUNet(2, 1, 5, features=(4, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(colour.state_dict(), f"{folder}/model.pt")
    ...     init_weights(gray, f"{folder}/model.pt")
    >>> torch.equal(gray.encoder[1].conv1.weight, colour.encoder[1].conv1.weight)
    True
    """
    if path is None:
        return
    own: Any = getattr(network, "module", network)
    start = load_network(path)
    state, notes = start.state_dict(), []
    if start.in_channels == 3 and own.in_channels == 1:
        state[FIRST] = state[FIRST].sum(dim=1, keepdim=True)
        notes.append("the first convolution is summed over its 3 channels")
    for name in ("spatial_dims", "features", "kernel_size", "strides", "norm", "in_channels"):
        theirs, ours = getattr(start, name), getattr(own, name)
        if theirs != ours and not (name == "in_channels" and notes):
            raise InputError(
                path,
                f"its network has {name} = {theirs}, and the one to train has {ours}",
                f"Train with {name} = {theirs}, or start from other weights",
            )
    if start.out_channels != own.out_channels:
        state |= {name: weight for name, weight in own.state_dict().items() if name.startswith("head.")}
        notes.append(f"the head is new, for {own.out_channels} classes instead of {start.out_channels}")
    own.load_state_dict(state)
    logger.info("starting from %s: %s", path, "; ".join(notes) or "all weights")
