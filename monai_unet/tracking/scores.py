"""The scores of an evaluation, per image and overall: printed, written, logged."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_unet.files import replacing
from monai_unet.tracking.run import Tracking

__all__ = ["Scores"]


class Scores:
    """Prints a table of an evaluator's metrics and writes it as ``scores.json`` and ``scores.csv``.

    The overall value of a metric is that of ``engine.state.metrics``; the values per image come from
    ``engine.state.metric_details``, where MONAI's `IgniteMetricHandler` leaves them.

    Args:
        folder: where the files go; made when needed.
        tracking: adds the files, with numbers in place of names, and the values per image (step = position) to the
            MLflow run.
        facts: what else ``scores.json`` shall say: checkpoint, averaging, data set.
    """

    def __init__(
        self, folder: str | os.PathLike[str], tracking: Tracking | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.tracking = tracking
        self.facts = facts or {}
        self.images: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.images.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note_images)
        engine.add_event_handler(Events.COMPLETED, self)

    def _note_images(self, engine: Engine) -> None:
        items: Any = engine.state.output
        self.images += [Path(item["image"].meta["filename_or_obj"]).name for item in items]

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        overall = {name: float(value) for name, value in state.metrics.items()}
        details = {name: state.metric_details[name].flatten(1).nanmean(1).tolist() for name in overall}
        table = [dict(zip(overall, values, strict=True)) for values in zip(*details.values(), strict=True)]
        rows = [{"image": image, **row} for image, row in zip(self.images, table, strict=True)]

        width = max(map(len, [*self.images, "overall"]))
        print(" " * width, *(f"{name:>{max(16, len(name))}}" for name in overall))
        for row in [*rows, {"image": "overall", **overall}]:
            print(f"{row['image']:<{width}}", *(f"{row[name]:{max(16, len(name))}.6f}" for name in overall))

        for name, content in _files({**self.facts, "overall": overall, "images": rows}).items():
            with replacing(self.folder / name) as partial:
                partial.write_text(content)
        if self.tracking is not None:  # files' names may be patients', so there the images have numbers
            rows = [{**row, "image": number} for number, row in enumerate(rows, start=1)]
            for name, content in _files({"overall": overall, "images": rows}).items():
                self.tracking.log_text(name, content)
            for name, values in details.items():
                self.tracking.log_series(f"{name}_per_image", values)


def _files(record: dict[str, Any]) -> dict[str, str]:
    """The record as ``scores.json``, with inf and NaN as Python writes them, and its numbers as ``scores.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", *record["overall"]])
    writer.writeheader()
    writer.writerows([*record["images"], {"image": "overall", **record["overall"]}])
    return {"scores.json": json.dumps(record, indent=2), "scores.csv": text.getvalue()}
