"""One training, one run: how it ends, what it holds, and that it names nobody."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import StatsHandler, ValidationHandler

from monai_unet.data import InputError
from monai_unet.tracking import Tracking
from monai_unet.tracking import journal as spool_module
from monai_unet.tracking.redaction import file_names, public_config, public_parameter, public_text
from monai_unet.tracking.run import LONGEST_PARAMETER

pytestmark = [
    # torch, MONAI and MLflow on their own ways
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens
PATIENT = "Mustermann"


@pytest.fixture(scope="module")
def client(store) -> MlflowClient:
    return MlflowClient(store)


@pytest.fixture(autouse=True)
def uri(store, monkeypatch, tmp_path) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr(spool_module, "INTERVAL", 0.1)
    monkeypatch.chdir(tmp_path)
    return store


@pytest.fixture
def experiment(request) -> str:
    return request.node.name


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
        torch.utils.data.DataLoader(Listed(items(1, "held_out"))),
        network,
        decollate=False,
        val_handlers=[tracking],
    )
    evaluator.add_event_handler(Events.COMPLETED, lambda engine: engine.state.metrics.update(error=0.25))
    evaluator._event_handlers[Events.COMPLETED].reverse()  # the metric before what logs it
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        epochs,
        torch.utils.data.DataLoader(Listed(items(steps))),
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


class Listed(torch.utils.data.Dataset):
    def __init__(self, data: list[dict]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        return {key: value for key, value in self.data[index].items() if key != "file"}


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
    assert not list(Path("spool").iterdir())


def test_the_code_and_the_environment_are_told(client, experiment, monkeypatch):
    train(experiment)
    (run,) = runs(client, experiment)
    if run.data.params.get("commit"):
        clean = not run.data.params["commit"].endswith("+")
        assert run.data.params["tree"] == ("clean" if clean else "modified")
        assert run.data.tags["mlflow.source.git.commit"] == run.data.params["commit"].rstrip("+")
    assert f"torch=={torch.__version__}" in artifact(client, run, "environment.txt").splitlines()
    assert run.data.params["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (FloatingPointError("the loss is NaN"), "FAILED", "FloatingPointError: the loss is NaN"),
        (KeyboardInterrupt(), "KILLED", None),
        (SystemExit(1), "KILLED", None),
    ],
)
def test_the_end_of_a_training_is_the_end_of_its_run(error, status, text, client, experiment):
    """Although MONAI's StatsHandler raises first, and ignite calls no handler behind it."""

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


def test_an_error_names_no_file(client, experiment):
    def fail(engine: Engine) -> None:
        raise ValueError(f"/data/{PATIENT}/1.nii.gz and image_2: NaN in image_2.png of {PATIENT}.dcm")

    with pytest.raises(ValueError, match=PATIENT):
        train(experiment, on_step=fail)
    (run,) = runs(client, experiment)
    assert run.data.tags["error"] == "ValueError: <path> and <name>: NaN in <name> of <file>"


def test_an_error_does_not_name_its_own_path_blanks_or_not(client, experiment):
    def fail(engine: Engine) -> None:
        raise InputError(f"/data/Max {PATIENT} Max", "no such folder", "Name another")

    with pytest.raises(InputError):
        train(experiment, on_step=fail)
    (run,) = runs(client, experiment)
    assert run.data.tags["error"] == "InputError: <name>: no such folder. Name another."


def test_a_killed_training_stays_running_and_the_next_does_not_join_it(client, experiment):
    """SIGKILL in a forked child; then a new training, and one that resumes."""

    def die(engine: Engine) -> None:
        if engine.state.iteration == 3:
            while not engine.tracking.client._sender.offset:
                time.sleep(0.01)  # until the run exists
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        train(experiment, on_step=die)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (killed,) = runs(client, experiment)
    assert killed.info.status == "RUNNING"
    fresh = train(experiment)
    again = train(experiment, steps=6, resume=killed.info.run_id)
    assert (fresh.run_id == killed.info.run_id, again.run_id) == (False, killed.info.run_id)
    found = {run.info.run_id: run for run in runs(client, experiment)}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert steps(client, found[fresh.run_id]) == [1, 2, 3, 4]
    assert steps(client, found[again.run_id]) == [1, 2, 3, 4, 5, 6]


