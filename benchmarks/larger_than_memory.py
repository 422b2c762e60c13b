"""An image larger than memory, segmented with its instances: memory over time, and speed.

    python -m benchmarks.larger_than_memory [--size 40000] [--features 32 64 128 256 512] [--memory 1] [--folder DIR]

A synthetic image (H = W = size, uint8, cells of some 40 pixels) is written as OME-Zarr chunk by chunk, then segmented
by a process of its own, whose resident memory is sampled twice a second. The weights of the network are random, which
takes as long as with trained ones; the bias of its head makes about half of the image foreground. After an
interruption, the same command resumes; the curve then starts there. Results are written to
benchmarks/results/larger_than_memory.json, and for the default size to docs/pictures/larger_than_memory.png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import RESULTS
from monai_unet.data.large import predict_large_image
from monai_unet.inferers import OverlapTileInferer
from monai_unet.networks import ValidUNet
from monai_unet.provenance import code_version, hardware
from monai_unet.transforms import LabelInstances

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "larger_than_memory.png"
CHUNK = 1024


def write_image(path: Path, size: int) -> None:
    import zarr
    from scipy import ndimage

    if (path / "done").exists():
        return
    group = zarr.open_group(path, mode="w")
    chunks = (CHUNK, CHUNK)
    array = group.create_array("0", shape=(size, size), chunks=chunks, dtype="uint8", dimension_names=("y", "x"))
    for i in range(0, size, CHUNK):
        for j in range(0, size, CHUNK):
            noise = np.random.default_rng((i, j)).random((CHUNK // 8, CHUNK // 8), dtype=np.float32)
            cells = ndimage.zoom(ndimage.gaussian_filter(noise, 2, mode="wrap"), 8, order=1)
            cells = (255 * (cells - cells.min()) / np.ptp(cells)).astype(np.uint8)
            array[i : i + CHUNK, j : j + CHUNK] = cells[: size - i, : size - j]
    axes = [{"name": name, "type": "space"} for name in "yx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    (path / "done").touch()


def network_of(features: Sequence[int]) -> ValidUNet:
    torch.manual_seed(0)
    network = ValidUNet(2, 1, 2, features).eval().to(memory_format=torch.channels_last)
    size = network.input_size(100)
    with torch.no_grad():
        network.head.bias -= network(torch.randn(1, 1, size, size)).mean((0, 2, 3))
    return network


def predict(image: Path, output: Path, options: argparse.Namespace) -> None:
    inferer = OverlapTileInferer(memory=options.memory, amp=options.amp, progress=True)
    label = LabelInstances(min_size=300, fill_holes=True, grow=6, neck=12)
    predict_large_image(image, output, network_of(options.features), inferer, label, options.reach)


def resident(pid: int) -> int:
    """Bytes; 0 for a process that has just ended."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=40_000)
    parser.add_argument("--features", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--memory", type=float, default=1.0, help="GiB that a pass may take")
    parser.add_argument("--reach", type=int, default=512)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("larger_than_memory"))
    options = parser.parse_args()
    image, output = options.folder / f"{options.size}.ome.zarr", options.folder / f"{options.size}_prediction.ome.zarr"
    write_image(image, options.size)
    process = multiprocessing.get_context("spawn").Process(target=predict, args=(image, output, options))
    start, curve = time.monotonic(), list[tuple[float, int]]()
    process.start()
    while process.is_alive():
        process.join(0.5)
        if process.pid and process.is_alive():
            curve.append((round(time.monotonic() - start, 1), resident(process.pid)))
    if process.exitcode:
        raise SystemExit(f"the prediction ended with {process.exitcode}")
    plan = OverlapTileInferer(memory=options.memory, amp=options.amp).plan(
        (1, 1, options.size, options.size), network_of(options.features), out=torch.empty(0)
    )
    record: dict[str, Any] = {
        "size": options.size,
        "features": options.features,
        "reach": options.reach,
        "plan": str(plan),
        "seconds": curve[-1][0],
        "megapixels_per_s": options.size**2 / 1e6 / curve[-1][0],
        "peak_GiB": max(taken for _, taken in curve) / 2**30,
        "hardware": hardware(torch.device("cpu")),
        "versions": code_version(),
        "curve_s_MiB": [(s, taken >> 20) for s, taken in curve[:: max(1, len(curve) // 500)]],
    }
    name = "larger_than_memory" if options.size == 40_000 else f"larger_than_memory_{options.size}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record) + "\n")
    print(f"{plan}\n{record['seconds']:.0f} s, peak {record['peak_GiB']:.2f} GiB")
    if options.size == 40_000:
        draw(curve)


def draw(curve: list[tuple[float, int]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot([s / 60 for s, _ in curve], [taken / 2**30 for _, taken in curve])
    axes.axhline(4, color="gray", linestyle=":")
    axes.set(xlabel="minutes", ylabel="resident memory, GiB", ylim=(0, 4.4))
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
