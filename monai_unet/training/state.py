"""Reading a training back: the newest whole checkpoint, and what has changed since it was written."""

from __future__ import annotations

import json
import logging
import random
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_unet.errors import InputError

__all__ = ["changes", "newest_checkpoint", "plain", "restore_optimizer", "restore_rng", "rng_state"]

logger = logging.getLogger(__name__)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint of the latest step that can be read whole, and its content; None where there is no checkpoint.

    A broken one is skipped with a word.

    Raises:
        InputError: there are checkpoints, and all are broken.
    """
    paths = sorted(folder.glob("step_*.pt"), reverse=True)
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load itself lets flipped bits pass
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            return path, torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # whatever the unpickler meets
            logger.warning("%s is broken and left out: %s", path, e)
    if paths:
        raise InputError(
            folder, f"none of its {len(paths)} checkpoints can be read", "Remove the folder to train from the start"
        )
    return None


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as a checkpoint can hold them: JSON's types."""
    return dict(json.loads(json.dumps(dict(parameters), default=str)))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``"name: before → now"`` for each hyperparameter that differs; the device is none."""
    names = [*now, *(name for name in before if name not in now)]
    return [
        f"{name}: {before.get(name)} → {now.get(name)}"
        for name in names
        if name != "device" and str(before.get(name)).lower() != str(now.get(name)).lower()
    ]


def restore_optimizer(
    optimizer: Optimizer, lr_scheduler: LRScheduler, content: Mapping[str, Any], changed: Sequence[str]
) -> None:
    """Set optimizer and schedule back to a checkpoint's.

    Where hyperparameters have changed, theirs are the new ones, and the schedule is walked anew up to the checkpoint's
    step. An optimizer of another kind starts without a state.
    """
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    before = content["optimizer"]["param_groups"]
    if [set(group) for group in groups] == [set(group) - {"params"} for group in before]:
        optimizer.load_state_dict(content["optimizer"])
    else:
        logger.warning("another kind of optimizer: it starts without the state of the former")
    if not changed:
        lr_scheduler.load_state_dict(content["lr_scheduler"])
        return
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        group.update(values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # the steps were made before
        for _ in range(content["step"]):
            lr_scheduler.step()


def rng_state() -> dict[str, Any]:
    """The states of all global random number generators, in types that ``weights_only`` lets pass."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what is asked for
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set all global random number generators back; those of the GPUs where there are as many as there were."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
