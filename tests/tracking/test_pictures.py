"""Pictures of an evaluation and of validations: the outlines, and a file for each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib import axes
from monai.data import MetaTensor

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


@pytest.mark.parametrize("limit", [100, 1])
def test_pictures_outline_each_of_two_touching_cells(limit, tmp_path, monkeypatch):
    """Along their contact too, one by one or, where they are many, all at once; a probability at one half."""
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


@pytest.mark.parametrize("value", [1, 7, 255])
def test_pictures_outline_a_mask_alike_whatever_its_value(value, tmp_path, monkeypatch):
    """0 / 255 as read from a file, or a single cell with any id: the contour of 0.5 runs half way to the background."""
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(axes.Axes, "contour", lambda self, mask, levels, **style: drawn.append(np.asarray(mask)))
    label = torch.zeros(1, 20, 30)
    label[0, 5:15, 5:15] = value
    item = {**items("cell.tif")[0], "label": label, "pred": torch.zeros(2, 20, 30)}
    Pictures(tmp_path)._draw(item, tmp_path / "cell.png")
    assert np.array_equal(drawn[0], label[0] > 0)
