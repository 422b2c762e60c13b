"""A journal between the training and MLflow: written at once, sent when the server answers.

MLflow's client waits for its server, for minutes, and raises when it is gone. So the training never talks to it: what
it logs becomes a line of ``journal.jsonl``, some ten microseconds, and a thread sends the lines in batches. A server
that is away costs no step; what it missed is sent when it is back, or later by
``python -m monai_unet.tracking send DIR``.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monai_unet.tracking.sending import Sender, command, send

__all__ = ["Spool"]

#: seconds between two batches
INTERVAL = 10.0
#: seconds without progress after which the end of a run waits no more: for a server, and for a file of one's own, whose
#: tables may have to be made first
PATIENCE, OWN = 5.0, 600.0

logger = logging.getLogger(__name__)


class Spool:
    """One run's journal, and the thread that sends it.

    It has those methods of MLflow's client that MONAI's `MLFlowHandler` calls; they neither wait nor raise.

    Args:
        folder: for ``journal.jsonl``, ``sent.json`` and the files to send; made when needed, and removed when all is
            sent and the run has ended. Its name tells the run from all others.
        uri: any MLflow tracking URI.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        (folder / "files").mkdir(parents=True, exist_ok=True)
        self._journal = (folder / "journal.jsonl").open("ab", buffering=0)
        if self._journal.tell():
            self._journal.write(b"\n")  # a killed process may have left half a line
        self._away, self._torn = False, False
        self._closing, self._wake = threading.Event(), threading.Event()
        self._sender = Sender(folder, uri)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; until the server has given one, the spool's name, by which the run is found, too."""
        return self._sender.run_id or self.folder.name

    def start(self) -> None:
        self._thread.start()

    def note(self, do: str, **what: Any) -> None:
        """Append a line."""
        line = b"\n" * self._torn + json.dumps({"do": do, **what}).encode() + b"\n"
        try:
            self._torn = self._journal.write(line) < len(line)
        except OSError:
            self._torn = True
        if self._torn:  # of a full disk the training itself will have more to say
            logger.error("MLflow: a line is lost, there is no room for it in %s", self._journal.name)

    def log_batch(self, run_id: str, metrics: Sequence[Any], params: Sequence[Any], tags: Sequence[Any]) -> None:
        """As MlflowClient.log_batch."""
        if params:
            self.note("params", params=[[p.key, p.value] for p in params])
        if metrics:
            self.note("metrics", metrics=[[m.key, float(m.value), m.timestamp, m.step] for m in metrics])
        for tag in tags:
            self.set_tag(run_id, tag.key, tag.value)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """As MlflowClient.set_tag."""
        self.note("tag", key=key, value=value)

    def place(self, name: str) -> Path:
        """Where a file or folder of this name is to be written that shall be sent."""
        folder = self.folder / "files" / uuid.uuid4().hex[:12]
        folder.mkdir()
        return folder / name

    def log_artifact(
        self, run_id: str, local_path: str, artifact_path: str | None = None, name: str | None = None
    ) -> None:
        """As MlflowClient.log_artifact, under another name if given; the file is copied, and may change afterwards."""
        try:
            copy = self.place(name or Path(local_path).name)
            shutil.copyfile(local_path, copy)
        except OSError as error:
            logger.error("MLflow: a file is lost: %s", error)
        else:
            self.send_file(copy, artifact_path)

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        """As MlflowClient.log_text."""
        try:
            place = self.place(artifact_file)
            place.write_text(text, encoding="utf-8")
        except OSError as error:
            logger.error("MLflow: a file is lost: %s", error)
        else:
            self.send_file(place)

    def send_file(self, place: Path, folder: str | None = None) -> None:
        self.note("artifact", file=str(place.relative_to(self.folder)), folder=folder)

    def send_model(self, place: Path, name: str, tags: Mapping[str, str]) -> None:
        self.note("model", file=str(place.relative_to(self.folder)), name=name, tags=dict(tags))

    def set_terminated(self, run_id: str, status: str) -> None:
        """As MlflowClient.set_terminated: the last line of the journal. It is waited for, `PATIENCE` seconds."""
        self.note("end", status=status, time=int(time.time() * 1000))
        self._journal.close()
        self._closing.set()
        self._wake.set()
        patience = PATIENCE if self._away or self._sender.remote else OWN
        progress, since = -1, time.monotonic()
        while self._thread.is_alive() and (time.monotonic() < since + patience or self._sender.uploading):
            if self._sender.offset != progress:
                progress, since = self._sender.offset, time.monotonic()
            self._thread.join(0.1)
        if self.folder.exists():
            logger.warning("MLflow: the run is not all sent. When the server is back: %s", command(self.folder.parent))

    def _work(self) -> None:
        lock = FileLock(self.folder / "lock")
        while not lock.is_locked:
            try:  # a killed training's workers outlive it for seconds, and the command `send` may be at work
                lock.acquire(timeout=PATIENCE)
            except Timeout:
                if not self._away:
                    logger.warning("MLflow: another process is sending %s; waiting for it", self.folder)
                self._away = True
                if self._closing.is_set():
                    return
        try:
            self._send_until_closed()
        finally:
            lock.release()
        if self._sender.ended:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _send_until_closed(self) -> None:
        first = True
        while True:
            last = self._closing.is_set()  # asked before sending, so that the line that closes is sent as well
            self._wake.clear()
            try:
                self._sender.send()
                if self._away:
                    logger.warning("MLflow is reached again, and has all that it missed")
                self._away = False
            except Exception as error:
                if not self._away:
                    logger.warning("MLflow cannot be reached; the run is kept in %s: %s", self.folder, error)
                self._away = True
            if first and not self._away:
                first = False
                self._send_others()
            if last:
                return
            self._wake.wait(INTERVAL)

    def _send_others(self) -> None:
        """What earlier runs of this folder could not send."""
        try:
            send(self.folder.parent, self._sender.uri, but=self.folder)
        except Exception as error:
            logger.warning("MLflow: an earlier run could not be sent: %s", error)
