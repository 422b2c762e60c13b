"""The three errors of the ISBI 2012 EM challenge (Table 1 of the paper).

Definitions: Jain et al. 2010 (warping error), Arganda-Carreras et al. 2015, Front. Neuroanat. 9:142, as computed by
Fiji's Trainable Segmentation. Convention: cell interior 1, membrane 0; predictions are probabilities of *cell*,
binarised with strict ``>`` at each threshold. Each slice gives, per threshold, two whole numbers, errors and total;
both are summed over the slices, and the best ratio over the thresholds is the value reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.metrics import CumulativeIterationMetric
from monai.utils import convert_to_numpy
from scipy import ndimage

__all__ = ["PixelError", "RandError", "WarpingError", "pixel_error", "rand_error", "warping_error"]

THRESHOLDS = tuple(k / 10 for k in range(10))

# The eight neighbours of a pixel as (row, column) steps, clockwise from the north; bit k of a pixel's code is
# neighbour k, and k ^ 4 is the neighbour opposite to k.
_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def _background_gaps() -> np.ndarray:
    """Yokoi's number of each of the 256 codes: how many runs of 8-connected background separate 4-neighbours.

    0: isolated or wholly surrounded; 1: a simple point (foreground 4-, background 8-connected).
    """
    ring = np.arange(256)[:, None] >> np.arange(8) & 1
    side, corner = ring[:, 0::2], ring[:, 1::2]
    return (side * (1 - corner * np.roll(side, -1, axis=1))).sum(axis=1)


_GAPS = _background_gaps()


def _warp(label: np.ndarray, prediction: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip simple points of `label` towards `prediction`, the largest `distance` first, until a pass flips none.

    All (H, W), bool except `distance`, with a border of zeros. Returns the warped label and its neighbour codes.
    """
    code = np.zeros(label.shape, np.uint8)
    for bit, step in enumerate(_RING):
        code |= np.roll(label, (-step[0], -step[1]), axis=(0, 1)).astype(np.uint8) << bit
    column, row = np.nonzero((label != prediction).T)  # by column, then row: the order of ties
    order = np.argsort(-distance[row, column], kind="stable")
    width = label.shape[1]
    waiting = (row * width + column)[order].tolist()
    opposite = [(dr * width + dc, 1 << (bit ^ 4)) for bit, (dr, dc) in enumerate(_RING)]
    simple = (_GAPS == 1).tolist()
    codes, pixels = bytearray(code), bytearray(label)
    flipped = True
    while flipped:
        flipped, visit, waiting = False, waiting, []
        for pixel in visit:
            if simple[codes[pixel]]:
                pixels[pixel] ^= 1
                for step, bit in opposite:
                    codes[pixel + step] ^= bit
                flipped = True
            else:
                waiting.append(pixel)
    warped = np.frombuffer(pixels, bool).reshape(label.shape)
    return warped, np.frombuffer(codes, np.uint8).reshape(label.shape)


def _distinct(values: np.ndarray) -> np.ndarray:
    """(N, 8) → (N,): the number of different values in each row."""
    return 1 + (np.diff(np.sort(values, axis=1), axis=1) != 0).sum(axis=1)


def _splits_and_merges(warped: np.ndarray, code: np.ndarray, prediction: np.ndarray) -> int:
    """The number of pixels where the warped label still differs and that split or merge its objects."""
    row, column = np.nonzero(warped != prediction)
    step = np.array(_RING)
    around = row[:, None] + step[:, 0], column[:, None] + step[:, 1]
    many = _distinct(ndimage.label(warped)[0][around]) >= 3
    # Taking a pixel away leaves its object whole exactly if the gaps around it belong to that many different
    # pieces of background: two gaps of one piece are joined by a path that cuts the object in two.
    background = ndimage.label(~warped, np.ones((3, 3)))[0][around]
    pieces = _distinct(background) - (background == 0).any(axis=1)
    cut = warped[row, column] & (pieces < _GAPS[code[row, column]])
    return int(np.count_nonzero(many | cut))


