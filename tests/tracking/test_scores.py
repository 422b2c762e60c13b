"""Scores of an evaluation, per image and overall."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from monai_unet.tracking import Scores


def evaluator(metrics: dict[str, Any], details: dict[str, torch.Tensor] | None = None) -> Engine:
    """Leaves these metrics where MONAI's engines and ignite's leave theirs."""
    engine = Engine(
        lambda engine, batch: [
            {"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": item["name"]})} for item in batch
        ]
    )

    @engine.on(Events.EPOCH_COMPLETED)
    def _(engine: Engine) -> None:
        engine.state.metrics = metrics
        if details is not None:
            engine.state.metric_details = details

    return engine


def batches(names: Sequence[str], types: Sequence[str] = ()) -> list[list[dict[str, str]]]:
    """Items as an evaluator's loader gives them; its output has the images, but not their types."""
    kinds = [{"type": kind} for kind in types] or [{}] * len(names)
    return [[{"name": name, **kind}] for name, kind in zip(names, kinds, strict=True)]


def test_scores_that_are_not_finite_come_back_as_they_are(tmp_path):
    details = {"hd95": torch.tensor([[float("inf")], [2.0]]), "dice": torch.tensor([[0.5], [float("nan")]])}
    engine = evaluator({"hd95": float("inf"), "dice": 0.5}, details)
    Scores(tmp_path, facts={"averaging": "all"}).attach(engine)
    engine.run(batches(["a/one.nii", "b/two.nii"]))
    record = json.loads((tmp_path / "scores.json").read_text())
    assert (record["averaging"], record["overall"]) == ("all", {"hd95": float("inf"), "dice": 0.5})
    assert record["images"][0] == {"image": "one.nii", "hd95": float("inf"), "dice": 0.5}
    assert (record["images"][1]["hd95"], np.isnan(record["images"][1]["dice"])) == (2.0, True)
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [(row["hd95"], row["dice"]) for row in rows] == [("inf", "0.5"), ("2.0", "nan"), ("inf", "0.5")]


def test_a_class_without_value_is_left_out_of_its_image(tmp_path):
    engine = evaluator({"dice": 0.6}, {"dice": torch.tensor([[0.5, 0.7], [float("nan"), 0.5]])})
    Scores(tmp_path).attach(engine)
    engine.run(batches(["one.nii", "two.nii"]))
    images = json.loads((tmp_path / "scores.json").read_text())["images"]
    assert [row["dice"] for row in images] == pytest.approx([0.6, 0.5])


def test_metrics_of_ignite_have_an_overall_value_only(tmp_path, capsys):
    """They leave no details; one that is not a single number is left out."""
    engine = evaluator({"dice": np.float32(0.5), "rand_error": torch.tensor(0.25), "per_class": torch.ones(3)})
    Scores(tmp_path).attach(engine)
    engine.run(batches(["a/one.nii"]))
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["overall"] == {"dice": 0.5, "rand_error": 0.25}
    assert record["images"] == [{"image": "one.nii"}]
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [row["dice"] for row in rows] == ["", "0.5"]
    assert record["means"] == record["types"] == {}
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["one.nii"],
        ["overall", "0.500000", "0.250000"],
    ]


def test_means_over_images_with_intervals_and_by_type(tmp_path, capsys):
    values = [0.1, 0.9, float("nan"), 0.5, 0.5, 0.5, 0.5]
    names, types = [f"{number}.png" for number in range(7)], ["stained"] * 3 + ["dark"] * 4
    engine = evaluator({"seg": 0.6}, {"seg": torch.tensor(values)[:, None]})
    Scores(tmp_path).attach(engine)
    engine.run(batches(names, types))
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["overall"] == {"seg": 0.6}
    assert record["means"]["seg"]["mean"] == pytest.approx(0.5)
    low, high = record["means"]["seg"]["interval"]
    assert 0.2 < low < 0.35  # four values of 0.5 and two that differ by 0.4: standard error 0.094
    assert 0.65 < high < 0.8
    assert record["types"]["dark"] == {"images": 4, "seg": {"mean": 0.5, "interval": [0.5, 0.5]}}
    assert record["types"]["stained"]["images"] == 3  # of which one has no value
    assert record["types"]["stained"]["seg"]["interval"] == pytest.approx([0.1, 0.9])
    printed = capsys.readouterr().out
    assert "dark, 4:  seg 0.500 (0.500–0.500)" in printed
    assert printed.splitlines()[-1].split() == ["overall", "0.600000"]
    engine.run(batches(names, types))
    assert json.loads((tmp_path / "scores.json").read_text()) == record


def test_a_mean_of_infinite_scores_is_infinite_and_that_of_none_is_none(tmp_path):
    engine = evaluator({"hd95": 1.0}, {"hd95": torch.tensor([[float("inf")]] * 3), "dice": torch.zeros(3, 1)})
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: engine.state.metrics.update(dice=0.0))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: engine.state.metric_details["dice"].fill_(float("nan")))
    Scores(tmp_path).attach(engine)
    engine.run(batches(["1.nii", "2.nii", "3.nii"]))
    means = json.loads((tmp_path / "scores.json").read_text())["means"]
    assert means["hd95"] == {"mean": float("inf"), "interval": [float("inf")] * 2}
    assert np.isnan(means["dice"]["mean"])


def test_the_run_gets_numbers_in_place_of_names(tmp_path):
    run = Run()
    engine = evaluator({"dice": 0.6}, {"dice": torch.tensor([[0.7], [0.5]])})
    Scores(tmp_path, run, {"data": "of Doe"}).attach(engine)
    engine.run(batches(["Doe.nii", "Smith.nii"]))
    assert run.metrics == [("dice_per_image", pytest.approx(0.7), 0), ("dice_per_image", 0.5, 1)]
    assert [row["image"] for row in json.loads(run.files["scores.json"])["images"]] == [1, 2]
    assert "Doe" not in "".join(run.files.values())


class Run:
    """The part of `Tracking` that `Scores` uses."""

    def __init__(self) -> None:
        self.journal, self.files, self.metrics = self, {}, []

    def log_file(self, name: str, content: str) -> None:
        self.files[name] = content

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics += [(name, value, step) for name, value in metrics.items()]


def test_small_means_are_printed_with_more_digits(tmp_path, capsys):
    engine = evaluator({"warping_error": 0.0016}, {"warping_error": torch.tensor([[0.0015], [0.0017]])})
    Scores(tmp_path).attach(engine)
    engine.run(batches(["a.png", "b.png"]))
    assert "warping_error 0.00160 (0.00150–0.00170)" in capsys.readouterr().out
