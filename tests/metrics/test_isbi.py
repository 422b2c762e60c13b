"""The ISBI 2012 errors: golden values of the original Java, literal slow oracles, closed forms, the MONAI metrics."""

from __future__ import annotations

import os
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

from monai_unet.metrics import PixelError, RandError, WarpingError, pixel_error, rand_error, warping_error

TENTHS = [k / 10 for k in range(10)]
FUNCTIONS = {WarpingError: warping_error, RandError: rand_error, PixelError: pixel_error}


def two_halves() -> np.ndarray:
    label = np.ones((16, 16), np.uint8)
    label[:, 8] = 0
    return label


def point(p: np.ndarray) -> None:
    p[7, 8] = 1


def line(p: np.ndarray) -> None:
    p[:, 3] = 0


def shift(p: np.ndarray) -> None:
    p[:, 8] = 1
    p[:, 9] = 0


GOLDEN = [
    (point, 0.00390625, 0.668639053254, 0.997920997921),
    (line, 0.00390625, 0.791847644504, 0.965517241379),
    (shift, 0.0, 0.939278380757, 0.933333333333),
]


@pytest.mark.parametrize(("change", "warping", "rand_f", "pixel_f"), GOLDEN)
@pytest.mark.parametrize("white", [True, 1, 255])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_golden_values_of_the_original_java(change, warping, rand_f, pixel_f, white, as_tensor) -> None:
    probability = two_halves().astype(np.float32)
    change(probability)
    label = two_halves().astype(bool) if white is True else two_halves() * np.uint8(white)
    arguments = (torch.tensor(label), MetaTensor(probability)) if as_tensor else (label, probability)
    assert type(warping_error(*arguments)) is float
    assert warping_error(*arguments) == pytest.approx(warping, abs=1e-9)
    assert rand_error(*arguments) == pytest.approx(1 - rand_f, abs=1e-9)
    assert pixel_error(*arguments) == pytest.approx(1 - pixel_f, abs=1e-9)


# slow oracles: the definitions taken literally


def components(image: np.ndarray, neighbours: int) -> np.ndarray:
    return ndimage.label(image, np.ones((3, 3)) if neighbours == 8 else None)[0]


def is_simple(patch: np.ndarray) -> bool:
    """Bertrand & Malandain: one 4-component of foreground that touches a side, one 8-component of background."""
    foreground = patch.astype(bool).copy()
    foreground[1, 1] = False
    sides = components(foreground, 4)[[0, 1, 1, 2], [1, 0, 2, 1]]
    background = ~foreground
    background[1, 1] = False
    return len(set(sides) - {0}) == 1 and components(background, 8).max() == 1


