"""Border weight map (Eq. 2): ours against one whole-image distance transform per object.

    python -m benchmarks.weight_map [--size 1024] [--cells 400]

Random touching cells; the results are compared before times are. Written to benchmarks/results/weight_map.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from benchmarks.training_step import hardware
from monai_unet.handlers.tracking import code_version
from monai_unet.transforms import BorderWeightMap, SeparateInstances

RESULT = Path(__file__).parent / "results" / "weight_map.json"


def touching_cells(size: int, count: int) -> np.ndarray:
    """(1, size, size) ids: Voronoi cells of random seeds, with some background."""
    rng = np.random.default_rng(0)
    seeds = rng.uniform(0, size, (count, 2))
    distance, nearest = cKDTree(seeds).query(np.stack(np.mgrid[:size, :size], axis=-1))
    return np.where(distance < 0.7 * size / np.sqrt(count), nearest + 1, 0).astype(np.int32)[None]


def one_transform_per_object(ids: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    """Eq. 2 to the letter, keeping the two smallest distances so that memory does not grow with the objects."""
    d1 = np.full(ids.shape, np.inf)
    d2 = d1.copy()
    for label in np.unique(ids[ids > 0]):
        distance = ndimage.distance_transform_edt(ids != label)
        d2 = np.minimum(d2, np.maximum(d1, distance))
        d1 = np.minimum(d1, distance)
    return 1 + w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--cells", type=int, default=400)
    options = parser.parse_args()
    ids = SeparateInstances(keep_ids=True)(touching_cells(options.size, options.cells))
    transform = BorderWeightMap(class_weights=None)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        ours = transform(ids)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    expected = one_transform_per_object(np.asarray(ids)[0], transform.w0, transform.sigma)
    whole = time.perf_counter() - start
    difference = float(np.abs(np.asarray(ours)[0] - expected).max())
    assert difference < 1e-4, difference
    mine = statistics.median(times)
    print(
        f"{options.size}², {options.cells} cells: ours {mine:.3f} s, one transform per object {whole:.1f} s, "
        f"ratio {whole / mine:.0f}, largest difference {difference:.1e}"
    )
    record = {
        "size": options.size,
        "cells": options.cells,
        "ours_s": times,
        "per_object_s": whole,
        "ratio": whole / mine,
        "largest_difference": difference,
        "hardware": hardware(torch.device("cpu")),
        "versions": code_version(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
