"""SEG, DET, merges and splits: drawn by hand, and against py-ctcmetrics."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler
from scipy import ndimage

from monai_unet.metrics import (
    AveragePrecision,
    CellErrors,
    SegMeasure,
    average_precision,
    det_measure,
    merges_and_splits,
    seg_measure,
)


def drawn(*rows: str) -> np.ndarray:
    """Digits are ids, dots background."""
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.uint16)


def random_instances(rng: np.random.Generator, shape: tuple[int, ...], objects: int) -> np.ndarray:
    """Touching objects with gaps in the ids, some of them at the border."""
    seeds = np.zeros(shape, np.uint16)
    seeds.flat[rng.choice(seeds.size, objects, replace=False)] = rng.choice(999, objects, replace=False) + 1
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(distance < 5, seeds[tuple(nearest)], 0).astype(np.uint16)


def disturbed(rng: np.random.Generator, reference: np.ndarray) -> np.ndarray:
    """Other ids, a shift, holes; some objects merged, cut or lost."""
    prediction = np.roll(reference, rng.integers(-2, 3), axis=-1)
    ids = np.unique(reference[reference > 0])
    renamed = np.zeros(1000, np.uint16)
    renamed[ids] = rng.permutation(999)[: len(ids)] + 1
    renamed[ids[:2]] = renamed[ids[-1]]  # merged
    renamed[ids[2]] = 0  # lost
    prediction = renamed[prediction]
    prediction[..., ::7, :] = 0  # cut
    return np.where((prediction > 0) & (rng.random(reference.shape) < 0.1), 1001, prediction).astype(np.uint16)


@pytest.mark.parametrize("shape", [(40, 50), (6, 20, 25)])
def test_seg_and_det_equal_py_ctcmetrics(shape: tuple[int, ...], tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="py-ctcmetrics reads TIFF files")
    representations = pytest.importorskip("ctc_metrics.utils.representations", reason="the oracle")
    from ctc_metrics.metrics import det, seg

    rng = np.random.default_rng(0)
    references = [random_instances(rng, shape, 12) for _ in range(6)]
    predictions = [disturbed(rng, r) for r in references]
    matches = []
    for r, p in zip(references, predictions, strict=True):
        tifffile.imwrite(tmp_path / "r.tif", r)
        tifffile.imwrite(tmp_path / "p.tif", p)
        matches.append(representations.match(str(tmp_path / "r.tif"), str(tmp_path / "p.tif")))
        alone = seg([matches[-1][0]], [matches[-1][4]])
        assert 0 < alone < 1
        assert seg_measure(r, p) == pytest.approx(alone, abs=1e-12)
    labels_r, labels_p, mapped_r, mapped_p, ious = (list(x) for x in zip(*matches, strict=True))
    assert seg_measure(references, predictions) == pytest.approx(seg(labels_r, ious), abs=1e-12)
    none = np.zeros((0, 4), int)
    counts = representations.count_acyclic_graph_correction_operations(
        none, none, labels_r, labels_p, mapped_r, mapped_p
    )
    assert counts["NS"] > 0
    assert det_measure(references, predictions) == pytest.approx(det(**counts), abs=1e-12)


def test_seg_by_hand() -> None:
    reference = drawn(
        "1111....",
        "1111..22",
        "......22",
    )
    prediction = drawn(
        ".55555..",
        ".5555.7.",
        "......7.",
    )
    # 5 covers 6 of the 8 pixels of 1: 6 / (8 + 9 - 6). 7 covers half of 2, which is not more than half: 0.
    assert seg_measure(reference, prediction) == pytest.approx((6 / 11 + 0) / 2)
    prediction[1, 7] = 7
    assert seg_measure(reference, prediction) == pytest.approx((6 / 11 + 3 / 4) / 2)
    assert seg_measure(reference, reference) == 1
    surplus = reference.copy()
    surplus[2, 0] = 9
    assert seg_measure(reference, surplus) == 1  # false positives cost nothing


def test_frames_are_pooled_over_their_objects_and_keep_their_own_ids() -> None:
    two, one = drawn("1.2"), drawn("1..")
    assert seg_measure([two, one], [drawn("5.."), drawn("1..")]) == pytest.approx(2 / 3)
    assert seg_measure((two, drawn("...")), (two, drawn("111"))) == 1  # a frame without cells adds nothing
    # the same arrays as one volume: object 1 has two pixels, of which one is half and does not match
    assert seg_measure(np.stack([two, one]), np.stack([drawn("5.."), drawn("1..")])) == 0
    assert merges_and_splits([drawn("12"), drawn("1.")], [drawn("33"), drawn("3.")]) == (2, 0)
    assert det_measure([two, one], [drawn("5.."), drawn("1..")]) == pytest.approx(1 - 10 / 30)


def test_ignored_pixels_do_not_count_as_prediction_except_inside_the_reference() -> None:
    reference = drawn("11....")
    prediction = drawn("11112.")  # 2 covers unlabelled cells; 1 bleeds into one of them
    unlabelled = drawn("0.111.") > 0
    assert seg_measure(reference, prediction) == 1 / 2
    assert seg_measure(reference, prediction, unlabelled) == 1
    assert seg_measure([reference], [prediction], [unlabelled.astype(np.float32)]) == 1
    assert seg_measure(reference, prediction, np.ones((1, 6))) == 1  # the reference always counts completely
    assert det_measure(reference, prediction) == 1 - 1 / 10
    assert det_measure(reference, prediction, unlabelled) == 1
    # half of 8 is in the cell, which does not count; all of it once the pixels to ignore are removed
    assert merges_and_splits(drawn("1111.."), drawn("778888")) == (0, 0)
    assert merges_and_splits(drawn("1111.."), drawn("778888"), drawn("....11") > 0) == (0, 1)


def test_det_by_hand() -> None:
    reference = drawn("11.22.33.44")
    assert det_measure(reference, reference) == 1
    assert det_measure(reference, drawn("11.22.33...")) == 1 - 10 / 40
    assert det_measure(reference, drawn("11522633.44")) == 1 - 2 / 40
    assert det_measure(reference, drawn("11.22.33333")) == 1 - 5 / 40
    assert det_measure(reference, drawn("...........")) == 0
    assert det_measure(drawn("1.........."), drawn("..23456789.")) == 0  # 18 to correct, 10 to draw anew


@pytest.mark.parametrize(
    ("reference", "prediction", "found", "missed", "surplus"),
    [
        ("111.222", "777.888", 2, 0, 0),
        ("111.222", "777....", 1, 1, 0),
        ("111.222", "7779888", 2, 0, 1),
        ("1111222", "5555555", 1, 1, 0),  # merged: the larger one covers 4 of 7
        ("111.222", "5555555", 0, 2, 1),  # merged: 3 of 7
        ("111111", "222333", 0, 1, 2),  # split in halves: each is just half
        ("111111", "222233", 1, 0, 1),
        ("11..", "1111", 0, 1, 1),  # an index of 0.5 is not above 0.5
        ("111..", "11111", 1, 0, 0),
        ("....", "1.2.", 0, 0, 2),
    ],
)
def test_average_precision_by_hand(reference: str, prediction: str, found: int, missed: int, surplus: int) -> None:
    value = average_precision(drawn(reference), drawn(prediction))
    assert value == pytest.approx(found / (found + missed + surplus))


def test_average_precision_pools_frames_and_leaves_out_what_is_to_be_ignored() -> None:
    two, one, none = drawn("11.22"), drawn("11..."), drawn(".....")
    assert average_precision([two, one], [drawn("77..."), drawn("99.88")]) == pytest.approx(2 / 4)
    assert average_precision([none, one], [none, one]) == 1
    assert math.isnan(average_precision(none, none))
    assert average_precision(one, two) == 1 / 2
    assert average_precision(one, two, drawn("...11")) == 1
    assert average_precision(one, two, drawn("....1")) == 1 / 2  # half of the surplus object is scored
    assert average_precision(one, one, drawn("11111")) == 1  # the reference always counts


def shifted(reference: np.ndarray) -> np.ndarray:
    """A shift by one pixel; two objects merged, one lost."""
    prediction = np.roll(reference, 1, axis=-1)
    ids = np.unique(reference[reference > 0])
    prediction[prediction == ids[0]] = ids[-1]
    return np.where(prediction == ids[2], 0, prediction)


def test_average_precision_equals_a_count_over_all_pairs() -> None:
    rng = np.random.default_rng(2)
    for _ in range(3):
        reference = random_instances(rng, (40, 50), 12)
        prediction = shifted(reference)
        cells = [reference == i for i in np.unique(reference[reference > 0])]
        others = [prediction == i for i in np.unique(prediction[prediction > 0])]
        found = sum(any((a & b).sum() > 0.5 * (a | b).sum() for b in others) for a in cells)
        assert 0 < found <= len(others) < len(cells)
        assert average_precision(reference, prediction) == found / (len(cells) + len(others) - found)


@pytest.mark.parametrize(
    ("reference", "prediction", "merged", "split"),
    [
        ("111.222", "111.222", 0, 0),
        ("111.222", "5555555", 2, 0),
        ("111222333", "555555555", 3, 0),
        ("111222333", "555555.33", 2, 0),
        ("11..22", ".5555.", 0, 0),  # half of each is not more than half
        ("111222", "555566", 0, 0),  # 5 covers all of 1 but only a third of 2
        ("111222", "555556", 2, 0),  # ... two thirds of 2: merged; not split, most of 5 is in 1
        ("111111", "222333", 0, 1),
        ("111111", "234567", 0, 1),  # one cell, however many pieces
        ("1111..", "223333", 0, 0),  # half of 3 is outside
        ("1111.2", "22333.", 0, 1),  # two thirds of 3 are inside
        ("111111", ".2....", 0, 0),  # a single speck does not split
        ("1111.2222", "335535544", 0, 0),
        ("11112222", "33355544", 0, 1),
    ],
)
def test_merges_and_splits_by_hand(reference: str, prediction: str, merged: int, split: int) -> None:
    counts = merges_and_splits(drawn(reference), drawn(prediction))
    assert (counts.merged, counts.split) == (merged, split)


def test_degenerate_frames_are_pinned() -> None:
    empty, one = np.zeros((4, 4), np.uint16), np.zeros((4, 4), np.uint16)
    one[3, 3] = 7  # one cell of one pixel, at the corner
    for measure in (seg_measure, det_measure):
        assert math.isnan(measure(empty, empty))
        assert math.isnan(measure(empty, one))
        assert math.isnan(measure([], []))
        assert measure(one, empty) == 0
        assert measure(one, one * 9) == 1
    assert seg_measure(one, np.ones((4, 4), int)) == 1 / 16
    assert seg_measure(np.ones((4, 4), bool), np.ones((4, 4), bool)) == 1
    for pair in ((empty, empty), (empty, one), (one, empty), (one, one)):
        assert merges_and_splits(*pair) == (0, 0)


def test_seventy_thousand_instances_and_huge_ids() -> None:
    reference = np.zeros((600, 600), np.uint32)
    reference[::2, ::2] = np.arange(90_000).reshape(300, 300) + 1
    reference[reference > 70_000] = 0
    prediction = np.where(reference > 0, 2**63 + reference.astype(np.uint64) * 3, 0).astype(np.uint64)
    prediction[0, 0] = 0
    start = time.process_time()
    assert seg_measure(reference, prediction) == 69_999 / 70_000
    assert det_measure(reference, prediction) == pytest.approx(69_999 / 70_000)
    assert merges_and_splits(reference, prediction) == (0, 0)
    assert merges_and_splits(reference, np.ones_like(reference)) == (70_000, 0)
    assert time.process_time() - start < 5
    as_float = reference.astype(np.float32)  # how MONAI loads labels
    assert seg_measure(MetaTensor(as_float), torch.tensor(as_float)) == 1


GOOD = np.ones((2, 2), int)
BAD = [
    (GOOD, np.ones((2, 3), int), None, "reference (2, 2), prediction (2, 3): the shapes must be equal"),
    (GOOD, GOOD, np.ones((1, 2)), "prediction (2, 2), ignore (1, 2): the shapes must be equal"),
    (-GOOD, GOOD, None, "reference has values in [-1, -1], int64: instance ids are whole numbers"),
    (GOOD, GOOD * 0.5, None, "prediction has values in [0.5, 0.5], float64: instance ids are whole numbers"),
    (GOOD, GOOD * np.nan, None, "prediction has values in [nan, nan]"),
    (GOOD * np.inf, GOOD, None, "reference has values in [inf, inf]"),
    (np.ones(3, int), np.ones(3, int), None, "reference has shape (3,): give (H, W) or (Z, H, W), or a list"),
    ([GOOD, GOOD], [GOOD], None, "reference has 2 frames, prediction 1, ignore 2: give one of each per frame"),
    ([GOOD], [GOOD], [GOOD, GOOD], "reference has 1 frames, prediction 1, ignore 2"),
]


@pytest.mark.parametrize(("reference", "prediction", "ignore", "message"), BAD)
def test_bad_input_is_refused(reference, prediction, ignore, message) -> None:
    for function in (seg_measure, det_measure, merges_and_splits, average_precision):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(reference, prediction, ignore)


def test_metric_over_batches_equals_the_function_on_the_frames() -> None:
    rng = np.random.default_rng(1)
    references = [random_instances(rng, (30, 30), 8) for _ in range(3)] + [np.zeros((20, 25), np.uint16)]
    predictions = [disturbed(rng, references[0]), *map(shifted, references[1:3]), np.ones((20, 25), np.uint16)]
    ignores = [*(rng.random(r.shape) < 0.3 for r in references[:3]), np.ones((20, 25), bool)]
    y_pred = [torch.tensor(p.astype(np.int32))[None] for p in predictions]
    y = [torch.tensor(np.stack([r, i]).astype(np.float32)) for r, i in zip(references, ignores, strict=True)]
    for metric, measure in ((SegMeasure(), seg_measure), (AveragePrecision(), average_precision)):
        metric(torch.stack(y_pred[:2]), torch.stack(y[:2]))
        metric(y_pred[2:], y[2:])
        expected = measure(references, predictions, ignores)
        assert 0 < expected != measure(references, predictions)
        assert metric.aggregate().item() == pytest.approx(expected, abs=1e-12)
        alone = [measure(*case) for case in zip(references, predictions, ignores, strict=True)]
        assert metric.get_buffer()[:, 0].tolist() == pytest.approx(alone, abs=1e-12, nan_ok=True)
    metric = SegMeasure()
    metric(y_pred[3:], [y[3][:1]])
    assert math.isnan(metric.aggregate())


def test_classes_of_objects_are_scored_by_themselves() -> None:
    """Ids say the class: of two, odd ones are of class 1. The mean is over the classes, not over the objects."""
    rng = np.random.default_rng(3)
    references = [random_instances(rng, (30, 30), 8) for _ in range(3)]
    predictions = [disturbed(rng, reference) for reference in references]
    ignores = [rng.random((30, 30)) < 0.3 for _ in references]
    y_pred = [torch.tensor(p.astype(np.int32))[None] for p in predictions]
    y = [torch.tensor(np.stack([r, i]).astype(np.float32)) for r, i in zip(references, ignores, strict=True)]
    for metric, measure in ((SegMeasure, seg_measure), (AveragePrecision, average_precision)):
        expected = [
            measure(
                *([np.where(ids % 2 == odd, ids, 0) for ids in part] for part in (references, predictions)), ignores
            )
            for odd in (1, 0)
        ]
        assert expected[0] != expected[1]
        each = [metric(classes=2), metric(classes=2, only=1), metric(classes=2, only=2)]
        for one in each:
            one(y_pred, y)
        found = [one.aggregate().item() for one in each]
        assert found == pytest.approx([np.mean(expected), *expected], abs=1e-12)
        assert each[0].get_buffer().shape == (3, 2)
    wrong = SegMeasure(classes=2)
    wrong([torch.tensor([[[2, 2, 0]]])], [torch.tensor([[[1, 1, 0]]])])
    assert wrong.aggregate() == 0, "the right place, but another class; the class without objects does not count"


def test_metric_runs_in_an_ignite_evaluator() -> None:
    reference = torch.tensor(drawn("11.22").astype(np.int64))[None, None]
    evaluator = Engine(lambda engine, batch: batch)
    IgniteMetricHandler(SegMeasure()).attach(evaluator, "seg")
    state = evaluator.run([(reference, reference), (reference * (reference == 1), reference)])
    assert state.metrics["seg"] == 0.75
    assert state.metric_details["seg"].tolist() == [[1.0], [0.5]]


def test_metric_refuses_wrong_channels_and_no_images() -> None:
    with pytest.raises(ValueError, match=re.escape("y_pred has shape (1, 2, 3, 3) and y (1, 1, 3, 3): give y_pred")):
        SegMeasure()(torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3))
    with pytest.raises(ValueError, match=re.escape("and y (1, 3, 3, 3)")):
        SegMeasure()(torch.zeros(1, 1, 3, 3), torch.zeros(1, 3, 3, 3))
    with pytest.raises(ValueError, match="SegMeasure has seen no image: call it before aggregate"):
        SegMeasure().aggregate()
    assert SegMeasure().get_buffer() is None


def test_cell_errors_per_image_and_overall() -> None:
    rng = np.random.default_rng(5)
    frames = [(r := random_instances(rng, (40, 50), 9), disturbed(rng, r)) for _ in range(4)]
    frames.append((np.ones((40, 50), int), np.repeat([[1, 2]], 25, axis=1).repeat(40, axis=0)))
    ignores = [rng.random((40, 50)) < 0.3 for _ in frames]
    merged, split = CellErrors("merged"), CellErrors("split")
    for (reference, prediction), ignore in zip(frames, ignores, strict=True):
        y = torch.from_numpy(np.stack([reference, ignore]).astype(np.int64))
        for metric in (merged, split):
            metric([torch.from_numpy(prediction.astype(np.int64))[None]], [y])
    each = [merges_and_splits(r, p, i) for (r, p), i in zip(frames, ignores, strict=True)]
    assert merged.get_buffer().tolist() == [[count.merged] for count in each]  # type: ignore[union-attr]
    assert split.get_buffer().tolist() == [[count.split] for count in each]  # type: ignore[union-attr]
    assert float(merged.aggregate()) == sum(count.merged for count in each) > 0
    assert float(split.aggregate()) == sum(count.split for count in each) > 0


def test_cell_errors_refuse_other_kinds_and_no_images() -> None:
    with pytest.raises(ValueError, match="kind is 'lost'; it must be merged or split"):
        CellErrors("lost")
    with pytest.raises(ValueError, match="CellErrors has seen no image"):
        CellErrors("split").aggregate()
