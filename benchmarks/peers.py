"""Shared by the benchmarks: timing in turn, summaries, and results as JSON with versions and hardware.

Those that take turns share the load of the machine; each round starts with another one, so that none is always first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from monai_unet.provenance import code_version, hardware

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


def arguments(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """Read the command line: one option per default, of its type; a tuple takes several values."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        several = isinstance(default, tuple)
        kind = type(default[0] if several else default)
        parser.add_argument(f"--{name}", type=kind, default=default, nargs="+" if several else None)
    return parser.parse_args()


def available(makers: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Call each of ``makers``; report and leave out a library that is not installed."""
    made = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except ImportError as e:
            print(f'{name} is left out, its import failed ({e}): pip install "monai_unet[peers]"', flush=True)
    return made


def alternately(works: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Time each of ``works`` once per round, in seconds, after a warm-up; every round starts with another one.

    Use ``warm_up=False`` if each has run before, or if one cold turn does not change a median.
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


def spread(times: Sequence[float]) -> dict[str, float]:
    return {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}


def median_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of the ratio to ``base`` in the same round."""
    return statistics.median(mine / unit for mine, unit in zip(times, base, strict=True))


def summary(times: Mapping[str, Sequence[float]], base: str) -> list[dict[str, Any]]:
    """One row per name, with the median ratio to ``base``."""
    return [{"name": name, **spread(taken), "ratio": median_ratio(taken, times[base])} for name, taken in times.items()]


def channels(top: int) -> tuple[int, ...]:
    """Channels of the five levels, doubled from level to level as in Fig. 1."""
    return tuple(top * 2**level for level in range(5))


def title(size: Sequence[int]) -> str:
    return f"{size[0]}{'²³'[len(size) - 2]}"


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; otherwise it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def record(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    packages: Iterable[str] = (),
    device: torch.device | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write ``benchmarks/results/NAME.json`` and return its content.

    Args:
        name: of the benchmark.
        rows: its results.
        packages: names at PyPI of the libraries compared with; those that are not installed have no version.
        device: that was measured; None for the CPU.
        facts: anything else.
    """
    versions = code_version()
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    about = {"hardware": hardware(device or torch.device("cpu")), "versions": versions}
    held = {**facts, "rows": list(rows), **about}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(held, indent=1) + "\n")
    return held


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are written as they are: format numbers before."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
