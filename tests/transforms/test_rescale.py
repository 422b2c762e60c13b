"""One magnification for the network: images of another one are rescaled, and predictions come back onto their grid."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, Invertd

from monai_unet.errors import InputError
from monai_unet.transforms import LabelInstances, LabelInstancesd, RescaleToPixelSized

TASK = (0.5, 0.5)


def image(array: Any, *size: float) -> MetaTensor:
    affine = torch.diag(torch.tensor([*np.nan_to_num(size, nan=1.0), 1.0]))
    return MetaTensor(torch.as_tensor(array), affine, {"pixel_size_um": np.array(size), "filename_or_obj": "a.tif"})


def ramp(*shape: int) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).sum(0)[None].float()


def disk(size: int, radius: float, spacing: float) -> np.ndarray:
    """The probability of a disk around the middle, in pixels of this size: it falls from 1 to 0 within a micrometre."""
    at = (np.arange(size) - (size - 1) / 2) * spacing
    return np.clip(0.5 + radius - np.hypot(at[:, None], at), 0, 1).astype(np.float32)[None]


def iou(a: Any, b: Any) -> float:
    a, b = np.asarray(a) > 0, np.asarray(b) > 0
    return float((a & b).sum() / (a | b).sum())


def test_a_plane_stays_a_plane_and_labels_stay_on_it() -> None:
    rescale = RescaleToPixelSized(["image", "label", "none"], TASK, ["bilinear", "nearest", "nearest"], True, True)
    labels = (ramp(9, 7) % 3).long() + 2**30  # without pixel size: it is the image's that counts
    item = rescale({"image": image(ramp(9, 7), 1.0, 2.0), "label": labels})
    rows, columns = torch.arange(17) / 2, torch.arange(25) / 4
    assert torch.allclose(item["image"][0], (rows[:, None] + columns).float(), atol=1e-5)
    assert item["image"].affine.diagonal().tolist() == [0.5, 0.5, 1.0]
    assert item["label"].dtype == torch.int64
    assert torch.equal(item["label"][:, ::2, ::4], labels)
    assert set(item["label"].unique().tolist()) == set(labels.unique().tolist())
    back = rescale.inverse(item)
    assert torch.allclose(back["image"], ramp(9, 7), atol=1e-5)
    assert torch.equal(back["label"], labels)


def test_pages_stay_pages_and_volumes_have_three_sizes() -> None:
    pages = RescaleToPixelSized("image", TASK)({"image": image(ramp(4, 5, 6), 3.0, 1.0, 1.0)})["image"]
    assert pages.shape == (1, 4, 9, 11)
    volume = RescaleToPixelSized("image", (1.5, *TASK))({"image": image(ramp(4, 5, 6), 3.0, 1.0, 1.0)})["image"]
    assert volume.shape == (1, 7, 9, 11)


@pytest.mark.parametrize(
    ("task", "size", "enabled", "warning"),
    [
        (TASK, (0.46, 0.54), True, None),
        (None, (7.0, 7.0), True, None),
        (None, (np.nan, np.nan), True, None),
        (
            TASK,
            (np.nan, 0.5),
            True,
            "a.tif: its pixel size is unknown, and taken for the task's, 0.5 x 0.5 µm (this is",
        ),
        (
            TASK,
            (0.25, 0.25),
            "false",
            "a.tif: its pixel size is not the task's, 0.5 x 0.5 µm, and --rescale false leaves",
        ),
    ],
)
def test_left_as_it_is_and_said_once(
    task: Any, size: tuple[float, float], enabled: Any, warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    rescale = RescaleToPixelSized("image", task, enabled=enabled)
    item = {"image": image(ramp(5, 6), *size)}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = rescale(item)
            assert out["image"] is item["image"]
            assert rescale.inverse(out)["image"] is item["image"]
    assert len(caplog.messages) == (warning is not None)
    assert warning is None or caplog.messages[0].startswith(warning)


def test_an_absurd_pixel_size_is_refused() -> None:
    message = (
        "a.tif: a pixel size of 250 x 250 µm, that of the task is 0.5 x 0.5 µm. Correct the pixel size in the file"
    )
    with pytest.raises(InputError, match=message):
        RescaleToPixelSized("image", TASK)({"image": image(ramp(5, 6), 250.0, 250.0)})


@pytest.mark.parametrize("size", [0.25, 0.35, 1.25])
def test_probabilities_brought_back_give_cleaner_masks_than_ids(size: float) -> None:
    """Why instances are labelled on the image's own grid, with the rules converted to its pixels."""
    n = round(40 / size)
    rescale = Compose([RescaleToPixelSized("image", TASK)])
    item = rescale({"image": image(disk(n, 11, size), size, size)})
    probability = item["image"].as_tensor()  # of a network that sees the disk
    true = disk(n, 11, size) > 0.5
    item["pred"] = MetaTensor(torch.cat([1 - probability, probability]))
    back = Invertd("pred", rescale, "image", nearest_interp=False)
    rules = {"min_size": 900, "pixel_size_um": TASK}  # of 1,520 pixels of the task
    label = Compose([back, AsDiscreted("pred", argmax=True), LabelInstancesd("pred", **rules)])
    smooth = label(item)["pred"]
    assert smooth.shape == true.shape
    assert np.unique(smooth).tolist() == [0, 1]
    ids = {**item, "pred": MetaTensor(LabelInstances(min_size=900)((probability > 0.5).long()))}
    jagged = Invertd("pred", rescale, "image", nearest_interp=True)(ids)["pred"]
    assert iou(jagged, true) < 0.993 < iou(smooth, true)


def test_rules_of_unknown_and_of_equal_sizes_are_in_pixels() -> None:
    mask = np.zeros((1, 9, 9), np.uint8)
    mask[0, 1:4, 1:4] = mask[0, 6:8, 6:8] = 1
    label = LabelInstancesd("pred", min_size=5, pixel_size_um=TASK)

    def count(mask: MetaTensor) -> int:
        return int(np.asarray(label({"pred": mask})["pred"]).max())

    for size in (np.nan, 0.52):
        assert count(image(mask, size, size)) == 1
    assert count(image(mask, 1.0, 1.0)) == 2
    assert count(image(mask, 0.25, 0.25)) == 0
    for rescale in (False, "false"):  # the stated size is wrong
        label = LabelInstancesd("pred", min_size=5, pixel_size_um=TASK, rescale=rescale)
        for size in (0.02, 1.0):
            assert count(image(mask, size, size)) == 1
