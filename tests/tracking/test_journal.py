"""The journal between training and MLflow: nothing waits, nothing is lost, nothing arrives twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from platforms import LINUX, POSIX
from sqlalchemy import Engine, event

from monai_unet.errors import InputError
from monai_unet.files import FolderLock
from monai_unet.redaction import redact_uri
from monai_unet.tracking import journal as journal_module
from monai_unet.tracking import sending
from monai_unet.tracking.__main__ import main
from monai_unet.tracking.journal import Journal
from monai_unet.tracking.sending import Sender, send

pytestmark = [
    # of MLflow and SQLAlchemy
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

OPENED: list[Journal] = []
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(autouse=True)
def all_end():
    yield
    for journal in OPENED:
        kill(journal)
    OPENED.clear()


def begin(folder: Path, uri: str, experiment: str, resume: str | None = None) -> Journal:
    journal = Journal(folder, uri)
    OPENED.append(journal)
    journal.append("run", experiment=experiment, name="a run", tags={}, time=1, uri=redact_uri(uri), resume=resume)
    return journal


def log(journal: Journal, steps: Iterable[int], value: float = 1.0) -> None:
    for step in steps:
        journal.log_metrics({"Loss": value / step}, step)


def kill(journal: Journal) -> None:
    """As its process dies: the files are closed and the lock falls."""
    journal._file.close()
    journal._lock.release()


def runs(client: MlflowClient, experiment: str) -> list:
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def losses(client: MlflowClient, run) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "Loss")]


def test_everything_logged_arrives_and_the_journal_is_removed(tmp_path, store, client, experiment):
    journal = begin(tmp_path / "key", store, experiment)
    assert journal.run_id == "key", "a name that finds the run"
    journal.start()
    journal.append("params", params=[["seed", "1"]])
    log(journal, range(1, 4))
    journal.log_metrics({"dice_CD3+ T-cell": 0.5}, step=3)
    journal.log_file("public.txt", "text", "texts")
    journal.close("FINISHED")
    (run,) = runs(client, experiment)
    assert run.data.metrics["dice_CD3_ T-cell"] == 0.5, "MLflow takes no + in a name"
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "a run", {"seed": "1"})
    assert journal.run_id == run.info.run_id
    assert losses(client, run) == [(1, 1), (2, 0.5), (3, 1 / 3)]
    assert Path(client.download_artifacts(run.info.run_id, "texts/public.txt")).read_text() == "text"
    assert not (tmp_path / "key").exists()


def test_an_unreachable_server_delays_nothing_and_misses_nothing(tmp_path, store, client, experiment, caplog, capsys):
    journal = begin(tmp_path / "out" / "key", NOBODY, experiment)
    journal.start()
    start = time.perf_counter()
    log(journal, range(1, 1501))
    assert (time.perf_counter() - start) / 1500 < 0.002, "seconds per step"
    time.sleep(0.3)
    start = time.perf_counter()
    journal.close("FINISHED")
    assert time.perf_counter() - start < journal_module.REMOTE_TIMEOUT + 1
    assert caplog.text.count("MLflow cannot be reached; the run is kept in") == 1, "not at each attempt"
    assert f"python -m monai_unet.tracking send {tmp_path / 'out'}" in caplog.text

    assert main(["send", str(tmp_path / "out")]) == 1
    assert "Nothing is lost" in capsys.readouterr().err
    assert main(["send", str(tmp_path / "out"), "--uri", store]) == 0
    assert main(["send", str(tmp_path / "out"), "--uri", store]) == 0
    assert capsys.readouterr().out.splitlines() == ["1 sent", "0 sent"]
    (run,) = runs(client, experiment)
    assert run.info.status == "FINISHED"
    assert losses(client, run) == [(step, 1 / step) for step in range(1, 1501)]
    assert not list((tmp_path / "out").iterdir())


class Unreliable:
    """A client whose n-th call fails, before or after it had its effect."""

    def __init__(self, client: MlflowClient, fails: int, after: bool) -> None:
        self.client, self.fails, self.after, self.calls = client, fails, after, 0

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls += 1
            fails = self.calls == self.fails
            if fails and not self.after:
                raise MlflowException("connection refused")
            result = getattr(self.client, name)(*args, **kwargs)
            if fails:
                raise MlflowException("connection lost")
            return result

        return call


def test_whichever_answer_is_lost_everything_arrives_once(tmp_path, store, client, experiment):
    trials = [(fails, after) for fails in range(1, 30) for after in (False, True)]
    for fails, after in trials:
        folder = tmp_path / f"{fails}{after}"
        journal = begin(folder, store, experiment)
        log(journal, range(1, 4))
        journal.log_file("text.txt", "whole")
        journal.append("params", params=[["seed", "1"]])
        log(journal, range(4, 6))
        journal.append("end", status="FINISHED", time=2)
        sender = Sender(folder, store)
        unreliable = sender.client = Unreliable(client, fails, after)
        try:
            sender.send()
            failed = False
        except MlflowException:
            failed = True
            assert Sender(folder).run_id == sender.run_id or sender.run_id is None or fails <= 3
            Sender(folder, store).send()  # another process, or the next attempt
        if not failed:
            break
    assert unreliable.calls < fails < 20, "every call has failed once"
    found = runs(client, experiment)
    assert len(found) == len([t for t in trials if t < (fails, after)]) + 1, "one run for each trial"
    for run in found:
        assert run.info.status == "FINISHED"
        assert losses(client, run) == [(step, 1 / step) for step in range(1, 6)]
        assert client.download_artifacts(run.info.run_id, "text.txt")


def test_a_resumed_training_continues_its_run_and_repeats_no_step(tmp_path, store, client, experiment):
    first = begin(tmp_path / "first", store, experiment)
    log(first, range(1, 6))
    first.append("params", params=[["lr", "0.1"], ["seed", "1"]])
    Sender(tmp_path / "first", store).send()
    kill(first)
    (run,) = runs(client, experiment)
    assert run.info.status == "RUNNING"

    again = begin(tmp_path / "elsewhere", store, experiment, resume=run.info.run_id)
    again.append("params", params=[["lr", "0.2"], ["seed", "1"], ["new", "2"]])
    log(again, range(4, 9), value=7)
    again.start()
    again.close("FINISHED")
    (run,) = runs(client, experiment)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in losses(client, run)] == list(range(1, 9))
    assert losses(client, run)[3:6] == [(4, 1 / 4), (5, 1 / 5), (6, 7 / 6)]
    assert run.data.params == {"lr": "0.1", "seed": "1", "new": "2"}
    assert run.data.tags["changed.lr"] == "0.1 → 0.2"
    assert not [tag for tag in run.data.tags if tag.startswith("changed.") and tag != "changed.lr"]


def test_a_run_that_never_reached_a_server_is_continued_as_well(tmp_path, store, client, experiment):
    """By its journal if that is still there, and by the journal's name as a tag if it was sent in the meantime."""
    first = begin(tmp_path / "key", NOBODY, experiment)
    log(first, (1, 2))
    kill(first)
    with (tmp_path / "key" / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "metrics", "metr')  # the process was killed while it wrote
    again = begin(tmp_path / "key", store, experiment, resume="key")
    log(again, (2, 3), value=7)
    kill(again)
    assert send(tmp_path, store) == ([tmp_path / "key"], [])
    third = begin(tmp_path / "new", store, experiment, resume="key")
    log(third, (3, 4), value=8)
    kill(third)
    send(tmp_path, store)
    (run,) = runs(client, experiment)
    assert losses(client, run) == [(1, 1), (2, 1 / 2), (3, 7 / 3), (4, 8 / 4)]


def test_an_ended_run_that_is_resumed_is_running(tmp_path, store, client, experiment):
    first = begin(tmp_path / "first", store, experiment)
    first.append("end", status="KILLED", time=2)
    kill(first)
    send(tmp_path, store)
    (run,) = runs(client, experiment)
    assert run.info.status == "KILLED"
    begin(tmp_path / "again", store, experiment, resume=run.info.run_id)
    Sender(tmp_path / "again", store).send()
    (run,) = runs(client, experiment)
    assert run.info.status == "RUNNING"


def test_a_line_that_the_server_refuses_holds_up_nothing(tmp_path, store, client, experiment, caplog):
    journal = begin(tmp_path / "key", store, experiment)
    log(journal, [1])
    journal.append("metrics", metrics=[["no%name", 2, 0, 2]])  # `log_metrics` would mend the name
    log(journal, [3])
    journal.start()
    journal.close("FINISHED")
    (run,) = runs(client, experiment)
    assert run.info.status == "FINISHED"
    assert losses(client, run) == [(1, 1), (3, 1 / 3)]
    (refused,) = [json.loads(line) for line in (tmp_path / "key.refused.jsonl").read_text().splitlines()]
    assert [(name, value, step) for name, value, _, step in refused["metrics"]] == [("no%name", 2, 2)]
    assert "no%name" in refused["because"]
    assert "MLflow refuses a line of the journal; it is kept in" in caplog.text


def test_a_journal_is_locked_from_its_first_line(tmp_path, store, client, experiment, capsys):
    """Before its thread has begun to send: another training run in the folder would send and remove it."""
    live = begin(tmp_path / "live", store, experiment)
    log(live, [1])
    assert main(["send", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == "0 sent, 1 left to the processes that are writing them"
    with pytest.raises(BlockingIOError, match="live is being sent by another process"):
        Journal(tmp_path / "live", store)
    live.start()
    live.close("FINISHED")
    (run,) = runs(client, experiment)
    assert losses(client, run) == [(1, 1)]
    assert not live.folder.exists()


@POSIX
def test_the_lock_of_another_process_falls_with_it(tmp_path, store, experiment):
    received, sent = os.pipe()
    child = os.fork()
    if child == 0:
        begin(tmp_path / "key", store, experiment)
        os.write(sent, b"1")
        signal.pause()
    assert os.read(received, 1)
    assert send(tmp_path, store) == ([], [tmp_path / "key"])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert send(tmp_path, store) == ([tmp_path / "key"], [])


def test_a_training_that_ends_just_before_its_journal_is_sent_is_no_error(tmp_path, store, experiment, monkeypatch):
    kill(begin(tmp_path / "key", store, experiment))

    def acquire(lock) -> bool:
        (tmp_path / "key" / "journal.jsonl").unlink()
        return True

    monkeypatch.setattr(FolderLock, "acquire", acquire)
    monkeypatch.setattr(FolderLock, "release", lambda lock: None)
    assert send(tmp_path) == ([tmp_path / "key"], [])
    assert not (tmp_path / "key").exists()


def test_the_next_training_sends_the_rest_of_the_last_one(tmp_path, store, client, experiment):
    last = begin(tmp_path / "last", store, experiment)
    log(last, range(1, 3))
    kill(last)
    new = begin(tmp_path / "new", store, experiment)
    new.start()
    new.close("FINISHED")
    assert not list(tmp_path.iterdir())
    found = {run.info.status: run for run in runs(client, experiment)}
    assert set(found) == {"RUNNING", "FINISHED"}, "the killed one has no end"
    assert losses(client, found["RUNNING"]) == [(1, 1), (2, 1 / 2)]


@LINUX
def test_a_full_disk_ends_no_training(tmp_path, caplog):
    journal = begin(tmp_path / "key", NOBODY, "experiment")
    journal._file.close()
    with Path("/dev/full").open("ab", buffering=0) as full:
        journal._file = full
        journal.append("tag", key="a", value="lost")
    assert "a line is lost, there is no room for it in /dev/full" in caplog.text
    with (journal.folder / "journal.jsonl").open("ab", buffering=0) as journal._file:
        journal._file.write(b'{"event": "tag", "key": "a", "val')  # as far as there was room
        journal.append("tag", key="b", value="kept")
    journal.log_file("no/such/folder.png", b"")
    assert "no/such/folder.png is lost: [Errno 2]" in caplog.text
    lines = [line for line, _ in Sender(journal.folder)._lines()]
    assert [line for line in lines if line["event"] == "tag"] == [{"event": "tag", "key": "b", "value": "kept"}]


def test_a_password_is_not_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    begin(tmp_path / "key", "postgresql://ada:secret@127.0.0.1:9/db", "experiment")
    assert "secret" not in (tmp_path / "key" / "journal.jsonl").read_text()
    assert Sender(tmp_path / "key").client.tracking_uri == NOBODY, "the environment variable applies"


def test_no_such_folder(tmp_path, capsys):
    assert main(["send", str(tmp_path / "none")]) == 1
    assert f"error: {tmp_path / 'none'}: there is no such folder" in capsys.readouterr().err


# --- the default store, an SQLite file ---


def die_creating(uri: str) -> None:
    """SIGKILL in a forked child after 40 of the statements that create MLflow's tables."""
    child = os.fork()
    if child == 0:
        statements = iter(range(1, 40))
        die = partial(os.kill, os.getpid(), signal.SIGKILL)
        event.listen(Engine, "after_cursor_execute", lambda *_: next(statements, None) or die())
        try:
            Sender(Path("none"), uri).client.search_experiments()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@POSIX
def test_a_process_killed_while_mlflow_creates_its_file_leaves_none(tmp_path):
    file = tmp_path / "mlflow.db"
    die_creating(f"sqlite:///{file}")
    assert not file.exists()
    assert Sender(Path("none"), f"sqlite:///{file}").client.search_experiments()


def test_a_store_that_appears_meanwhile_is_kept(tmp_path, empty_store, monkeypatch):
    """Two training runs that begin at once both create the file; the faster one may have logged already."""
    file = tmp_path / "mlflow.db"
    link = Path.hardlink_to
    monkeypatch.setattr(Path, "hardlink_to", lambda new, old: (shutil.copy(empty_store, file), link(new, old)))
    assert Sender(Path("none"), f"sqlite:///{file}").client.search_experiments()
    assert file.read_bytes() == empty_store.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@POSIX
def test_a_half_made_store_is_recognised(tmp_path, monkeypatch):
    file = tmp_path / "mlflow.db"
    with monkeypatch.context() as patch:
        patch.setattr(sending, "_create_store", lambda file: None)  # MLflow creates it in place
        die_creating(f"sqlite:///{file}")
    with pytest.raises(InputError, match=r"mlflow.db: MLflow was killed while it created this file, .* Move it away"):
        Sender(Path("none"), f"sqlite:///{file}").client.search_experiments()
