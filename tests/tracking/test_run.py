"""One run for each training: how it ends, and its content."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import StatsHandler, ValidationHandler
from platforms import POSIX
from serving import free_port, wait_for

from monai_unet.errors import InputError
from monai_unet.files import FolderLock
from monai_unet.tracking import Tracking
from monai_unet.tracking import journal as journal_module
from monai_unet.tracking.run import LONGEST_PARAMETER
from monai_unet.tracking.sending import send

pytestmark = [
    # of torch, MONAI and MLflow
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens
PATIENT = "Mustermann"


@pytest.fixture(autouse=True)
def here(store, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)


def items(count: int, name: str = "image") -> list[dict]:
    return [
        {"image": np.full((1, 2, 2), n, np.float32), "label": np.zeros((1, 2, 2)), "file": f"/data/{name}_{n}.png"}
        for n in range(count)
    ]


def train(experiment: str, steps: int = 4, on_step=lambda engine: None, parameters=None, resume=None, epochs: int = 1):
    """A training as the bundles wire it; returns its tracking."""
    tracking = Tracking(experiment, parameters or {}, "spool")
    if resume:
        tracking.resume(resume)
    network = torch.nn.Conv2d(1, 1, 1)
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(items(1, "held_out"))),
        network,
        decollate=False,
        val_handlers=[tracking],
    )
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(error=0.25))
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        epochs,
        DataLoader(Dataset(items(steps))),
        network,
        torch.optim.SGD(network.parameters(), 0.1),
        torch.nn.MSELoss(),
        train_handlers=[ValidationHandler(1, evaluator), StatsHandler(output_transform=lambda out: out[0]["loss"])],
    )
    tracking.attach(trainer)
    trainer.tracking = tracking
    trainer.add_event_handler(Events.ITERATION_COMPLETED, on_step)
    assert tracking.run_id is None
    trainer.run()
    return tracking


def runs(client: MlflowClient, experiment: str) -> list:
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []


def steps(client: MlflowClient, run, metric: str = "Loss") -> list[int]:
    return [m.step for m in client.get_metric_history(run.info.run_id, metric)]


def artifact(client: MlflowClient, run, name: str) -> str:
    return Path(client.download_artifacts(run.info.run_id, name)).read_text()


# --- a run of its own, and its end ---


def test_each_training_is_a_run_of_its_own(client, experiment):
    parameters = {"dataset": "phantom sha256:0123", "features": [64, 128]}
    ids = [train(experiment, parameters=parameters).run_id for _ in range(2)]
    found = runs(client, experiment)
    assert [run.info.run_id for run in found] == ids
    for run in found:
        assert run.info.status == "FINISHED"
        assert run.info.run_name.startswith(f"phantom {time.strftime('%Y-')}")
        assert steps(client, run) == steps(client, run, "lr_group_0") == [1, 2, 3, 4]
        assert steps(client, run, "error") == [4], "validated at the trainer's step"
        assert run.data.params["features"] == "[64, 128]"
        assert run.data.params["epoch_length"] == "4"
        (data,) = [one.dataset for one in run.inputs.dataset_inputs]
        assert (data.name, data.digest) == ("phantom", "0123")
        assert run.data.metrics["system/cpu_utilization_percentage"] >= 0
        assert run.data.metrics["system/system_memory_usage_megabytes"] > 100
        assert f"torch=={version('torch')}" in artifact(client, run, "environment.txt").splitlines()
        assert run.data.params["torch"] == torch.__version__
        if commit := run.data.params.get("commit"):
            assert run.data.params["tree"] == ("modified" if commit.endswith("+") else "clean")
            assert run.data.tags["mlflow.source.git.commit"] == commit.rstrip("+")
    assert not list(Path("spool").iterdir())


def evaluate(experiment: str, **options) -> str:
    """An evaluation of one item; the id of its run."""
    engine = Engine(lambda engine, batch: None)
    tracking = Tracking(experiment, {"dataset": "phantom sha256:0123"}, "spool", **options)
    tracking.attach(engine)
    engine.run([0])
    return tracking.run_id


def test_training_and_evaluation_are_told_apart(client, experiment):
    train(experiment)
    evaluate(experiment)
    found = runs(client, experiment)
    assert [run.data.tags["monai_unet.kind"] for run in found] == ["training", "evaluation"]
    assert [run.info.run_name.rpartition(" ")[2] for run in found] == ["training", "evaluation"]


@pytest.fixture
def fluent(store, monkeypatch):
    """MLflow's own functions, which keep what they are told in the environment."""
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    return mlflow


