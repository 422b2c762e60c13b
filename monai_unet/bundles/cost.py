"""What a training step costs on this machine: measured, and compared between networks by their multiplications."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from monai_unet.inferers import OverlapTileInferer
from monai_unet.memory import keep_freed_memory, measured_bytes
from monai_unet.networks import ValidUNet
from monai_unet.transforms import RandElasticDeformationd

__all__ = ["Cost", "measure_cost", "multiplications", "step_seconds"]


@dataclass(frozen=True)
class Cost:
    """What a training step costs here, measured.

    >>> Cost(seconds=0.5, augmentation=0.1, validation=20, bytes=2**30, device="cpu").steps(10, validations=10)
    666
    """

    seconds: float
    #: seconds to draw and deform the tiles of a step
    augmentation: float
    #: seconds of one validation, of all its images
    validation: float
    bytes: int
    device: str

    def steps(self, minutes: float, validations: int) -> int:
        """Return how many steps fit into so many minutes, beside so many validations."""
        return int(max(60 * minutes - validations * self.validation, 0) / (self.seconds + self.augmentation))


def multiplications(network: ValidUNet, shape: Sequence[int]) -> float:
    """Count the multiplications of a pass, up to a factor that is the same for all networks of as many levels.

    Args:
        network: any.
        shape: of the input tile, per axis.

    >>> narrow, wide = (ValidUNet(2, 1, 2, features=(n, 2 * n)) for n in (8, 16))
    >>> multiplications(wide, (100, 100)) / multiplications(narrow, (100, 100))
    4.0
    """
    total, n = 0.0, np.array(shape, float)
    for level, features in enumerate(network.features):
        total += features**2 * math.prod(network.kernel_size[level]) * n.prod()
        if level < network.depth:
            n = n / network.strides[level]
    return float(total)


def step_seconds(network: ValidUNet, shape: Sequence[int], device: torch.device, batch: int = 1) -> tuple[float, int]:
    """Measure a training step without augmentation, the second of two, with freed memory kept, as in training.

    Args:
        network: moved to the device.
        shape: of the input tile, per axis.
        device: to train on.
        batch: tiles per step.

    Returns:
        Seconds, on a CPU as if nothing else ran there; and the bytes that steps take, 0 if that cannot be measured.

    >>> seconds, taken = step_seconds(ValidUNet(2, 1, 2, features=(4, 8)), (44, 44), torch.device("cpu"))
    >>> seconds > 0
    True
    """
    network = network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters())
    image = torch.randn(batch, network.in_channels, *shape, device=device)
    outputs = [network.output_size(n, axis) for axis, n in enumerate(shape)]
    target = torch.zeros(batch, *outputs, dtype=torch.long, device=device)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(image), target).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = list[float]()
    keep_freed_memory()
    taken = measured_bytes(lambda: times.extend(_seconds(step, device) for _ in range(2)), device) or 0
    return times[1], taken


def measure_cost(
    network: ValidUNet,
    tile: Sequence[int],
    size: Sequence[int],
    validation_items: int,
    device: torch.device,
    batch: int = 1,
) -> Cost:
    """Measure a training step, the deformation of its tiles, and the validation of an image.

    Args:
        network: moved to the device.
        tile: output voxels per axis.
        size: of an image.
        validation_items: images of a validation.
        device: to train on.
        batch: tiles per step.

    >>> cost = measure_cost(ValidUNet(2, 1, 2, features=(4, 8)), (28, 28), (60, 60), 3, torch.device("cpu"))
    >>> cost.validation > 0, cost.device
    (True, 'cpu')
    """
    shape = [network.input_size(n, axis) for axis, n in enumerate(tile)]
    seconds, taken = step_seconds(network, shape, device, batch)
    item: dict[Hashable, Tensor] = {"image": torch.randn(network.in_channels, *size)}
    item |= {key: torch.zeros(1, *size) for key in ("classes", "weight")}
    deform = RandElasticDeformationd(
        keys=list(item),
        mode=["bicubic" if network.spatial_dims == 2 else "bilinear", "nearest", "bilinear"],
        grid_size=3,
        sigma=5,
        rotate_range=0.3,
        random_center=True,
        spatial_size=shape,
    )
    augmentation = batch * _seconds(lambda: deform(item), device)
    infer = OverlapTileInferer(tile_size=tuple(tile))
    with torch.no_grad():
        whole = _seconds(lambda: infer(item["image"][None].to(device), network.eval()), device)
    return Cost(seconds, augmentation, whole * validation_items, taken, device.type)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return (time.process_time() - start) / torch.get_num_threads()
