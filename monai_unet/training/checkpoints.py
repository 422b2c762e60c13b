"""When a checkpoint is written, which ones are kept, and where a training run resumes."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
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
from monai_unet.provenance import command_line, hardware
from monai_unet.training.seeding import seed_step
from monai_unet.training.signals import StopRequest, TrainingStopped
from monai_unet.training.state import TrainingState
from monai_unet.training.task import task_of

__all__ = ["BestCheckpoint", "Checkpoints"]

#: a longer epoch is saved before its end
SAVE_EVERY_SECONDS = 600

logger = logging.getLogger(__name__)


class BestCheckpoint:
    """Keep the weights of the best validation with their task, in the file that MONAI bundles call ``model.pt``.

    Attach it to the evaluator that validates. The file is replaced as a whole: a killed run leaves the previous best.
    It holds ``{"model": state_dict, "task": {...}}``, which ``torch.load(weights_only=True)`` reads; the task is the
    given one, with the network's architecture, the version of the ``code``, and under ``trained`` how it was trained.

    Args:
        network: the network in training, wrapped or not.
        path: the file, for example ``<output_dir>/model.pt``.
        metric: name of the validation metric that decides.
        better: (new, old) → whether new is better; by default smaller values are.
        task: what the network is for, as `task_of` takes it.

    Attributes:
        best, epoch: the best value and its epoch; None before the first validation.
        last: the value of the last validation in this process; None before the first.
        file: name of the checkpoint that holds the whole state of that epoch.
        trainer, seed, seconds: of the training run, as `Checkpoints` knows them: its trainer, its seed, and how long it
            had taken before this process.

    Raises:
        ValueError: ``task`` holds what a checkpoint cannot keep, or contradicts itself.
        InputError: while training: the file cannot be written.

    >>> import tempfile
    >>> network = nn.Linear(1, 1)
    >>> evaluator = Engine(lambda engine, loss: engine.state.metrics.update(loss=loss))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     best = BestCheckpoint(network, Path(folder) / "model.pt", metric="loss")
    ...     best.attach(evaluator)
    ...     for loss in (0.5, 0.2, 0.3):
    ...         _ = evaluator.run([loss])
    ...     best.best, sorted(torch.load(best.path)["model"])
    (0.2, ['bias', 'weight'])
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | os.PathLike[str],
        metric: str,
        better: Callable[[float, float], bool] = float.__lt__,
        task: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = getattr(network, "module", network)
        self.task = task_of(self.network, task)
        self.path = Path(path)
        self.metric = metric
        self.better = better
        self.best: float | None = None
        self.last: float | None = None
        self.epoch: int | None = None
        self.file: str | None = None
        self.trainer: Engine | None = None
        self.seed: int | None = None
        self.seconds = 0.0
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Return how long the training run has taken so far, in seconds, before it was resumed included."""
        return self.seconds + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return the best so far."""
        return {"best": self.best, "epoch": self.epoch, "file": self.file}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue choosing from an earlier `state_dict`."""
        self.best, self.epoch, self.file = state["best"], state["epoch"], state["file"]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        value = self.last = float(engine.state.metrics[self.metric])
        if self.best is None or math.isnan(self.best) or self.better(value, self.best):
            self.best, self.epoch = value, engine.state.epoch
            content = {"model": self.network.state_dict(), "task": {**self.task, "trained": self._trained()}}
            _save(content, self.path, "the last checkpoint is kept")
            logger.info("%s %.5f is the best so far: %s", self.metric, value, self.path)

    def _trained(self) -> dict[str, Any]:
        """How the best network so far was trained."""
        return {
            "command": command_line(),
            "seed": self.seed,
            "steps": self.trainer.state.iteration if self.trainer else None,
            "epochs": self.epoch,
            "seconds": round(self.elapsed()),
            "hardware": hardware(next(self.network.parameters()).device),
            "metric": self.metric,
            "value": self.best,
        }


class Checkpoints:
    """Save the whole state of a training run as it proceeds, and resume from it.

    The process of rank 0 writes ``<output_dir>/checkpoints/step_<step>.pt``, each as a whole or not at all: at the
    start; at the end of every ``interval``-th epoch, of the last, and of one whose validation is the best so far;
    within an epoch every ten minutes; and when SIGTERM or Ctrl-C asks to stop, after the current step or validation
    image. The last two and the best are kept. ``torch.load(weights_only=True)`` reads them; `TrainingState` lists what
    they hold.

    A resumed run equals the uninterrupted one, on the CPU bit for bit, at whatever step it was interrupted: its data
    come from `monai_unet.training.SeededSampler`, and torch is seeded before each step from (seed, step, rank), so that
    neither a validation nor a lost step leaves a trace. Metrics that the trainer itself accumulates over an epoch start
    anew.

    Attach it last to the evaluator that validates. `run` attaches it to the trainer, after all handlers that act on a
    step.

    Args:
        output_dir: folder of the training run; one run at a time holds it.
        network: the network in training, wrapped or not.
        optimizer: its optimizer.
        lr_scheduler: steps once per training step.
        best: what chooses the best validation.
        parameters: hyperparameters, compared on resuming.
        seed: of the training run.
        tracking: the run in an experiment tracker, for example `monai_unet.tracking.Tracking`; it is continued.
        interval: epochs between two checkpoints.
        resume: "true" continues from the newest intact checkpoint, "auto" if there is one, "false" starts anew.
            Booleans are accepted too. A run that starts anew keeps earlier checkpoints and the model in
            ``<output_dir>/previous_<number>``.
        resume_changed: continue although hyperparameters have changed; the learning rate is then the new schedule's at
            that step. The same holds for another ``max_epochs``, which is always accepted.

    Raises:
        ValueError: ``resume`` or ``resume_changed`` is something else.
        InputError: before the first step: there is no checkpoint to resume from, or all are corrupt; hyperparameters
            have changed; another run holds the folder. While training: the checkpoint cannot be written.
        FloatingPointError: while training: weights that are no longer finite are not saved.

    >>> import tempfile
    >>> from monai.data import DataLoader, Dataset
    >>> from monai.engines import SupervisedTrainer
    >>> from monai.transforms import Compose
    >>> from monai_unet.training import SeededDataset, SeededSampler
    >>> def train(folder, epochs, resume=False):
    ...     network = nn.Linear(1, 1)
    ...     optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    ...     schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    ...     best = BestCheckpoint(network, Path(folder) / "model.pt", metric="loss")
    ...     data = Dataset([{"image": torch.ones(1), "label": torch.ones(1)}], Compose())
    ...     loader = DataLoader(SeededDataset(data), sampler=SeededSampler(data, num_samples=5, seed=0))
    ...     trainer = SupervisedTrainer("cpu", epochs, loader, network, optimizer, nn.MSELoss())
    ...     Checkpoints(folder, network, optimizer, schedule, best, {}, seed=0, resume=resume).run(trainer)
    ...     return sorted(path.name for path in Path(folder).glob("checkpoints/*"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     train(folder, epochs=2)
    ...     train(folder, epochs=3, resume=True)
    ['step_00000005.pt', 'step_00000010.pt']
    ['step_00000010.pt', 'step_00000015.pt']
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        best: BestCheckpoint,
        parameters: Mapping[str, Any],
        seed: int,
        tracking: Any = None,
        interval: int = 1,
        resume: bool | str = False,
        resume_changed: bool | str = False,
    ) -> None:
        self.folder = Path(output_dir) / "checkpoints"
        self.state = TrainingState(network, optimizer, lr_scheduler, best, parameters, tracking)
        self.best = best
        self.best.seed = self.seed = seed
        self.interval = interval
        self.resume = parse_choice("resume", resume, ("true", "auto", "false"))
        self.resume_changed = parse_bool("resume_changed", resume_changed)
        self.stop_request = StopRequest()

    def attach(self, evaluator: Engine) -> None:
        self.state.evaluator = evaluator
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_requested)

    def run(self, trainer: Trainer) -> None:
        """Train from the start, or resume: ``trainer.run()`` with everything above."""
        self.trainer = self.best.trainer = trainer
        rank = trainer.state.rank
        self.stop_request.enabled = rank == 0  # otherwise processes would stop between different steps
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda: seed_step(self.seed, trainer.state.iteration, rank))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._step_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        with FolderLock(self.folder.parent) if rank == 0 else contextlib.nullcontext(), self.stop_request:
            if rank == 0:
                self._tidy()
            self.found = self._find() if self.resume != "false" else None
            if rank == 0 and self.found is None:
                self._keep_previous()
            trainer.run()

    def save(self, epoch_ended: bool) -> None:
        """Write a checkpoint of the present state; ``epoch_ended`` once the validation of a full epoch is done."""
        if self.trainer.state.rank > 0:
            return
        path = self.folder / f"step_{self.trainer.state.iteration:08d}.pt"
        if epoch_ended and self.best.epoch == self.trainer.state.epoch:
            self.best.file = path.name
        kept = self._newest_first()
        newest = kept[0].name if kept else "none"
        _save(self.state.collect(self.trainer, epoch_ended), path, f"the newest intact checkpoint is {newest}")
        for old in self._newest_first()[2:]:
            if old.name != self.best.file:
                old.unlink()
        self.saved = time.monotonic()
        logger.info("checkpoint %s", path)

    def _step_completed(self, engine: Engine) -> None:
        self._stop_if_requested(engine)
        state = self.trainer.state
        if state.iteration % state.epoch_length and time.monotonic() - self.saved > SAVE_EVERY_SECONDS:
            self.save(epoch_ended=False)

    def _epoch_completed(self, engine: Engine) -> None:
        state = self.trainer.state
        if state.epoch % self.interval == 0 or state.epoch in (state.max_epochs, self.best.epoch):
            self.save(epoch_ended=True)

    def _stop_if_requested(self, engine: Engine) -> None:
        if self.stop_request.number is not None:
            self.save(epoch_ended=False)
            stopped = TrainingStopped(self.stop_request.number, self.trainer.state.iteration)
            logger.warning("%s", stopped)
            raise stopped

    def _tidy(self) -> None:
        """Remove what a killed run left half-written."""
        model = self.best.path
        for partial in [*self.folder.glob(".*.partial*"), *model.parent.glob(f".{model.stem}.*.partial*")]:
            partial.unlink()

    def _keep_previous(self) -> None:
        """Keep an earlier run's checkpoints and best model in a numbered folder.

        The model is copied: a server goes on with it until this run has a better one.
        """
        output, model = self.folder.parent, self.best.path
        if not self.folder.exists() and not model.exists():
            return
        numbers = [int(path.name[9:]) for path in output.glob("previous_*") if path.name[9:].isdecimal()]
        previous = output / f"previous_{max(numbers, default=0) + 1}"
        previous.mkdir()
        if model.exists():
            shutil.copy2(model, previous)
        if self.folder.exists():
            self.folder.rename(previous / self.folder.name)
        logger.warning("starting anew: model and checkpoints of the previous training run are kept in %s", previous)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step_*.pt"), reverse=True)

    def _find(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest intact checkpoint, if it may be continued; corrupt ones are skipped with a warning."""
        paths = self._newest_first()
        for path in paths:
            try:
                with zipfile.ZipFile(path) as archive:  # torch.load itself does not notice flipped bits
                    if damaged := archive.testzip():
                        raise zipfile.BadZipFile(f"{damaged} is damaged")
                content = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as e:  # damage can surface anywhere in the unpickler
                logger.warning("%s is corrupt and skipped: %s", path, e)
                continue
            changed = self.state.changed(content)
            if changed and not self.resume_changed:
                raise InputError(
                    path,
                    f"hyperparameters have changed since it was written ({'; '.join(changed)})",
                    "Set them back, or continue with --resume_changed true",
                )
            self.state.resume_tracking(content)
            return path, content
        if paths:
            raise InputError(
                self.folder,
                f"none of its {len(paths)} checkpoints can be read",
                "Remove the folder to train from the start",
            )
        if self.resume == "true":
            raise InputError(
                self.folder,
                "there is no checkpoint to resume from",
                "Name the --output_dir of the training run, or leave out --resume true",
            )
        return None

    def _start(self, engine: Engine) -> None:
        self.saved = time.monotonic()
        if self.found is None:
            self.save(epoch_ended=True)  # however soon it ends, the run can be resumed
            return
        path, content = self.found
        self.found = None  # once restored, its tensors need not stay in memory
        logger.info("resuming from %s", path)
        self.state.restore(self.trainer, content, path)


def _save(content: Mapping[str, Any], path: Path, kept: str) -> None:
    """Write tensors and plain types to ``path`` as a whole.

    Raises:
        InputError: the file cannot be written, for example because the disk is full; says what is ``kept``.
    """
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            torch.save(content, file)
    except InputError as e:
        raise InputError(path, f"{e.problem}; {kept}", "Make room, then continue with --resume true") from e