def test_a_training_without_server_goes_on_and_resumes_its_spool(client, experiment, monkeypatch, store, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)

    def stop(engine: Engine) -> None:
        if engine.state.iteration == 3:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train(experiment, on_step=stop)
    assert time.monotonic() - start < 10
    (spool,) = Path("spool").iterdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    again = train(experiment, steps=5, resume=spool.name)
    (run,) = runs(client, experiment)
    assert run.info.run_id == again.run_id
    assert run.info.status == "FINISHED"
    assert steps(client, run) == [1, 2, 3, 4, 5]
    assert not list(Path("spool").iterdir())


def test_other_ranks_log_nothing(client, experiment, monkeypatch):
    monkeypatch.setattr("monai_unet.tracking.run.idist.get_rank", lambda: 1)
    tracking = train(experiment)
    assert tracking.run_id is None
    assert runs(client, experiment) == []
    assert not Path("spool").exists()
    tracking.log_text("a.txt", "b")
    tracking.log_file("none.png")
    tracking.log_series("c", [1.0])
    with tracking.model("name", {}) as place:
        assert place is None


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
    with pytest.raises(ValueError, match=f"MLFLOW_TRACKING_URI is {uri!r}; MLflow keeps no runs in plain folders"):
        Tracking("experiment", {})


