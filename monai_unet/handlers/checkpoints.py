"""Checkpoints: written whole or not at all, and read back at their own width."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_unet.data.atomic import replacing
from monai_unet.data.errors import InputError
from monai_unet.networks import ValidUNet

__all__ = ["BestCheckpoint", "load_network"]


class BestCheckpoint:
    """Keeps the network of the best validation, as a plain state dict (what MONAI bundles call ``model.pt``).

    The file is replaced at once, so that a killed training leaves the previous best
    untouched. Attach it to the evaluator that validates.

    Args:
        network: the network in training, wrapped or not.
        path: the file, for example ``<output_dir>/model.pt``; its folder is made.
        metric: name of the validation metric that decides.
        better: (new, old) → whether new is better; the default takes errors, the smaller the better.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | os.PathLike[str],
        metric: str,
        better: Callable[[float, float], bool] = float.__lt__,
    ) -> None:
        self.network = getattr(network, "module", network)
        self.path = Path(path)
        self.metric = metric
        self.better = better
        self.best: float | None = None
        self.epoch: int | None = None
        self.history: list[tuple[int, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The best value, its epoch, and (epoch, value) of every validation."""
        return {"best": self.best, "epoch": self.epoch, "history": list(self.history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on choosing where `state_dict` was taken."""
        self.best, self.epoch, self.history = state["best"], state["epoch"], list(state["history"])

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        value = float(engine.state.metrics[self.metric])
        self.history.append((engine.state.epoch, value))
        if self.best is None or math.isnan(self.best) or self.better(value, self.best):
            self.best, self.epoch = value, engine.state.epoch
            with replacing(self.path) as partial:
                torch.save(self.network.state_dict(), partial)
            logging.getLogger(__name__).info("%s %.5f is the best so far: %s", self.metric, value, self.path)


def load_network(path: str | os.PathLike[str], in_channels: int | None = None, spatial_dims: int = 2) -> ValidUNet:
    """The network of a checkpoint, in evaluation mode on the CPU; its width is read from the weights.

    Args:
        path: a state dict of `ValidUNet`, as `BestCheckpoint` writes it.
        in_channels: channels the images have; None for whatever the checkpoint takes.
        spatial_dims: dimension of the images.

    Raises:
        InputError: no such file, not a whole checkpoint, not a `ValidUNet`, or one for other images.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "there is no checkpoint", "Train first, or name one with --ckpt_path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises whatever its unpickler meets
        raise InputError(path, f"the checkpoint cannot be read ({e})", "Train again, or take another one") from e
    try:
        network = ValidUNet.from_state_dict(state)
    except ValueError as e:
        raise InputError(path, str(e), "Name a model.pt that a bundle of this package has written") from e
    for name, expected in (("in_channels", in_channels), ("spatial_dims", spatial_dims)):
        if expected is not None and getattr(network, name) != expected:
            raise InputError(
                path,
                f"the network has {name} = {getattr(network, name)}, and {expected} is needed",
                "Name a checkpoint that was trained on such images",
            )
    network.register_load_state_dict_post_hook(_refuse_other_weights)
    return network.eval()


def _refuse_other_weights(network: nn.Module, keys: Any) -> None:
    """MONAI Label loads a network's weights again, and not strictly: what does not match would be left as it is."""
    if keys.missing_keys or keys.unexpected_keys:
        wrong = [*keys.missing_keys, *keys.unexpected_keys]
        raise RuntimeError(f"these weights are not those of the network: {len(wrong)} names differ, such as {wrong[0]}")
