"""MLflow: one training, one run, with what is needed to do it again."""

from __future__ import annotations

import contextlib
import inspect
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite
import monai
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines import Trainer
from monai.handlers import MLFlowHandler

import monai_unet

__all__ = ["Tracking", "code_version"]

#: MLflow's own default store, which `mlflow ui` in the same folder opens
DEFAULT_URI = "sqlite:///mlflow.db"


class Tracking(MLFlowHandler):
    """MONAI's `MLFlowHandler`, with a run of its own for each training and the run's provenance in it.

    One object serves a whole workflow: attached to a trainer it logs loss and learning rate per step, attached to the
    evaluator that validates it logs the metrics at the trainer's step; attached to an evaluator alone, the evaluation
    has a run of its own. The run holds the parameters, the versions of the code, and as the artifact ``config.json``
    the config as it was run, overrides included. A run whose workflow raises ends as FAILED.

    The store is that of the environment variable ``MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db`` in the working
    folder.

    Args:
        experiment_name: MLflow's experiment, here the bundle's name.
        parameters: hyperparameters and facts to log, the data set's checksum for instance.

    Raises:
        ImportError: without mlflow; ``pip install "monai_unet[tracking]"`` brings it.
    """

    def __init__(self, experiment_name: str, parameters: Mapping[str, Any]) -> None:
        try:
            import mlflow  # noqa: F401
        except ImportError as e:
            raise ImportError('tracking needs mlflow: pip install "monai_unet[tracking]"') from e
        super().__init__(
            tracking_uri=DEFAULT_URI,  # MLFLOW_TRACKING_URI goes before it
            experiment_name=experiment_name,
            # MONAI continues an unfinished run of the same name: this one is nobody else's
            run_name=f"{time.strftime('%Y-%m-%d %H:%M:%S')} {os.getpid()}",
            experiment_param={**parameters, **code_version()},
            output_transform=lambda output: output[0]["loss"],
            epoch_log=False,
            close_on_complete=True,
        )
        self.config = _config_under_construction()
        self.trainer: Engine | None = None

    def attach(self, engine: Engine) -> None:
        if isinstance(engine, Trainer):
            self.trainer = engine
            super().attach(engine)
        else:
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.COMPLETED, self._evaluated)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def start(self, engine: Engine) -> None:
        if self.cur_run is None:
            super().start(engine)
            if self.config is not None and self.cur_run is not None:
                self.client.log_dict(self.cur_run.info.run_id, self.config, "config.json")

    def log_file(self, path: str | os.PathLike[str], folder: str | None = None) -> None:
        """Add a file to the run's artifacts."""
        if self.cur_run is not None:
            self.client.log_artifact(self.cur_run.info.run_id, os.fspath(path), folder)

    def log_series(self, name: str, values: Sequence[float]) -> None:
        """Log numbers of one name, with their positions as steps."""
        for step, value in enumerate(values):
            self._log_metrics({name: value}, step=step)

    def _evaluated(self, engine: Engine) -> None:
        numbers = {name: value for name, value in engine.state.metrics.items() if isinstance(value, int | float)}
        self._log_metrics(numbers, step=self.trainer.state.iteration if self.trainer else 0)
        if self.trainer is None:
            self.close()

    def _failed(self, engine: Engine, error: Exception) -> None:
        if self.cur_run is not None:
            self.client.set_tag(self.cur_run.info.run_id, "error", f"{type(error).__name__}: {error}"[:5000])
            self.client.set_terminated(self.cur_run.info.run_id, "FAILED")
            self.cur_run = None
        raise error


def code_version() -> dict[str, str]:
    """Versions of the code that runs, and the commit where it is a git checkout ("+" for uncommitted changes)."""
    versions = {
        "monai_unet": monai_unet.__version__,
        "torch": torch.__version__,
        "monai": monai.__version__,
        "ignite": ignite.__version__,
        "python": platform.python_version(),
    }
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # an installed wheel has no git history
        versions["commit"] = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
    return versions


def _config_under_construction() -> dict[str, Any] | None:
    """The config that is being instantiated. MONAI's parser does not hand itself to what it builds, so it is looked
    up among the callers; None outside a bundle."""
    for caller in inspect.stack(context=0):
        parser = caller.frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return dict(parser.get())
    return None