def test_without_a_word_it_is_the_store_that_mlflow_ui_opens(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Tracking("experiment", {}).uri == f"sqlite:///{tmp_path}/mlflow.db"


# --- what it holds ---


def test_no_parameter_is_cut(client, experiment):
    at_most, longer = "x" * LONGEST_PARAMETER, "y" * (LONGEST_PARAMETER + 1)
    train(experiment, parameters={"at_most": at_most, "longer": longer, **{f"p{n}": n for n in range(150)}})
    (run,) = runs(client, experiment)
    assert run.data.params["at_most"] == at_most
    assert run.data.params["longer"] == "6001 characters: see parameters.json"
    assert json.loads(artifact(client, run, "parameters.json"))["longer"] == longer
    assert run.data.params["p149"] == "149"


def test_a_parameter_changed_on_resuming_is_told(client, experiment):
    first = train(experiment, parameters={"learning_rate": 0.1, "seed": 1})
    train(experiment, parameters={"learning_rate": 0.2, "seed": 1}, resume=first.run_id)
    (run,) = runs(client, experiment)
    assert run.data.params["learning_rate"] == "0.1"
    assert run.data.tags["changed.learning_rate"] == "0.1 → 0.2"


def test_the_config_is_the_one_that_ran(client, experiment):
    parser = ConfigParser(
        {
            "imports": ["$from pathlib import Path"],
            "dataset_dir": f"/data/{PATIENT}/all",
            "learning_rate": 0.5,
            "tracking": {
                "_target_": "monai_unet.tracking.Tracking",
                "experiment_name": experiment,
                "folder": "spool",
                "parameters": {"lr": "@learning_rate"},
            },
        }
    )
    tracking = parser.get_parsed_content("tracking")
    engine = Engine(lambda engine, batch: None)
    tracking.attach(engine)
    engine.run([0])
    (run,) = runs(client, experiment)
    config = yaml.safe_load(artifact(client, run, "config.yaml"))
    assert config["learning_rate"] == 0.5
    assert config["dataset_dir"] == "<dataset_dir>"
    assert config["tracking"]["parameters"] == {"lr": "@learning_rate"}
    assert run.data.params["lr"] == "0.5"


# --- what it must not hold ---


def test_public_config(tmp_path):
    existing = tmp_path / PATIENT / "list.json"
    existing.parent.mkdir()
    existing.touch()
    config = {
        "bundle_root": ".",
        "dataset_dir": f"data/{PATIENT}",
        "input": PATIENT,
        "output_dir": "$@bundle_root + '/models'",
        "ckpt_path": Path(f"/home/{PATIENT}/model.pt"),
        "datalist": f"$datasets.datalist('{existing.parent}', 'training')",
        "network_def": {"_target_": "monai_unet.networks.ValidUNet", "features": [64, 128]},
        "handlers": [{"_target_": "a.b", "folder": "$@output_dir + '/pictures'"}, "@tracking"],
        "loss": "mean",
        "_meta_": {"data_source": "https://host/data.zip"},
        "train": {"dataset": {"data": [{"image": f"/data/{PATIENT}/1.png", "label": "2.png"}] * 3}},
        "extra": f"{PATIENT}.nii.gz",
        "words": f"$print('/{300 * 'b'}')",
        "mask": [f"C:\\{PATIENT}\\mask.png"],
    }
    public = public_config(config)
    assert PATIENT not in json.dumps(public)
    unchanged = ("words", "bundle_root", "output_dir", "network_def", "handlers", "loss", "_meta_")
    assert {key: public[key] for key in unchanged} == {key: config[key] for key in unchanged}
    assert public["datalist"] == "$datasets.datalist('<path>', 'training')"
    assert public["train"]["dataset"]["data"] == "<3 items>"
    assert (public["dataset_dir"], public["input"]) == ("<dataset_dir>", "<input>")


def test_public_parameter(tmp_path):
    file = tmp_path / f"{PATIENT}.pt"
    file.write_bytes(b"weights")
    assert public_parameter(str(file)) == "sha256:" + hashlib.sha256(b"weights").hexdigest()
    assert public_parameter(f"/data/{PATIENT}/model.pt") == "<path>"
    assert public_parameter("em_phantom sha256:0123") == "em_phantom sha256:0123"
    assert public_parameter([64, 128]) == "[64, 128]"
    assert public_parameter([f"/data/{PATIENT}/1.png", f"{PATIENT}.nii.gz"]) == "['<path>', '<file>']"
    assert public_parameter("/" + 300 * "b") == "<path>", "longer than a file's name may be"
    assert public_parameter("balanced") == "balanced"


def test_public_text():
    names = file_names([{"image": f"/data/{PATIENT} Max.nii.gz", "label": [f"/a/{PATIENT}_2.png"], "fold": 0}])
    assert names == {f"{PATIENT} Max.nii.gz", f"{PATIENT} Max", f"{PATIENT}_2.png", f"{PATIENT}_2"}
    assert file_names(None) == set()
    text = f"item '{PATIENT} Max' in ../{PATIENT}/{PATIENT}_2.png: step 3 of (4, 5) is NaN"
    assert public_text(text, names) == "item '<name>' in <path>: step 3 of (4, 5) is NaN"
    text = f"'a' in /x/y: no such file: '/data/Max {PATIENT} Max/im age.png', it isn't and/or can't be"
    assert public_text(text) == "'a' in <path>: no such file: '<path>', it isn't <path> can't be"


# --- real servers ---


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`mlflow server` on loopback, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.process = folder, free_port(), None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        command += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 1000  # on a busy machine
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.5)

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
    monkeypatch.setattr(spool_module, "INTERVAL", 0.5)
    durations, ended = [], [time.monotonic()]

    def live(engine: Engine) -> None:
        step = engine.state.iteration
        durations.append(time.monotonic() - ended[0])
        if step in (20, 60):
            server.start()
        elif step == 40:
            server.kill()
        (tmp_path / "picture.txt").write_text(f"step {step}")
        engine.tracking.log_file(tmp_path / "picture.txt", "pictures", f"{step:04d}.txt")
        deadline = time.monotonic() + 300
        while step == 30 and not engine.tracking.client._sender.offset and time.monotonic() < deadline:
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
