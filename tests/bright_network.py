"""Hand-made weights, so that a mask is known before it is computed: each convolution passes its centre voxel on."""

from __future__ import annotations

import os

import torch

from monai_unet.networks import ValidUNet


def save_bright_network(
    path: str | os.PathLike[str], dims: int = 2, channels: int = 1, classes: int = 2, norm: str | None = None
) -> None:
    """Save weights that predict class 1 where the normalised mean of the channels is above 0.5, a class 2 above 1.5."""
    network = ValidUNet(dims, channels, classes, (4, 8), dropout=0.0, norm=norm)
    state = network.state_dict()
    for name, weight in state.items():
        if ".norm" not in name:
            weight.zero_()
    convolutions = [name for name, weight in state.items() if weight.ndim == dims + 2 and weight.shape[-1] == 3]
    centre = (1,) * dims
    state[convolutions[0]][(0, slice(None), *centre)] = 1 / channels
    for name in (convolutions[1], *convolutions[-2:]):  # down on level 1, and up on it through the skip
        first = state[name].shape[1] // 2 if name == convolutions[-2] else 0
        state[name][(0, first, *centre)] = 1.0
    state["head.weight"][1, 0], state["head.bias"][1] = 10.0, -5.0
    if classes == 3:
        state["head.weight"][2, 0], state["head.bias"][2] = 20.0, -20.0
    torch.save(state, path)
