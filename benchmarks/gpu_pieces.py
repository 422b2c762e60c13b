"""What `benchmarks.gpu` measures, piece by piece: each returns numbers that stand for themselves."""

from __future__ import annotations

import atexit
import functools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import BasicUNet, DynUNet
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import elastic, inference, larger_than_memory, weight_map, whole_step
from benchmarks.peers import alternately, channels, fast_bfloat16
from monai_unet.data.large import predict_large_image
from monai_unet.datasets import prepare
from monai_unet.inferers import OverlapTileInferer, TileInferer
from monai_unet.networks import ValidUNet
from monai_unet.transforms import BorderWeightMap, LabelInstances, RandElasticDeformationd, SeparateInstancesd

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large everything is: FULL for a GPU, TINY to see that all of it runs."""

    widths: tuple[int, ...] = (64, 32)
    batches: tuple[int, ...] = (1, 8)
    tile: int = 388  # Fig. 1: 572² in
    steps: int = 100
    seconds: float = 2.0
    matrix: int = 8192
    images: tuple[int, ...] = (512, 4096)
    deformed: tuple[tuple[int, ...], ...] = ((572, 572), (132, 132, 132))
    volume: tuple[int, int, int] = (256, 256, 256)
    objects: int = 200
    large: int = 8192
    rounds: int = 3

    def steps_of(self, batch: int) -> int:
        """Steps between two waits for the device, with larger batches fewer."""
        return max(self.steps // max(batch // 2, 1), 1)


FULL = Scale()
TINY = Scale((2,), (2,), 20, 1, 0.0, 64, (200,), ((40, 40), (20, 20, 20)), (20, 20, 20), 5, 300, 1)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def per_second(work: Callable[[], object], seconds: float) -> float:
    """How often per second ``work``, which waits for the device, can be done; after two times to warm up."""
    work(), work()
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - start)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans (start, end), from 0 on."""
    length = end = 0.0
    for first, last in sorted(spans):
        length += max(last - max(first, end), 0)
        end = max(end, last)
    return length


def busy_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds during which the device computes or copies; on the CPU, those within an operator of torch."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        work()
        wait(device)
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    found = seen.profiler.kineto_results.events()
    # annotations span whole parts of a step, with their gaps
    events = [event for event in found if event.device_type() == kind and not event.is_user_annotation()]
    first = min((event.start_ns() for event in events), default=0)
    spans = [(event.start_ns() - first, event.start_ns() - first + event.duration_ns()) for event in events]
    return covered(spans) / 1e9


