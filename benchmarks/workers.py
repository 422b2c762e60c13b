"""A large image on several Dask workers compared with one process: the same result, in less time.

    python -m benchmarks.workers [--size 2500] [--width 16] [--workers 1 2 4]

Every process has one thread, including the one without Dask. The start-up of the workers (their imports) is listed
separately. If there are more workers than cores, the time cannot become shorter: any increase is the overhead of Dask.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from distributed import LocalCluster

from benchmarks.larger_than_memory import network_of
from benchmarks.peers import arguments, channels, fast_bfloat16, markdown, record
from monai_unet.data.large import predict_large_image
from monai_unet.inferers import OverlapTileInferer
from monai_unet.transforms import LabelInstances

ARRAYS = ("0", "labels/classes/0", "labels/instances/0")


def main() -> None:
    given = arguments(__doc__, size=2500, width=16, workers=(1, 2, 4))
    torch.set_num_threads(1)
    amp = fast_bfloat16(torch.device("cpu"))
    network = network_of(channels(given.width))
    inferer, label = OverlapTileInferer(388, amp=amp), LabelInstances(min_size=300, grow=6)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = np.random.default_rng(0).integers(0, 255, (given.size,) * 2, dtype=np.uint8)
        np.save(folder / "in.npy", image)
        np.save(folder / "corner.npy", image[:388, :388])

        def predict(title: str, scheduler: str | None = None, image: str = "in") -> float:
            start = time.perf_counter()
            predict_large_image(
                folder / f"{image}.npy", folder / title, network, inferer, label, reach=128, scheduler=scheduler
            )
            return time.perf_counter() - start

        predict("warm-up", image="corner")
        alone = predict("alone")
        expected = [zarr.open_group(folder / "alone", mode="r")[array][:] for array in ARRAYS]
        rows: list[dict[str, Any]] = [{"workers": 0, "seconds": alone, "speedup": 1.0, "start_s": 0.0}]
        for count in given.workers:
            start = time.perf_counter()
            with LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None) as cluster:
                cluster.get_client().run(network_of, [2, 4])  # the workers do their imports
                started = time.perf_counter() - start
                seconds = predict(f"with {count}", cluster.scheduler_address)
            found = zarr.open_group(folder / f"with {count}", mode="r")
            for array, one in zip(ARRAYS, expected, strict=True):
                if not np.array_equal(found[array][:], one):
                    raise SystemExit(f"{array} with {count} workers differs from one process")
            rows.append({"workers": count, "seconds": seconds, "speedup": alone / seconds, "start_s": started})
    facts = {"size": given.size, "width": given.width, "dtype": "bfloat16" if amp else "float32"}
    print(table(record("workers", rows, packages=("dask", "zarr"), cores=os.cpu_count(), **facts)))


def table(held: dict[str, Any]) -> str:
    rows = [
        [
            row["workers"] or "none, one process",
            f"{row['seconds']:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['start_s']:.1f}",
        ]
        for row in held["rows"]
    ]
    return (
        f"{held['size']}², {held['width']} channels at the top, {held['dtype']}, instances included; {held['cores']} "
        f"cores, {held['hardware']} each. All results are equal bit for bit.\n\n"
        + markdown(["workers", "s", "speed-up", "start-up of the workers, s"], rows)
    )


if __name__ == "__main__":
    main()