def test_a_run_within_another_is_its_child(client, experiment, fluent):
    around = client.create_run(client.create_experiment(f"{experiment} around"))
    with fluent.start_run(around.info.run_id):
        child = client.get_run(evaluate(experiment))
    assert child.data.tags["mlflow.parentRunId"] == around.info.run_id
    assert child.info.experiment_id == around.info.experiment_id, "where MLflow shows it below its parent"
    assert client.get_run(around.info.run_id).info.status == "FINISHED", "ended by start_run alone"
    assert runs(client, experiment) == []


def test_a_parent_of_another_process_is_named_by_the_environment(client, experiment, monkeypatch):
    """As `mlflow run` names it; one that the store does not have does not stop the run."""
    around = client.create_run(client.create_experiment(f"{experiment} around"))
    monkeypatch.setenv("MLFLOW_RUN_ID", around.info.run_id)
    assert client.get_run(evaluate(experiment)).info.experiment_id == around.info.experiment_id
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    evaluate(experiment)
    assert len(runs(client, experiment)) == 1


def test_set_experiment_is_honoured(client, experiment, fluent):
    chosen = fluent.set_experiment(f"{experiment} chosen")
    assert client.get_run(evaluate(experiment)).info.experiment_id == chosen.experiment_id
    assert runs(client, experiment) == []


def test_the_id_of_an_experiment_does_not_count_in_another_store(client, experiment, monkeypatch, store):
    """Ids are counted: 1 is another experiment there."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    evaluate(experiment, uri=NOBODY)
    send(Path("spool"), store)
    assert len(runs(client, experiment)) == 1


def test_name_and_tags_come_from_the_environment_or_the_call(client, experiment, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", json.dumps({"mlflow.user": "ada", "try": 3, "mlflow.runName": "third"}))
    evaluate(experiment)
    monkeypatch.setenv("MLFLOW_RUN_NAME", "environment")
    evaluate(experiment)
    evaluate(experiment, run_name="call")
    found = runs(client, experiment)
    assert [run.info.run_name for run in found] == ["third", "environment", "call"]
    assert all((run.data.tags["mlflow.user"], run.data.tags["try"]) == ("ada", "3") for run in found)


@pytest.mark.parametrize("text", ["user=ada", '["ada"]'])
def test_tags_that_are_not_json_stop_the_run_before_it_starts(text, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", text)
    with pytest.raises(ValueError, match="MLFLOW_RUN_CONTEXT is .*; it must be a JSON object of tags"):
        Tracking("experiment", {})


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (FloatingPointError("the loss is NaN"), "FAILED", "FloatingPointError: the loss is NaN"),
        (KeyboardInterrupt(), "KILLED", None),
        (SystemExit(1), "KILLED", None),
        (
            ValueError(f"/data/{PATIENT}/1.nii.gz and image_2: NaN in image_2.png of {PATIENT}.dcm"),
            "FAILED",
            "ValueError: <path> and <name>: NaN in <name> of <file>",
        ),
        (
            InputError(f"/data/Max {PATIENT} Max", "no such folder", "Name another"),
            "FAILED",
            "InputError: <name>: no such folder. Name another.",
        ),
    ],
)
def test_the_end_of_a_training_is_the_end_of_its_run(error, status, text, client, experiment):
    """Although MONAI's StatsHandler raises first, and ignite calls no handler after it. No file is named."""

    def stop(engine: Engine) -> None:
        if engine.state.iteration == 2:
            raise error

    with pytest.raises(type(error)):
        train(experiment, on_step=stop)
    (run,) = runs(client, experiment)
    assert run.info.status == status
    assert run.data.tags.get("error") == text
    assert steps(client, run) == [1, 2]


def test_terminated_in_order_is_finished_and_without_completion_killed(client, experiment):
    train(experiment, on_step=lambda engine: engine.terminate())
    train(experiment, on_step=lambda engine: engine.terminate(skip_completed=True))
    assert [run.info.status for run in runs(client, experiment)] == ["FINISHED", "KILLED"]


def die(engine: Engine) -> None:
    if engine.state.iteration == 3:
        while not engine.tracking.journal._sender.offset:
            time.sleep(0.01)  # until the run exists
        os.kill(os.getpid(), signal.SIGKILL)


