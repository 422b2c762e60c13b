"""The whole training step of a bundle compared with a plain PyTorch loop: cost of loading, augmentation, handlers.

    python -m benchmarks.whole_step [--widths 64 32] [--steps 1] [--rounds 3]

Three take turns: the cell bundle's own trainer on synthetic cells (`cell_phantom`: cached images and weight maps,
elastic deformation, tiles of 572², loss, backward pass, optimiser, guards and learning rate); the same network in a
plain loop over ready-made tensors, which is the limit; and MONAI's `BasicUNet` of the same width in such a loop on
576². They run in bfloat16 if the hardware supports it. The target is a whole step within 5 % of the plain loop. The
pieces of a step are also timed separately.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.handlers import BasicTimeProfiler
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNet
from torch import nn

from benchmarks.peers import alternately, arguments, best_device, channels, fast_bfloat16, markdown, record, summary
from monai_unet.datasets import prepare
from monai_unet.inferers import TileInferer
from monai_unet.losses import PixelWeightedCrossEntropyLoss
from monai_unet.memory import keep_freed_memory

BUNDLE = Path(__file__).parents[1] / "bundles" / "cell_segmentation"
PLAIN, WHOLE, PEER = "plain loop, tensors ready (the limit)", "the bundle's whole step", "BasicUNet, plain loop"


def bundle(width: int, amp: bool, steps: int, data: Path, scratch: Path, **options: Any) -> ConfigParser:
    """The training config of the cell bundle, with only those handlers that every step needs."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "compact")])
    parser.update({"bundle_root": str(BUNDLE), "dataset_dir": str(data), "output_dir": str(scratch), "amp": amp})
    parser.update({"features": list(channels(width)), "steps_per_epoch": steps})
    parser.update({"norm": None, "train#handlers": parser["train#handlers"][:2], **options})
    return parser


def steps_of(network: nn.Module, size: int, amp: bool, steps: int, batch: int = 1) -> Callable[[], None]:
    """Steps of a plain loop over one ready-made batch of tiles."""
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    loss, infer = PixelWeightedCrossEntropyLoss(), TileInferer(amp)
    image = torch.randn(batch, 1, size, size, device=device)
    with torch.no_grad():
        out = infer(image, network).shape[-1]
    shape = (batch, 1, out, out)
    target = torch.cat([torch.randint(0, 2, shape), torch.rand(shape)], dim=1).to(device)

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(infer(image, network), target).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def epoch(trainer: Any, profiler: BasicTimeProfiler, steps: int, beside: dict[str, list[float]]) -> None:
    """Run one more epoch; add the seconds per step that are spent outside of the iteration to ``beside``."""
    trainer.state.max_epochs = trainer.state.epoch + 1
    trainer.run()
    taken = profiler.get_results()
    beside["waiting for the tile"].append(float(taken["dataflow_stats"]["total"]) / steps)
    beside["handlers"].append(float(taken["event_handlers_stats"]["total_time"]) / steps)


def pieces(parser: ConfigParser, amp: bool, repeats: int = 3) -> dict[str, float]:
    """Median seconds of each part of a step, and of the transforms that run once per image."""
    names = ("network", "loss", "train#dataset", "train#trainer#prepare_batch")
    network, loss, dataset, join = (parser.get_parsed_content(name) for name in names)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    batch = {name: value[None] for name, value in dataset[0].items()}
    image, target = join(batch, parser.get_parsed_content("device"))
    prepared, taken = parser.get_parsed_content("train#deterministic_transforms"), {}
    infer = TileInferer(amp)

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        if image.device.type == "cuda":
            torch.cuda.synchronize()
        taken.setdefault(name, []).append(time.perf_counter() - start)
        return result

    for _ in range(repeats):
        frame = dataset.data[0]
        for transform in prepared:
            name = "weight map" if "BorderWeightMap" in type(transform).__name__ else "reading and ridge"
            frame = timed(f"once per image: {name}", partial(transform, frame))
        timed("augmentation of a tile", lambda: dataset[0])
        output = timed("forward", lambda: infer(image, network))
        value = timed("loss", partial(loss, output, target))
        timed("backward", value.backward)
        timed("optimiser", optimizer.step)
    count = len(prepared) - 1
    once = taken.pop("once per image: reading and ridge")
    medians = {name: statistics.median(times) for name, times in taken.items()}
    medians["once per image: reading and ridge"] = sum(once) / len(once) * count
    return medians


def main() -> None:
    given = arguments(__doc__, widths=(64, 32), steps=1, rounds=3)
    device = best_device()
    amp = fast_bfloat16(device)
    keep_freed_memory()  # as in the bundles; for all of them
    rows, parts = [], {}
    with tempfile.TemporaryDirectory() as folder:
        data = prepare("cell_phantom", output=Path(folder) / "data").parent
        for width in given.widths:
            config = bundle(width, amp, given.steps, data, Path(folder))
            trainer, network = config.get_parsed_content("train#trainer"), config.get_parsed_content("network")
            trainer.logger.disabled = True
            profiler = BasicTimeProfiler()
            beside: dict[str, list[float]] = {"waiting for the tile": [], "handlers": []}
            profiler.attach(trainer)
            layout = config.get_parsed_content("memory_format")
            peer = BasicUNet(2, 1, 2, (*channels(width), width)).to(device, memory_format=layout)
            works = {
                PLAIN: steps_of(network, 572, amp, given.steps),
                WHOLE: partial(epoch, trainer, profiler, given.steps, beside),
                PEER: steps_of(peer, 576, amp, given.steps),
            }
            parts[str(width)] = pieces(config, amp)
            works[PEER]()  # the warm-up, together with the pieces
            times = alternately(works, given.rounds, warm_up=False)
            parts[str(width)] |= {f"in the whole step: {name}": statistics.median(s) for name, s in beside.items()}
            per_step = {name: [t / given.steps for t in turns] for name, turns in times.items()}
            rows += [{"width": width, **row} for row in summary(per_step, PLAIN)]
    dtype = "bfloat16" if amp else "float32"
    held = record("whole_step", rows, packages=("monai",), device=device, dtype=dtype, pieces=parts)
    print(table(held))


def table(held: dict[str, Any]) -> str:
    rows = [
        [
            row["width"],
            row["name"],
            f"{row['median_s']:.3f} ({row['min_s']:.3f} … {row['max_s']:.3f})",
            f"{row['ratio']:.2f}",
        ]
        for row in held["rows"]
    ]
    steps = markdown(["width", "", "s per step (min … max)", "of the limit"], rows)
    names = list(next(iter(held["pieces"].values())))
    apart = [[width, *(f"{1000 * taken[name]:.0f}" for name in names)] for width, taken in held["pieces"].items()]
    return f"{held['dtype']}, {held['hardware']}.\n\n{steps}\n\nThe pieces, ms:\n\n{markdown(['width', *names], apart)}"


if __name__ == "__main__":
    main()
