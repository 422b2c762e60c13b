"""A stand-in for `monai_unet.tracking.Tracking` where MLflow is not installed: nothing is logged."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from monai.engines import Trainer

#: for `python -m monai.bundle run`, of a training or an evaluation
OPTIONS = {"tracking#_target_": "benchmarks.untracked.Untracked"}


class Untracked:
    """Takes what `Tracking` takes, and has what the bundle's handlers ask of it."""

    journal = run_id = config = None

    def __init__(self, **settings: Any) -> None:
        self.trainer: Engine | None = None

    def attach(self, engine: Engine) -> None:
        if isinstance(engine, Trainer):
            self.trainer = engine

    def resume(self, run_id: str) -> None:
        """There is nothing to continue."""
