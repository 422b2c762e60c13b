"""Border weight map (Eq. 2): ours compared with usual code, from 256² to 4096² and from 20 to 20,000 objects.

    python -m benchmarks.weight_map [--size 1024] [--cells 400]

The peers are one distance transform of the whole image per object (scipy); the same within the bounding box of each
object, padded as far as the term reaches, as a skilled user would write it; and the often copied code with
scikit-image: the boundary of each object, and the distance from every pixel to all of it, for all objects at once.
Results are compared before times are, wherever a peer is run in full. The time of a peer that would take longer than
QUICK seconds is estimated from 5 objects and marked in the table; one that needs more than MOST_GB is not run. All use
one thread.

Written to benchmarks/results/weight_map.json, with the exponents of cost ~ pixels^a and cost ~ objects^b.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.peers import alternately, arguments, available, markdown, record, summary, title
from monai_unet.transforms import BorderWeightMap, SeparateInstances

#: (spatial size, objects)
CASES = (
    ((256, 256), 20),
    ((512, 512), 20),
    ((512, 512), 200),
    ((512, 512), 2000),
    ((1024, 1024), 200),
    ((2048, 2048), 200),
    ((4096, 4096), 200),
    ((4096, 4096), 2000),
    ((4096, 4096), 20000),
    ((96, 96, 96), 20),
    ((128, 128, 128), 50),
)
#: seconds; the time of a slower peer is estimated from a few objects
QUICK = 3.0
SOME = 5
#: size of the largest array; a peer needs about three of them
MOST_GB = 1.0
OURS, WHOLE, BOXES, PAIRS = "ours", "whole-image transforms", "transforms in boxes", "scikit-image, all pairs"


def touching_cells(size: Sequence[int], count: int) -> np.ndarray:
    """(1, *size) ids: Voronoi cells of random seeds, with some background."""
    seeds = np.zeros(size, np.int32)
    seeds.flat[np.random.default_rng(0).choice(seeds.size, count, replace=False)] = np.arange(1, count + 1)
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    radius = 0.7 * (np.prod(size) / count) ** (1 / len(size))
    return np.where(distance < radius, seeds[tuple(nearest)], 0)[None]


def numbers(ids: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.bincount(ids.ravel())[1:]) + 1


def one_transform_per_object(ids: np.ndarray, w0: float, sigma: float, some: int | None = None) -> np.ndarray:
    """Eq. 2 literally, keeping the two smallest distances so that memory does not grow with the number of objects."""
    d1 = np.full(ids.shape, np.inf)
    d2 = d1.copy()
    for label in numbers(ids)[:some]:
        distance = ndimage.distance_transform_edt(ids != label)
        d2 = np.minimum(d2, np.maximum(d1, distance))
        d1 = np.minimum(d1, distance)
    return 1 + w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))


def transforms_in_boxes(ids: np.ndarray, w0: float, sigma: float, some: int | None = None) -> np.ndarray:
    """The same within padded bounding boxes; beyond the padding the term is below 1e-5."""
    pad = int(np.ceil(sigma * np.sqrt(2 * np.log(w0 / 1e-5))))
    d1 = np.full(ids.shape, np.inf)
    d2 = d1.copy()
    for label, box in list(enumerate(ndimage.find_objects(ids), start=1))[:some]:
        if box is not None:
            padded = tuple(slice(max(side.start - pad, 0), side.stop + pad) for side in box)
            distance = ndimage.distance_transform_edt(ids[padded] != label)
            d2[padded] = np.minimum(d2[padded], np.maximum(d1[padded], distance))
            d1[padded] = np.minimum(d1[padded], distance)
    return 1 + w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))


def boundaries_all_pairs(
    find_boundaries: Callable[..., np.ndarray], ids: np.ndarray, w0: float, sigma: float, some: int | None = None
) -> np.ndarray:
    """Distances from every pixel to the boundary of each object: correct in the background, not inside objects."""
    pixels = np.indices(ids.shape).reshape(ids.ndim, 1, -1)
    labels = numbers(ids)[:some]
    distances = np.full((max(len(labels), 2), ids.size), np.inf)
    for line, label in zip(distances, labels, strict=False):
        boundary = np.argwhere(find_boundaries(ids == label, mode="inner")).T[:, :, None]
        squares = sum((mine - all_) ** 2 for mine, all_ in zip(boundary, pixels, strict=True))
        line[:] = np.sqrt(squares).min(axis=0)
    distances.partition(1, axis=0)
    return (1 + w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))).reshape(ids.shape)


def scikit_image() -> Callable[..., np.ndarray]:
    from skimage.segmentation import find_boundaries

    return functools.partial(boundaries_all_pairs, find_boundaries)


def largest_array_gb(ids: np.ndarray) -> float:
    """Size for `boundaries_all_pairs`: distances to the boundary of one object, or to all objects; 8 bytes each."""
    objects = [ids[box] == label for label, box in enumerate(ndimage.find_objects(ids), start=1) if box]
    boundary = max(np.count_nonzero(mask & ~ndimage.binary_erosion(mask)) for mask in objects)
    return max(boundary, len(objects)) * ids.size * 8 / 1e9


def seconds(work: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def differs(ids: np.ndarray, ours: np.ndarray, other: np.ndarray, name: str) -> float:
    where = ids == 0 if name == PAIRS else slice(None)
    difference = float(np.abs(ours - other)[where].max())
    if difference > 1e-4:
        raise AssertionError(f"{name} differs from ours by {difference:.1e} on {ids.shape}")
    return difference


def compare(size: Sequence[int], count: int) -> list[dict[str, Any]]:
    """One row per method; "how" is "measured", "estimated …" or "not run …"."""
    ids = np.asarray(SeparateInstances(keep_ids=True)(touching_cells(size, count)))[0]
    transform = BorderWeightMap(class_weights=None)
    ours = np.asarray(transform(ids[None]))[0]
    peers = {WHOLE: lambda: one_transform_per_object, BOXES: lambda: transforms_in_boxes, PAIRS: scikit_image}
    works: dict[str, Callable[[], object]] = {OURS: functools.partial(transform, ids[None])}
    about = {"size": size, "objects": count}
    rows, slow = [], False
    for name, peer in available(peers).items():
        if name == PAIRS and (needs := largest_array_gb(ids)) > MOST_GB:
            rows.append({**about, "name": name, "how": f"not run: one array of {three_digits(needs)} GB"})
            continue
        none, some = (seconds(peer, ids, transform.w0, transform.sigma, number) for number in (0, SOME))
        estimate = none + (some - none) * count / SOME
        if name == BOXES or estimate < QUICK:
            slow = slow or estimate > 1
            works[name] = functools.partial(peer, ids, transform.w0, transform.sigma)
            difference = differs(ids, ours, peer(ids, transform.w0, transform.sigma), name)
            rows.append({**about, "name": name, "how": "measured", "largest_difference": difference})
        else:
            rows.append({**about, "name": name, "how": f"estimated from {SOME} objects", "median_s": estimate})
    rounds = 1 if slow or np.prod(size) > 2**22 or len(size) == 3 else 3
    measured = {row["name"]: row for row in summary(alternately(works, rounds, warm_up=False), OURS)}
    rows = [{**about, "name": OURS, "how": "measured"}, *rows]
    for row in rows:
        row.update(measured.get(row["name"], {}))
        if "median_s" in row:
            row.setdefault("ratio", row["median_s"] / measured[OURS]["median_s"])
    return rows


def exponents(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Slope of log time over log pixels (200 objects, 2-D) and over log objects (4096²), per method."""
    in_2d = [row for row in rows if len(row["size"]) == 2 and "median_s" in row]
    found: dict[str, dict[str, float]] = {}
    for name in (OURS, BOXES, WHOLE):
        mine = [row for row in in_2d if row["name"] == name]
        pixels = [(np.prod(row["size"]), row["median_s"]) for row in mine if row["objects"] == 200]
        objects = [(row["objects"], row["median_s"]) for row in mine if row["size"][0] == 4096]
        if len(pixels) > 1 and len(objects) > 1:
            slopes = [float(np.polyfit(*np.log(np.transpose(points)), 1)[0]) for points in (pixels, objects)]
            found[name] = dict(zip(("pixels", "objects"), slopes, strict=True))
    return found


