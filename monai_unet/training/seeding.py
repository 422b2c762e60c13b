"""Training data drawn from (seed, epoch, position) alone: whoever draws, and whenever, draws the same.

A sampler hands every draw its own seed, and the data set seeds its random transforms with it. So the items of a step
depend neither on the number of loader workers, nor on what was drawn before, nor on the number of processes: a training
that is resumed in the middle of an epoch sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from torch import distributed
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import DistributedSampler

__all__ = ["SeededDataset", "SeededSampler", "seed_step", "shield_worker"]

Draw = tuple[int, int]  # index of the item, seed of its random transforms


class SeededSampler(DistributedSampler[Draw]):
    """Draws items with replacement, each with a seed for its random transforms.

    Of each epoch's draws, process r of n takes r, r + n, r + 2n … It is a `DistributedSampler` because MONAI's engines
    tell one the epoch.

    Args:
        dataset: the items; only its length matters.
        num_samples: draws of an epoch, per process.
        seed: not negative.

    Attributes:
        skip: so many draws of the next epoch are left out: those seen before an interruption.
    """

    def __init__(self, dataset: Sized, num_samples: int, seed: int) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        rank, count = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        super().__init__(dataset, num_replicas=count, rank=rank, seed=seed)  # type: ignore[arg-type]
        if seed < 0 or num_samples < 1:
            raise ValueError(f"seed is {seed} and num_samples {num_samples}; use a seed >= 0 and num_samples >= 1")
        self.num_samples = num_samples
        self.skip = 0

    def draws(self, epoch: int) -> list[Draw]:
        """What this process draws in an epoch (counted from 1)."""
        rng = np.random.default_rng([self.seed, epoch])
        total = self.num_samples * self.num_replicas
        indices = rng.integers(len(self.dataset), size=total)  # type: ignore[arg-type]
        seeds = rng.integers(2**32, size=total)
        return list(zip(indices.tolist(), seeds.tolist(), strict=True))[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[Draw]:
        skip, self.skip = self.skip, 0
        return iter(self.draws(self.epoch)[skip:])


class SeededDataset(TorchDataset[Any]):
    """A MONAI data set that is asked for `SeededSampler`'s draws.

    Args:
        dataset: its transform, a MONAI `Compose`, takes the random state; a `CacheDataset` keeps its cache.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    @property
    def data(self) -> Any:
        """The items, as MONAI's data sets tell them."""
        return self.dataset.data

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        index, seed = draw
        self.dataset.transform.set_random_state(seed)
        return self.dataset[index]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a training step, whose dropout draws from its global generators."""
    key = np.random.SeedSequence([seed, step, rank])
    torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))


def shield_worker(worker_id: int) -> None:
    """Let a loader's worker outlive the signals that ask its training to stop; for ``DataLoader(worker_init_fn=...)``.

    Terminals and schedulers signal every process of a job. A worker that died of it would break the step during which
    the training prepares to stop. Workers end with their training in any case.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