@POSIX
def test_a_killed_training_stays_running_and_the_next_does_not_join_it(client, experiment):
    """SIGKILL in a process of its own (torch for CUDA cannot train in a forked one); then a new training, and one that
    resumes.
    """
    training = f"from test_run import *; journal_module.INTERVAL = 0.05; train({experiment!r}, on_step=die)"
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", training], env=path).returncode == -signal.SIGKILL
    (killed,) = runs(client, experiment)
    assert killed.info.status == "RUNNING"
    fresh = train(experiment)
    again = train(experiment, steps=6, resume=killed.info.run_id)
    assert (fresh.run_id == killed.info.run_id, again.run_id) == (False, killed.info.run_id)
    found = {run.info.run_id: run for run in runs(client, experiment)}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert steps(client, found[fresh.run_id]) == [1, 2, 3, 4]
    assert steps(client, found[again.run_id]) == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def unsent(experiment, monkeypatch, store) -> Path:
    """The journal of a training that was interrupted at step 3 and never reached its server."""

    def stop(engine: Engine) -> None:
        if engine.state.iteration == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            train(experiment, on_step=stop)
        assert time.monotonic() - start < 10
    (journal,) = Path("spool").iterdir()
    return journal


def test_a_training_without_server_goes_on_and_resumes_its_journal(client, experiment, unsent):
    again = train(experiment, steps=5, resume=unsent.name)
    (run,) = runs(client, experiment)
    assert run.info.run_id == again.run_id
    assert run.info.status == "FINISHED"
    assert steps(client, run) == [1, 2, 3, 4, 5]
    assert not list(Path("spool").iterdir())


def test_a_training_resumes_while_its_journal_is_being_sent(client, experiment, unsent, store):
    sending = FolderLock(unsent)
    assert sending.acquire()
    train(experiment, steps=5, resume=unsent.name)
    sending.release()
    assert send(Path("spool"), store) == ([unsent], [])
    (run,) = runs(client, experiment)
    assert steps(client, run) == [1, 2, 3, 4, 5]


def test_other_ranks_log_nothing(client, experiment, monkeypatch):
    monkeypatch.setattr("monai_unet.tracking.run.idist.get_rank", lambda: 1)
    tracking = train(experiment)
    assert tracking.run_id is None
    assert runs(client, experiment) == []
    assert not Path("spool").exists()
    assert tracking.journal is None


# --- the store ---


