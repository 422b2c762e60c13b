"""From a journal to MLflow, each line once.

A run bears the name of its spool as a tag and is looked up by it before one is created. ``sent.json`` holds how much
has arrived. Where that may be behind (an answer was lost, a process killed) or a resumed training repeats steps, the
server is asked which steps of a metric it has, and only the others are sent.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from monai_unet.files import replacing

__all__ = ["Sender", "command", "public", "send"]

#: the tag by which a run is recognised whose creation was not answered
KEY_TAG = "monai_unet.run"
#: what a server says to a line that it will never take; anything else may pass the next time
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}
#: MLflow itself asks a server that is away for 4 minutes; here the next attempt is the next batch
HTTP = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
#: MLflow's limits for one call
METRICS, PARAMS = 1000, 100

logger = logging.getLogger(__name__)


def command(folder: Path) -> str:
    """The command that sends what a folder of spools still holds."""
    return f"python -m monai_unet.tracking send {shlex.quote(os.fspath(folder))}"


def public(uri: str) -> str | None:
    """A tracking URI fit for a file: None where it holds a password."""
    return None if urlsplit(uri).password else uri


def send(folder: Path, uri: str | None = None, but: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Send what the spools of a folder still hold, and remove those that are sent.

    Args:
        folder: as given to `Tracking`: one subfolder for each run that is not all sent.
        uri: the tracking URI; by default the one that the training had.
        but: a spool to leave out.

    Returns:
        The spools that were sent, and those left to a live training, which sends them itself.

    Raises:
        mlflow.exceptions.MlflowException: the server does not answer; nothing is lost, and it can be tried again.
    """
    done, left = [], []
    for journal in sorted(folder.glob("*/journal.jsonl")):
        if journal.parent == but:
            continue
        try:
            with FileLock(journal.parent / "lock", timeout=0):
                if journal.exists():  # else its training has just sent it, and removes it
                    Sender(journal.parent, uri).send()
                shutil.rmtree(journal.parent, ignore_errors=True)
            done.append(journal.parent)
        except Timeout:
            left.append(journal.parent)
    return done, left


