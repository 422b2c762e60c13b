"""Target and weight keep their names until the loss, which gets them as one tensor."""

from __future__ import annotations

import re

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer

from monai_unet.losses import PixelWeightedCrossEntropyLoss
from monai_unet.networks import ValidUNet
from monai_unet.training import Guards, PrepareTarget

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def trainer(weight: torch.Tensor) -> SupervisedTrainer:
    """One step on one tile of 4² output voxels."""
    network = ValidUNet(2, 1, 2, (2, 3, 4))
    tile = {"image": torch.ones(1, 44, 44), "classes": torch.ones(1, 4, 4, dtype=torch.uint8), "weight": weight}
    return SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=DataLoader(Dataset([tile])),
        network=network,
        loss_function=PixelWeightedCrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        prepare_batch=PrepareTarget(target="classes", weight="weight"),
        train_handlers=[Guards(network)],
    )


def test_the_weight_reaches_the_loss():
    weight = torch.full((1, 4, 4), 1e-3)
    weight[0, 1, 2] = 7.5
    ran = trainer(weight)
    ran.run()
    (output,), (batch,) = ran.state.output, ran.state.batch
    assert torch.equal(output["label"], torch.cat([torch.ones(1, 4, 4), weight]))
    assert set(batch) == {"image", "classes", "weight"}
    losses = torch.nn.functional.cross_entropy(output["pred"][None], torch.ones(1, 4, 4).long(), reduction="none")
    assert float(output["loss"]) == pytest.approx(float((weight * losses).sum() / weight.sum()))


def test_a_weight_that_is_not_finite_is_named():
    weight = torch.ones(1, 4, 4)
    weight[0, 0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=re.escape("the weight holds NaN or Inf")):
        trainer(weight).run()


def test_a_missing_weight_is_named():
    with pytest.raises(KeyError, match="weight"):
        PrepareTarget("label", "weight")({"image": torch.zeros(1, 1, 4, 4), "label": torch.zeros(1, 1, 4, 4)})
