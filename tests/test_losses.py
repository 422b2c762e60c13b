"""Eq. 1, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from monai_unet.losses import PixelWeightedCrossEntropyLoss

# two classes, three pixels in a row: softmax (0.5, 0.5), (0.75, 0.25), (0.2, 0.8)
LOGITS = torch.tensor([[0.0, math.log(3), 0.0], [0.0, 0.0, math.log(4)]]).reshape(1, 2, 1, 3)
TARGET = torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 10.0]]).reshape(1, 2, 1, 3)
SUMMANDS = [2 * math.log(2), 3 * math.log(4 / 3), 10 * math.log(5)]


def test_each_summand_their_sum_and_their_weighted_mean():
    none, total, mean = (PixelWeightedCrossEntropyLoss(reduction=r)(LOGITS, TARGET) for r in ("none", "sum", "mean"))
    assert none.flatten().tolist() == pytest.approx(SUMMANDS, rel=1e-6)
    assert none.shape == (1, 1, 3)
    assert total.item() == pytest.approx(sum(SUMMANDS), rel=1e-6)
    assert mean.item() == pytest.approx(sum(SUMMANDS) / 15, rel=1e-6)


def test_without_a_weight_every_pixel_counts_once():
    loss = PixelWeightedCrossEntropyLoss()(LOGITS, TARGET[:, :1])
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(5)) / 3, rel=1e-6)


def test_the_default_is_torchs_class_weighted_mean_when_weights_follow_the_class():
    torch.manual_seed(0)
    logits, index, w = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 4, 5, 6)), torch.tensor([1.0, 2.0, 5.0])
    ours = PixelWeightedCrossEntropyLoss()(logits, torch.stack([index.float(), w[index]], dim=1))
    assert ours.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, index, weight=w).item(), rel=1e-5)


def test_a_pixel_of_weight_zero_is_ignored_whatever_it_holds():
    """Neither loss nor gradient depends on its logits, not even on infinite ones, nor on its index."""
    logits = LOGITS.clone()
    logits[0, :, 0, 2] = torch.tensor([math.inf, -math.inf])
    target = TARGET.clone()
    target[0, :, 0, 2] = torch.tensor([255.0, 0.0])
    logits.requires_grad_()
    loss = PixelWeightedCrossEntropyLoss()(logits, target)
    assert loss.item() == pytest.approx(sum(SUMMANDS[:2]) / 5, rel=1e-6)
    finite = LOGITS.clone().requires_grad_()
    PixelWeightedCrossEntropyLoss()(finite, target).backward()
    assert finite.grad[..., 2].abs().max() == 0


def test_without_any_weight_the_loss_is_zero():
    target = TARGET.clone()
    target[:, 1] = 0
    logits = LOGITS.clone().requires_grad_()
    loss = PixelWeightedCrossEntropyLoss()(logits, target)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 3, 1, 3), (1, 1, 3), (1, 1, 1, 4), (2, 1, 1, 3)])
def test_a_target_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"target of shape \(.*\) does not fit logits of shape \(1, 2, 1, 3\)"):
        PixelWeightedCrossEntropyLoss()(LOGITS, torch.zeros(shape))


@pytest.mark.parametrize("index", [2, -1])
def test_a_class_index_out_of_range(index):
    with pytest.raises(ValueError, match=r"class indices from .* logits of 2 classes allow 0 to 1"):
        PixelWeightedCrossEntropyLoss()(LOGITS, torch.full((1, 1, 1, 3), index))


def test_class_weights_that_are_given_leave_the_probabilities_as_they_are():
    """One voxel in ten is of class 1, without any hint which: the best logits say so, whatever the weights."""
    index = torch.zeros(10)
    index[0] = 1
    for weights, given, expected in (([1, 5], [1, 5], 0.1), ([1, 5], None, 5 / 14)):
        target = torch.stack([index, torch.tensor(weights)[index.long()]]).reshape(1, 2, 10)
        bias = torch.zeros(2, requires_grad=True)
        loss, optimizer = PixelWeightedCrossEntropyLoss(class_weights=given), torch.optim.LBFGS([bias], max_iter=100)

        def closure(bias=bias, loss=loss, target=target, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(bias.reshape(1, 2, 1).expand(1, 2, 10), target)
            value.backward()
            return value

        optimizer.step(closure)
        assert torch.softmax(bias, 0)[1].item() == pytest.approx(expected, abs=1e-4)


def test_a_class_of_weight_zero_is_not_learnt():
    logits = LOGITS.clone().requires_grad_()
    target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]).reshape(1, 2, 1, 3)
    loss = PixelWeightedCrossEntropyLoss(class_weights=[1, 0])(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(5)) / 2, rel=1e-6)
    assert logits.grad[..., 0].abs().max() == 0


@pytest.mark.parametrize("weights", [[-1, 1], [math.inf, 1], [math.nan, 1]])
def test_class_weights_that_are_none(weights):
    with pytest.raises(ValueError, match="use finite numbers of at least 0, one per class"):
        PixelWeightedCrossEntropyLoss(class_weights=weights)


def test_as_many_class_weights_as_classes():
    with pytest.raises(ValueError, match="3 class_weights for 2 classes; give one per class"):
        PixelWeightedCrossEntropyLoss(class_weights=[1, 1, 2])(LOGITS, TARGET)


def test_an_unknown_reduction():
    with pytest.raises(ValueError, match="reduction is 'avg'; it must be mean, sum or none"):
        PixelWeightedCrossEntropyLoss(reduction="avg")
