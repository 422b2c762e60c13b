"""A journal between a training run and MLflow: written at once, sent when the server answers.

MLflow's client waits minutes for its server and raises when it is gone. So a training run never talks to it:
everything logged becomes a line of ``journal.jsonl``, which takes some ten microseconds, and a thread sends the lines
in batches. An unreachable server delays no step; the lines it missed are sent when it is back, or later by
``python -m monai_unet.tracking send DIR``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from monai_unet.files import FolderLock
from monai_unet.tracking.sending import Sender, send

__all__ = ["Journal", "scalars"]

#: seconds between two batches
INTERVAL = 10.0
#: seconds without progress that closing a run waits: for a server, and for a local SQLite file, whose tables may have
#: to be created first
REMOTE_TIMEOUT, LOCAL_TIMEOUT = 5.0, 600.0

logger = logging.getLogger(__name__)


class Journal:
    """Record one run on disk, and send it to MLflow from a thread.

    The journal is locked for as long as it is written or sent, so that nobody else sends it. No method raises because
    of MLflow or of a full disk, and only `close` waits.

    Args:
        folder: holds ``journal.jsonl``, ``sent.json`` and the files to send; created if missing, removed when the run
            has ended and everything is sent. Its name identifies the run.
        uri: any MLflow tracking URI.

    Raises:
        BlockingIOError: another process is sending this journal.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = Journal(Path(folder) / "run", "http://mlflow.example:5000")
    ...     journal.log_metrics({"loss": 0.5}, step=1)
    ...     journal.close("FINISHED")
    ...     print((Path(folder) / "run" / "journal.jsonl").read_text())
    {"event": "metrics", "metrics": [["loss", 0.5, ..., 1]]}
    {"event": "end", "status": "FINISHED", "time": ...}
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self._lock = FolderLock(folder)
        if not self._lock.acquire():
            raise BlockingIOError(f"{folder} is being sent by another process")
        (folder / "files").mkdir(exist_ok=True)
        self._file = (folder / "journal.jsonl").open("ab", buffering=0)
        if self._file.tell():
            self._file.write(b"\n")  # a killed process may have left half a line
        self._unreachable, self._torn = False, False
        self._closing = threading.Event()
        self._sender = Sender(folder, uri)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; until the server has assigned one, the folder's name, which finds the run as well."""
        return self._sender.run_id or self.folder.name

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def append(self, event: str, **values: Any) -> None:
        """Append a line; `Sender` knows the events and their values."""
        line = b"\n" * self._torn + json.dumps({"event": event, **values}).encode() + b"\n"
        try:
            self._torn = self._file.write(line) < len(line)
        except OSError:
            self._torn = True
        if self._torn:  # a full disk will stop the training itself, with an explanation
            logger.error("MLflow: a line is lost, there is no room for it in %s", self._file.name)

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log those of the metrics that are single numbers; "_" stands for what MLflow takes in no name, as "CD3+"."""
        now = int(time.time() * 1000)
        if values := {re.sub(r"[^\w .:/-]", "_", name): value for name, value in scalars(metrics).items()}:
            self.append("metrics", metrics=[[name, value, now, step] for name, value in values.items()])

    def log_file(self, name: str, content: str | bytes, folder: str | None = None) -> None:
        """Add a file to the run's artifacts, in a subfolder if given."""
        try:
            path = self.new_file(name)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            logger.error("MLflow: %s is lost: %s", name, error)
        else:
            self.append("artifact", file=str(path.relative_to(self.folder)), folder=folder)

    def log_model(self, path: Path, name: str, tags: Mapping[str, str]) -> None:
        """Add an MLflow model, written to a `new_file`, to the run and the registry, as a new version of ``name``."""
        self.append("model", file=str(path.relative_to(self.folder)), name=name, tags=dict(tags))

    def new_file(self, name: str) -> Path:
        """Reserve a path for a file or folder that is to be sent under this name."""
        folder = self.folder / "files" / uuid.uuid4().hex[:12]
        folder.mkdir()
        return folder / name

    def close(self, status: str) -> None:
        """End the run as FINISHED, KILLED or FAILED, and wait while its last lines are being sent."""
        self.append("end", status=status, time=int(time.time() * 1000))
        self._file.close()
        self._closing.set()
        patience = REMOTE_TIMEOUT if self._unreachable or self._sender.store is None else LOCAL_TIMEOUT
        progress = None
        while self._thread.is_alive() and (self._sender.uploading or self._sender.offset != progress):
            progress = self._sender.offset
            self._thread.join(patience)
        if self._thread.ident is None:
            self._lock.release()
        if self.folder.exists():
            folder = shlex.quote(os.fspath(self.folder.parent))
            logger.warning("MLflow: not everything is sent. Later, run: python -m monai_unet.tracking send %s", folder)

    def _work(self) -> None:
        try:
            self._send_until_closed()
            if not self._unreachable:
                shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self._lock.release()

    def _send_until_closed(self) -> None:
        others = True
        while True:
            last = self._closing.is_set()  # read before sending, so that the closing line is sent as well
            try:
                self._sender.send()
                if self._unreachable:
                    logger.warning("MLflow is reachable again and has received everything it missed")
                self._unreachable = False
            except Exception as error:
                if not self._unreachable:
                    logger.warning("MLflow cannot be reached; the run is kept in %s: %s", self.folder, error)
                self._unreachable = True
            if others and not self._unreachable:
                others = False
                self._send_others()
            if last:
                return
            self._closing.wait(INTERVAL)

    def _send_others(self) -> None:
        """Send the journals that earlier runs have left next to this one."""
        try:
            send(self.folder.parent, self._sender.uri)
        except Exception as error:
            logger.warning("MLflow: an earlier run could not be sent: %s", error)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Select the metrics that are single numbers, as floats.

    NumPy scalars and tensors without axes count; values per class, images and text do not.

    >>> import torch
    >>> scalars({"dice": np.float32(0.5), "loss": torch.tensor(2.0), "per_class": torch.ones(3)})
    {'dice': 0.5, 'loss': 2.0}
    """
    numbers = (int, float, np.number, np.ndarray, Tensor)
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, numbers) and getattr(value, "ndim", 0) == 0
    }
