"""Training data that depend on (seed, epoch, position) alone.

A sampler gives every draw its own seed, and the data set seeds its random transforms with it. So the items of a step
depend neither on the number of loader workers, nor on what was drawn before, nor on the number of processes: a run
resumed in the middle of an epoch sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from torch import distributed
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import DistributedSampler

__all__ = ["SeededDataset", "SeededSampler", "seed_step"]

Draw = tuple[int, int]  # index of the item, seed of its random transforms


class SeededSampler(DistributedSampler[Draw]):
    """Draw items with replacement, each with a seed for its random transforms.

    Of each epoch's draws, process r of n takes r, r + n, r + 2n … It is a `DistributedSampler` because those are the
    samplers to which MONAI's engines pass the epoch.

    Args:
        dataset: the items; only its length matters.
        num_samples: draws per epoch and process.
        seed: not negative.
        weights: how often each item is drawn, relative to the others; None for all alike.

    Raises:
        ValueError: seed, num_samples or weights are out of range.

    Attributes:
        skip: how many draws of the next epoch to leave out, because they were seen before an interruption.

    >>> sampler = SeededSampler(["a.tif", "b.tif", "c.tif"], num_samples=4, seed=1)
    >>> draws = sampler.draws(epoch=2)
    >>> [index for index, seed in draws]
    [1, 1, 2, 1]
    >>> sampler.set_epoch(2)
    >>> sampler.skip = 3
    >>> list(sampler) == draws[3:]
    True
    """

    def __init__(self, dataset: Sized, num_samples: int, seed: int, weights: Sequence[float] | None = None) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        rank, count = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        super().__init__(dataset, num_replicas=count, rank=rank, seed=seed)  # type: ignore[arg-type]
        if seed < 0 or num_samples < 1:
            raise ValueError(f"seed is {seed} and num_samples {num_samples}; use a seed >= 0 and num_samples >= 1")
        if weights is not None and not (len(weights) == len(dataset) and min(weights) >= 0 < sum(weights) < np.inf):
            raise ValueError(f"weights are {weights}; use {len(dataset)} numbers of at least 0, not all 0")
        self.num_samples = num_samples
        self.weights = None if weights is None else np.asarray(weights, float) / sum(weights)
        self.skip = 0

    def draws(self, epoch: int) -> list[Draw]:
        """Return what this process draws in an epoch, counted from 1."""
        rng = np.random.default_rng([self.seed, epoch])
        total = self.num_samples * self.num_replicas
        count = len(self.dataset)  # type: ignore[arg-type]
        if self.weights is None:
            indices = rng.integers(count, size=total)
        else:
            indices = rng.choice(count, size=total, p=self.weights)
        seeds = rng.integers(2**32, size=total)
        return list(zip(indices.tolist(), seeds.tolist(), strict=True))[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[Draw]:
        skip, self.skip = self.skip, 0
        return iter(self.draws(self.epoch)[skip:])


class SeededDataset(TorchDataset[Any]):
    """A MONAI data set whose items are looked up by the draws of a `SeededSampler`.

    Args:
        dataset: its transform, a MONAI `Compose`, is seeded for each draw; a `CacheDataset` keeps its cache.

    >>> from monai.transforms import Compose, RandShiftIntensityd
    >>> tiles = Dataset([{"image": torch.zeros(1)}], Compose([RandShiftIntensityd("image", offsets=1.0, prob=1.0)]))
    >>> seeded = SeededDataset(tiles)
    >>> seeded[0, 7]["image"] == seeded[0, 7]["image"], seeded[0, 7]["image"] == seeded[0, 8]["image"]
    (metatensor([True]), metatensor([False]))
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        index, seed = draw
        self.dataset.transform.set_random_state(seed)
        return self.dataset[index]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a training step, because dropout draws from its global generators.

    >>> seed_step(0, step=17, rank=0)
    >>> before = torch.rand(3)
    >>> seed_step(0, step=17, rank=0)
    >>> torch.equal(before, torch.rand(3))
    True
    """
    key = np.random.SeedSequence([seed, step, rank])
    torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))
