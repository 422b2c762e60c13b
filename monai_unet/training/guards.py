"""What stops a training says what to do: a loss that is no number, too little memory, a full disk."""

from __future__ import annotations

import errno
import math
import traceback
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_unet.memory import available_bytes, out_of_memory
from monai_unet.networks import ValidUNet
from monai_unet.training.seeding import SeededSampler
from monai_unet.training.step_memory import largest_tile

__all__ = ["Guards"]

#: how gloo says that a process is gone
NO_PEER = ("Connection closed by peer", "Connection reset by peer")


class Guards:
    """Ends a training with the reason and the cure. Attach it first, so that nobody acts on a bad step before it.

    Args:
        network: the network in training, wrapped or not.

    Raises:
        FloatingPointError: while training: the loss is NaN or infinite. Names the items of the step, by their position
            in the data list and the name of their file.
        RuntimeError: while training: out of memory, naming the largest tile that should fit; another process has died.
        OSError: while training: a disk is full.
    """

    def __init__(self, network: ValidUNet) -> None:
        self.network: ValidUNet = getattr(network, "module", network)
        self.told: BaseException | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check_loss)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._explain)

    def _check_loss(self, engine: Engine) -> None:
        state: Any = engine.state
        loss = float(state.output[0]["loss"])
        if math.isfinite(loss):
            return
        values = [entry for item in state.batch for entry in item.items() if isinstance(entry[1], torch.Tensor)]
        bad = [name for name, value in values if not bool(value.isfinite().all())]
        why = f"the {bad[0]} holds NaN or Inf" if bad else "the data are sound, so try a lower --learning_rate"
        raise FloatingPointError(
            f"the loss is {loss} at step {state.iteration} (epoch {state.epoch}) of {_items(engine)}: {why}. "
            "The last good checkpoint is kept"
        )

    def _explain(self, engine: Engine, error: BaseException) -> None:
        if error is not self.told:  # the event comes twice: for the step, and for the run
            self.told = self._told(engine, error)
        if self.told is not error:
            raise self.told from error
        raise error  # ignite passes over what its handlers let pass

    def _told(self, engine: Engine, error: BaseException) -> BaseException:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"{error.strerror}; make room, then continue with --resume true"
            return OSError(error.errno, text, error.filename)
        if out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
            return RuntimeError(self._advice(engine))
        if _says(error, NO_PEER):
            return RuntimeError(f"another process of this training has died ({error}); --resume true continues")
        return error

    def _advice(self, engine: Any) -> str:
        batch = engine.state.batch  # a list after the step, when a validation has failed
        shape = tuple(batch["image"].shape if isinstance(batch, dict) else (len(batch), *batch[0]["image"].shape))
        engine.optimizer.zero_grad()
        engine.state.output = None
        tile = largest_tile(self.network, shape, available_bytes(engine.state.device))
        had = [self.network.output_size(n) for n in shape[2:]]
        if tile is None:
            return f"out of memory with a tile_size of {had}; none fits, so choose fewer --features"
        sizes = tile[0] if len(set(tile)) == 1 else list(tile)
        return f"out of memory with a tile_size of {had}; --tile_size {sizes} should fit"


def _items(engine: Any) -> str:
    loader, state = engine.data_loader, engine.state
    if not isinstance(loader.sampler, SeededSampler):
        return "unknown items"
    first = (state.iteration - 1) % state.epoch_length * loader.batch_size
    indices = [index for index, _ in loader.sampler.draws(state.epoch)[first : first + loader.batch_size]]
    files = [loader.dataset.data[index].get("image") for index in indices]
    names = [f" ({Path(file).name})" if isinstance(file, str | Path) else "" for file in files]
    return "training item " + ", ".join(f"{i}{name}" for i, name in zip(indices, names, strict=True))


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
