"""The journal between training and MLflow: nothing waits, nothing is lost, nothing arrives twice."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from monai_unet.tracking import journal as spool_module
from monai_unet.tracking import sending
from monai_unet.tracking.__main__ import main
from monai_unet.tracking.journal import Spool
from monai_unet.tracking.sending import Sender, public, send

pytestmark = [
    # MLflow and SQLAlchemy on their own ways
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

OPENED: list[Spool] = []
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture
def uri(store) -> str:
    return store


@pytest.fixture(scope="module")
def client(store) -> MlflowClient:
    return MlflowClient(store)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(spool_module, "INTERVAL", 0.05)
    yield
    for spool in OPENED:  # a killed process closes its files
        spool._journal.close()
    OPENED.clear()


@pytest.fixture
def experiment(request) -> str:
    return request.node.name


def begin(folder: Path, uri: str, experiment: str, resume: str | None = None) -> Spool:
    spool = Spool(folder, uri)
    OPENED.append(spool)
    spool.note("run", experiment=experiment, name="a run", tags={}, time=1, uri=public(uri), resume=resume)
    return spool


def fill(spool: Spool, steps: range, value: float = 0.5) -> None:
    for step in steps:
        spool.log_batch("", [Metric("Loss", value / step, int(time.time() * 1e6), step)], [], [])


def runs(client: MlflowClient, experiment: str) -> list:
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def losses(client: MlflowClient, run) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "Loss")]


def test_what_is_logged_arrives_and_the_spool_is_gone(tmp_path, uri, client, experiment):
    spool = begin(tmp_path / "key", uri, experiment)
    assert spool.run_id == "key", "a name by which the run will be found"
    spool.start()
    spool.log_batch("", [], [Param("seed", "1")], [])
    fill(spool, range(1, 4))
    (tmp_path / "note.txt").write_text("first")
    spool.log_artifact("", str(tmp_path / "note.txt"), "texts", "public.txt")
    (tmp_path / "note.txt").write_text("second")
    spool.set_terminated("", "FINISHED")
    (run,) = runs(client, experiment)
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "a run", {"seed": "1"})
    assert spool.run_id == run.info.run_id
    assert losses(client, run) == [(1, 0.5), (2, 0.25), (3, 0.5 / 3)]
    assert Path(client.download_artifacts(run.info.run_id, "texts/public.txt")).read_text() == "first"
    assert not (tmp_path / "key").exists()


def test_a_server_that_is_away_holds_up_nothing_and_misses_nothing(tmp_path, uri, client, experiment, caplog, capsys):
    spool = begin(tmp_path / "out" / "key", NOBODY, experiment)
    spool.start()
    start = time.perf_counter()
    fill(spool, range(1, 1501))
    assert (time.perf_counter() - start) / 1500 < 0.002, "seconds per step"
    time.sleep(0.3)
    start = time.perf_counter()
    spool.set_terminated("", "FINISHED")
    assert time.perf_counter() - start < spool_module.PATIENCE + 1
    assert caplog.text.count("MLflow cannot be reached; the run is kept in") == 1, "said once, not at each attempt"
    assert f"python -m monai_unet.tracking send {tmp_path / 'out'}" in caplog.text

    assert main(["send", str(tmp_path / "out")]) == 1
    assert "Nothing is lost" in capsys.readouterr().err
    assert main(["send", str(tmp_path / "out"), "--uri", uri]) == 0
    assert main(["send", str(tmp_path / "out"), "--uri", uri]) == 0
    assert capsys.readouterr().out.splitlines() == ["1 sent", "0 sent"]
    (run,) = runs(client, experiment)
    assert run.info.status == "FINISHED"
    assert losses(client, run) == [(step, 0.5 / step) for step in range(1, 1501)]
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


def test_whichever_answer_is_lost_everything_arrives_once(tmp_path, uri, client, experiment):
    trials = [(fails, after) for fails in range(1, 30) for after in (False, True)]
    for fails, after in trials:
        folder = tmp_path / f"{fails}{after}"
        spool = begin(folder, uri, experiment)
        fill(spool, range(1, 4))
        spool.log_text("", "whole", "text.txt")
        spool.log_batch("", [], [Param("seed", "1")], [])
        fill(spool, range(4, 6))
        spool.note("end", status="FINISHED", time=2)
        sender = Sender(folder, uri)
        unreliable = sender.client = Unreliable(client, fails, after)
        try:
            sender.send()
            failed = False
        except MlflowException:
            failed = True
            assert Sender(folder).run_id == sender.run_id or sender.run_id is None or fails <= 3
            Sender(folder, uri).send()  # another process, or the next attempt
        if not failed:
            break
    assert unreliable.calls < fails < 20, "every call has failed once"
    found = runs(client, experiment)
    assert len(found) == len([t for t in trials if t < (fails, after)]) + 1, "one run for each trial"
    for run in found:
        assert run.info.status == "FINISHED"
        assert losses(client, run) == [(step, 0.5 / step) for step in range(1, 6)]
        assert client.download_artifacts(run.info.run_id, "text.txt")


def test_a_resumed_training_continues_its_run_and_repeats_no_step(tmp_path, uri, client, experiment):
    first = begin(tmp_path / "first", uri, experiment)
    fill(first, range(1, 6))
    first.log_batch("", [], [Param("lr", "0.1"), Param("seed", "1")], [])
    Sender(tmp_path / "first", uri).send()  # and then the process is killed
    (run,) = runs(client, experiment)
    assert run.info.status == "RUNNING"

    again = begin(tmp_path / "elsewhere", uri, experiment, resume=run.info.run_id)
    again.log_batch("", [], [Param("lr", "0.2"), Param("seed", "1"), Param("new", "2")], [])
    fill(again, range(4, 9), value=7)
    again.start()
    again.set_terminated("", "FINISHED")
    (run,) = runs(client, experiment)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in losses(client, run)] == list(range(1, 9))
    assert losses(client, run)[3:6] == [(4, 0.5 / 4), (5, 0.5 / 5), (6, 7 / 6)]
    assert run.data.params == {"lr": "0.1", "seed": "1", "new": "2"}
    assert run.data.tags["changed.lr"] == "0.1 → 0.2"
    assert not [tag for tag in run.data.tags if tag.startswith("changed.") and tag != "changed.lr"]


def test_a_run_that_never_reached_a_server_is_continued_as_well(tmp_path, uri, client, experiment):
    """By the spool itself where it lies, and by its name as a tag where it was sent in the meantime."""
    begin(tmp_path / "key", NOBODY, experiment).log_batch(
        "", [Metric("Loss", 1, 1, 1), Metric("Loss", 2, 2, 2)], [], []
    )
    with (tmp_path / "key" / "journal.jsonl").open("a") as journal:
        journal.write('{"do": "metrics", "metr')  # the process was killed while it wrote
    again = begin(tmp_path / "key", uri, experiment, resume="key")
    again.log_batch("", [Metric("Loss", 2, 20, 2), Metric("Loss", 3, 3, 3)], [], [])
    assert send(tmp_path, uri) == ([tmp_path / "key"], [])
    third = begin(tmp_path / "new", uri, experiment, resume="key")
    third.log_batch("", [Metric("Loss", 3, 30, 3), Metric("Loss", 4, 4, 4)], [], [])
    send(tmp_path, uri)
    (run,) = runs(client, experiment)
    assert losses(client, run) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_an_ended_run_that_goes_on_is_running(tmp_path, uri, client, experiment):
    first = begin(tmp_path / "first", uri, experiment)
    first.note("end", status="KILLED", time=2)
    send(tmp_path, uri)
    (run,) = runs(client, experiment)
    assert run.info.status == "KILLED"
    begin(tmp_path / "again", uri, experiment, resume=run.info.run_id)
    Sender(tmp_path / "again", uri).send()
    (run,) = runs(client, experiment)
    assert run.info.status == "RUNNING"


def test_what_the_server_refuses_holds_up_nothing(tmp_path, uri, client, experiment, caplog):
    spool = begin(tmp_path / "key", uri, experiment)
    metrics = [Metric("Loss", 1, 1, 1), Metric("no%name", 2, 2, 2), Metric("Loss", 3, 3, 3)]
    spool.log_batch("", metrics, [], [])
    spool.start()
    spool.set_terminated("", "FINISHED")
    (run,) = runs(client, experiment)
    assert run.info.status == "FINISHED"
    assert losses(client, run) == [(1, 1), (3, 3)]
    (refused,) = [json.loads(line) for line in (tmp_path / "key.refused.jsonl").read_text().splitlines()]
    assert refused["metrics"] == [["no%name", 2, 2, 2]]
    assert "no%name" in refused["because"]
    assert "MLflow refuses what it was sent; it is kept in" in caplog.text


def test_a_spool_that_is_being_sent_is_left_alone(tmp_path, uri, client, experiment, capsys):
    live = begin(tmp_path / "live", uri, experiment)
    live.start()
    while not live._sender.run_id:
        time.sleep(0.01)
    assert main(["send", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == "0 sent, 1 left to the training that writes them"
    live.set_terminated("", "FINISHED")
    assert not live.folder.exists()


def test_a_spool_whose_training_ends_just_then_is_no_error(tmp_path, uri, experiment, monkeypatch):
    begin(tmp_path / "key", uri, experiment)

    @contextmanager
    def after_its_end(*args, **kwargs):
        (tmp_path / "key" / "journal.jsonl").unlink()
        yield

    monkeypatch.setattr(sending, "FileLock", after_its_end)
    assert send(tmp_path) == ([tmp_path / "key"], [])
    assert not (tmp_path / "key").exists()


def test_the_next_training_sends_what_the_last_one_could_not(tmp_path, uri, client, experiment):
    last = begin(tmp_path / "last", uri, experiment)
    fill(last, range(1, 3))
    new = begin(tmp_path / "new", uri, experiment)
    new.start()
    new.set_terminated("", "FINISHED")
    assert not list(tmp_path.iterdir())
    found = {run.info.status: run for run in runs(client, experiment)}
    assert set(found) == {"RUNNING", "FINISHED"}, "the one that was killed has no end"
    assert losses(client, found["RUNNING"]) == [(1, 0.5), (2, 0.25)]


def test_a_full_disk_ends_no_training(tmp_path, caplog):
    spool = Spool(tmp_path / "key", NOBODY)
    spool._journal.close()
    with Path("/dev/full").open("ab", buffering=0) as full:
        spool._journal = full
        spool.note("tag", key="a", value="lost")
    assert "a line is lost, there is no room for it in /dev/full" in caplog.text
    with (spool.folder / "journal.jsonl").open("ab", buffering=0) as spool._journal:
        spool._journal.write(b'{"do": "tag", "key": "a", "val')  # as far as there was room
        spool.note("tag", key="b", value="kept")
    spool.log_artifact("", str(tmp_path / "none.png"))
    assert "a file is lost: [Errno 2]" in caplog.text
    lines = [line for line, _ in Sender(spool.folder)._lines()]
    assert [line for line in lines if line["do"] != "nothing"] == [{"do": "tag", "key": "b", "value": "kept"}]


def test_a_password_is_not_written_down(tmp_path, monkeypatch):
    assert public("postgresql://ada:secret@host/db") is None
    assert public("https://host:5000") == "https://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    uri = "postgresql://ada:secret@127.0.0.1:9/db"
    begin(tmp_path / "key", uri, "experiment")
    assert "secret" not in (tmp_path / "key" / "journal.jsonl").read_text()
    assert Sender(tmp_path / "key").client.tracking_uri == NOBODY, "then the environment tells the store"


def test_no_such_folder(tmp_path, capsys):
    assert main(["send", str(tmp_path / "none")]) == 1
    assert f"error: {tmp_path / 'none'}: there is no such folder" in capsys.readouterr().err
