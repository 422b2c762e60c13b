"""Stops a training run with an explanation: non-finite loss, out of memory, full disk, a dead process."""

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

#: gloo's messages when a process is gone
NO_PEER = ("Connection closed by peer", "Connection reset by peer")


class Guards:
    """End a training run with the reason and the cure.

    Attach it to the trainer first, so that no other handler acts on a bad step.

    Args:
        network: the network in training, wrapped or not.

    Raises:
        FloatingPointError: while training: the loss is NaN or infinite; names the items of the step by their position
            in the data list and their file.
        RuntimeError: while training: out of memory, with the largest tile that should fit; another process has died.
        OSError: while training: a disk is full.

    >>> from monai.data import DataLoader, Dataset
    >>> from monai.engines import SupervisedTrainer
    >>> network = ValidUNet(2, 1, 2, features=(2, 3))
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> tile = {"image": torch.full((1, 20, 20), torch.nan), "label": torch.zeros(4, 4, dtype=torch.int64)}
    >>> loader, loss = DataLoader(Dataset([tile])), torch.nn.CrossEntropyLoss()
    >>> trainer = SupervisedTrainer("cpu", 1, loader, network, optimizer, loss, train_handlers=[Guards(network)])
    >>> trainer.run()
    Traceback (most recent call last):
    FloatingPointError: the loss is nan at step 1 (epoch 1): the image holds NaN or Inf. The last good checkpoint ...
    """

    def __init__(self, network: ValidUNet) -> None:
        self.network: ValidUNet = getattr(network, "module", network)
        self.explained: BaseException | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check_loss)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._raise_explained)

    def _check_loss(self, engine: Engine) -> None:
        state: Any = engine.state
        loss = float(state.output[0]["loss"])
        if math.isfinite(loss):
            return
        values = [entry for item in state.batch for entry in item.items() if isinstance(entry[1], torch.Tensor)]
        bad = [name for name, value in values if not bool(value.isfinite().all())]
        why = f"the {bad[0]} holds NaN or Inf" if bad else "all data are finite, so try a lower --learning_rate"
        raise FloatingPointError(
            f"the loss is {loss} at step {state.iteration} (epoch {state.epoch}){_items(engine)}: {why}. "
            "The last good checkpoint is kept"
        )

    def _raise_explained(self, engine: Engine, error: BaseException) -> None:
        if error is not self.explained:  # ignite fires the event twice: for the step, and for the run
            self.explained = self._explain(engine, error)
        if self.explained is not error:
            raise self.explained from error
        raise error  # ignite swallows an exception unless a handler raises it

    def _explain(self, engine: Engine, error: BaseException) -> BaseException:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"{error.strerror}; make room, then continue with --resume true"
            return OSError(error.errno, text, error.filename)
        if out_of_memory(error) or out_of_memory(error.__cause__ or error) or "MemoryError" in str(error):
            traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
            return RuntimeError(f"out of memory {self._advice(engine, error)}")
        if isinstance(error, RuntimeError) and any(message in str(error) for message in NO_PEER):
            return RuntimeError(f"another process of this training run has died ({error}); --resume true continues")
        return error

    def _advice(self, engine: Any, error: BaseException) -> str:
        batch = engine.state.batch
        if batch is None or "applying transform" in str(error):
            return "while an image was loaded; choose a smaller --tile_size or fewer --num_workers"
        # decollated once the step is done: the error is a validation's
        shape = tuple(batch["image"].shape if isinstance(batch, dict) else (len(batch), *batch[0]["image"].shape))
        engine.optimizer.zero_grad()
        engine.state.output = None
        tile = largest_tile(self.network, shape, available_bytes(engine.state.device))
        failed = [self.network.output_size(n, axis) for axis, n in enumerate(shape[2:])]
        if tile is None:
            return f"with a tile_size of {failed}; none fits, so choose fewer --features"
        sizes = tile[0] if len(set(tile)) == 1 else list(tile)
        return f"with a tile_size of {failed}; --tile_size {sizes} should fit"


def _items(engine: Any) -> str:
    """Name the items of the current step, where the sampler knows them."""
    loader, state = engine.data_loader, engine.state
    if not isinstance(loader.sampler, SeededSampler):
        return ""
    first = (state.iteration - 1) % state.epoch_length * loader.batch_size
    indices = [index for index, _ in loader.sampler.draws(state.epoch)[first : first + loader.batch_size]]
    files = [loader.dataset.dataset.data[index].get("image") for index in indices]
    names = [f" ({Path(file).name})" if isinstance(file, str | Path) else "" for file in files]
    return " of training item " + ", ".join(f"{i}{name}" for i, name in zip(indices, names, strict=True))
