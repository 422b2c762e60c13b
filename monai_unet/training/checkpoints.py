"""A training that loses nothing: its whole state on disk at every turn, and continued from there."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_unet.errors import InputError
from monai_unet.files import FolderLock, replacing
from monai_unet.options import parse_bool, parse_choice
from monai_unet.tracking.run import Tracking
from monai_unet.training.best import BestCheckpoint
from monai_unet.training.seeding import seed_step
from monai_unet.training.signals import StopRequest, TrainingStopped
from monai_unet.training.state import (
    changes,
    newest_checkpoint,
    plain,
    restore_optimizer,
    restore_rng,
    rng_state,
)

__all__ = ["Checkpoints"]

#: what MONAI's evaluators remember of the best validation, for their messages
VALIDATOR = ("best_metric", "best_metric_epoch")
#: seconds after which a long epoch is saved before its end
LONG = 600

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves the state of a training, and continues one.

    Files ``<output_dir>/checkpoints/step_<step>.pt``, each written whole or not at all, by the process of rank 0: at
    the start; at the end of every ``interval``-th epoch, of the last, and of one whose validation was the best so far;
    within an epoch after ten minutes; and when SIGTERM or Ctrl-C asks to stop, after the step or the validation image
    at hand. The last two and the best are kept. They hold plain tensors and values (``torch.load(weights_only=True)``):
    network, optimizer, lr_scheduler, scaler, step, epoch, epoch_ended, max_epochs, best, validator, rng, run_id,
    parameters, changes.

    A resumed training equals the uninterrupted one, on the CPU bit for bit, at whatever step it was interrupted: its
    data come from `monai_unet.training.SeededSampler`, and torch is seeded before each step from (seed, step, rank), so
    that neither a validation nor a lost step leaves a trace. Metrics that the trainer itself gathers over an epoch
    start anew.

    Attach it to the evaluator that validates, last. `run` attaches it to the trainer, behind all that acts on a step.

    Args:
        output_dir: folder of the training; one training at a time holds it.
        network: the network in training, wrapped or not.
        optimizer: its optimizer.
        lr_scheduler: steps once per training step.
        best: what chooses the best validation.
        parameters: hyperparameters, kept to be compared on resuming.
        seed: of the training.
        tracking: its run is continued.
        interval: epochs between two checkpoints.
        resume: "true" continues from the newest whole checkpoint, "auto" if there is one, "false" starts anew; earlier
            checkpoints are then moved aside to ``checkpoints.previous``. Booleans are understood too.
        resume_changed: continue although hyperparameters have changed; the learning rate is then what the new schedule
            has at that step. The same goes for another ``max_epochs``, which needs no leave.

    Raises:
        ValueError: ``resume`` or ``resume_changed`` is another word.
        InputError: before the first step: no checkpoint to resume from, or only broken ones; changed hyperparameters;
            the folder is in use by another training. While training: the disk is full.
        FloatingPointError: while training: weights that are no longer finite are not saved.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        best: BestCheckpoint,
        parameters: dict[str, Any],
        seed: int,
        tracking: Tracking | None = None,
        interval: int = 1,
        resume: bool | str = False,
        resume_changed: bool | str = False,
    ) -> None:
        self.folder = Path(output_dir) / "checkpoints"
        self.network = getattr(network, "module", network)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.best = best
        self.parameters = plain(parameters)
        self.seed = seed
        self.tracking = tracking
        self.interval = interval
        self.resume = parse_choice("resume", resume, ("true", "auto", "false"))
        self.resume_changed = parse_bool("resume_changed", resume_changed)
        self.lock = FolderLock(output_dir)
        self.asked = StopRequest()
        self.changes: list[str] = []
        self.best_file: str | None = None
        self.validator: Engine | None = None

    def attach(self, evaluator: Engine) -> None:
        self.validator = evaluator
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_asked)

    def run(self, trainer: Trainer) -> None:
        """Train from the start, or continue: ``trainer.run()`` with everything above."""
        self.trainer = trainer
        self.rank = trainer.state.rank
        self.asked.heed = self.rank == 0  # else processes would stop between different steps
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda: seed_step(self.seed, trainer.state.iteration, self.rank)
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._step_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        with self.lock if self.rank == 0 else contextlib.nullcontext(), self.asked:
            self.found = self._find()
            trainer.run()

    # --- saving ---

    def save(self, epoch_ended: bool) -> None:
        """Write a checkpoint of the present state; ``epoch_ended`` once the validation of a full epoch is done."""
        if self.rank > 0:
            return
        state = self.trainer.state
        network = self.network.state_dict()
        if not all(bool(value.isfinite().all()) for value in network.values()):
            raise FloatingPointError(
                f"after step {state.iteration} the weights are no longer finite; the last good checkpoint is kept"
            )
        scaler = self.trainer.scaler
        path = self.folder / f"step_{state.iteration:08d}.pt"
        if epoch_ended and self.best.epoch == state.epoch:
            self.best_file = path.name
        content = {
            "network": network,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "step": state.iteration,
            "epoch": state.epoch,
            "epoch_ended": epoch_ended,
            "max_epochs": state.max_epochs,
            "best": {**self.best.state_dict(), "file": self.best_file},
            "validator": {name: getattr(self.validator.state, name) for name in VALIDATOR} if self.validator else {},
            "rng": rng_state(),
            "run_id": None if self.tracking is None else self.tracking.run_id,
            "parameters": self.parameters,
            "changes": self.changes,
        }
        try:
            with replacing(path) as partial, partial.open("wb") as file:
                torch.save(content, file)
        except (OSError, RuntimeError) as e:  # torch's writer has an error of its own, the cause is its context
            cause = e if isinstance(e, OSError) else e.__context__
            if not isinstance(cause, OSError):
                raise
            kept = max((old.name for old in self.folder.glob("step_*.pt")), default="none")
            free = shutil.disk_usage(self.folder.parent).free >> 20  # the folder itself may not have come to be
            raise InputError(
                path,
                f"the checkpoint could not be written ({cause.strerror}; {free} MiB are free); "
                f"the newest whole one is {kept}",
                "Make room, then continue with --resume true",
            ) from e
        for old in sorted(self.folder.glob("step_*.pt"))[:-2]:
            if old.name != self.best_file:
                old.unlink()
        self.saved = time.monotonic()
        logger.info("checkpoint %s", path)

    def _step_completed(self, engine: Engine) -> None:
        self._stop_if_asked(engine)
        state = self.trainer.state
        if time.monotonic() - self.saved > LONG and state.iteration % state.epoch_length:
            self.save(epoch_ended=False)

    def _epoch_completed(self, engine: Engine) -> None:
        state = self.trainer.state
        if state.epoch % self.interval == 0 or state.epoch in (state.max_epochs, self.best.epoch):
            self.save(epoch_ended=True)

    def _stop_if_asked(self, engine: Engine) -> None:
        if self.asked.number is not None:
            self.save(epoch_ended=False)
            stopped = TrainingStopped(self.asked.number, self.trainer.state.iteration)
            logger.warning("%s", stopped)
            raise stopped

    # --- resuming ---

    def _find(self) -> tuple[Path, dict[str, Any]] | None:
        if self.rank == 0:
            for partial in self.folder.glob(".*.partial*"):  # a killed training's; nobody else writes here
                partial.unlink()
        if self.resume == "false":
            if self.rank == 0 and self.folder.exists():
                aside = self.folder.with_name("checkpoints.previous")
                shutil.rmtree(aside, ignore_errors=True)
                self.folder.rename(aside)
                logger.warning("a new training: the checkpoints of the previous one are now in %s", aside)
            return None
        found = newest_checkpoint(self.folder)
        if found is None and self.resume == "true":
            raise InputError(
                self.folder,
                "there is no checkpoint to resume from",
                "Name the --output_dir of the training, or leave out --resume true",
            )
        if found is None:
            return None
        path, content = found
        changed = changes(content["parameters"], self.parameters)
        if changed and not self.resume_changed:
            raise InputError(
                path,
                f"hyperparameters have changed since ({'; '.join(changed)})",
                "Give them as they were, or continue with --resume_changed true",
            )
        if self.tracking is not None and content["run_id"] is not None:
            self.tracking.resume(content["run_id"])
        return found

    def _start(self, engine: Engine) -> None:
        self.saved = time.monotonic()
        if self.found is None:
            self.save(epoch_ended=True)  # however soon it ends, its run can be continued
        else:
            path, content = self.found
            self.found = None  # its tensors are not needed twice
            self._restore(path, content)

    def _restore(self, path: Path, content: dict[str, Any]) -> None:
        state: Any = self.trainer.state
        step, length = content["step"], state.epoch_length
        state.iteration, state.epoch = step, step // length
        logger.info("continuing from %s: step %d, epoch %d", path, step, state.epoch)
        changed = changes(
            {**content["parameters"], "max_epochs": content["max_epochs"]},
            {**self.parameters, "max_epochs": state.max_epochs},
        )
        for change in changed:
            logger.warning("changed on resuming: %s", change)
        self.changes = [*content["changes"], *(f"step {step}: {change}" for change in changed)]
        try:
            self.network.load_state_dict(content["network"])
        except RuntimeError as e:
            raise InputError(path, f"its network is another one ({e})", "Start a new training") from e
        restore_optimizer(self.optimizer, self.lr_scheduler, content, changed)
        if content["scaler"] is not None and self.trainer.scaler is not None:
            self.trainer.scaler.load_state_dict(content["scaler"])
        self.best.load_state_dict(content["best"])
        self.best_file = content["best"]["file"]
        if self.validator is not None:
            for name, value in content["validator"].items():
                setattr(self.validator.state, name, value)
        restore_rng(content["rng"])
        loader: Any = self.trainer.data_loader
        loader.sampler.skip = step % length * loader.batch_size
        if step and step % length == 0 and not content["epoch_ended"]:
            self.trainer.fire_event(Events.EPOCH_COMPLETED)  # the validation that the interruption left out
