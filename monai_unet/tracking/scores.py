"""The scores of an evaluation, per image and overall: printed, written and logged."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_unet.files import replacing
from monai_unet.tracking.journal import scalars
from monai_unet.tracking.run import Tracking

__all__ = ["Scores"]


class Scores:
    """Print a table of an evaluator's metrics, and write it as ``scores.json`` and ``scores.csv``.

    The overall values are the single numbers in ``engine.state.metrics``. The values per image come from
    ``engine.state.metric_details``, where MONAI's `IgniteMetricHandler` leaves them; the mean over an image's classes
    leaves out NaN. Metrics without such details, ignite's own for instance, have an overall value only.

    Args:
        folder: where the files go; created if missing.
        tracking: adds the files, with numbers in place of names, and the values per image (step = position) to the
            MLflow run.
        facts: further entries of ``scores.json``: checkpoint, averaging, data set.

    >>> import tempfile
    >>> from monai.data import MetaTensor
    >>> def evaluate(engine, name):
    ...     engine.state.metrics = {"dice": 0.8}
    ...     return [{"image": MetaTensor([0.0], meta={"filename_or_obj": name})}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     evaluator = Engine(evaluate)
    ...     Scores(folder).attach(evaluator)
    ...     _ = evaluator.run(["cells.tif"])
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

    def attach(self, engine: Engine) -> None:
        """Report this evaluator's metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.images.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect_images)
        engine.add_event_handler(Events.COMPLETED, self)

    def _collect_images(self, engine: Engine) -> None:
        items: Any = engine.state.output
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

        width = max(map(len, [*self.images, "overall"]))
        widths = {name: max(16, len(name)) for name in overall}
        print(" " * width, *(f"{name:>{columns}}" for name, columns in widths.items()))
        for row in [*rows, {"image": "overall", **overall}]:
            cells = (f"{row[name]:{columns}.6f}" if name in row else " " * columns for name, columns in widths.items())
            print(f"{row['image']:<{width}}", *cells)

        for name, content in _files({**self.facts, "overall": overall, "images": rows}).items():
            with replacing(self.folder / name) as partial:
                partial.write_text(content, encoding="utf-8", newline="")  # csv writes its own line ends
        journal = self.tracking.journal if self.tracking is not None else None
        if journal is not None:  # file names may be patients' names, so there the images have numbers
            rows = [{**row, "image": number} for number, row in enumerate(rows, start=1)]
            for name, content in _files({"overall": overall, "images": rows}).items():
                journal.log_file(name, content)
            for name, values in per_image.items():
                for step, value in enumerate(values):
                    journal.log_metrics({f"{name}_per_image": value}, step)


def _files(record: dict[str, Any]) -> dict[str, str]:
    """The record as ``scores.json``, with inf and NaN as Python writes them, and its numbers as ``scores.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", *record["overall"]])
    writer.writeheader()
    writer.writerows([*record["images"], {"image": "overall", **record["overall"]}])
    return {"scores.json": json.dumps(record, indent=2), "scores.csv": text.getvalue()}
