"""Cost of one training step at 572²: the paper's width and half of it, in float32 and, if supported, bfloat16.

    python -m benchmarks.training_step [--steps N]

Each configuration trains on random tiles (forward pass, loss, backward pass, optimiser) after one warm-up step. The
median is printed and written to benchmarks/results/training_step.json. Data loading and augmentation are not included.
"""

from __future__ import annotations

import time

import torch

from benchmarks.peers import arguments, best_device, channels, fast_bfloat16, record, spread
from monai_unet.inferers import TileInferer
from monai_unet.losses import PixelWeightedCrossEntropyLoss
from monai_unet.networks import ValidUNet


def seconds_per_step(features: tuple[int, ...], amp: bool, steps: int, device: torch.device) -> list[float]:
    torch.manual_seed(0)
    network = ValidUNet(2, 1, 2, features).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.99)
    loss, infer = PixelWeightedCrossEntropyLoss(), TileInferer(amp)
    image = torch.randn(1, 1, 572, 572, device=device)
    target = torch.stack([torch.randint(0, 2, (1, 388, 388)).float(), torch.rand(1, 388, 388)], dim=1).to(device)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(infer(image, network), target).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    steps = arguments(__doc__, steps=5).steps
    device = best_device()
    rows = []
    for top in (64, 32):
        for amp in (False, True) if fast_bfloat16(device) else (False,):
            times = seconds_per_step(channels(top), amp, steps, device)
            row = {"features": channels(top), "dtype": "bfloat16" if amp else "float32", **spread(times)}
            rows.append(row)
            print(f"{top:>3} channels at the top, {row['dtype']:<8}: {row['median_s']:.2f} s per step at 572²")
    record("training_step", rows, device=device, steps=steps)


if __name__ == "__main__":
    main()
