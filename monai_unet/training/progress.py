"""How far a training run is, how long it still takes, and what to do when it is done."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm import tqdm

from monai_unet.training.checkpoints import BestCheckpoint

__all__ = ["Progress"]

logger = logging.getLogger(__name__)


class Progress:
    """Show a bar with the remaining time, the loss and the last score; log a line per epoch and the next command.

    The bar appears in a terminal only. Attach it to the trainer, after the handler that validates.

    Args:
        best: chooses the best validation of the run.
        bundle_root: the bundle, for the command that predicts.

    >>> import torch
    >>> trainer = Engine(lambda engine, batch: [{"loss": 0.5}])
    >>> Progress(BestCheckpoint(torch.nn.Linear(1, 1), "out/model.pt", "seg"), "bundles/cells").attach(trainer)
    """

    def __init__(self, best: BestCheckpoint, bundle_root: str | os.PathLike[str] = ".") -> None:
        self.best, self.bundle_root = best, Path(bundle_root)
        self.bar: Any = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _step(self, engine: Engine) -> None:
        state: Any = engine.state
        if self.bar is None:  # not before: a resumed run starts at a later step
            self.first, self.start = state.iteration - 1, time.monotonic()
            hidden = True if idist.get_rank() > 0 else None  # None: unless it is a terminal
            total = state.max_epochs * state.epoch_length
            self.bar = tqdm(total=total, initial=self.first, unit="step", desc="training", disable=hidden)
        self.bar.set_postfix_str(f"loss {state.output[0]['loss']:.4f}{self._score()}", refresh=False)
        self.bar.update()

    def _score(self) -> str:
        best = self.best
        return "" if best.last is None else f", {best.metric} {best.last:.4f} (best {best.best:.4f})"

    def _epoch(self, engine: Engine) -> None:
        state: Any = engine.state
        if self.bar is None:  # a resumed run repeats the validation that was interrupted
            return
        steps = state.iteration - self.first
        left = (time.monotonic() - self.start) / steps * (state.max_epochs * state.epoch_length - state.iteration)
        text = f"loss {state.output[0]['loss']:.4f}{self._score()}, {tqdm.format_interval(left)} left"
        logger.info("epoch %d of %d: %s", state.epoch, state.max_epochs, text)

    def _close(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
        best = self.best
        if best.best is None or idist.get_rank() > 0:
            return
        logger.info("best model, %s %.4f in epoch %d: %s", best.metric, best.best, best.epoch, best.path)
        logger.info("pictures of the validations: %s", best.path.parent / "pictures")
        logger.info(
            "to predict: python -W ignore -m monai.bundle run --bundle_root %s --config_file %s --ckpt_path %s "
            "--input IMAGES --output_dir RESULTS",
            *(self.bundle_root, self.bundle_root / "configs" / "inference.yaml", best.path),
        )
