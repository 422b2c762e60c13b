"""The scores of an evaluation, per image, overall and by type of image: printed, written and logged."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from monai_unet.files import replacing
from monai_unet.tracking.journal import scalars
from monai_unet.tracking.run import Tracking

__all__ = ["Scores", "mean_over_images"]

#: draws of as many images as there are, with replacement
RESAMPLED = 2000


class Scores:
    """Print a table of an evaluator's metrics, and write it as ``scores.json`` and ``scores.csv``.

    The overall values are the single numbers in ``engine.state.metrics``. The values per image come from
    ``engine.state.metric_details``, where MONAI's `IgniteMetricHandler` leaves them; the mean over an image's classes
    leaves out NaN. Metrics without such details, ignite's own for instance, have an overall value only.

    ``means`` in ``scores.json`` are the means over the images, with their 95 % bootstrap interval: drawing as many
    images anew, what would they be? A metric that counts objects has another overall value, where images of many
    objects count more. If items have a ``type``, ``types`` are the same for the images of each.

    Args:
        folder: where the files go; created if missing.
        tracking: adds the files, with numbers in place of names, and the values per image (step = position) to the
            MLflow run.
        facts: further entries of ``scores.json``: checkpoint, averaging, data set.

    >>> import tempfile
    >>> from monai.data import MetaTensor
    >>> def evaluate(engine, batch):
    ...     engine.state.metrics = {"dice": 0.8}
    ...     return batch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     evaluator = Engine(evaluate)
    ...     Scores(folder).attach(evaluator)
    ...     _ = evaluator.run([[{"image": MetaTensor([0.0], meta={"filename_or_obj": "cells.tif"})}]])
                         dice
    cells.tif
    overall          0.800000
    """

    def __init__(
        self, folder: str | os.PathLike[str], tracking: Tracking | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.tracking = tracking
        self.facts = facts or {}
        self.images: list[str] = []
        self.types: list[str | None] = []

    def attach(self, engine: Engine) -> None:
        """Report this evaluator's metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget_images)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect_images)
        engine.add_event_handler(Events.COMPLETED, self)

    def _forget_images(self) -> None:
        self.images.clear()
        self.types.clear()

    def _collect_images(self, engine: Engine) -> None:
        state: Any = engine.state
        items = [{**batch, **output} for batch, output in zip(state.batch, state.output, strict=True)]
        self.types += [item.get("type") for item in items]
        self.images += [Path(item["image"].meta["filename_or_obj"]).name for item in items]

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        overall = scalars(state.metrics)
        details = getattr(state, "metric_details", {})
        per_image = {name: details[name].flatten(1).nanmean(1).tolist() for name in overall if name in details}
        rows: list[dict[str, Any]] = [{"image": image} for image in self.images]
        for name, values in per_image.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value

        means = {name: mean_over_images(values) for name, values in per_image.items()}
        types: dict[str, dict[str, Any]] = {}
        for kind in sorted({kind for kind in self.types if kind is not None}):
            chosen = [number for number, found in enumerate(self.types) if found == kind]
            types[kind] = {"images": len(chosen)}
            for name, values in per_image.items():
                types[kind][name] = mean_over_images([values[number] for number in chosen])
        for title, scores in {f"mean of {len(rows)}": means, **types}.items():
            number = f", {scores['images']}" if "images" in scores else ""
            texts = [f"{name} {_mean_and_range(**scores[name])}" for name in per_image]
            if texts:
                print(f"{title}{number}:", *texts, sep="  ")
        width = max(map(len, [*self.images, "overall"]))
        widths = {name: max(16, len(name)) for name in overall}
        print(" " * width, *(f"{name:>{columns}}" for name, columns in widths.items()))
        for row in [*rows, {"image": "overall", **overall}]:
            cells = (f"{row[name]:{columns}.6f}" if name in row else " " * columns for name, columns in widths.items())
            print(f"{row['image']:<{width}}", *cells)

        record = {**self.facts, "overall": overall, "means": means, "types": types, "images": rows}
        for name, content in _files(record).items():
            with replacing(self.folder / name) as partial:
                partial.write_text(content, encoding="utf-8", newline="")  # csv writes its own line ends
        journal = self.tracking.journal if self.tracking is not None else None
        if journal is not None:  # file names may be patients' names, so there the images have numbers
            rows = [{**row, "image": number} for number, row in enumerate(rows, start=1)]
            for name, content in _files({"overall": overall, "means": means, "images": rows}).items():
                journal.log_file(name, content)
            for name, values in per_image.items():
                for step, value in enumerate(values):
                    journal.log_metrics({f"{name}_per_image": value}, step)


def mean_over_images(values: Sequence[float]) -> dict[str, Any]:
    """The mean of one number per image, and its 95 % bootstrap interval; images without a value do not count.

    Args:
        values: one per image; NaN where it has none.

    Returns:
        ``{"mean": float, "interval": [low, high]}``, NaN if no image has a value.

    >>> mean_over_images([0.5, 0.75, 1.0])
    {'mean': 0.75, 'interval': [0.5, 1.0]}
    """
    known = np.array([value for value in values if not np.isnan(value)])
    if not len(known):
        return {"mean": float("nan"), "interval": [float("nan")] * 2}
    draws = np.random.default_rng(0).integers(len(known), size=(RESAMPLED, len(known)))
    interval = np.percentile(known[draws].mean(axis=1), [2.5, 97.5], method="nearest")  # inf stays inf
    return {"mean": float(known.mean()), "interval": interval.tolist()}


def _mean_and_range(mean: float, interval: Sequence[float]) -> str:
    digits = 5 if 0 < mean < 0.01 else 3
    low, high = (f"{value:.{digits}f}" for value in interval)
    return f"{mean:.{digits}f} ({low}–{high})"


def _files(record: dict[str, Any]) -> dict[str, str]:
    """The record as ``scores.json``, with inf and NaN as Python writes them, and its numbers as ``scores.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", *record["overall"]])
    writer.writeheader()
    writer.writerows([*record["images"], {"image": "overall", **record["overall"]}])
    return {"scores.json": json.dumps(record, indent=2), "scores.csv": text.getvalue()}
