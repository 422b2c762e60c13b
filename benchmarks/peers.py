"""What the benchmarks share: ours and the peers timed in turn, summarised, and kept as JSON with versions and hardware.

Times taken in turn share what the machine does meanwhile; each round starts with another, so that none is always first.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from monai_unet.tracking.provenance import code_version

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


def available(makers: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """What each of them makes; a peer that is not installed is left out, with a line that says so."""
    made = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except ImportError as e:
            print(f'{name} is left out, it does not import ({e}): pip install "monai_unet[peers]"', flush=True)
    return made


def alternately(works: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each work in each round, after one warm-up of each; every round starts with another of them.

    ``warm_up=False`` where each has run already, or where one cold turn does not decide a median.
    """
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1 if warm_up else 0, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            works[name]()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def summary(times: Mapping[str, Sequence[float]], base: str) -> list[dict[str, Any]]:
    """One row per name: ``ratio`` is the median over the rounds of its time over the base's in the same round."""
    rows = []
    for name, taken in times.items():
        ratio = statistics.median(mine / unit for mine, unit in zip(taken, times[base], strict=True))
        row = {"name": name, "median_s": statistics.median(taken), "min_s": min(taken), "max_s": max(taken)}
        rows.append({**row, "ratio": ratio})
    return rows


def record(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    packages: Iterable[str] = (),
    device: str = "cpu",
    **facts: Any,
) -> dict[str, Any]:
    """Write ``benchmarks/results/NAME.json``, and return what it holds.

    ``packages`` are the peers' names at PyPI; those that are not installed have no version.
    """
    from benchmarks.training_step import hardware  # not above: that benchmark imports this module

    versions = code_version()
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    held = {**facts, "rows": list(rows), "hardware": hardware(torch.device(device)), "versions": versions}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(held, indent=1) + "\n")
    return held


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are written as they are, so numbers come as text with the digits that count."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