def headline(size: int, cells: int) -> dict[str, Any]:
    """Measure one case in full, however long the whole-image transforms take."""
    ids = SeparateInstances(keep_ids=True)(touching_cells((size, size), cells))
    transform = BorderWeightMap(class_weights=None)
    times = alternately({OURS: functools.partial(transform, ids)}, 5)[OURS]
    start = time.perf_counter()
    expected = one_transform_per_object(np.asarray(ids)[0], transform.w0, transform.sigma)
    whole = time.perf_counter() - start
    difference = differs(np.asarray(ids)[0], np.asarray(transform(ids))[0], expected, WHOLE)
    ratio = whole / statistics.median(times)
    about = {"size": size, "cells": cells, "ours_s": times, "per_object_s": whole}
    return {**about, "ratio": ratio, "largest_difference": difference}


def three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def table(record: dict[str, Any]) -> str:
    """Markdown of benchmarks/results/weight_map.json."""
    names = (OURS, BOXES, WHOLE, PAIRS)
    cases: dict[tuple[str, int], dict[str, str]] = {}
    for row in record["rows"]:
        cell = row["how"]
        if "median_s" in row:
            seconds = f"{three_digits(row['median_s'])} s" + ("" if row["how"] == "measured" else " (estimated)")
            cell = seconds if row["name"] == OURS else f"{seconds}, × {three_digits(row['ratio'])}"
        cases.setdefault((title(row["size"]), row["objects"]), {})[row["name"]] = cell
    lines = [
        (size, f"{objects:,}", *(cells.get(name, "") for name in names)) for (size, objects), cells in cases.items()
    ]
    for axis in ("pixels", "objects"):
        growth = [f"{record['exponents'][n][axis]:.2f}" if n in record["exponents"] else "" for n in names]
        lines.append((f"exponent of {axis}", "", *growth))
    return markdown(("size", "objects", *names), lines)


def main() -> None:
    given = arguments(__doc__, size=1024, cells=400)
    first = headline(given.size, given.cells)
    print(
        f"{first['size']}², {first['cells']} cells: ours {statistics.median(first['ours_s']):.3f} s, "
        f"one transform per object {first['per_object_s']:.1f} s, ratio {first['ratio']:.0f}, "
        f"largest difference {first['largest_difference']:.1e}",
        flush=True,
    )
    rows = [row for size, count in CASES for row in compare(size, count)]
    facts = {**first, "exponents": exponents(rows)}
    print(table(record("weight_map", rows, packages=("scipy", "scikit-image"), **facts)))


if __name__ == "__main__":
    main()