class Sender:
    """Sends one journal.

    Args:
        spool: folder of the journal.
        uri: the tracking URI; None for the one that the journal names, else ``MLFLOW_TRACKING_URI``.
    """

    def __init__(self, spool: Path, uri: str | None = None) -> None:
        self.spool, self.uri = spool, uri
        self.run_id: str | None = None
        self.ended = False
        self.uploading = False
        self.offset = 0
        self._steps: dict[str, set[int]] | None = {}  # those that the server has, by metric; None: it has none
        if (spool / "sent.json").is_file():
            sent = json.loads((spool / "sent.json").read_text())
            self.run_id, self.offset = sent["run_id"], sent["offset"]

    @cached_property
    def client(self) -> Any:
        from mlflow import MlflowClient

        if self.uri is None:
            with (self.spool / "journal.jsonl").open() as journal:
                self.uri = json.loads(journal.readline())["uri"] or os.environ.get("MLFLOW_TRACKING_URI")
        for name, value in HTTP.items():
            os.environ.setdefault(name, value)
        return MlflowClient(self.uri)

    @property
    def remote(self) -> bool:
        """Whether a server keeps the store, and not this process."""
        return not (self.uri or "").startswith("sqlite")

    def send(self) -> None:
        """Send all whole lines; after an exception the next call goes on where this one stopped.

        Raises:
            mlflow.exceptions.MlflowException: the server does not answer, or will not have the run at all.
        """
        try:
            for line, end in self._lines():
                self._deliver_or_set_aside(line)
                self.offset = end
                with replacing(self.spool / "sent.json") as partial:
                    partial.write_text(json.dumps({"run_id": self.run_id, "offset": end}))
        except Exception:
            self._steps = {}  # an answer may have been lost on its way: ask
            raise

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The lines, metrics joined, each with the offset behind it. Half a line at the end is none yet."""
        joined: list[Any] = []
        with (self.spool / "journal.jsonl").open("rb") as journal:
            journal.seek(self.offset)
            end = self.offset
            for text in journal:
                if not text.endswith(b"\n"):
                    break
                try:
                    line = json.loads(text)
                except ValueError:  # what a killed process left, or the line feed that ended it
                    line = {"do": "nothing"}
                if joined and (line["do"] != "metrics" or len(joined) + len(line["metrics"]) > METRICS):
                    yield {"do": "metrics", "metrics": joined}, end
                    joined = []
                end += len(text)
                if line["do"] == "metrics":
                    joined = joined + line["metrics"]
                else:
                    yield line, end
        if joined:
            yield {"do": "metrics", "metrics": joined}, end

    def _deliver_or_set_aside(self, line: dict[str, Any]) -> None:
        """What the server refuses holds up nothing: it is kept in a file."""
        from mlflow.exceptions import MlflowException

        try:
            self._deliver(line)
        except MlflowException as error:
            if line["do"] == "run" or error.error_code not in REFUSALS:
                raise
            several = line.get(line["do"], [])
            if len(several) > 1:
                for one in several:
                    self._deliver_or_set_aside({**line, line["do"]: [one]})
                return
            file = self.spool.with_suffix(".refused.jsonl")
            logger.error("MLflow refuses what it was sent; it is kept in %s: %s", file, error)
            with file.open("a") as refused:
                refused.write(json.dumps({**line, "because": str(error)}) + "\n")

    def _deliver(self, line: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        match line["do"]:
            case "run":
                self._open(line)
            case "metrics":
                self._metrics(line["metrics"])
            case "params":
                self._params(dict(line["params"]))
            case "dataset":
                data = Dataset(line["name"], line["digest"], "local", "{}")
                self.client.log_inputs(self.run_id, datasets=[DatasetInput(data)])
            case "tag":
                self.client.set_tag(self.run_id, line["key"], line["value"])
            case "artifact":
                place = self.spool / line["file"]
                if place.exists():  # else it went just before the process was killed
                    self.client.log_artifact(self.run_id, str(place), line["folder"])
                    shutil.rmtree(place.parent)
            case "model":
                self._model(line)
            case "end":
                self.client.set_terminated(self.run_id, line["status"], line["time"])
                self.ended = True

    def _open(self, line: dict[str, Any]) -> None:
        """Find the run, or create it."""
        self.ended = False
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", line["experiment"])
        experiment = self.client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self.client.create_experiment(name, _artifacts(self.uri))
        self.run_id = self.run_id or self._found(line["resume"], place)
        if self.run_id is None:
            tags = {**line["tags"], KEY_TAG: line["resume"] or self.spool.name}
            run = self.client.create_run(place, start_time=line["time"], tags=tags, run_name=line["name"])
            self.run_id, self._steps = run.info.run_id, None
        else:
            self._steps = {}
            self.client.update_run(self.run_id, status="RUNNING")

    def _found(self, resume: str | None, experiment: str) -> str | None:
        """The run to continue, by MLflow's id or its spool's name; or this one, when its creation was not answered."""
        from mlflow.exceptions import MlflowException

        if resume:
            try:
                info = self.client.get_run(resume).info
                if info.lifecycle_stage == "active":
                    return str(info.run_id)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
        found = self.client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{resume or self.spool.name}'")
        return str(found[0].info.run_id) if found else None

    def _metrics(self, metrics: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        fresh = []
        for key, value, timestamp, step in metrics:
            if self._steps is not None and not key.startswith("system/"):  # which has many values of one step
                if key not in self._steps:
                    history = self.client.get_metric_history(self.run_id, key)
                    self._steps[key] = {metric.step for metric in history}
                if step in self._steps[key]:
                    continue
            fresh.append(Metric(key, value, timestamp, step))
        if fresh:
            self.client.log_batch(self.run_id, metrics=fresh)
        if self._steps is not None:
            for metric in fresh:
                self._steps.setdefault(metric.key, set()).add(metric.step)

    def _params(self, params: dict[str, str]) -> None:
        """A parameter that a resumed training has changed stays as it was; the tag ``changed.<name>`` tells both."""
        from mlflow.entities import Param

        old = {} if self._steps is None else self.client.get_run(self.run_id).data.params
        for key in params.keys() & old.keys():
            if params[key] != old[key]:
                self.client.set_tag(self.run_id, f"changed.{key}", f"{old[key]} → {params[key]}")
        new = [Param(key, value) for key, value in params.items() if key not in old]
        for start in range(0, len(new), PARAMS):
            self.client.log_batch(self.run_id, params=new[start : start + PARAMS])

    def _model(self, line: dict[str, Any]) -> None:
        """The model into the run, and a version of it into the registry."""
        from mlflow.exceptions import MlflowException

        place = self.spool / line["file"]
        if place.exists():
            self.uploading = True
            try:
                self.client.log_artifacts(self.run_id, str(place), "model")
            finally:
                self.uploading = False
            shutil.rmtree(place.parent)
        name = line["name"]
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self.client.search_model_versions(f"run_id = '{self.run_id}'")
        if not any(version.name == name and line["tags"].items() <= version.tags.items() for version in known):
            source = f"{self.client.get_run(self.run_id).info.artifact_uri}/model"
            self.client.create_model_version(name, source, self.run_id, line["tags"])


def _artifacts(uri: str | None) -> str | None:
    """Beside an SQLite file lies its ``mlruns``, as MONAI's handler and `mlflow ui` have it; None: MLflow knows."""
    prefix = "sqlite:///"
    if uri is None or not uri.startswith(prefix):
        return None
    return (Path(uri[len(prefix) :]).absolute().parent / "mlruns").as_uri()
