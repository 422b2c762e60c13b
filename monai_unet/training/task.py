"""What ``model.pt`` says about its task, so that whoever loads it needs no config of the training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from monai_unet.provenance import code_version

__all__ = ["task_of"]

#: what a `ValidUNet` itself knows
ARCHITECTURE = ("spatial_dims", "in_channels", "features", "kernel_size", "strides", "norm")


def task_of(network: nn.Module, task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Complete a task by the network's architecture and the version of the code.

    Args:
        network: a `ValidUNet`; of another network only what it has of the same attributes.
        task: kind, names of channels and classes, pixel size, rules and so on, as the bundle's config has them; where
            they contradict the network, the network is right.

    Returns:
        None, booleans, numbers, texts, lists and dicts: tuples become lists, numpy's numbers Python's.

    Raises:
        ValueError: a value of another type, or another number of class names than the network has classes.

    >>> from monai_unet.networks import ValidUNet
    >>> task = task_of(ValidUNet(2, 1, 2, features=(8, 16)), {"kind": "instances", "min_size": np.int64(61)})
    >>> task["kind"], task["min_size"], task["features"]
    ('instances', 61, [8, 16])
    """
    own = {name: getattr(network, name) for name in ARCHITECTURE if hasattr(network, name)}
    whole: dict[str, Any] = _plain("task", {**(task or {}), **own, "code": code_version()})
    names, classes = whole.get("class_names"), getattr(network, "out_channels", None)
    if whole.get("kind") == "classes" and names is not None and classes is not None and len(names) != classes:
        raise ValueError(f"class_names is {names}; it must have {classes} names, one for each class of the network")
    return whole


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}#{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}#{number}", item) for number, item in enumerate(value)]
    value = value.item() if isinstance(value, np.generic) else value
    if value is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # of a subclass, such as torch's version, too
    raise ValueError(f"{name} is {value!r}; a checkpoint keeps numbers, texts, lists and mappings of them only")