def warping_oracle(label: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    warped, target = np.pad(label, 1).astype(bool), np.pad(probability > threshold, 1)
    distance = np.abs(np.pad(probability, 1) - threshold)
    before = -1
    while (warped != target).sum() not in (0, before):
        before = (warped != target).sum()
        rows, columns = np.nonzero(warped != target)
        visits = sorted(zip(rows, columns, strict=True), key=lambda rc: (-distance[rc], rc[1], rc[0]))
        for r, c in visits:
            if is_simple(warped[r - 1 : r + 2, c - 1 : c + 2]):
                warped[r, c] = not warped[r, c]

    def around(image: np.ndarray, r: int, c: int) -> set[int]:
        """Labels of the eight neighbours inside the image, of which its border is not part."""
        near = components(image[1:-1, 1:-1], 4)[max(r - 2, 0) : r + 1, max(c - 2, 0) : c + 1].copy()
        here = image[1:-1, 1:-1][max(r - 2, 0) : r + 1, max(c - 2, 0) : c + 1]
        assert near.shape == here.shape
        keep = np.ones(near.shape, bool)
        keep[min(r - 1, 1), min(c - 1, 1)] = False
        return set(near[keep].tolist())

    errors = 0
    for r, c in zip(*np.nonzero(warped != target), strict=True):
        if len(around(warped, r, c)) >= 3:
            errors += 1
        elif warped[r, c] and len(around(warped, r, c)) == 2:
            without = warped.copy()
            without[r, c] = False
            errors += len(around(without, r, c)) > 2
    return errors / label.size


def rand_oracle(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> float:
    """Every ordered pair of foreground pixels of a slice, itself included, looked at."""
    same_label = same_prediction = both = 0
    for label, probability in zip(labels, probabilities, strict=True):
        objects, segments = components(label, 4), components(probability > threshold, 4)
        segments[segments == 0] = -1 - np.arange((segments == 0).sum())
        i, j = objects[label > 0], segments[label > 0]
        a, b = i[:, None] == i, j[:, None] == j
        same_label, same_prediction, both = same_label + a.sum(), same_prediction + b.sum(), both + (a & b).sum()
    precision, recall = both / same_prediction, both / same_label
    return 1 - 2 * precision * recall / (precision + recall)


def random_case(seed: int, shape: tuple[int, int], levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Cells with walls, and a prediction that breaks some of them; few levels give many ties."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), 1.3)
    label = np.abs(field) > 0.4 * field.std()
    noise = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.3, 1.2))
    p = np.clip(0.5 + 0.3 * np.where(label, 1, -1) + 0.4 * noise / noise.std(), 0, 1)
    if levels is not None:
        p = np.round(p * levels) / levels
    return label, p


@pytest.mark.parametrize("levels", [None, 20, 4])
@pytest.mark.parametrize("shape", [(14, 14), (9, 23), (3, 5)])
def test_warping_error_equals_the_literal_definition(shape, levels) -> None:
    found = []
    for seed in range(12):
        label, p = random_case(seed, shape, levels)
        threshold = (0.3, 0.5, 0.6)[seed % 3]
        found.append(warping_error(label, p, (threshold,)))
        assert found[-1] == warping_oracle(label, p, threshold), seed
    assert shape == (3, 5) or len(set(found)) > 4  # the cases are not all alike


def test_rand_error_equals_counting_every_pair() -> None:
    for seed in range(8):
        cases = [random_case(seed + k, (11, 13), 10) for k in (0, 100, 200)]
        labels, p = (np.stack(x) for x in zip(*cases, strict=True))
        expected = [rand_oracle(labels, p, t) for t in TENTHS]
        assert rand_error(labels, p) == pytest.approx(min(expected), abs=1e-12)
        assert rand_error(labels, p, TENTHS[3:4]) == pytest.approx(expected[3], abs=1e-12)


def test_pairs_are_summed_over_slices_before_the_f_score() -> None:
    labels = np.ones((2, 1, 4), np.uint8)
    p = np.array([[[1, 1, 1, 1]], [[1, 0, 1, 1]]], float)
    # A = 16 + 16, B = C = 16 + (1 + 4 + 1): F = 44 / 54; the mean of the two slices would give 1 - F = 5 / 22.
    assert rand_error(labels, p, (0.5,)) == pytest.approx(10 / 54, abs=1e-12)
    assert pixel_error(labels, p, (0.5,)) == pytest.approx(1 / 15, abs=1e-12)


def test_only_splits_and_merges_count_in_the_warping_error() -> None:
    label = np.zeros((12, 12), bool)
    label[2:10, 2:10] = True
    object_added, hole_added, ring = label.astype(float), label.astype(float), label.astype(float)
    object_added[0, 0] = hole_added[0, 0] = 1
    hole_added[5, 5] = 0
    ring[4:8, 4:8] = 0
    for p in (object_added, hole_added, ring, np.zeros((12, 12)), np.ones((12, 12))):
        assert warping_error(label, p, (0.5,)) == 0
    with_hole = label.copy()
    with_hole[5, 5] = False
    assert warping_error(with_hole, label.astype(float), (0.5,)) == 0  # hole filled
    opened = with_hole.astype(float)
    opened[5, 6:] = 0  # a hole that opens to the outside: the ring stays in one piece
    assert warping_error(with_hole, opened, (0.5,)) == 0
    opened[5, :5] = 0  # on both sides: each pixel is judged while the other still holds
    assert warping_error(with_hole, opened, (0.5,)) == 0
    halved = label.astype(float)
    halved[5] = 0  # all pixels of the row but the last can be flipped
    assert warping_error(label, halved, (0.5,)) == 1 / 144


def test_perfect_prediction_has_no_error() -> None:
    label, _ = random_case(1, (20, 20), None)
    for function in FUNCTIONS.values():
        assert function(label, label.astype(np.float32)) == 0


def test_empty_and_full_images_are_pinned() -> None:
    label = two_halves()
    n = int(label.sum())
    pairs = 128**2 + 112**2
    nothing, everything = np.zeros((16, 16)), np.ones((16, 16))
    assert pixel_error(label, nothing) == 1
    assert pixel_error(label, everything) == pytest.approx(1 - 2 * n / (n + 256), abs=1e-12)
    assert rand_error(label, nothing) == pytest.approx(1 - 2 * n / (pairs + n), abs=1e-12)  # all singletons
    assert rand_error(label, everything) == pytest.approx(1 - 2 * pairs / (pairs + n**2), abs=1e-12)
    assert warping_error(label, nothing) == 0  # objects deleted
    assert warping_error(label, everything) == 16 / 256  # each pixel of the wall merges the halves
    membrane = np.zeros((16, 16), bool)
    assert (rand_error(membrane, everything), rand_error(membrane, nothing)) == (0, 0)  # no pair of cell pixels
    assert (pixel_error(membrane, everything), pixel_error(membrane, nothing)) == (1, 0)
    assert warping_error(membrane, everything) == 0
    assert [f(np.ones((1, 1)), np.zeros((1, 1))) for f in FUNCTIONS.values()] == [0, 0, 1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("threshold", TENTHS)
def test_the_threshold_itself_is_background_in_every_precision(dtype, threshold) -> None:
    label, p = np.ones((1, 2), bool), np.full((1, 2), threshold, dtype)
    assert pixel_error(label, p, (threshold,)) == 1
    assert pixel_error(label, np.nextafter(p, dtype(1)), (threshold,)) == 0


def test_default_thresholds_are_the_tenths_from_0_to_0_9_and_the_best_one_counts() -> None:
    label, p = random_case(3, (16, 16), 20)
    for function in FUNCTIONS.values():
        each = [function(label, p, (t,)) for t in TENTHS]
        assert function(label, p) == min(each)
    for t in TENTHS:  # only the exact tenth separates these: 0.1 * 3 would not
        assert pixel_error(np.array([[1, 0]]), np.array([[np.nextafter(t, 1), t]])) == 0
    assert pixel_error(np.array([[1, 0]]), np.array([[0.95, 0.85]])) == 0
    assert pixel_error(np.array([[1, 0]]), np.array([[0.95, 0.92]])) == pytest.approx(1 / 3)


BAD = [
    (np.array([[0, 2]]), np.zeros((1, 2)), "labels hold [0, 2]: they must be 0 (membrane) and 1 or 255"),
    (np.array([[0, 1, 255]]), np.zeros((1, 3)), "labels hold [0, 1, 255]"),
    (np.array([[0, np.nan]]), np.zeros((1, 2)), "labels hold [0.0, nan]"),
    (np.array([[0, 1]]), np.array([[0, np.nan]]), "probabilities are in [nan, nan]"),
    (np.array([[0, 1]]), np.array([[0, 1.01]]), "probabilities are in [0.0, 1.01]: they must be probabilities"),
    (np.array([[0, 1]]), np.array([[-0.01, 1]]), "apply a softmax or divide 8-bit values by 255"),
    (np.zeros((2, 3)), np.zeros((3, 2)), "labels have shape (2, 3) and probabilities (3, 2): they must be equal"),
    (np.zeros(3), np.zeros(3), "labels have shape (3,): give (H, W) or (Z, H, W)"),
    (np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2)), "give (H, W) or (Z, H, W)"),
    (np.zeros((0, 2, 2)), np.zeros((0, 2, 2)), "with at least one pixel"),
]


