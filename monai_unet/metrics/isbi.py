"""The three errors of the ISBI 2012 EM challenge (Table 1 of the paper).

Definitions: Jain et al. 2010 (warping error) and Arganda-Carreras et al. 2015, Front. Neuroanat. 9:142, as computed by
Fiji's Trainable Segmentation. Convention: cell interior 1, membrane 0; predictions are probabilities of *cell*,
binarised with strict ``>`` at each threshold. Per slice and threshold two integers are counted, errors and total; both
are summed over the slices, and the smallest ratio over the thresholds is reported.

Each error is a function of whole images and a MONAI metric over batches, with the same result. The metrics are called
with ``y_pred``, ``(B, 2, *spatial)`` softmax (channel 1 is the cell) or ``(B, 1, *spatial)`` probability of cell, and
``y``, ``(B, 1, *spatial)`` binary labels, or with lists of such items without B, which may differ in size; spatial is
(H, W) or (Z, H, W). ``aggregate()`` returns the error over all images, float64; ``get_buffer()``, which
`monai.handlers.IgniteMetricHandler` puts into ``engine.state.metric_details``, that of each image at its own best
threshold, float64 (N, 1). Lower is better: as key metric for checkpoints they need ``key_metric_negative_sign=True``.
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

#: errors and total of a slice: (label, probability, threshold) → two integers
Counts = Callable[[np.ndarray, np.ndarray, float], tuple[int, int]]

__all__ = ["PixelError", "RandError", "WarpingError", "pixel_error", "rand_error", "warping_error"]

THRESHOLDS = tuple(k / 10 for k in range(10))

#: the eight neighbours of a pixel as (row, column) steps, clockwise from the north; bit k of a pixel's code is
#: neighbour k, and k ^ 4 is the neighbour opposite to k
_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def _background_gaps() -> np.ndarray:
    """Yokoi's number for each of the 256 codes: the runs of 8-connected background that separate 4-neighbours.

    0: isolated or completely surrounded; 1: a simple point (foreground 4-connected, background 8-connected).
    """
    ring = np.arange(256)[:, None] >> np.arange(8) & 1
    side, corner = ring[:, 0::2], ring[:, 1::2]
    return (side * (1 - corner * np.roll(side, -1, axis=1))).sum(axis=1)


_GAPS = _background_gaps()


def _warp(label: np.ndarray, prediction: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip simple points of ``label`` towards ``prediction``, largest ``distance`` first, until a pass flips none.

    All (H, W), bool except ``distance``, with a border of zeros. Returns the warped label and its neighbour codes.
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
    """The number of pixels where the warped label still differs and which split or merge its objects."""
    row, column = np.nonzero(warped != prediction)
    step = np.array(_RING)
    around = row[:, None] + step[:, 0], column[:, None] + step[:, 1]
    many = _distinct(ndimage.label(warped)[0][around]) >= 3
    # Removing a pixel leaves its object in one piece exactly if each gap around it belongs to another piece of
    # background: two gaps of the same piece are joined by a path that cuts the object in two.
    background = ndimage.label(~warped, np.ones((3, 3)))[0][around]
    pieces = _distinct(background) - (background == 0).any(axis=1)
    cut = warped[row, column] & (pieces < _GAPS[code[row, column]])
    return int(np.count_nonzero(many | cut))


def _warping_counts(label: np.ndarray, probability: np.ndarray, threshold: float) -> tuple[int, int]:
    prediction = np.pad(probability > threshold, 1)
    # in single precision, as in the original, where values that differ only by rounding are ties
    distance = np.abs(np.pad(probability, 1).astype(np.float64) - threshold).astype(np.float32)
    warped, code = _warp(np.pad(label, 1), prediction, distance)
    return _splits_and_merges(warped, code, prediction), label.size


def _rand_counts(label: np.ndarray, probability: np.ndarray, threshold: float) -> tuple[int, int]:
    """Pairs of label-foreground pixels: 1 - F = (A + B - 2C) / (A + B), the sums A, B, C times n²."""
    objects = ndimage.label(label)[0][label].astype(np.int64)
    segments = ndimage.label(probability > threshold)[0][label].astype(np.int64)
    sizes = np.bincount(segments, minlength=1)
    alone = sizes[0]  # each predicted background pixel is a segment of its own
    pairs = (objects * len(sizes) + segments)[segments > 0]
    a = np.square(np.bincount(objects)).sum()
    b = np.square(sizes[1:]).sum() + alone
    c = np.square(np.unique(pairs, return_counts=True)[1]).sum() + alone
    return int(a + b - 2 * c), int(a + b)


def _pixel_counts(label: np.ndarray, probability: np.ndarray, threshold: float) -> tuple[int, int]:
    """1 - F = (FP + FN) / (2 TP + FP + FN)."""
    prediction = probability > threshold
    wrong = int(np.count_nonzero(prediction != label))
    return wrong, 2 * int(np.count_nonzero(prediction & label)) + wrong


def _check_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(t) for t in thresholds)
    if not values or not all(0 <= t <= 1 for t in values):
        raise ValueError(f"thresholds is {values}: give at least one value, each in [0, 1], such as (0.5,).")
    return values


def _count(
    counts: Counts, labels: NdarrayOrTensor, probabilities: NdarrayOrTensor, thresholds: Sequence[float]
) -> np.ndarray:
    """Check (Z, H, W) or (H, W) and count the errors and the total of each slice: int64 (Z, thresholds, 2)."""
    label, probability = (
        convert_to_numpy(x.float() if isinstance(x, torch.Tensor) and x.dtype is torch.bfloat16 else x)
        for x in (labels, probabilities)
    )
    if label.shape != probability.shape:
        raise ValueError(
            f"labels have shape {label.shape} and probabilities {probability.shape}: they must be equal; "
            "pass only the cell channel of a softmax."
        )
    if label.ndim not in (2, 3) or label.size == 0:
        raise ValueError(f"labels have shape {label.shape}: give (H, W) or (Z, H, W) with at least one pixel.")
    foreground = label != 0
    if not any((label[foreground] == one).all() for one in (1, 255)):
        raise ValueError(
            f"labels hold {np.unique(label)[:5].tolist()}: they must be 0 (membrane) and 1 or 255 (cell); "
            "binarise instances with labels > 0."
        )
    # a softmax in single precision may exceed 1 by rounding; NaN fails both comparisons
    if not (probability.min() >= -1e-6 and probability.max() <= 1 + 1e-6):
        raise ValueError(
            f"probabilities are in [{probability.min()}, {probability.max()}]: they must be probabilities of cell "
            "in [0, 1] without NaN; apply a softmax or divide 8-bit values by 255."
        )
    values = _check_thresholds(thresholds)
    slices = (-1, *label.shape[-2:])
    pairs = zip(foreground.reshape(slices), probability.reshape(slices), strict=True)
    return np.array([[counts(one, p, threshold) for threshold in values] for one, p in pairs])


def _smallest_error(counts: np.ndarray) -> float:
    """The smallest errors / total over the thresholds of (N, thresholds, 2); 0 if there is nothing to get wrong."""
    errors, total = counts.sum(axis=0).T
    return float((errors / np.maximum(total, 1)).min())


def warping_error(
    labels: NdarrayOrTensor, probabilities: NdarrayOrTensor, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """Compute the fraction of pixels that split or merge objects after the label is warped onto the prediction.

    Only simple points are flipped (foreground 4-connected, background 8-connected), so borders may move at no cost.

    Args:
        labels: (Z, H, W) or (H, W), 1 or 255 (or True) = cell, 0 = membrane. Slices are scored one by one.
        probabilities: same shape, probability of *cell* in [0, 1]. Thresholds are compared in its precision.
        thresholds: each in [0, 1]; 0, 0.1 … 0.9 by default.

    Returns:
        the smallest value over the thresholds, in [0, 1].

    Raises:
        ValueError: shapes differ or are not 2-D or 3-D, labels are not binary, probabilities or thresholds are not in
            [0, 1].

    Source: Jain et al. 2010; splits and merges only, as on the challenge's board.

    >>> label = np.ones((16, 16))
    >>> label[:, 8] = 0  # two cells
    >>> moved, leaking = np.roll(label, 1, axis=1), label.copy()
    >>> leaking[7, 8] = 1  # merges them
    >>> warping_error(label, moved), warping_error(label, leaking)
    (0.0, 0.00390625)
    """
    return _smallest_error(_count(_warping_counts, labels, probabilities, thresholds))


def rand_error(
    labels: NdarrayOrTensor, probabilities: NdarrayOrTensor, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """Compute 1 − the maximal foreground-restricted Rand F-score of the 4-connected components.

    Predicted background inside the label's foreground counts as singletons; the label's background is left out. The
    pair counts are summed over the slices before the F-score is taken. A label without a cell has no pairs and gives 0.
    Arguments, result and errors as for `warping_error`.

    Source: Arganda-Carreras et al. 2015.

    >>> label = np.array([[1, 1, 0, 1, 1]])
    >>> rand_error(label, np.array([[1, 1, 1, 1, 1]]))  # pairs: 8 in the label, 16 predicted, 8 in both
    0.333...
    """
    return _smallest_error(_count(_rand_counts, labels, probabilities, thresholds))


def pixel_error(
    labels: NdarrayOrTensor, probabilities: NdarrayOrTensor, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """Compute 1 − the maximal F-score of the cell pixels of all slices; 0 if neither image has any.

    Arguments, result and errors as for `warping_error`.

    Source: Arganda-Carreras et al. 2015.

    >>> pixel_error(np.array([[1, 1, 0]]), np.array([[0.9, 0.2, 0.4]]), thresholds=(0.5,))  # TP 1, FN 1, FP 0
    0.333...
    """
    return _smallest_error(_count(_pixel_counts, labels, probabilities, thresholds))


class _BestOverThresholds(CumulativeIterationMetric):
    """An error of this module as a metric, see the top of the module.

    Args:
        thresholds: each in [0, 1]; 0, 0.1 … 0.9 by default.

    Raises:
        ValueError: as `warping_error`; channels are not as stated; ``aggregate()`` before any image.
    """

    _counts: Counts

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
    """Compute `warping_error` over batches, as a MONAI metric; inputs and results as stated at the top of this module.

    >>> metric = WarpingError(thresholds=(0.5,))
    >>> counts = metric(y_pred=torch.tensor([[[[0.9, 0.9, 0.9]]]]), y=torch.tensor([[[[1, 0, 1]]]]))
    >>> metric.aggregate()
    tensor(0.3333, dtype=torch.float64)
    """

    _counts = staticmethod(_warping_counts)


class RandError(_BestOverThresholds):
    """Compute `rand_error` over batches, as a MONAI metric; inputs and results as stated at the top of this module.

    >>> metric = RandError(thresholds=(0.5,))
    >>> counts = metric(y_pred=torch.tensor([[[[0.9, 0.9, 0.9]]]]), y=torch.tensor([[[[1, 0, 1]]]]))
    >>> metric.aggregate()
    tensor(0.3333, dtype=torch.float64)
    """

    _counts = staticmethod(_rand_counts)


class PixelError(_BestOverThresholds):
    """Compute `pixel_error` over batches, as a MONAI metric; inputs and results as stated at the top of this module.

    >>> metric = PixelError(thresholds=(0.5,))
    >>> counts = metric(y_pred=torch.tensor([[[[0.9, 0.2, 0.4]]]]), y=torch.tensor([[[[1, 1, 0]]]]))
    >>> metric.aggregate()
    tensor(0.3333, dtype=torch.float64)
    """

    _counts = staticmethod(_pixel_counts)
