"""What nobody has labelled teaches nothing and costs nothing: in closed form, through loss and metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric
from monai.transforms import AsDiscreted, Compose, MaskIntensityd

from monai_unet.losses import PixelWeightedCrossEntropyLoss
from monai_unet.transforms import ClassWeightMap, ClassWeightMapd, SplitUnlabelled, SplitUnlabelledd

LABELS = np.array([[[0, 1, 255], [2, 255, 1]]])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_label_255_and_the_mask_both_count(dtype: type) -> None:
    classes, ignore = SplitUnlabelled()(LABELS.astype(dtype), np.array([[[0, 255, 0], [0, 0, 0]]]))
    assert classes.dtype == ignore.dtype == dtype
    assert classes.tolist() == [[[0, 0, 0], [2, 0, 1]]]
    assert ignore.tolist() == [[[0, 1, 1], [0, 1, 0]]]
    again, same = SplitUnlabelled()(classes, ignore)
    assert np.array_equal(again, classes)
    assert np.array_equal(same, ignore)


def test_metadata_stay_and_the_item_is_not_changed() -> None:
    label = MetaTensor(torch.as_tensor(LABELS), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0])))
    item = {"label": label}
    out = SplitUnlabelledd("label", value=2)(item)
    assert out["label"].tolist() == [[[0, 1, 255], [0, 255, 1]]]
    assert out["ignore"].tolist() == [[[0, 0, 0], [1, 0, 0]]]
    assert torch.equal(out["label"].affine, label.affine)
    assert set(item) == {"label"}
    assert label.tolist() == LABELS.tolist()


def test_the_loss_knows_nothing_of_what_is_not_labelled() -> None:
    item = Compose([SplitUnlabelledd("label"), ClassWeightMapd("label", [0.5, 1, 2], ignore_key="ignore")])(
        {"label": torch.as_tensor(LABELS)}
    )
    assert item["weight"].tolist() == [[[0.5, 1, 0], [2, 0, 1]]]
    assert item["weight"].dtype == torch.float32
    logits = torch.randn(1, 3, 2, 3, requires_grad=True)
    PixelWeightedCrossEntropyLoss()(logits, torch.cat([item["label"], item["weight"]])[None]).backward()
    unlabelled = torch.as_tensor(LABELS[0] == 255)
    assert not logits.grad[0, :, unlabelled].any()
    assert logits.grad[0, :, ~unlabelled].all()


def test_dice_of_labelled_voxels_only() -> None:
    score = Compose(
        [
            SplitUnlabelledd("reference"),
            AsDiscreted(["pred", "reference"], to_onehot=3),
            MaskIntensityd(["pred", "reference"], mask_key="ignore", select_fn=lambda ignore: ignore == 0),
        ]
    )
    item = score({"pred": torch.tensor([[[0, 1, 2], [1, 1, 1]]]), "reference": torch.as_tensor(LABELS)})
    dice = DiceMetric(include_background=True, ignore_empty=False)(y_pred=[item["pred"]], y=[item["reference"]])
    # labelled: 0, 1, 2, 1 and predicted there: 0, 1, 1, 1
    assert dice.tolist() == [[1.0, pytest.approx(2 * 2 / (2 + 3)), 0.0]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ignore has shape \(1, 3\); it must be the labels', \(1, 2, 3\)"):
        SplitUnlabelled()(LABELS, np.zeros((1, 3)))
    with pytest.raises(ValueError, match="labels from 0 to 255, but 3 class_weights; give one per class"):
        ClassWeightMap([1, 1, 1])(LABELS)
    with pytest.raises(ValueError, match="class_weights is .1, -1.; use finite numbers of at least 0, one per class"):
        ClassWeightMap([1, -1])
