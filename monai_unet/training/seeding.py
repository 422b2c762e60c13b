"""Training data that depend on (seed, epoch, position) alone.

A sampler gives every draw its own seed, and the data set seeds its random transforms with it. So the items of a step
depend neither on the number of loader workers, nor on what was drawn before, nor on the number of processes: a run
resumed in the middle of an epoch sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import RandomizableTrait, Transform
from torch import distributed
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import DistributedSampler

from monai_unet.memory import available_bytes

__all__ = ["SeededDataset", "SeededLoader", "SeededSampler", "seed_step"]

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
        device: of the training. On a GPU, what a `CacheDataset` has cached is kept there if it takes no more than a
            quarter of the free memory, and random transforms compute there. Their draws are the same.
        keys: the items' tensors that random transforms and the training need; the others stay where they are.

    Attributes:
        cached: the items on the device; None if there are none.

    >>> from monai.transforms import Compose, RandShiftIntensityd
    >>> tiles = Dataset([{"image": torch.zeros(1)}], Compose([RandShiftIntensityd("image", offsets=1.0, prob=1.0)]))
    >>> seeded = SeededDataset(tiles)
    >>> seeded[0, 7]["image"] == seeded[0, 7]["image"], seeded[0, 7]["image"] == seeded[0, 8]["image"]
    (metatensor([True]), metatensor([False]))
    """

    def __init__(
        self, dataset: Dataset, device: torch.device | str | None = None, keys: Sequence[Hashable] = ()
    ) -> None:
        self.dataset = dataset
        self.cached: list[dict[Hashable, Any]] | None = None
        if isinstance(dataset, CacheDataset) and device is not None and torch.device(device).type == "cuda":
            free = available_bytes(torch.device(device))
            size = sum(item[key].nbytes for item in dataset._cache for key in keys)
            if dataset.cache_num == len(dataset) and (free is None or size <= free / 4):
                self.keep_on(device, keys)

    def keep_on(self, device: torch.device | str, keys: Sequence[Hashable]) -> None:
        """Keep these tensors of the items that a `CacheDataset` has cached on a device."""
        held = self.dataset._cache  # type: ignore[attr-defined]
        self.cached = [{**item, **{key: item[key].to(device) for key in keys}} for item in held]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        index, seed = draw
        transform = self.dataset.transform
        transform.set_random_state(seed)
        if self.cached is None:
            return self.dataset[index]
        first = transform.get_index_of_first(lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform))
        return transform(self.cached[index], start=len(transform) if first is None else first)


class SeededLoader(DataLoader):
    """A MONAI loader of a `SeededDataset`; where that has its items on a GPU, a thread prepares the next batch.

    The thread has queued all work for the next batch when the GPU ends a step, so that neither waits for the other.

    Args:
        dataset: the items.
        num_workers: processes that load, unless the items are on a GPU.
        kwargs: as for MONAI's `DataLoader`.

    >>> from monai.transforms import Compose, RandShiftIntensityd
    >>> tiles = Dataset([{"image": torch.zeros(1)}], Compose([RandShiftIntensityd("image", offsets=1.0, prob=1.0)]))
    >>> sampler = SeededSampler(tiles, num_samples=4, seed=0)
    >>> [batch["image"].shape for batch in SeededLoader(SeededDataset(tiles), sampler=sampler, batch_size=2)]
    [torch.Size([2, 1]), torch.Size([2, 1])]
    """

    def __init__(self, dataset: SeededDataset, num_workers: int = 0, **kwargs: Any) -> None:
        super().__init__(dataset, num_workers=num_workers if dataset.cached is None else 0, **kwargs)
        self.on_device = dataset.cached is not None

    def __iter__(self) -> Any:
        """Iterate over the batches of an epoch."""
        batches = super().__iter__()
        return _ahead(batches) if self.on_device else batches


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches, each begun in a thread while the one before is used; an error there is raised here."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch


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
