"""Training that starts from other weights."""

from __future__ import annotations

import copy
import logging
import signal

import pytest
import torch
from ignite.engine import Engine
from tiny_training import train

from monai_unet.errors import InputError
from monai_unet.losses import PixelWeightedCrossEntropyLoss
from monai_unet.networks import ValidUNet
from monai_unet.training import TrainingStopped, init_head, init_weights


@pytest.fixture
def weights(tmp_path):
    """Save the weights of a network, with a task or bare, and return the file."""

    def save(network: ValidUNet, bare: bool = False):
        state = network.state_dict()
        torch.save(state if bare else {"model": state, "task": {"kind": "classes"}}, tmp_path / "start.pt")
        return tmp_path / "start.pt"

    return save


@pytest.mark.parametrize("bare", [False, True])
def test_all_weights_of_an_equal_network_are_taken(bare, weights, caplog):
    theirs, ours = ValidUNet(2, 1, 2, (2, 3), norm="batch"), ValidUNet(2, 1, 2, (2, 3), norm="batch")
    caplog.set_level(logging.INFO)
    init_weights(ours, weights(theirs, bare))
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert caplog.messages[-1].endswith("start.pt: all weights")


def test_the_head_of_other_classes_stays_new_and_a_colour_network_sees_gray(weights, caplog):
    theirs, ours = ValidUNet(2, 3, 2, (2, 3)).eval(), ValidUNet(2, 1, 4, (2, 3)).eval()
    new = ours.head.weight.clone()
    caplog.set_level(logging.INFO)
    init_weights(torch.nn.DataParallel(ours), weights(theirs))
    assert torch.equal(ours.head.weight, new)
    assert caplog.messages[-1].endswith(
        "start.pt: the first convolution is summed over its 3 channels; the head is new, for 4 classes instead of 2"
    )
    theirs.head = ours.head
    gray = torch.rand(1, 1, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(gray), theirs(gray.expand(1, 3, 24, 24)))


@pytest.mark.parametrize(
    ("theirs", "problem"),
    [
        (ValidUNet(3, 1, 2, (2, 3)), "its network has spatial_dims = 3, and the one to train has 2"),
        (ValidUNet(2, 1, 2, (2, 4)), r"features = \(2, 4\), and the one to train has \(2, 3\)"),
        (ValidUNet(2, 1, 2, (2, 3, 4)), r"features = \(2, 3, 4\), and the one to train has \(2, 3\)"),
        (ValidUNet(2, 1, 2, (2, 3), kernel_size=[(1, 3), 3]), r"kernel_size = \[\(1, 3\), \(3, 3\)\], and the one"),
        (ValidUNet(2, 1, 2, (2, 3), norm="batch"), "norm = batch, and the one to train has None"),
        (ValidUNet(2, 2, 2, (2, 3)), "in_channels = 2, and the one to train has 1. Train with in_channels = 2, or"),
    ],
)
def test_another_architecture_is_refused(theirs, problem, weights):
    with pytest.raises(InputError, match=problem):
        init_weights(ValidUNet(2, 1, 2, (2, 3)), weights(theirs))


def test_none_does_nothing():
    network = ValidUNet(2, 1, 2, (2, 3))
    before = network.head.weight.clone()
    init_weights(network, None)
    assert torch.equal(network.head.weight, before)


def test_a_resumed_training_goes_on_from_its_own_weights(weights, tmp_path):
    path = weights(ValidUNet(2, 1, 2, (2, 3, 4)))

    def started(network: ValidUNet) -> ValidUNet:
        init_weights(network, path)
        return network

    def stop(engine: Engine) -> None:
        if engine.state.iteration == 3:
            signal.raise_signal(signal.SIGTERM)

    fresh, whole = train(tmp_path / "fresh", epochs=1), train(tmp_path / "whole", epochs=1, wrap=started)
    assert fresh[1] != whole[1], "it starts from other weights"
    with pytest.raises(TrainingStopped) as stopped:
        train(tmp_path / "parts", epochs=1, wrap=started, on_step=stop)
    assert {**stopped.value.curve, **train(tmp_path / "parts", epochs=1, wrap=started, resume=True)} == whole


def test_a_head_for_class_weights_lets_the_loss_see_what_it_would_see_without_them():
    """Three steps of training with weights undone are those of training with them, and the logits differ by log w."""
    torch.manual_seed(0)
    weights, images = [1.0, 5.0, 2.0], torch.rand(3, 1, 1, 20, 20)
    plain = ValidUNet(2, 1, 3, (2, 3), dropout=0)
    undone = copy.deepcopy(plain)
    loss = PixelWeightedCrossEntropyLoss(class_weights=weights)
    init_head(undone, loss)
    labels = torch.randint(0, 3, (3, 1, *plain(images[0]).shape[2:]))
    targets = torch.stack([labels.float(), torch.tensor(weights)[labels]], dim=2)
    for network, function in ((plain, PixelWeightedCrossEntropyLoss()), (undone, loss)):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for image, target in zip(images, targets, strict=True):
            optimizer.zero_grad()
            function(network(image), target).backward()
            optimizer.step()
    difference = plain(images[0]) - undone(images[0])
    expected = torch.tensor(weights).log().reshape(1, 3, 1, 1).expand_as(difference)
    torch.testing.assert_close(difference, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "loss", [PixelWeightedCrossEntropyLoss(), PixelWeightedCrossEntropyLoss(class_weights=[0, 1]), torch.nn.MSELoss()]
)
def test_a_head_without_weights_to_undo(loss):
    network = ValidUNet(2, 1, 2, (2, 3))
    before = network.head.bias.clone()
    init_head(network, loss)
    assert torch.equal(network.head.bias, before)


def test_class_weights_for_another_number_of_classes():
    with pytest.raises(InputError, match=r"--class_weights: 3 numbers for 2 classes. Give one per class"):
        init_head(ValidUNet(2, 1, 2, (2, 3)), PixelWeightedCrossEntropyLoss(class_weights=[1, 2, 3]))
