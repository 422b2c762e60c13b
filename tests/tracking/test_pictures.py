"""Pictures of an evaluation and of validations: the outlines, and a file for each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from monai_unet.tracking import Pictures, pictures


def items(*files: str) -> list[dict]:
    return [{"image": MetaTensor(torch.rand(1, 9, 9), meta={"filename_or_obj": file})} for file in files]


class Run:
    """The part of `Tracking` that `Pictures` uses."""

    def __init__(self, trainer: Engine | None = None) -> None:
        self.trainer, self.journal, self.logged = trainer, self, []

    def log_file(self, name: str, content: bytes, folder: str) -> None:
        self.logged.append((f"{folder}/{name}", content))


@pytest.fixture
def drawn(monkeypatch) -> list[dict]:
    """The items in the order of their drawing, which is left out."""
    found: list[dict] = []

    def draw(self: Pictures, item: dict, path: Path) -> None:
        found.append(item)
        path.write_bytes(str(len(found)).encode())

    monkeypatch.setattr(Pictures, "_draw", draw)
    return found


def evaluate(handler: Pictures, batches: list[list[dict]], epochs: int = 1) -> None:
    engine = Engine(lambda engine, batch: [{"pred": torch.zeros(1, 9, 9)} for _ in batch])
    handler.attach(engine)
    for _ in range(epochs):
        engine.run(batches)


def test_each_item_has_its_picture_and_number(tmp_path, drawn):
    """Also where the last batch is smaller, and where files of two folders have one name."""
    run = Run()
    batches = [items("a/one.tif", "a/two.tif"), items("b/one.tif")]
    evaluate(Pictures(tmp_path, run), batches, epochs=2)
    assert len(drawn) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one_0003.png", "two.png"]
    assert run.logged == [(f"pictures/item_{n % 3 + 1:04d}.png", str(n + 1).encode()) for n in range(6)]


def test_a_validation_has_one_picture_of_its_first_item(tmp_path, drawn):
    trainer = Engine(lambda engine, batch: None)
    trainer.state.epoch = 7
    run = Run(trainer)
    batches = [items("a/one.tif", "a/two.tif"), items("b/one.tif")]
    evaluate(Pictures(tmp_path, run), batches)
    trainer.state.epoch = 8
    evaluate(Pictures(tmp_path, run), batches)
    assert [item["image"].meta["filename_or_obj"] for item in drawn] == ["a/one.tif"] * 2
    assert [name for name, _ in run.logged] == ["pictures/epoch_0007.png", "pictures/epoch_0008.png"]


def test_pictures_outline_each_of_two_touching_cells():
    """Along their contact too; nothing inside them and outside."""
    ids = np.zeros((20, 30))
    ids[5:15, 5:15], ids[5:15, 15:25] = 3, 7
    found = pictures.edges(ids)
    assert found[5:15, 14].all()
    assert found[14, 5:25].all()
    assert not found[6:14, 6:14].any()
    assert not found[:4].any()
    assert np.array_equal(pictures.edges(np.where(ids > 0, 0.9, 0.1)), pictures.edges(ids > 0))


@pytest.mark.parametrize("value", [1, 7, 255])
def test_pictures_outline_a_mask_alike_whatever_its_value(value):
    """0 / 255 as read from a file, or a single cell with any id."""
    label = np.zeros((20, 30))
    label[5:15, 5:15] = 1
    assert np.array_equal(pictures.edges(value * label), pictures.edges(label))


@pytest.mark.parametrize("shape", [(9, 13), (900, 1300)])
def test_panels_side_by_side_with_coloured_outlines(shape, tmp_path):
    """Small images are enlarged, large ones reduced; the label's outline is yellow, the prediction's red."""
    label, pred = torch.zeros(1, *shape), torch.zeros(1, *shape)
    label[:, :, : shape[1] // 3] = 1
    pred[:, :, : shape[1] // 2] = 1
    image = MetaTensor(torch.zeros(1, *shape), meta={"filename_or_obj": "a.png"})
    Pictures(tmp_path)._draw({"image": image, "label": label, "pred": pred}, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (277 + 18, 4 * 404, 3)
    last = picture[16:-2, -404:].reshape(-1, 3).tolist()
    assert last.count([255, 215, 0]) == last.count([255, 0, 0]) == 277
    assert picture[100, 410].tolist() == [255, 255, 255]


def test_no_pictures_when_they_are_turned_off(tmp_path):
    evaluate(Pictures(tmp_path / "pictures", enabled="false"), [items("a.tif")])
    assert not (tmp_path / "pictures").exists()
    with pytest.raises(ValueError, match="pictures is 'no'; it must be true or false"):
        Pictures(tmp_path, enabled="no")


@pytest.mark.parametrize(("channels", "colours"), [(1, "gray"), (2, "magenta green"), (4, "red green blue")])
def test_each_channel_has_a_colour_of_its_own_and_a_scale_of_its_own(tmp_path, channels, colours):
    """A dim channel beside a bright one is seen; a single channel is gray."""
    named = {"gray": (255, 255, 255), "magenta": (255, 0, 255), "green": (0, 255, 0)}
    named |= {"red": (255, 0, 0), "blue": (0, 0, 255)}
    image = torch.zeros(channels, 8, 8)
    for number in range(channels):
        image[number, 2 * number : 2 * number + 2] = 1000.0 ** (1 - number)
    item = {"image": image, "pred": torch.zeros(1, 8, 8)}
    Pictures(tmp_path)._draw(item, tmp_path / "x.png")
    panel = np.asarray(Image.open(tmp_path / "x.png"))[pictures.TITLE + 2 :, 2:][: pictures.SIZE]
    for number, colour in enumerate(colours.split()):
        assert tuple(panel[100 * number + 50, 50]) == named[colour]
    assert tuple(panel[-1, 50]) == (0, 0, 0)
