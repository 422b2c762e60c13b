"""From a journal to MLflow, each line exactly once.

Each run is tagged with the name of its journal's folder and looked up by that tag before it is created. ``sent.json``
holds how much has arrived. Where it may be behind (an answer was lost, a process killed) or a resumed training repeats
steps, the server is asked which steps of a metric it has, and only the others are sent.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_unet.errors import InputError
from monai_unet.files import FolderLock, replacing

__all__ = ["send"]

#: the tag that finds a run whose creation was not acknowledged
KEY_TAG = "monai_unet.run"
#: MLflow's, of a run within another
PARENT_TAG = "mlflow.parentRunId"
#: of MLflow: the line will never be accepted; after any other error it may be the next time
PERMANENT_ERRORS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}
#: MLflow itself retries for 4 minutes when the server is away; here the next attempt is the next batch
HTTP = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
#: MLflow's limits for one call
METRICS, PARAMS = 1000, 100
SQLITE = "sqlite:///"

logger = logging.getLogger(__name__)


def send(folder: Path, uri: str | None = None) -> tuple[list[Path], list[Path]]:
    """Send the unsent lines of all journals in a folder, and remove the journals that are sent.

    Args:
        folder: as given to `Tracking`: one subfolder for each run that is not fully sent.
        uri: the tracking URI; by default that of the training run.

    Returns:
        The journals that were sent, and those left to the processes that are writing or sending them.

    Raises:
        mlflow.exceptions.MlflowException: the server does not answer; nothing is lost, try again later.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     send(Path(folder))
    ([], [])
    """
    sent: list[Path] = []
    busy: list[Path] = []
    for journal in sorted(folder.glob("*/journal.jsonl")):
        lock = FolderLock(journal.parent)
        if not lock.acquire():
            busy.append(journal.parent)
            continue
        try:
            if journal.exists():  # otherwise its training run has just sent and removed it
                Sender(journal.parent, uri).send()
            shutil.rmtree(journal.parent, ignore_errors=True)
        finally:
            lock.release()
        sent.append(journal.parent)
    return sent, busy


class Sender:
    """Send one journal.

    Args:
        folder: the journal's.
        uri: the tracking URI; None for the one that the journal names, or else ``MLFLOW_TRACKING_URI``.
    """

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        self.folder, self.uri = folder, uri
        self.run_id: str | None = None
        self.uploading = False
        self.offset = 0
        self._steps: dict[str, set[int]] = {}  # that the server has, by metric
        if (folder / "sent.json").is_file():
            sent = json.loads((folder / "sent.json").read_text())
            self.run_id, self.offset = sent["run_id"], sent["offset"]

    @cached_property
    def client(self) -> Any:
        from mlflow import MlflowClient

        if self.uri is None:
            with (self.folder / "journal.jsonl").open() as journal:
                self.uri = json.loads(journal.readline())["uri"] or os.environ.get("MLFLOW_TRACKING_URI")
        for name, value in HTTP.items():
            os.environ.setdefault(name, value)
        if self.store is not None and not self.store.exists():
            _create_store(self.store)
        try:
            return MlflowClient(self.uri)
        except Exception as error:
            if self.store is None or not re.search("already exists|duplicate column", str(error)):
                raise
            problem = "MLflow was killed while it created this file, and can no longer open it"
            raise InputError(self.store, problem, "Move it away; the next training run creates a new one") from error

    @property
    def store(self) -> Path | None:
        """The SQLite file, if the store is one: this process then does the work of the server."""
        if self.uri is None or not self.uri.startswith(SQLITE):
            return None
        return Path(self.uri.removeprefix(SQLITE).partition("?")[0]).absolute()

    def send(self) -> None:
        """Send all complete lines; after an exception the next call continues where this one stopped.

        Raises:
            mlflow.exceptions.MlflowException: the server does not answer, or refuses the run altogether.
        """
        try:
            for line, end in self._lines():
                self._send_or_quarantine(line)
                self.offset = end
                with replacing(self.folder / "sent.json") as partial:
                    partial.write_text(json.dumps({"run_id": self.run_id, "offset": end}))
        except Exception:
            self._steps = {}  # an answer may have been lost on its way: ask
            raise

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The lines with the offset of their end, metrics joined. An incomplete last line is ignored."""
        joined: list[Any] = []
        with (self.folder / "journal.jsonl").open("rb") as journal:
            journal.seek(self.offset)
            end = self.offset
            for text in journal:
                if not text.endswith(b"\n"):
                    break
                try:
                    line = json.loads(text)
                except ValueError:  # left by a killed process, or the line feed that ended it
                    line = {"event": "nothing"}
                if joined and (line["event"] != "metrics" or len(joined) + len(line["metrics"]) > METRICS):
                    yield {"event": "metrics", "metrics": joined}, end
                    joined = []
                end += len(text)
                if line["event"] == "metrics":
                    joined += line["metrics"]
                else:
                    yield line, end
        if joined:
            yield {"event": "metrics", "metrics": joined}, end

    def _send_or_quarantine(self, line: dict[str, Any]) -> None:
        """Send a line; if the server refuses it, keep it in a file and carry on."""
        from mlflow.exceptions import MlflowException

        event = line["event"]
        try:
            self._send(event, line)
        except MlflowException as error:
            if event == "run" or error.error_code not in PERMANENT_ERRORS:
                raise
            several = line.get(event, [])
            if len(several) > 1:
                for one in several:
                    self._send_or_quarantine({**line, event: [one]})
                return
            file = self.folder.with_suffix(".refused.jsonl")
            logger.error("MLflow refuses a line of the journal; it is kept in %s: %s", file, error)
            with file.open("a") as refused:
                refused.write(json.dumps({**line, "because": str(error)}) + "\n")

    def _send(self, event: str, line: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        match event:
            case "run":
                self._open_run(line)
            case "metrics":
                self._send_metrics(line["metrics"])
            case "params":
                self._send_params(dict(line["params"]))
            case "dataset":
                data = Dataset(line["name"], line["digest"], "local", "{}")
                self.client.log_inputs(self.run_id, datasets=[DatasetInput(data)])
            case "tag":
                self.client.set_tag(self.run_id, line["key"], line["value"])
            case "artifact":
                path = self.folder / line["file"]
                if path.exists():  # otherwise it was sent just before the process was killed
                    self.client.log_artifact(self.run_id, str(path), line["folder"])
                    shutil.rmtree(path.parent)
            case "model":
                self._send_model(line)
            case "end":
                self.client.set_terminated(self.run_id, line["status"], line["time"])

    def _open_run(self, line: dict[str, Any]) -> None:
        """Find the run, or create it."""
        experiment = self._experiment(line)
        self.run_id = self.run_id or self._find_run(line["resume"], experiment)
        if self.run_id is None:
            tags = {**line["tags"], KEY_TAG: line["resume"] or self.folder.name}
            run = self.client.create_run(experiment, start_time=line["time"], tags=tags, run_name=line["name"])
            self.run_id = run.info.run_id
        else:
            self.client.update_run(self.run_id, status="RUNNING")

    def _experiment(self, line: dict[str, Any]) -> str:
        """That of the run around this one, that of the given id, or that of the name, which is created if missing."""
        if (parent := line["tags"].get(PARENT_TAG)) and (info := self._run_info(parent)):
            return str(info.experiment_id)
        if line.get("experiment_id") and line["uri"] in (None, self.uri):  # in another store it is another experiment
            return str(line["experiment_id"])
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", line["experiment"])
        found = self.client.get_experiment_by_name(name)
        # next to an SQLite file, where MONAI's handler and `mlflow ui` have them, too; None: where the server has them
        artifacts = self.store and (self.store.parent / "mlruns").as_uri()
        return str(found.experiment_id if found else self.client.create_experiment(name, artifacts))

    def _run_info(self, run_id: str) -> Any:
        """What the server knows of a run; None if it has no such run, or only a deleted one."""
        from mlflow.exceptions import MlflowException

        try:
            info = self.client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code not in PERMANENT_ERRORS:
                raise
            return None
        return info if info.lifecycle_stage == "active" else None

    def _find_run(self, resume: str | None, experiment: str) -> str | None:
        """The run to continue, by MLflow's id or its journal's name; or this one, if its creation was not answered."""
        if resume and (info := self._run_info(resume)):
            return str(info.run_id)
        found = self.client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{resume or self.folder.name}'")
        return str(found[0].info.run_id) if found else None

    def _send_metrics(self, metrics: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        fresh = []
        for key, value, timestamp, step in metrics:
            if not key.startswith("system/"):  # which has many values of one step
                if key not in self._steps:
                    self._steps[key] = {metric.step for metric in self.client.get_metric_history(self.run_id, key)}
                if step in self._steps[key]:
                    continue
            fresh.append(Metric(key, value, timestamp, step))
        if fresh:
            self.client.log_batch(self.run_id, metrics=fresh)
        for metric in fresh:
            self._steps.setdefault(metric.key, set()).add(metric.step)

    def _send_params(self, params: dict[str, str]) -> None:
        """Send new parameters; of a changed one the run keeps the first value, and ``changed.<name>`` holds both."""
        from mlflow.entities import Param

        old = self.client.get_run(self.run_id).data.params
        for key in params.keys() & old.keys():
            if params[key] != old[key]:
                self.client.set_tag(self.run_id, f"changed.{key}", f"{old[key]} → {params[key]}")
        new = [Param(key, value) for key, value in params.items() if key not in old]
        for start in range(0, len(new), PARAMS):
            self.client.log_batch(self.run_id, params=new[start : start + PARAMS])

    def _send_model(self, line: dict[str, Any]) -> None:
        """Add the model to the run, and a version of it to the registry."""
        from mlflow.exceptions import MlflowException

        path = self.folder / line["file"]
        if path.exists():
            self.uploading = True
            try:
                self.client.log_artifacts(self.run_id, str(path), "model")
            finally:
                self.uploading = False
            shutil.rmtree(path.parent)
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


def _create_store(file: Path) -> None:
    """Create an SQLite file with MLflow's tables, under another name first.

    The tables take MLflow over a thousand statements, and if it is killed half-way, it cannot open the file again.
    """
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent, ignore_cleanup_errors=True) as folder:
        created = Path(folder) / file.name
        MlflowClient(f"{SQLITE}{created}").search_experiments(max_results=1)
        try:
            file.hardlink_to(created)  # unlike a move, this leaves a file alone to which a faster run may have logged
        except FileExistsError:
            pass
        except OSError:  # a drive without hard links
            created.replace(file)
