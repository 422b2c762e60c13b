"""What a checkpoint holds: collected from a training run, compared with another run's options, restored into it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_unet.errors import InputError

__all__ = ["TrainingState"]

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """The state of a training run as a dict of tensors and plain types, which ``torch.load(weights_only=True)`` reads.

    Args:
        network: the network in training, wrapped or not.
        optimizer: its optimizer.
        lr_scheduler: steps once per training step.
        best: the `BestCheckpoint` of the run.
        parameters: hyperparameters of the run.
        tracking: the run in an experiment tracker, with ``run_id`` and ``resume(run_id)`` as `Tracking` has them.
        evaluator: validates the network.
        changes: ``"step <n>: <name>: <before> → <now>"`` for each hyperparameter changed on resuming.

    >>> import torch
    >>> network = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    >>> state = TrainingState(network, optimizer, schedule, best=None, parameters={"learning_rate": 0.1})
    >>> state.changed({"parameters": {"learning_rate": 0.01}})
    ['learning_rate: 0.01 → 0.1']
    """

    network: nn.Module
    optimizer: Optimizer
    lr_scheduler: LRScheduler
    best: Any
    parameters: Mapping[str, Any]
    tracking: Any = None
    evaluator: Engine | None = None
    changes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = getattr(self.network, "module", self.network)
        self.parameters = json.loads(json.dumps(dict(self.parameters), default=str))  # no type that torch.load refuses

    def collect(self, trainer: Trainer, epoch_ended: bool) -> dict[str, Any]:
        """Return the present state; ``epoch_ended`` once the validation of a full epoch is done.

        Raises:
            FloatingPointError: a weight is NaN or infinite.
        """
        step, network = trainer.state.iteration, self.network.state_dict()
        if not all(bool(value.isfinite().all()) for value in network.values()):
            raise FloatingPointError(
                f"after step {step} the weights are no longer finite; the last good checkpoint is kept"
            )
        return {
            "network": network,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": trainer.scaler.state_dict() if trainer.scaler else None,
            "step": step,
            "epoch": trainer.state.epoch,
            "epoch_ended": epoch_ended,
            "max_epochs": trainer.state.max_epochs,
            "best": self.best.state_dict(),
            "seconds": self.best.elapsed(),
            "run_id": self.tracking.run_id if self.tracking else None,
            "parameters": self.parameters,
            "changes": self.changes,
        }

    def changed(self, content: Mapping[str, Any]) -> list[str]:
        """Return ``"<name>: <before> → <now>"`` for each hyperparameter that differs; ``device`` is not compared."""
        before, now = content["parameters"], self.parameters
        return [
            f"{name}: {before.get(name)} → {now.get(name)}"
            for name in {**now, **before}
            if name != "device" and str(before.get(name)).lower() != str(now.get(name)).lower()
        ]

    def resume_tracking(self, content: Mapping[str, Any]) -> None:
        """Continue the tracked run, if there is one."""
        if self.tracking and content["run_id"]:
            self.tracking.resume(content["run_id"])

    def restore(self, trainer: Trainer, content: Mapping[str, Any], path: Path) -> None:
        """Set trainer and training back to a checkpoint read from ``path``.

        Raises:
            InputError: the checkpoint is of another network.
        """
        state: Any = trainer.state
        loader: Any = trainer.data_loader
        step, length = content["step"], state.epoch_length
        state.iteration, state.epoch = step, step // length
        loader.sampler.skip = step % length * loader.batch_size
        changed = self.changed(content)
        if content["max_epochs"] != state.max_epochs:
            changed.append(f"max_epochs: {content['max_epochs']} → {state.max_epochs}")
        for change in changed:
            logger.warning("changed on resuming: %s", change)
        self.changes = [*content["changes"], *(f"step {step}: {change}" for change in changed)]
        try:
            self.network.load_state_dict(content["network"])
        except RuntimeError as e:
            raise InputError(path, f"it holds another network ({e})", "Start a new training run") from e
        self._restore_optimizer(content, changed)
        if content["scaler"] and trainer.scaler:
            trainer.scaler.load_state_dict(content["scaler"])
        self.best.load_state_dict(content["best"])
        self.best.seconds = content.get("seconds", 0.0)
        if self.evaluator and self.best.epoch:
            logged: Any = self.evaluator.state  # MONAI's log messages name the best so far
            logged.best_metric, logged.best_metric_epoch = self.best.best, self.best.epoch
        if step and step % length == 0 and not content["epoch_ended"]:
            trainer.fire_event(Events.EPOCH_COMPLETED)  # the validation that was interrupted

    def _restore_optimizer(self, content: Mapping[str, Any], changed: Sequence[str]) -> None:
        """Restore optimizer and schedule; changed hyperparameters win, as if the new schedule had been followed."""
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        before = content["optimizer"]["param_groups"]
        if [set(group) for group in options] == [set(group) - {"params"} for group in before]:
            self.optimizer.load_state_dict(content["optimizer"])
        else:
            logger.warning("the checkpoint's optimizer is of another kind: its state is not used")
        if not changed:
            self.lr_scheduler.load_state_dict(content["lr_scheduler"])
            return
        for group, values in zip(self.optimizer.param_groups, options, strict=True):
            group.update(values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # the steps were made before
            for _ in range(content["step"]):
                self.lr_scheduler.step()
