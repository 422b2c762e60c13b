"""MLflow: one training, one run, with what is needed to do it again."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import ignite
import ignite.distributed as idist
import monai
import torch
import yaml
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines import Trainer
from monai.handlers import MLFlowHandler

import monai_unet
from monai_unet.options import require
from monai_unet.tracking.journal import Spool
from monai_unet.tracking.redaction import file_names, public_config, public_parameter, public_text
from monai_unet.tracking.sending import Sender, public

__all__ = ["Tracking", "code_version"]

#: MLflow's own default store, which `mlflow ui` in the same folder opens
DEFAULT_STORE = "mlflow.db"
#: characters; MLflow cuts what is longer
LONGEST_PARAMETER = 6000
#: seconds between two looks at CPU, memory and GPU
SYSTEM_INTERVAL = 10.0


class Tracking(MLFlowHandler):
    """MONAI's `MLFlowHandler` with a run of its own for each training, a server that may go away, and the provenance.

    One object serves a whole workflow: attached to a trainer it logs loss and learning rate per step, attached to the
    evaluator that validates it logs the metrics at the trainer's step; attached to an evaluator alone, the evaluation
    has a run of its own. The run ends as FINISHED; as KILLED when the workflow is interrupted or told to exit; as
    FAILED, with the exception's text in the tag ``error``, when it raises. Of several processes only the first logs.

    What is logged goes through a `Spool`, so that the training waits for no server.

    The store is that of the environment variable ``MLFLOW_TRACKING_URI``, any that MLflow knows, else
    ``sqlite:///mlflow.db`` in the working folder. ``MLFLOW_EXPERIMENT_NAME`` overrides the experiment's name
    (Databricks wants a path).

    Args:
        experiment_name: MLflow's experiment, here the bundle's name.
        parameters: hyperparameters and facts to log, the data set's checksum for instance. Whole in the artifact
            ``parameters.json``; as MLflow's parameters up to 6000 characters, longer ones refer to it.
        folder: keeps what is not sent yet; ``python -m monai_unet.tracking send FOLDER`` sends it.

    Raises:
        ImportError: without mlflow; ``pip install "monai_unet[tracking]"`` brings it.
        ValueError: for a store that is a plain folder, which MLflow has given up.
    """

    def __init__(
        self, experiment_name: str, parameters: Mapping[str, Any], folder: str | os.PathLike[str] = "mlflow_spool"
    ) -> None:
        require("mlflow", "tracking")
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(DEFAULT_STORE).absolute()}"
        if urlsplit(self.uri).scheme in ("", "file") and self.uri != "databricks":
            raise ValueError(
                f"MLFLOW_TRACKING_URI is {self.uri!r}; MLflow keeps no runs in plain folders any more. "
                "Use sqlite:////FOLDER/mlflow.db or a server's address"
            )
        variable = os.environ.pop("MLFLOW_TRACKING_URI", None)
        try:  # MONAI's handler makes a client at once, which for a database connects: not this one, and it is replaced
            super().__init__(
                tracking_uri="http://127.0.0.1",
                experiment_name=experiment_name,
                output_transform=lambda output: output[0]["loss"],
                epoch_log=False,
            )
        finally:
            os.environ.update({} if variable is None else {"MLFLOW_TRACKING_URI": variable})
        self.client: Any = None
        self.cur_run: Any = None
        self.parameters = dict(parameters)
        self.folder = Path(folder)
        self.config = _config_under_construction()
        self.trainer: Engine | None = None
        self._resumes: str | None = None
        self._monitors = _monitors()
        self._look = 0.0
        self._told: BaseException | None = None

    @property
    def run_id(self) -> str | None:
        """What `resume` takes: MLflow's id of the run, or while no server has given one, a name by which it will be
        found; None before the run starts, and in all processes but the first."""
        return self.client.run_id if self.client else None

    def resume(self, run_id: str) -> None:
        """Continue a run instead of starting one. To be called before the engine starts."""
        self._resumes = run_id

    def attach(self, engine: Engine) -> None:
        if isinstance(engine, Trainer):
            self.trainer = engine
            super().attach(engine)
        else:
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.COMPLETED, self._evaluated)
        # not by the event EXCEPTION_RAISED: of its handlers the first one raises, and the others are never called
        engine.run = self._watched(engine, engine.run)  # type: ignore[method-assign]

    def start(self, engine: Engine) -> None:
        """Open the run, with all that is known before the first step."""
        if self.cur_run is not None or idist.get_rank() > 0:
            return
        versions = code_version()
        facts = {name: getattr(engine.state, name) for name in self.default_tracking_params}
        values = {k: public_parameter(v) for k, v in {**self.parameters, **facts, **versions}.items()}
        data, _, checksum = values.get("dataset", self.experiment_name).partition(" sha256:")
        self.client = self._spool()
        self.client.note(
            "run",
            experiment=self.experiment_name,
            name=f"{data} {time.strftime('%Y-%m-%d %H:%M:%S')}",
            tags={"mlflow.source.git.commit": versions["commit"].rstrip("+")} if "commit" in versions else {},
            time=int(time.time() * 1000),
            uri=public(self.uri),
            resume=self._resumes,
        )
        self.cur_run = SimpleNamespace(info=self.client)  # it has a run_id
        if checksum:
            self.client.note("dataset", name=data, digest=checksum[:36])  # no more is allowed
        whole = "{} characters: see parameters.json"
        self._log_params({k: v if len(v) <= LONGEST_PARAMETER else whole.format(len(v)) for k, v in values.items()})
        self.log_text("parameters.json", json.dumps(values, indent=1))
        self.log_text("environment.txt", environment())
        if self.config is not None:
            config = public_config(self.config)
            self.log_text("config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        self.client.start()

    def iteration_completed(self, engine: Engine) -> None:
        if self.cur_run is None:
            return
        super().iteration_completed(engine)
        if time.monotonic() >= self._look:
            self._look = time.monotonic() + SYSTEM_INTERVAL
            self._log_metrics(_system_metrics(self._monitors), step=engine.state.iteration)

    def log_file(self, path: str | os.PathLike[str], folder: str | None = None, name: str | None = None) -> None:
        """Add a copy of a file to the run's artifacts, under a name that names nobody."""
        if self.cur_run is not None:
            self.client.log_artifact("", os.fspath(path), folder, name)

    def log_text(self, name: str, text: str) -> None:
        """Add a text to the run's artifacts."""
        if self.cur_run is not None:
            self.client.log_text("", text, name)

    def log_series(self, name: str, values: Sequence[float]) -> None:
        """Log numbers of one name, with their positions as steps."""
        for step, value in enumerate(values if self.cur_run is not None else ()):
            self._log_metrics({name: value}, step=step)

    @contextlib.contextmanager
    def model(self, name: str, tags: Mapping[str, str]) -> Iterator[Path | None]:
        """A place for an MLflow model, to be written in the block; it goes into the run and the registry, as a new
        version of ``name`` with these tags. None where nothing is logged."""
        place = self.client.place("model") if self.cur_run is not None else None
        yield place
        if place is not None:
            self.client.send_model(place, name, tags)

    def _spool(self) -> Spool:
        """The spool that a resumed run has left here, else a new one."""
        for journal in self.folder.glob("*/journal.jsonl") if self._resumes else ():
            if self._resumes in (journal.parent.name, Sender(journal.parent).run_id):
                return Spool(journal.parent, self.uri)
        return Spool(self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:12]}", self.uri)

    def _evaluated(self, engine: Engine) -> None:
        if self.cur_run is not None:
            numbers: dict[str, float] = {
                name: value for name, value in engine.state.metrics.items() if isinstance(value, int | float)
            }
            self._log_metrics(numbers, step=self.trainer.state.iteration if self.trainer else 0)

    def _watched(self, engine: Engine, run: Callable[..., Any]) -> Callable[..., Any]:
        """The engine's run, that tells the outcome to MLflow's."""

        @functools.wraps(run)
        def watched(*args: Any, **kwargs: Any) -> Any:
            status = "FAILED"
            try:
                result = run(*args, **kwargs)
                # terminated without its COMPLETED event: somebody has stopped it
                status = "KILLED" if engine.should_terminate == "skip_completed" else "FINISHED"
                return result
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    status = "KILLED"
                elif self.cur_run is not None and error is not self._told:
                    self._told = error  # by the engine that knows the files' names; it may run within another
                    data = getattr(getattr(engine, "data_loader", None), "dataset", None)
                    names = file_names(getattr(data, "data", None))
                    own = (getattr(error, name, None) for name in ("path", "filename"))  # InputError, OSError
                    names |= {path for path in own if isinstance(path, str) and len(path) > 2}
                    text = public_text(str(error), names)
                    self.client.set_tag("", "error", f"{type(error).__name__}: {text}"[:5000])
                raise
            finally:
                if self.cur_run is not None and self.trainer in (None, engine):
                    self.cur_run = None
                    self.client.set_terminated("", status)

        return watched


