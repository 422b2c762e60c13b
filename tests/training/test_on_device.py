"""Tiles cut and deformed where the network is: the same draws, nothing that waits for the device.

No test needs a GPU. Tensors of the device "meta" have no values, so that whatever would wait for one raises.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    EnsureTyped,
    Lambdad,
    RandLambdad,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SelectItemsd,
)

from monai_unet.training import SeededDataset, SeededLoader, SeededSampler
from monai_unet.transforms import RandElasticDeformation, RandElasticDeformationd, elastic

KEYS = ["image", "classes", "weight"]
SIZES = {2: (50, 61), 3: (20, 26, 23)}


def data(rank: int, count: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    items = []
    for _ in range(count):
        image = rng.normal(size=(1, *SIZES[rank])).astype(np.float32)
        affine = np.diag([1.5] * rank + [1] * (4 - rank))
        classes = (image > 0).astype(np.int64)
        item = {"image": MetaTensor(image, affine=affine), "classes": torch.from_numpy(classes)}
        items.append(
            {
                **item,
                "weight": torch.from_numpy(rng.random((1, *SIZES[rank]), dtype=np.float32)),
                "label": classes,
                "foreground": np.argwhere(classes[0]),
            }
        )
    return items


def dataset(rank: int) -> CacheDataset:
    """Wired as in the bundles."""
    size, out = [24] * rank, [8] * rank
    mode = ["bicubic" if rank == 2 else "bilinear", "nearest", "bilinear"]
    deform = RandElasticDeformationd(
        KEYS,
        sigma=3,
        mode=mode,
        rotate_range=np.pi,
        flip_prob=0.5,
        scale_range=0.2,
        random_center=True,
        foreground_prob=0.5,
        sigma_in_mm=rank == 3,
        spatial_size=size,
    )
    transforms = [
        Lambdad("image", lambda image: image * 2),
        deform,
        RandScaleIntensityd("image", 0.2, prob=1.0),
        RandShiftIntensityd("image", 0.2, prob=1.0),
        CenterSpatialCropd(["classes", "weight"], out),
        SelectItemsd(KEYS),
        EnsureTyped(KEYS, track_meta=False),
    ]
    return CacheDataset(data(rank), Compose(transforms), progress=False)


@pytest.mark.parametrize("rank", [2, 3])
def test_the_draws_are_those_of_the_loader_processes(rank):
    usual, held = SeededDataset(dataset(rank)), SeededDataset(dataset(rank))
    held.keep_on("cpu", KEYS)
    for draw in SeededSampler(usual, num_samples=6, seed=3).draws(1):
        one, other = usual[draw], held[draw]
        assert list(one) == list(other) == KEYS
        for key in KEYS:
            assert torch.equal(one[key], other[key]), key
            assert one[key].dtype == other[key].dtype


@pytest.mark.parametrize("rank", [2, 3])
def test_nothing_waits_for_the_device(rank):
    usual, held = SeededDataset(dataset(rank)), SeededDataset(dataset(rank))
    held.keep_on("meta", KEYS)
    for draw in SeededSampler(usual, num_samples=4, seed=3).draws(1):
        one, other = usual[draw], held[draw]
        assert {key: value.device.type for key, value in other.items()} == dict.fromkeys(KEYS, "meta")
        shapes = [{key: (value.shape, value.dtype) for key, value in item.items()} for item in (one, other)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("padding", ["reflection", "border", "zeros"])
@pytest.mark.parametrize(("rank", "mode"), [(2, "bicubic"), (2, "bilinear"), (2, "nearest"), (3, "bilinear")])
@pytest.mark.parametrize("tile", [16, 150])  # 150: beyond the first mirror image
def test_the_way_that_does_not_wait_gives_the_same_values(monkeypatch, rank, mode, padding, tile):
    image = torch.from_numpy(np.random.default_rng(0).random((1, *SIZES[rank]), dtype=np.float32))
    tile = min(tile, 60) if rank == 3 else tile
    deform = RandElasticDeformation(
        sigma=4, mode=mode, padding_mode=padding, rotate_range=3, random_center=True, spatial_size=tile
    )
    usual = deform.set_random_state(0)(image)
    monkeypatch.setattr(elastic, "_waits", lambda device: True)
    ahead = deform.set_random_state(0)(image)
    if mode == "nearest":
        assert (usual != ahead).float().mean() < 1e-3  # halfway between two voxels, up to rounding
    else:
        assert (usual - ahead).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("angle", "shift", "exact"), [(np.pi / 2, 0, True), (0, 3, True), (0, 2.5, False), (0.1, 0, False)]
)
def test_tiles_on_voxels_are_known_without_their_coordinates(angle, shift, exact):
    image = torch.rand(1, 12, 12)
    deform = RandElasticDeformation(sigma=0)
    deform.randomize(image)
    deform.angles, deform.shift = np.array([angle]), np.array([shift, 0.0])
    coordinates, on_voxels = deform.coordinates((12, 12))
    assert on_voxels == exact == bool((coordinates - coordinates.round()).abs().max() < 1e-3)


def test_the_next_batch_is_prepared_while_one_is_used():
    asked: list[int] = []
    second = threading.Event()

    def note(value: torch.Tensor) -> torch.Tensor:
        asked.append(len(asked))
        if len(asked) == 2:
            second.set()
        return value

    items = CacheDataset([{"image": torch.zeros(1)}] * 3, Compose([RandLambdad("image", note)]), progress=False)
    held = SeededDataset(items)
    held.keep_on("cpu", ["image"])
    loader = SeededLoader(held, num_workers=2, sampler=SeededSampler(items, 5, seed=0), batch_size=1)
    assert loader.num_workers == 0, "another process could not read from the device"
    batches = iter(loader)
    next(batches)
    assert second.wait(20)


def test_a_loader_that_is_ahead_gives_all_batches_in_order():
    held = SeededDataset(dataset(2))
    sampler = SeededSampler(held, num_samples=5, seed=0)
    usual = list(SeededLoader(held, sampler=sampler, batch_size=2))
    held.keep_on("cpu", KEYS)
    ahead = list(SeededLoader(held, sampler=sampler, batch_size=2))
    assert len(usual) == len(ahead) == 3
    for one, other in zip(usual, ahead, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in KEYS)


def test_an_error_in_the_thread_ends_the_training():
    held = SeededDataset(dataset(2))
    held.keep_on("cpu", KEYS)
    del held.cached[1]["image"]
    with pytest.raises(RuntimeError, match="applying transform"):
        list(SeededLoader(held, sampler=SeededSampler(held, num_samples=20, seed=0), batch_size=2))


@pytest.mark.parametrize(
    ("free", "kept"), [(4 * 3 * (4 + 8 + 4) * 50 * 61, True), (4 * 3 * (4 + 8 + 4) * 50 * 61 - 4, False), (None, True)]
)
def test_items_are_kept_on_a_gpu_if_they_take_a_quarter_of_its_free_memory(monkeypatch, free, kept):
    monkeypatch.setattr("monai_unet.training.seeding.available_bytes", lambda device: free)
    moved: list[tuple[Any, Any]] = []
    monkeypatch.setattr(SeededDataset, "keep_on", lambda self, device, keys: moved.append((device, keys)))
    items = dataset(2)
    SeededDataset(items, "cuda:1", KEYS)
    assert moved == [("cuda:1", KEYS)] * kept
    SeededDataset(items, torch.device("cpu"), KEYS)
    SeededDataset(Dataset(items.data), "cuda:1", KEYS)
    assert len(moved) == kept
