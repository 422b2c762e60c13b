"""Copies between CPU and GPU that neither of them waits for."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["fetch", "send"]


def send(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """Move a tensor to a device, without waiting for that if it is a GPU.

    >>> send(torch.arange(3), "cpu")
    tensor([0, 1, 2])
    """
    if device is not None and torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device=device, non_blocking=True)


def fetch(tensor: Tensor, device: torch.device | str) -> Callable[[], Tensor]:
    """Begin to move a tensor to a device: from a GPU to the CPU beside what the GPU computes next.

    Returns:
        A function that waits until the tensor is there, and returns it.

    >>> arrived = fetch(torch.arange(3), "cpu")
    >>> arrived()
    tensor([0, 1, 2])
    """
    if tensor.device.type != "cuda" or torch.device(device).type != "cpu":
        return lambda: tensor.to(device)
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copying = _copying(tensor.device)
    copying.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(copying):
        here.copy_(tensor, non_blocking=True)
        done = copying.record_event()
    tensor.record_stream(copying)  # its memory is not used anew before that

    def arrived() -> Tensor:
        done.synchronize()
        return here

    return arrived


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
