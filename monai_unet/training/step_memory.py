"""The largest tile for whose training step there is memory, counted without computing anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils.misc import ensure_tuple_rep
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from monai_unet.networks import ValidUNet

__all__ = ["largest_tile", "step_bytes"]

#: a step needs more than it keeps for the backward pass: gradients, the convolutions' scratch space. Measured on the
#: CPU: 1.2 in 2-D, 1.7 in 3-D
OVERHEAD = 1.8


def step_bytes(network: ValidUNet, shape: Sequence[int]) -> int:
    """Estimate the bytes that a training step on a float32 image ``(B, C, *spatial)`` takes, without the weights.

    >>> network = ValidUNet(2, 1, 2)
    >>> f"{step_bytes(network, (1, 1, 572, 572)) / 2**30:.1f} GiB"
    '1.3 GiB'
    """
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
    """Find the largest output tile, smaller than that of an input ``shape`` ``(B, C, *spatial)``, whose step fits.

    Args:
        network: in training.
        shape: of the step that failed.
        available: free memory, in bytes; if None, half of what the failed step needed is assumed.

    Returns:
        Its output size ``(*spatial)``, or None if no tile fits.

    >>> largest_tile(ValidUNet(2, 1, 2), (1, 1, 572, 572), available=1 << 30)
    (324, 324)
    """
    fits = available if available is not None else step_bytes(network, shape) // 2
    sizes, dims = list(shape[2:]), len(shape) - 2
    smallest = [network.input_size(1, axis) for axis in range(dims)]
    steps = ensure_tuple_rep(network.multiple, dims)
    while sizes != smallest:
        sizes = [max(low, n - step) for low, n, step in zip(smallest, sizes, steps, strict=True)]
        if step_bytes(network, (*shape[:2], *sizes)) <= fits:
            return tuple(network.output_size(n, axis) for axis, n in enumerate(sizes))
    return None