@pytest.mark.parametrize(
    "uri", ["databricks", "databricks://profile", "postgresql://u:p@127.0.0.1:9/db", "https://host", "http://host:5000"]
)
def test_every_kind_of_store_is_taken_and_none_is_asked_by_the_training(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    start = time.monotonic()
    assert Tracking("experiment", {}).uri == uri
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("uri", ["mlruns", "/data/mlruns", "file:///data/mlruns"])
def test_a_plain_folder_is_no_store(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(
        ValueError, match=f"MLFLOW_TRACKING_URI is {uri!r}; MLflow no longer keeps runs in plain folders"
    ):
        Tracking("experiment", {})


def test_the_default_store_is_the_one_that_mlflow_ui_opens(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Tracking("experiment", {}).uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_without_mlflow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r'pip install "monai_unet\[tracking\]"'):
        Tracking("experiment", {})


# --- its content ---


def test_metrics_of_numpy_and_torch_are_logged(client, experiment):
    metrics = {"a": 1, "b": np.float32(0.5), "c": torch.tensor(0.25), "d": np.array(2.0), "e": torch.ones(3), "f": "x"}
    engine = Engine(lambda engine, batch: engine.state.metrics.update(metrics))
    Tracking(experiment, {}, "spool").attach(engine)
    engine.run([0])
    (run,) = runs(client, experiment)
    assert run.data.metrics == {"a": 1, "b": 0.5, "c": 0.25, "d": 2}


def test_no_parameter_is_cut(client, experiment):
    at_most, longer = "x" * LONGEST_PARAMETER, "y" * (LONGEST_PARAMETER + 1)
    train(experiment, parameters={"at_most": at_most, "longer": longer, **{f"p{n}": n for n in range(150)}})
    (run,) = runs(client, experiment)
    assert run.data.params["at_most"] == at_most
    assert run.data.params["longer"] == "6001 characters: see parameters.json"
    assert json.loads(artifact(client, run, "parameters.json"))["longer"] == longer
    assert run.data.params["p149"] == "149"


def test_the_config_is_the_one_that_ran(client, experiment):
    """Values that YAML does not know are written as plain ones."""
    parser = ConfigParser(
        {
            "imports": ["$from pathlib import Path"],
            "dataset_dir": Path(f"/data/{PATIENT}/all"),
            "learning_rate": np.float64(0.5),
            "device": torch.device("cpu"),
            "sizes": {"tile": np.arange(3), "weights": (1, torch.tensor([0.5]))},
            "kinds": {torch.float32},
            "tracking": {
                "_target_": "monai_unet.tracking.Tracking",
                "experiment_name": experiment,
                "folder": "spool",
                "parameters": {"lr": "@learning_rate", "rates": ["@learning_rate"], "device": "@device"},
            },
        }
    )
    tracking = parser.get_parsed_content("tracking")
    engine = Engine(lambda engine, batch: None)
    tracking.attach(engine)
    engine.run([0])
    (run,) = runs(client, experiment)
    config = yaml.safe_load(artifact(client, run, "config.yaml"))
    assert (config["learning_rate"], config["device"], config["dataset_dir"]) == (0.5, "cpu", "<dataset_dir>")
    assert (config["sizes"], config["kinds"]) == ({"tile": [0, 1, 2], "weights": [1, [0.5]]}, ["torch.float32"])
    assert config["tracking"]["parameters"]["lr"] == "@learning_rate"
    assert [run.data.params[name] for name in ("lr", "rates", "device")] == ["0.5", "[0.5]", "cpu"]


# --- real servers ---


class Server:
    """`mlflow server` on loopback, to kill and restart."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.process = folder, free_port(), None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        command += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_for(f"{self.uri}/health", self.process)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Postgres:
    """Debian's PostgreSQL on loopback, as the user postgres, which is the one it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.process = folder, free_port(), None
        self.uri = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self.user = {"user": "postgres", "cwd": "/"} if os.geteuid() == 0 else {}
        if self.user:
            shutil.chown(folder, "postgres")
        subprocess.run(
            [self.programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "--no-sync"],
            check=True,
            capture_output=True,
            **self.user,
        )

    def start(self) -> None:
        command = [self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder]
        self.process = subprocess.Popen([*command, "-h", "127.0.0.1"], stderr=subprocess.DEVNULL, **self.user)
        while subprocess.run([self.programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-q"]).returncode:
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)  # at once, without an end for its clients
            self.process.wait()
            self.process = None


@pytest.fixture(params=["mlflow server", "postgresql"])
def server(request, tmp_path):
    if request.param == "postgresql":
        pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
        if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
            pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory() as folder:  # below tmp_path the user postgres may not look
        one = (Postgres if request.param == "postgresql" else Server)(Path(folder))
        yield one
        one.kill()


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_a_server_that_comes_and_goes_has_it_all_in_the_end(server, experiment, monkeypatch, tmp_path):
    """Down at the start; up from step 20; killed at 40, with a step in between; up again from 60."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(journal_module, "INTERVAL", 0.5)
    durations, ended = [], [time.monotonic()]

    def live(engine: Engine) -> None:
        step = engine.state.iteration
        durations.append(time.monotonic() - ended[0])
        if step in (20, 60):
            server.start()
        elif step == 40:
            server.kill()
        engine.tracking.journal.log_file(f"{step:04d}.txt", f"step {step}", "pictures")
        deadline = time.monotonic() + 300
        while step == 30 and not engine.tracking.journal._sender.offset and time.monotonic() < deadline:
            time.sleep(0.1)  # until the run exists
        time.sleep(2 if step in (30, 70) else 0.05)
        ended[0] = time.monotonic()

    train(experiment, steps=80, on_step=live)
    assert max(durations[1:]) < 5, "seconds that a step waited"
    deadline = time.monotonic() + 300
    while list(Path("spool").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)  # on a busy machine the last batch takes longer than the training waits
    client = MlflowClient(server.uri)
    (run,) = runs(client, experiment)
    assert run.info.status == "FINISHED"
    assert steps(client, run) == steps(client, run, "lr_group_0") == list(range(1, 81))
    if isinstance(server, Server):
        files = [file.path for file in client.list_artifacts(run.info.run_id, "pictures")]
        assert files == [f"pictures/{step:04d}.txt" for step in range(1, 81)]
    assert not list(Path("spool").iterdir())
