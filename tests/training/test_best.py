"""The best network of a training run is kept, as a whole file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from monai_unet.networks import ValidUNet, load_network, load_task
from monai_unet.training import BestCheckpoint


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


def test_it_says_what_the_network_is_for_and_how_it_was_trained(tmp_path):
    task = {"kind": "instances", "class_names": ("background", "cell"), "min_size": np.int64(61), "pixel_size_um": None}
    validations(ValidUNet(2, 1, 2, (2, 3)), tmp_path / "model.pt", [0.5, 0.2, 0.3], task={**task, "features": [7, 7]})
    kept = load_task(tmp_path / "model.pt")
    assert [kept[name] for name in task] == ["instances", ["background", "cell"], 61, None]
    assert type(kept["min_size"]) is int
    architecture = {"spatial_dims": 2, "in_channels": 1, "norm": None, "features": [2, 3]}
    assert {name: kept[name] for name in architecture} == architecture, "the network is right"
    assert (kept["kernel_size"], kept["strides"]) == ([[3, 3], [3, 3]], [[2, 2]])
    assert "monai_unet" in kept["code"]
    trained = kept["trained"]
    assert (trained["metric"], trained["value"], trained["epochs"]) == ("error", 0.2, 1)
    assert trained["command"].startswith("python ")
    assert str(tmp_path) not in str(kept)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"spacing": {"mm": np.ones(3)}},
            r"task#spacing#mm is array\(\[1., 1., 1.\]\); a checkpoint keeps numb",
        ),
        ({"channel_names": ["gray", Path("x")]}, r"task#channel_names#1 is .*Path\('x'\); a checkpoint keeps numbers"),
        (
            {"kind": "classes", "class_names": ["background"]},
            r"class_names is \['background'\]; it must have 2",
        ),
    ],
)
def test_what_a_checkpoint_cannot_keep_is_refused_before_training(task, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        BestCheckpoint(ValidUNet(2, 1, 2, (2, 3)), tmp_path / "model.pt", "error", task=task)
