"""Batch norm with fixed statistics: training computes what prediction computes, and learns nevertheless."""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Engine

from monai_unet.networks import ValidUNet
from monai_unet.training import FixedStatistics


def network() -> ValidUNet:
    torch.manual_seed(0)
    net = ValidUNet(2, 1, 2, features=(4, 8), dropout=0, norm="batch")
    for _ in range(3):
        net(torch.randn(2, 1, 40, 40) * 3 + 1)
    return net


def run(net: ValidUNet, after: int | None, epochs: int) -> list[bool]:
    """Per epoch, whether training computed the same as prediction."""
    x, same = torch.randn(1, 1, 40, 40), []

    def step(engine: Engine, batch: object) -> None:
        net.train()
        trained = net(x)
        same.append(torch.equal(trained, net.eval()(x)))

    trainer = Engine(step)
    FixedStatistics(net, after).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return same


@pytest.mark.parametrize(
    ("after", "expected"), [(None, [False] * 3), (0, [True] * 3), (2, [False, False, True]), (3, [False] * 3)]
)
def test_after_these_epochs_training_computes_what_prediction_does(after: int | None, expected: list[bool]) -> None:
    assert run(network(), after, epochs=3) == expected


def test_fixed_statistics_stay_and_all_weights_learn() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    net.fixed_statistics = True
    net.train()
    assert net.training
    net(torch.randn(1, 1, 40, 40)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
