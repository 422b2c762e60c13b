"""Which tile a training step has memory for: counted without computing anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from monai_unet.networks import ValidUNet

__all__ = ["largest_tile", "step_bytes"]

#: a step needs more than what it keeps for the backward pass: gradients, the convolutions' scratch space. Measured on
#: the CPU: 1.2 in 2-D, 1.7 in 3-D
OVERHEAD = 1.8


def step_bytes(network: ValidUNet, shape: Sequence[int]) -> int:
    """Bytes that a training step on a float32 image (B, C, *spatial) takes, weights not counted."""
    state = {name: torch.empty_like(value, device="meta") for name, value in network.state_dict().items()}
    for name, _ in network.named_parameters():
        state[name].requires_grad_()
    weights = {value.untyped_storage()._cdata for value in state.values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = functional_call(network, state, torch.empty(tuple(shape), device="meta"))
    del output
    return int(OVERHEAD * sum(size for storage, size in kept.items() if storage not in weights))


def largest_tile(network: ValidUNet, shape: Sequence[int], available: int | None) -> tuple[int, ...] | None:
    """Output size of the largest tile, below the input ``shape`` (B, C, *spatial), whose step fits; None if none does.

    Without knowing what is available: of the largest that takes half as much, the rule of the area.
    """
    fits = available if available is not None else step_bytes(network, shape) // 2
    smallest, sizes = network.input_size(1), list(shape[2:])
    while max(sizes) > smallest:
        sizes = [max(smallest, n - network.multiple) for n in sizes]
        if step_bytes(network, (*shape[:2], *sizes)) <= fits:
            return tuple(network.output_size(n) for n in sizes)
    return None
