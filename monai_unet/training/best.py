"""The network of the best validation, written whole or not at all."""

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

from monai_unet.files import replacing

__all__ = ["BestCheckpoint"]


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