def _warping_counts(label: np.ndarray, probability: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    padded = np.pad(label, 1)
    counts = []
    for threshold in thresholds:
        prediction = np.pad(probability > threshold, 1)
        # In single precision, as the original: what differs by rounding alone is a tie.
        distance = np.abs(np.pad(probability, 1).astype(np.float64) - threshold).astype(np.float32)
        warped, code = _warp(padded, prediction, distance)
        counts.append((_splits_and_merges(warped, code, prediction), label.size))
    return np.array(counts)


def _rand_counts(label: np.ndarray, probability: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Pairs of label-foreground pixels: 1 - F = (A + B - 2C) / (A + B), the sums A, B, C times n²."""
    objects = ndimage.label(label)[0][label].astype(np.int64)
    a = np.square(np.bincount(objects)).sum()
    counts = []
    for threshold in thresholds:
        segments = ndimage.label(probability > threshold)[0][label].astype(np.int64)
        sizes = np.bincount(segments, minlength=1)
        alone = sizes[0]  # each predicted background pixel is a segment of its own
        found = segments > 0
        pairs = objects[found] * len(sizes) + segments[found]
        b = np.square(sizes[1:]).sum() + alone
        c = np.square(np.unique(pairs, return_counts=True)[1]).sum() + alone
        counts.append((a + b - 2 * c, a + b))
    return np.array(counts)


def _pixel_counts(label: np.ndarray, probability: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """1 - F = (FP + FN) / (2 TP + FP + FN)."""
    counts = []
    for threshold in thresholds:
        prediction = probability > threshold
        wrong = np.count_nonzero(prediction != label)
        counts.append((wrong, 2 * np.count_nonzero(prediction & label) + wrong))
    return np.array(counts)


_Counts = Callable[[np.ndarray, np.ndarray, Sequence[float]], np.ndarray]


def _check_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(t) for t in thresholds)
    if not values or not all(0 <= t <= 1 for t in values):
        raise ValueError(f"thresholds is {values}: give at least one value, each in [0, 1], such as (0.5,).")
    return values


def _count(
    counts: _Counts, labels: NdarrayOrTensor, probabilities: NdarrayOrTensor, thresholds: Sequence[float]
) -> np.ndarray:
    """(Z, H, W) or (H, W), checked → int64 (Z, thresholds, 2): errors and total of each slice."""
    label, probability = (
        convert_to_numpy(x.float() if isinstance(x, torch.Tensor) and x.dtype is torch.bfloat16 else x)
        for x in (labels, probabilities)
    )
    if label.shape != probability.shape:
        raise ValueError(
            f"labels have shape {label.shape} and probabilities {probability.shape}: they must be equal; "
            "of a softmax pass the channel of the cell alone."
        )
    if label.ndim not in (2, 3) or label.size == 0:
        raise ValueError(f"labels have shape {label.shape}: give (H, W) or (Z, H, W) with at least one pixel.")
    foreground = label != 0
    if not any((label[foreground] == one).all() for one in (1, 255)):
        raise ValueError(
            f"labels hold {np.unique(label)[:5].tolist()}: they must be 0 (membrane) and 1 or 255 (cell); "
            "binarise instances with labels > 0."
        )
    # Sums of a softmax in single precision may exceed 1 by rounding. NaN fails both comparisons.
    if not (probability.min() >= -1e-6 and probability.max() <= 1 + 1e-6):
        raise ValueError(
            f"probabilities lie in [{probability.min()}, {probability.max()}]: they must be probabilities of cell "
            "in [0, 1] without NaN; apply a softmax or divide 8-bit values by 255."
        )
    values = _check_thresholds(thresholds)
    slices = (-1, *label.shape[-2:])
    pairs = zip(foreground.reshape(slices), probability.reshape(slices), strict=True)
    return np.stack([counts(one, p, values) for one, p in pairs])


def _smallest_error(counts: np.ndarray) -> float:
    """(N, thresholds, 2) → the smallest errors / total over the thresholds; 0 where there is nothing to get wrong."""
    errors, total = counts.sum(axis=0).T
    return float((errors / np.maximum(total, 1)).min())


def warping_error(
    labels: NdarrayOrTensor, probabilities: NdarrayOrTensor, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """Pixels that split or merge objects once the label is warped onto the prediction, as a share of all pixels.

    The label is warped by flipping simple points only (foreground 4-, background 8-connected), so borders may move
    at no cost. Jain et al. 2010; splits and merges only, as on the challenge's board.

    Args:
        labels: (Z, H, W) or (H, W), 1 or 255 (or True) = cell, 0 = membrane. Slices are taken one by one.
        probabilities: same shape, probability of *cell* in [0, 1]. Thresholds are compared in its precision.
        thresholds: each in [0, 1]; 0, 0.1 … 0.9 by default.

    Returns:
        the smallest value over the thresholds, in [0, 1].

    Raises:
        ValueError: shapes differ or are not 2-D or 3-D, labels are not binary, probabilities are not in [0, 1],
            thresholds are not.
    """
    return _smallest_error(_count(_warping_counts, labels, probabilities, thresholds))


def rand_error(
    labels: NdarrayOrTensor, probabilities: NdarrayOrTensor, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """1 - the maximal foreground-restricted Rand F-score of the 4-connected components of label and prediction.

    Predicted background inside the label's foreground counts as singletons; the label's background is left out.
    The pair counts are summed over the slices before the F-score is taken. A label without a cell has no pairs and
    gives 0. Arguments, result and errors as :func:`warping_error`; Arganda-Carreras et al. 2015.
    """
    return _smallest_error(_count(_rand_counts, labels, probabilities, thresholds))


def pixel_error(
    labels: NdarrayOrTensor, probabilities: NdarrayOrTensor, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """1 - the maximal F-score of the cell's pixels, counted over all slices; 0 if neither image has any.

    Arguments, result and errors as :func:`warping_error`; Arganda-Carreras et al. 2015.
    """
    return _smallest_error(_count(_pixel_counts, labels, probabilities, thresholds))


class _BestOverThresholds(CumulativeIterationMetric):
    """An error of this module over images that come one batch at a time; equal to the function on their stack.

    Called with `y_pred`, (B, 2, *spatial) softmax (channel 1 is the cell) or (B, 1, *spatial), and `y`,
    (B, 1, *spatial) binary labels, or lists of such items without B, which may differ in size. Spatial is (H, W) or
    (Z, H, W). `aggregate()` gives the error over all images, float64; `get_buffer()`, which
    :class:`monai.handlers.IgniteMetricHandler` puts into ``engine.state.metric_details``, the error of each image
    alone at its own best threshold, float64 (N, 1). Lower is better: as a key metric for checkpoints it needs
    ``key_metric_negative_sign=True``.

    Args:
        thresholds: each in [0, 1]; 0, 0.1 … 0.9 by default.

    Raises:
        ValueError: as :func:`warping_error`; channels are not as above; `aggregate()` before any image.
    """

    _counts: _Counts

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        super().__init__()
        self.thresholds = _check_thresholds(thresholds)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if y is None or y.shape[1] != 1 or y_pred.shape[1] not in (1, 2):
            raise ValueError(
                f"y_pred has shape {tuple(y_pred.shape)} and y {None if y is None else tuple(y.shape)}: give y_pred "
                "1 channel (cell) or 2 (membrane, cell) after softmax, and y 1 channel of binary labels."
            )
        images = zip(y[:, 0], y_pred[:, -1], strict=True)
        counts = [_count(self._counts, label, p, self.thresholds).sum(axis=0) for label, p in images]
        return torch.from_numpy(np.stack(counts))

    def get_buffer(self) -> torch.Tensor | None:
        counts = super().get_buffer()
        if counts is None:
            return None
        return torch.tensor([[_smallest_error(one[None])] for one in counts.cpu().numpy()], dtype=torch.float64)

    def aggregate(self) -> torch.Tensor:
        counts = super().get_buffer()
        if counts is None:
            raise ValueError(f"{type(self).__name__} has seen no image: call it before aggregate().")
        return torch.tensor(_smallest_error(counts.cpu().numpy()), dtype=torch.float64)


class WarpingError(_BestOverThresholds):
    """:func:`warping_error` as a MONAI metric: see :class:`_BestOverThresholds` for its use."""

    _counts = staticmethod(_warping_counts)


class RandError(_BestOverThresholds):
    """:func:`rand_error` as a MONAI metric: see :class:`_BestOverThresholds` for its use."""

    _counts = staticmethod(_rand_counts)


class PixelError(_BestOverThresholds):
    """:func:`pixel_error` as a MONAI metric: see :class:`_BestOverThresholds` for its use."""

    _counts = staticmethod(_pixel_counts)