@pytest.mark.parametrize("function", FUNCTIONS.values())
@pytest.mark.parametrize(("labels", "probabilities", "message"), BAD)
def test_bad_images_are_refused(function, labels, probabilities, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        function(labels, probabilities)


@pytest.mark.parametrize("thresholds", [(), (0.5, 1.5), (float("nan"),), (-0.1,)])
def test_bad_thresholds_are_refused(thresholds) -> None:
    message = "give at least one value, each in [0, 1], such as (0.5,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        warping_error(np.zeros((2, 2)), np.zeros((2, 2)), thresholds)
    with pytest.raises(ValueError, match=re.escape(message)):
        RandError(thresholds)


def test_rounding_of_a_softmax_above_1_is_forgiven() -> None:
    assert pixel_error(np.ones((1, 1)), np.full((1, 1), np.nextafter(np.float32(1), np.float32(2)))) == 0


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_metric_over_batches_equals_the_function_on_the_stack(metric) -> None:
    cases = [random_case(seed, (18, 15), 50) for seed in range(4)]
    labels, p = (np.stack(x) for x in zip(*cases, strict=True))
    p = p.astype(np.float32)
    y, cell = torch.tensor(labels)[:, None], torch.tensor(p)[:, None]
    softmax = torch.cat([1 - cell, cell], dim=1)
    accumulated = metric()
    accumulated(y_pred=softmax[:2], y=y[:2].float())
    accumulated(y_pred=[MetaTensor(x) for x in cell[2:]], y=[MetaTensor(x) for x in y[2:]])  # decollated
    result = accumulated.aggregate()
    assert result.dtype == torch.float64
    assert result.item() == FUNCTIONS[metric](labels, p)
    alone = [FUNCTIONS[metric](*pair) for pair in zip(labels, p, strict=True)]
    assert accumulated.get_buffer().tolist() == [[x] for x in alone]
    assert len(set(alone)) > 1
    accumulated.reset()
    accumulated(y_pred=cell[:1, :, None], y=y[:1, :, None])  # a stack of one slice as a volume
    assert accumulated.aggregate().item() == alone[0]


def test_slices_of_different_size_weigh_by_their_pixels() -> None:
    small, large = np.ones((1, 2, 2)), np.ones((1, 4, 4))
    metric = PixelError((0.5,))
    metric([torch.tensor(small), torch.zeros(1, 4, 4)], [torch.tensor(small), torch.tensor(large)])
    assert metric.aggregate().item() == pytest.approx(1 - 2 * 4 / (2 * 4 + 16))
    assert metric.get_buffer().tolist() == [[0.0], [1.0]]


def test_metric_runs_in_an_ignite_evaluator_with_bfloat16() -> None:
    label = torch.tensor(two_halves())[None, None]
    cell = label.to(torch.bfloat16)
    cell[..., 7, 8] = 1
    evaluator = Engine(lambda engine, batch: batch)
    for name, metric in (("warping", WarpingError()), ("rand", RandError()), ("pixel", PixelError())):
        IgniteMetricHandler(metric).attach(evaluator, name)
    state = evaluator.run([(torch.cat([1 - cell, cell], dim=1), label)])
    assert state.metrics["warping"] == 1 / 256
    assert state.metrics["rand"] == pytest.approx(1 - 0.668639053254, abs=1e-9)
    assert state.metric_details["pixel"].tolist() == [[state.metrics["pixel"]]]


def test_metric_refuses_wrong_channels_and_no_images() -> None:
    with pytest.raises(ValueError, match=re.escape("y_pred has shape (1, 3, 4, 4) and y (1, 1, 4, 4): give y_pred")):
        WarpingError()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=re.escape("y (1, 2, 4, 4)")):
        WarpingError()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="PixelError has seen no image: call it before aggregate"):
        PixelError().aggregate()
    assert PixelError().get_buffer() is None


def test_a_512_slice_takes_less_than_2_seconds() -> None:
    label, p = random_case(0, (512, 512), None)
    start = time.process_time()
    for function in FUNCTIONS.values():
        function(label, p, (0.5,))
    assert time.process_time() - start < 2


def test_real_labels_against_a_blurred_copy() -> None:
    if "MONAI_UNET_DATA" not in os.environ:
        pytest.skip("MONAI_UNET_DATA is unset: the ISBI 2012 stack is needed")
    tifffile = pytest.importorskip("tifffile", reason="the microscopy extra reads the stack")
    root = Path(os.environ["MONAI_UNET_DATA"], "isbi2012", "ISBI-2012-challenge")
    label = tifffile.imread(root / "train-labels.tif")[24, :160, :160]
    p = ndimage.gaussian_filter(label / 255, 2.0)
    assert warping_error(label, p, (0.5,)) == warping_oracle(label, p, 0.5) > 0
    assert rand_error(label, label / 255) == warping_error(label, label / 255) == pixel_error(label, label / 255) == 0