def code_version() -> dict[str, str]:
    """Versions of the code that runs; where it is a git checkout, the commit ("+" for uncommitted changes)."""
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
        versions["tree"] = "modified" if versions["commit"].endswith("+") else "clean"
    return versions


def environment() -> str:
    """Everything that is installed, as pip would write it, below Python and platform."""
    installed = {f"{package.name}=={package.version}" for package in importlib.metadata.distributions()}
    first = f"# Python {platform.python_version()}, {platform.platform()}"
    return "\n".join([first, *sorted(installed, key=str.lower)])


def _monitors() -> list[Any]:
    """MLflow's own, for what this machine has."""
    found: list[Any] = []
    with contextlib.suppress(ImportError, RuntimeError):  # without psutil; without nvidia-ml-py or an Nvidia GPU
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        found.append(CPUMonitor())
        found.append(GPUMonitor())
    return found


def _system_metrics(monitors: Sequence[Any]) -> dict[str, float]:
    """By the names under which MLflow shows them apart."""
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return values


def _config_under_construction() -> dict[str, Any] | None:
    """The config that is being instantiated. MONAI's parser does not hand itself to what it builds, so it is looked
    up among the callers; None outside a bundle."""
    for caller in inspect.stack(context=0):
        parser = caller.frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return dict(parser.get())
    return None
