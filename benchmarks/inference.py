"""Inference compared with MONAI's inferers: as fast as one pass over the whole image, and without seams.

    python -m benchmarks.inference [--size 970] [--width 32] [--rounds 3]

The same weights are used twice: in `ValidUNet`, and in a padded network, as most U-Nets are, for MONAI's
`SlidingWindowInferer`. Each way is compared with one pass of its own network over the whole image, which is the limit
of its speed and, up to rounding, the result without seams. Times are in bfloat16 if the hardware supports it; seams
are measured in float32. The targets are at least 0.9 of the limit if the image fits, 1.5 times the speed of MONAI's
inferer at an overlap of 0.5, and no seams beyond rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.apps.pathology.inferers import SlidingWindowHoVerNetInferer
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers import (
    alternately,
    arguments,
    best_device,
    channels,
    fast_bfloat16,
    markdown,
    median_ratio,
    record,
    spread,
)
from monai_unet.inferers import OverlapTileInferer, TileInferer
from monai_unet.memory import keep_freed_memory, measured_bytes
from monai_unet.networks import ValidUNet

WINDOW = 572  # Fig. 1
LIMIT, PADDED_LIMIT = "one pass (the limit)", "one pass, padded network"
HALF = "SlidingWindowInferer, overlap 0.5"


class Counted(nn.Module):
    """The network, in bfloat16 if asked, with a count of its input pixels."""

    def __init__(self, network: nn.Module, amp: bool) -> None:
        super().__init__()
        self.module, self.infer, self.pixels = network, TileInferer(amp), 0

    def forward(self, x: Tensor) -> Tensor:
        self.pixels += x.shape[0] * x.shape[-1] * x.shape[-2]
        return self.infer(x, self.module)


def padded(network: ValidUNet) -> nn.Module:
    """The same weights with padded convolutions: the output is as large as the input, a multiple of 16."""
    same = copy.deepcopy(network)
    for module in same.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding = (1, 1)
    same.output_size = lambda n, axis=0: n  # type: ignore[method-assign]
    return same


def ways(image: Tensor, network: ValidUNet, amp: bool) -> dict[str, tuple[str, Callable[[], Tensor], Counted]]:
    """Name → (name of its limit, the function to time, the network that counts pixels)."""
    valid, same = Counted(network, amp), Counted(padded(network), amp)
    n, margin = image.shape[-1], network.margin
    whole, tile = network.output_size(network.input_size(n)), network.output_size(WINDOW)
    mirrored = [margin, whole - n + margin] * 2
    beyond = [0, -n % network.multiple] * 2

    def windows(**options: Any) -> Callable[[], Tensor]:
        size = WINDOW // network.multiple * network.multiple
        return partial(SlidingWindowInferer(size, padding_mode="reflect", **options), image, same)

    hover = SlidingWindowHoVerNetInferer(
        WINDOW, overlap=1 - tile / WINDOW, padding_mode="reflect", extra_input_padding=(margin,) * 4
    )
    return {
        LIMIT: (LIMIT, lambda: valid(functional.pad(image, mirrored, "reflect"))[..., :n, :n], valid),
        "OverlapTileInferer, planned": (LIMIT, partial(OverlapTileInferer(amp=amp), image, valid), valid),
        "OverlapTileInferer, 388 (Fig. 2)": (LIMIT, partial(OverlapTileInferer(tile, amp=amp), image, valid), valid),
        "SlidingWindowHoVerNetInferer, 572 in": (LIMIT, partial(hover, image, valid), valid),
        PADDED_LIMIT: (PADDED_LIMIT, lambda: same(functional.pad(image, beyond, "reflect"))[..., :n, :n], same),
        "SlidingWindowInferer, overlap 0.25": (PADDED_LIMIT, windows(overlap=0.25), same),
        HALF: (PADDED_LIMIT, windows(overlap=0.5), same),
        f"{HALF}, gaussian": (PADDED_LIMIT, windows(overlap=0.5, mode="gaussian"), same),
    }


def compare(size: int, width: int, rounds: int, device: torch.device) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per way to segment an image of size²; and what was the same for all of them."""
    amp = fast_bfloat16(device)
    torch.manual_seed(0)
    network = ValidUNet(2, 1, 2, channels(width)).eval()
    network = network.to(device, memory_format=torch.channels_last)
    image = torch.randn(1, 1, size, size, device=device)
    with torch.inference_mode():
        made = ways(image, network, amp)
        in_float32 = ways(image, network, amp=False) if amp else made
        exact = {name: (work(), limit) for name, (limit, work, _) in in_float32.items()}
        seams = {name: _difference(found, exact[limit][0]) for name, (found, limit) in exact.items()}
        del exact, in_float32
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        works = {name: lambda work=work: (work(), wait()) for name, (_, work, _) in made.items()}
        times = alternately(works, rounds, warm_up=amp)  # in float32 the exact passes were the warm-up
        computed, memory = {}, {}
        for name, (_, work, counted) in made.items():
            counted.pixels = 0  # without the pass measured for the plan and earlier runs
            memory[name] = measured_bytes(work, device)
            computed[name] = counted.pixels
        half_difference = None
        if amp:
            half = OverlapTileInferer(388, amp=True)(image, network)
            half_difference = _difference(half, OverlapTileInferer(388)(image, network))
    rows = []
    for name, (limit, _, _) in made.items():
        rows.append(
            {
                "name": name,
                "limit": limit,
                **spread(times[name]),
                "of_limit": median_ratio(times[LIMIT], times[name]),
                "over_monai_half": median_ratio(times[HALF], times[name]),
                "computed": computed[name] / size**2,
                "peak_MiB": None if memory[name] is None else memory[name] / 2**20,
                "seam": seams[name],
            }
        )
    facts = {"size": size, "width": width, "rounds": rounds, "dtype": "bfloat16" if amp else "float32"}
    return rows, {**facts, "bfloat16_difference": half_difference}


def main() -> None:
    given = arguments(__doc__, size=970, width=32, rounds=3)
    device = best_device()
    keep_freed_memory()  # as in the bundles; for all of them
    rows, facts = compare(given.size, given.width, given.rounds, device)
    print(table(record("inference", rows, packages=("monai",), device=device, **facts)))


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.softmax(1) - other.softmax(1)).abs().max())


def table(held: dict[str, Any]) -> str:
    head = [
        "",
        "s (min … max)",
        "of the limit's speed",
        "times MONAI's at 0.5",
        "pixels computed per pixel",
        "peak MiB",
        "largest seam",
    ]
    rows = []
    for row in held["rows"]:
        time = f"{row['median_s']:.2f} ({row['min_s']:.2f} … {row['max_s']:.2f})"
        peak = "" if row["peak_MiB"] is None else f"{row['peak_MiB']:.0f}"
        cells = [row["name"], time, f"{row['of_limit']:.2f}", f"{row['over_monai_half']:.2f}", f"{row['computed']:.2f}"]
        rows.append([*cells, peak, f"{row['seam']:.0e}"])
    text = markdown(head, rows)
    text = (
        f"{held['size']}², {held['width']} channels at the top, {held['dtype']}, {held['hardware']}.\n\n{text}\n\n"
        "A seam is the largest difference of a probability from one pass of the same network over the whole image "
        "(float32)."
    )
    if held["bfloat16_difference"] is not None:
        text += f" bfloat16 itself changes a probability by up to {held['bfloat16_difference']:.1e}."
    return text


if __name__ == "__main__":
    main()
