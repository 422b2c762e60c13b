"""One MLflow run for each training or evaluation, with what it takes to repeat it."""

from __future__ import annotations

import functools
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ignite.distributed as idist
import yaml
from ignite.engine import Engine, Events
from monai.engines import Trainer

from monai_unet.options import require
from monai_unet.provenance import code_version, config_under_construction, environment, plain
from monai_unet.redaction import file_names, redact_config, redact_parameter, redact_text, redact_uri
from monai_unet.tracking.journal import Journal
from monai_unet.tracking.sending import PARENT_TAG, Sender
from monai_unet.tracking.system_metrics import SystemMetrics

__all__ = ["Tracking"]

#: MLflow's own default store, which `mlflow ui` in the same folder opens
DEFAULT_STORE = "mlflow.db"
#: the tag that holds "training" or "evaluation"
KIND_TAG = "monai_unet.kind"
#: characters; MLflow truncates longer parameters
LONGEST_PARAMETER = 6000


class Tracking:
    """Log a training or an evaluation to MLflow, as a run of its own.

    One object serves a whole workflow: attached to a trainer, it logs loss and learning rate at each step; attached to
    the evaluator that validates, it logs the metrics at the trainer's step; attached to an evaluator alone, it gives
    the evaluation a run of its own. The run ends as FINISHED; as KILLED if the workflow is interrupted or told to
    exit; as FAILED, with the exception's text in the tag ``error``, if it raises. Of several processes only the first
    logs. Everything is written to a `Journal`, so that no step waits for the server.

    The store is ``uri``, the environment variable ``MLFLOW_TRACKING_URI``, which `mlflow.set_tracking_uri` sets, or
    else ``sqlite:///mlflow.db`` in the working folder; of any kind that MLflow knows. The run is a child of the run
    around it, if there is one (`mlflow.start_run`, or ``MLFLOW_RUN_ID``), and in its experiment. Otherwise
    ``MLFLOW_EXPERIMENT_ID``, which `mlflow.set_experiment` sets, and ``MLFLOW_EXPERIMENT_NAME`` override the
    experiment's name (Databricks requires a path). ``MLFLOW_RUN_CONTEXT`` adds tags.

    Args:
        experiment_name: MLflow's experiment, by convention the bundle's name.
        parameters: hyperparameters and facts to log, such as the data set's checksum. In full in the artifact
            ``parameters.json``; as MLflow's parameters up to 6000 characters, longer ones refer to the artifact.
        folder: keeps what is not sent yet; ``python -m monai_unet.tracking send FOLDER`` sends it.
        run_name: None for ``MLFLOW_RUN_NAME``, or else the data set, the time, and "training" or "evaluation".
        uri: of the store.
        docs: a folder whose pictures (PNG), such as those of the data, are logged with the run, under ``data/``.

    Attributes:
        journal: where handlers log files and metrics of their own; None before the run starts, after its end, and in
            all processes but the first.
        trainer: the trainer it is attached to, if any.
        config: the bundle's config, overrides included; None outside a bundle.

    Raises:
        ImportError: mlflow is missing; ``pip install "monai_unet[tracking]"`` installs it.
        ValueError: the store is a plain folder, which MLflow no longer supports; ``MLFLOW_RUN_CONTEXT`` is not JSON.

    >>> tracking = Tracking("membranes", {"learning_rate": 0.01, "dataset": "isbi2012 sha256:2f1e"})
    >>> trainer = Engine(lambda engine, batch: None)
    >>> tracking.attach(trainer)  # trainer.run() then opens the run, and ends it
    """

    def __init__(
        self,
        experiment_name: str,
        parameters: Mapping[str, Any],
        folder: str | os.PathLike[str] = "mlflow_spool",
        run_name: str | None = None,
        uri: str | None = None,
        docs: str | os.PathLike[str] | None = None,
    ) -> None:
        require("mlflow", "tracking")
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(DEFAULT_STORE).absolute()}"
        if urlsplit(self.uri).scheme in ("", "file") and self.uri != "databricks":
            raise ValueError(
                f"{'tracking_uri' if uri else 'MLFLOW_TRACKING_URI'} is {self.uri!r}; MLflow no longer keeps runs in "
                "plain folders. Use sqlite:////FOLDER/mlflow.db or a server's address"
            )
        self.experiment_name, self.run_name = experiment_name, run_name
        self.tags = _tags_from_environment()
        self.parameters = dict(parameters)
        self.folder = Path(folder)
        self.docs = None if docs is None else Path(docs)
        self.config = config_under_construction()
        self.trainer: Engine | None = None
        self.journal: Journal | None = None
        self._latest: Journal | None = None
        self._resumes: str | None = None
        self._reported: BaseException | None = None
        self._system_metrics = SystemMetrics()

    @property
    def run_id(self) -> str | None:
        """The argument of `resume`: MLflow's id of the run, or until a server has assigned one, a name that finds it.

        None before the run starts, and in all processes but the first.
        """
        return self._latest.run_id if self._latest else None

    def resume(self, run_id: str) -> None:
        """Continue a run instead of starting one; call it before the engine starts."""
        self._resumes = run_id

    def attach(self, engine: Engine) -> None:
        """Log this engine, a trainer or an evaluator; call it once for each."""
        engine.add_event_handler(Events.STARTED, self._start)
        if isinstance(engine, Trainer):
            self.trainer = engine
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._log_step)
        else:
            engine.add_event_handler(Events.COMPLETED, self._log_evaluation)
        # not through EXCEPTION_RAISED: if one of its handlers raises, ignite does not call the others
        engine.run = self._watched(engine, engine.run)  # type: ignore[method-assign]

    def _start(self, engine: Engine) -> None:
        """Open the run, with all that is known before the first step."""
        if self.journal is not None or idist.get_rank() > 0:
            return
        versions = code_version()
        facts = {name: getattr(engine.state, name) for name in ("max_epochs", "epoch_length")}
        values = {k: redact_parameter(plain(v)) for k, v in {**self.parameters, **facts, **versions}.items()}
        data, _, checksum = values.get("dataset", self.experiment_name).partition(" sha256:")
        kind = "training" if self.trainer else "evaluation"
        tags = {KIND_TAG: kind}
        if "commit" in versions:
            tags["mlflow.source.git.commit"] = versions["commit"].rstrip("+")
        around = require("mlflow", "tracking").active_run()
        if parent := around.info.run_id if around else os.environ.get("MLFLOW_RUN_ID"):
            tags[PARENT_TAG] = parent
        tags |= self.tags
        name = tags.pop("mlflow.runName", None) or f"{data} {time.strftime('%Y-%m-%d %H:%M:%S')} {kind}"
        self.journal = self._latest = journal = self._open_journal()
        journal.append(
            "run",
            experiment=self.experiment_name,
            experiment_id=os.environ.get("MLFLOW_EXPERIMENT_ID"),
            name=self.run_name or os.environ.get("MLFLOW_RUN_NAME") or name,
            tags=tags,
            time=int(time.time() * 1000),
            uri=redact_uri(self.uri),
            resume=self._resumes,
        )
        if checksum:
            journal.append("dataset", name=data, digest=checksum[:36])  # MLflow's limit
        short = {
            k: v if len(v) <= LONGEST_PARAMETER else f"{len(v)} characters: see parameters.json"
            for k, v in values.items()
        }
        journal.append("params", params=list(short.items()))
        journal.log_file("parameters.json", json.dumps(values, indent=1))
        journal.log_file("environment.txt", environment())
        for picture in sorted(self.docs.glob("*.png")) if self.docs else ():
            journal.log_file(picture.name, picture.read_bytes(), "data")
        if self.config is not None:
            config = yaml.safe_dump(redact_config(self.config), sort_keys=False, allow_unicode=True)
            journal.log_file("config.yaml", config)
        journal.start()

    def _open_journal(self) -> Journal:
        """The journal that a resumed run has left here, or else a new one."""
        for journal in self.folder.glob("*/journal.jsonl") if self._resumes else ():
            if self._resumes in (journal.parent.name, Sender(journal.parent).run_id):
                try:
                    return Journal(journal.parent, self.uri)
                except BlockingIOError:  # it is being sent: MLflow will find the run by its name
                    break
        return Journal(self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:12]}", self.uri)

    def _log_step(self, engine: Any) -> None:
        if self.journal is not None:
            rates = {f"lr_group_{i}": group["lr"] for i, group in enumerate(engine.optimizer.param_groups)}
            metrics = {"Loss": engine.state.output[0]["loss"], **rates, **self._system_metrics()}
            self.journal.log_metrics(metrics, engine.state.iteration)

    def _log_evaluation(self, engine: Engine) -> None:
        if self.journal is not None:
            self.journal.log_metrics(engine.state.metrics, self.trainer.state.iteration if self.trainer else 0)

    def _watched(self, engine: Engine, run: Callable[..., Any]) -> Callable[..., Any]:
        """``engine.run``, wrapped to report its outcome to MLflow."""

        @functools.wraps(run)
        def watched(*args: Any, **kwargs: Any) -> Any:
            status = "FAILED"
            try:
                result = run(*args, **kwargs)
                # terminated without its COMPLETED event: somebody has stopped it
                status = "KILLED" if engine.should_terminate == "skip_completed" else "FINISHED"
                return result
            except (KeyboardInterrupt, SystemExit):
                status = "KILLED"
                raise
            except BaseException as error:
                self._report(engine, error)
                raise
            finally:
                if self.journal is not None and self.trainer in (None, engine):
                    journal, self.journal = self.journal, None
                    journal.close(status)

        return watched

    def _report(self, engine: Engine, error: BaseException) -> None:
        """Log the error once, by the innermost engine: it knows the names of the files."""
        if self.journal is None or error is self._reported:
            return
        self._reported = error
        data = getattr(getattr(engine, "data_loader", None), "dataset", None)
        names = file_names(getattr(data, "data", None))
        own = (getattr(error, name, None) for name in ("path", "filename"))  # InputError, OSError
        names |= {path for path in own if isinstance(path, str) and len(path) > 2}
        text = redact_text(str(error), names)
        self.journal.append("tag", key="error", value=f"{type(error).__name__}: {text}"[:5000])


def _tags_from_environment() -> dict[str, str]:
    """The tags that MLflow's clients add to each run: ``MLFLOW_RUN_CONTEXT``, a JSON object."""
    text = os.environ.get("MLFLOW_RUN_CONTEXT") or "{}"
    try:
        return {name: str(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise ValueError(f"MLFLOW_RUN_CONTEXT is {text!r}; it must be a JSON object of tags") from None