def matrix_rate(device: torch.device, scale: Scale) -> Numbers:
    """The card's limit: 10¹² operations per second of a product of large matrices."""
    n, rates = scale.matrix, {}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("float32, as TF32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        one, other = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

        def work(one: torch.Tensor = one, other: torch.Tensor = other) -> None:
            for _ in range(10):
                one @ other
            wait(device)

        rates[name] = 10 * 2 * n**3 * per_second(work, scale.seconds) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = before
    return {"size": n, "tera_per_s": rates}


def _rate(work: Callable[[], object], images: int, operations: float, device: torch.device, scale: Scale) -> Numbers:
    """Images per second of work on so many images, with its operations and the share of time the device is busy."""
    times = per_second(work, scale.seconds)
    return {
        "images_per_s": times * images,
        "tera_per_s": times * images * operations / 1e12,
        "busy": busy_seconds(work, device) * times,
    }


def _operations(step: Callable[[], object], images: int) -> float:
    """Multiplications and additions per image, as torch counts those of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / images


@functools.cache
def _phantom() -> Path:
    """Synthetic cells, until the process ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return prepare("cell_phantom", output=folder).parent


def training(device: torch.device, scale: Scale, width: int, batch: int) -> Numbers:
    """The bundle's whole step, with loading and augmentation, beside the plain loop over tensors that are ready."""
    amp, data, steps = fast_bfloat16(device), _phantom(), scale.steps_of(batch)
    options = {"device": str(device), "tile_size": scale.tile, "batch_size": batch}
    config = whole_step.bundle(width, amp, steps, data, data, **options)
    trainer, network = config.get_parsed_content("train#trainer"), config.get_parsed_content("network")
    trainer.logger.disabled = True
    size = network.input_size(scale.tile)
    operations = _operations(whole_step.steps_of(network, size, amp, 1, batch), batch)
    plain = whole_step.steps_of(network, size, amp, steps, batch)

    def whole() -> None:
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.run()
        wait(device)

    images = steps * batch
    rows = {
        whole_step.WHOLE: _rate(whole, images, operations, device, scale),
        whole_step.PLAIN: _rate(plain, images, operations, device, scale),
    }
    return {"width": width, "batch": batch, "size": size, "dtype": "bfloat16" if amp else "float32", "rows": rows}


def peer_networks(width: int) -> dict[str, nn.Module]:
    """MONAI's networks of the same channels, with padded convolutions."""
    features = channels(width)
    kernels, strides = [3] * len(features), [1] + [2] * (len(features) - 1)
    return {
        "BasicUNet": BasicUNet(2, 1, 2, (*features, width)),
        "DynUNet": DynUNet(2, 1, 2, kernels, strides, strides[1:], features),
    }


def peers(device: torch.device, scale: Scale, width: int, batch: int) -> Numbers:
    """MONAI's networks in the plain loop, on the next multiple of 16."""
    amp, steps, rows = fast_bfloat16(device), scale.steps_of(batch), {}
    size = -(-(scale.tile + 184) // 16) * 16
    for name, network in peer_networks(width).items():
        network = network.to(device, memory_format=torch.channels_last)
        operations = _operations(whole_step.steps_of(network, size, amp, 1, batch), batch)
        work = whole_step.steps_of(network, size, amp, steps, batch)
        rows[name] = _rate(work, steps * batch, operations, device, scale)
    return {"width": width, "batch": batch, "size": size, "rows": rows}


def forward(device: torch.device, scale: Scale, width: int) -> Numbers:
    """Images per second of the network alone, at 572²."""
    amp, rows = fast_bfloat16(device), {}
    network = ValidUNet(2, 1, 2, channels(width)).eval().to(device, memory_format=torch.channels_last)
    size, infer = network.input_size(scale.tile), TileInferer(amp)
    with torch.inference_mode():
        for batch in (*scale.batches, 4 * max(scale.batches)):
            image = torch.randn(batch, 1, size, size, device=device).to(memory_format=torch.channels_last)
            steps = scale.steps_of(batch)

            def work(image: torch.Tensor = image, steps: int = steps) -> None:
                for _ in range(steps):
                    infer(image, network)
                wait(device)

            operations = _operations(functools.partial(infer, image, network), batch)
            rows[str(batch)] = _rate(work, steps * batch, operations, device, scale)
    return {"width": width, "size": size, "rows": rows}


def images(device: torch.device, scale: Scale, size: int) -> Numbers:
    """Whole images, in our way and in MONAI's, as `benchmarks.inference` compares them."""
    rows, facts = inference.compare(size, scale.widths[0], scale.rounds, device)
    return {**facts, "rows": rows}


def volume(device: torch.device, scale: Scale) -> Numbers:
    """A volume from the CPU through a 3-D network on the device, in tiles of the paper's size, back to the CPU."""
    amp, width = fast_bfloat16(device), scale.widths[-1]
    network = ValidUNet(3, 1, 2, channels(width)[:3], norm="batch").eval()
    network = network.to(device, memory_format=torch.channels_last_3d)
    image, out = torch.randn(1, 1, *scale.volume), torch.empty(1, 2, *scale.volume)
    inferer = OverlapTileInferer(44, sw_batch_size=max(scale.batches), sw_device=device, amp=amp)

    def work() -> None:
        inferer(image, network, out=out)

    with torch.inference_mode():
        rate = _rate(work, 1, _operations(work, 1), device, scale)
    return {"width": width, "batch": max(scale.batches), "size": scale.volume, **rate}


def deformation(device: torch.device, scale: Scale) -> Numbers:
    """Elastic deformation of image, label and weights, on the device and on the CPU."""
    rows = {}
    for size in scale.deformed:
        works = {}
        for place in dict.fromkeys((device, torch.device("cpu"))):
            data = {key: value.to(place) for key, value in elastic.tensors(elastic.numbered(size)).items()}
            deform = RandElasticDeformationd(elastic.KEYS, 3, elastic.SIGMA, mode=["bilinear", "nearest", "bilinear"])
            works[str(place)] = lambda deform=deform, data=data: (deform(data), wait(device))
        times = alternately(works, 5 * scale.rounds)
        rows["×".join(map(str, size))] = {place: statistics.median(taken) for place, taken in times.items()}
    return {"median_s": rows}


def border_weights(device: torch.device, scale: Scale) -> Numbers:
    """Eq. 2, computed once per image, by the CPU."""
    size = (scale.images[0],) * 2
    ids = SeparateInstancesd("ids", keep_ids=True)({"ids": weight_map.touching_cells(size, scale.objects)})["ids"]
    work = functools.partial(BorderWeightMap(class_weights=None), ids)
    taken = alternately({"ours": work}, scale.rounds)["ours"]
    return {"size": size, "objects": scale.objects, "median_s": {"cpu": statistics.median(taken)}}


def large_image(device: torch.device, scale: Scale) -> Numbers:
    """An image that need not fit into any memory, from disk to disk, instances included."""
    with tempfile.TemporaryDirectory() as name:
        image, size = Path(name) / "image.ome.zarr", scale.large
        larger_than_memory.write_image(image, size)
        network = larger_than_memory.network_of(channels(scale.widths[-1])).to(device)
        label = LabelInstances(min_size=300, fill_holes=True, grow=6, neck=12)
        start = time.perf_counter()
        inferer = OverlapTileInferer(memory=4.0, amp=fast_bfloat16(device))
        predict_large_image(image, Path(name) / "out.ome.zarr", network, inferer, label, reach=512)
        taken = time.perf_counter() - start
    return {"size": size, "width": scale.widths[-1], "seconds": taken, "megapixels_per_s": size**2 / 1e6 / taken}


def pieces(device: torch.device, scale: Scale) -> dict[str, Callable[[], Numbers]]:
    """All of them, the most valuable first."""
    made: dict[str, Callable[[], Numbers]] = {"matrix rate": functools.partial(matrix_rate, device, scale)}
    both = [(width, batch) for width in scale.widths for batch in scale.batches]
    for width, batch in both:
        made[f"training step, width {width}, batch {batch}"] = functools.partial(training, device, scale, width, batch)
    for width in scale.widths:
        made[f"forward pass, width {width}"] = functools.partial(forward, device, scale, width)
    for size in scale.images:
        made[f"image of {size}²"] = functools.partial(images, device, scale, size)
    made["volume"] = functools.partial(volume, device, scale)
    made["elastic deformation"] = functools.partial(deformation, device, scale)
    for width, batch in both:
        made[f"MONAI's networks, width {width}, batch {batch}"] = functools.partial(peers, device, scale, width, batch)
    made["larger than memory"] = functools.partial(large_image, device, scale)
    made["border weights"] = functools.partial(border_weights, device, scale)
    return made
