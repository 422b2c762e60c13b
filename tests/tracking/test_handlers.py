"""What a run leaves behind: whole checkpoints, a run that says how it ended."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from monai.data import MetaTensor

from monai_unet.data import InputError
from monai_unet.networks import ValidUNet, load_network
from monai_unet.tracking import Scores, Tracking
from monai_unet.training import BestCheckpoint

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


@pytest.mark.parametrize("limit", [100, 1])
def test_pictures_outline_each_of_two_touching_cells(limit, tmp_path, monkeypatch):
    """Along their contact too, one by one or, where they are many, all at once; a probability at one half."""
    from matplotlib import axes

    from monai_unet.tracking import Pictures, pictures

    drawn: list[np.ndarray] = []
    monkeypatch.setattr(axes.Axes, "contour", lambda self, mask, levels, **style: drawn.append(np.asarray(mask)))
    monkeypatch.setattr(pictures, "ONE_BY_ONE", limit)
    ids = torch.zeros(1, 20, 30)
    ids[0, 5:15, 5:15], ids[0, 5:15, 15:25] = 3, 7
    probability = torch.where(ids > 0, 0.9, 0.1)
    image = MetaTensor(torch.rand(1, 20, 30), meta={"filename_or_obj": "a.png"})
    engine = Engine(lambda engine, batch: None)
    for item, outlines in (({"label": ids, "pred": ids}, 4 if limit > 1 else 2), ({"pred": probability}, 1)):
        drawn.clear()
        engine.state.batch, engine.state.output = [{"image": image}], [item]
        Pictures(tmp_path)(engine)
        assert len(drawn) == outlines
        whole = np.sum([mask >= 0.5 for mask in drawn[:2] if limit > 1] or [drawn[0] >= 0.5], axis=0)
        assert whole[10, 14] == whole[10, 15] == (1 if limit > 1 or outlines == 1 else 0)
        assert whole[10, 8] == 1
        assert whole[2, 2] == 0


def test_scores_that_are_not_finite_come_back_as_they_are(tmp_path):
    engine = Engine(lambda engine, batch: [{"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": batch})}])
    Scores(tmp_path, facts={"averaging": "all"}).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def _(engine: Engine) -> None:
        engine.state.metrics = {"hd95": float("inf"), "dice": 0.5}
        engine.state.metric_details = {
            "hd95": torch.tensor([[float("inf")], [2.0]]),
            "dice": torch.tensor([[0.5], [float("nan")]]),
        }

    engine.run(["a/one.nii", "b/two.nii"])
    record = json.loads((tmp_path / "scores.json").read_text())
    assert (record["averaging"], record["overall"]) == ("all", {"hd95": float("inf"), "dice": 0.5})
    assert record["images"][0] == {"image": "one.nii", "hd95": float("inf"), "dice": 0.5}
    assert (record["images"][1]["hd95"], np.isnan(record["images"][1]["dice"])) == (2.0, True)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [(row["hd95"], row["dice"]) for row in rows] == [("inf", "0.5"), ("2.0", "nan"), ("inf", "0.5")]
