"""The best network of a training run is kept, as a whole file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from monai_unet.networks import ValidUNet, load_network
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
