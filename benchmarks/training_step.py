"""Cost of one training step at 572²: the paper's width and half of it, float32, and bfloat16 where the hardware has it.

    python -m benchmarks.training_step [--steps N]

Each configuration trains on random tiles (forward, loss, backward, optimiser) after one warm-up step; the median is
printed and written to benchmarks/results/training_step.json, with versions and hardware. Data loading and augmentation
are not part of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from monai_unet.inferers import TileInferer
from monai_unet.losses import PixelWeightedCrossEntropyLoss
from monai_unet.networks import ValidUNet
from monai_unet.tracking.provenance import code_version

RESULT = Path(__file__).parent / "results" / "training_step.json"


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; elsewhere it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for top in (64, 32):
        features = tuple(top * 2**level for level in range(5))
        for amp in (False, True) if fast_bfloat16(device) else (False,):
            times = seconds_per_step(features, amp, steps, device)
            row = {
                "features": features,
                "dtype": "bfloat16" if amp else "float32",
                "median_s": statistics.median(times),
                "min_s": min(times),
                "max_s": max(times),
            }
            rows.append(row)
            print(f"{top:>3} channels at the top, {row['dtype']:<8}: {row['median_s']:.2f} s per step at 572²")
    record = {"hardware": hardware(device), "versions": code_version(), "steps": steps, "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
