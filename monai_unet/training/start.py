"""What training starts from: the biases of the head, or the weights of another training (fine-tuning)."""

from __future__ import annotations

import logging
import os
from typing import Any

from torch import nn

from monai_unet.errors import InputError
from monai_unet.losses import PixelWeightedCrossEntropyLoss
from monai_unet.networks import ValidUNet, load_network

__all__ = ["init_head", "init_weights"]

#: the weights of the first convolution, (features, channels, *kernel)
FIRST = "encoder.0.conv1.weight"

logger = logging.getLogger(__name__)


def init_head(network: ValidUNet | nn.Module, loss: PixelWeightedCrossEntropyLoss | nn.Module) -> None:
    """Subtract from the head's biases what a `PixelWeightedCrossEntropyLoss` adds to the logits to undo class weights.

    The loss then sees what it would see without either, so that training begins with all classes alike instead of
    unlearning the weights first.

    Args:
        network: a fresh `ValidUNet`, wrapped or not.
        loss: of its training; for any other loss nothing is done.

    Raises:
        InputError: the loss has weights for another number of classes.

    >>> network = ValidUNet(2, 1, 2, features=(4, 8))
    >>> init_head(network, PixelWeightedCrossEntropyLoss(class_weights=[1, 5]))
    >>> network.head.bias.data
    tensor([ 0.0000, -1.6094])
    """
    added = loss.added if isinstance(loss, PixelWeightedCrossEntropyLoss) else []
    own: Any = getattr(network, "module", network)
    if added and len(added) != own.out_channels:
        problem = f"{len(added)} numbers for {own.out_channels} classes"
        raise InputError("--class_weights", problem, "Give one per class, the background's first")
    if added:
        own.head.bias.data -= own.head.bias.new_tensor(added)


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
