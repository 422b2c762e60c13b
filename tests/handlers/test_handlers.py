"""What a run leaves behind: whole checkpoints, a run that says how it ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from mlflow import MlflowClient

from monai_unet.data import InputError
from monai_unet.data.atomic import replacing
from monai_unet.handlers import BestCheckpoint, Tracking, load_network
from monai_unet.networks import ValidUNet

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def validations(network: ValidUNet, path: Path, values: list[float], **kwargs) -> None:
    """Evaluators that report these values, one after the other; the network changes before each."""
    checkpoint = BestCheckpoint(network, path, "error", **kwargs)
    for epoch, value in enumerate(values, start=1):
        torch.nn.init.constant_(network.head.bias, epoch)
        engine = Engine(lambda engine, batch, value=value: engine.state.metrics.update(error=value))
        checkpoint.attach(engine)
        engine.run([0])


@pytest.mark.parametrize(
    ("values", "kwargs", "best"),
    [
        ([0.5, 0.2, 0.3], {}, 2),
        ([0.5, 0.2, 0.3], {"better": float.__gt__}, 1),
        ([0.2, 0.2], {}, 1),
        ([float("nan"), 0.4], {}, 2),
    ],
)
def test_the_best_network_is_kept(values, kwargs, best, tmp_path):
    network = ValidUNet(2, 1, 2, (2, 3))
    validations(network, tmp_path / "new" / "model.pt", values, **kwargs)
    assert load_network(tmp_path / "new" / "model.pt").head.bias.tolist() == [best, best]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.pt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
        raise OSError("disk full")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    assert path.read_text() == "old"
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


def test_a_network_for_other_images_is_refused(tmp_path):
    torch.save(ValidUNet(3, 1, 2, (2, 3)).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="the network has spatial_dims = 3, and 2 is needed. Name a checkpoint"):
        load_network(tmp_path / "model.pt")
    assert load_network(tmp_path / "model.pt", spatial_dims=3).training is False


def test_a_run_that_raises_is_failed_and_says_why(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)

    def step(engine, batch):
        raise FloatingPointError("the loss is NaN")

    engine = Engine(step)
    Tracking("experiment", {"seed": 1}).attach(engine)
    with pytest.raises(FloatingPointError):
        engine.run([0])
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "FloatingPointError: the loss is NaN"
    assert run.data.params["seed"] == "1"


def test_without_mlflow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r'pip install "monai_unet\[tracking\]"'):
        Tracking("experiment", {})
