"""SEG and DET of the Cell Tracking Challenge (Table 2 of the paper), average precision, and merged and split cells.

SEG: Maška et al. 2014, Bioinformatics 30:1609; DET: Matula et al. 2015, PLoS ONE 10:e0144959; average precision:
Caicedo et al. 2019, Nat. Methods 16:1247. All measures start from the pixels shared by reference and predicted objects,
counted once per image. `py-ctcmetrics` gives the same SEG and DET for files on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.metrics import CumulativeIterationMetric
from monai.utils import convert_to_numpy

from monai_unet.object_classes import class_of
from monai_unet.options import parse_choice

__all__ = [
    "AveragePrecision",
    "CellErrors",
    "MergesAndSplits",
    "SegMeasure",
    "average_precision",
    "det_measure",
    "merges_and_splits",
    "seg_measure",
]

Frames = NdarrayOrTensor | Sequence[NdarrayOrTensor]


class _Overlaps(NamedTuple):
    """The objects of one frame, numbered from 0 in the order of their ids, and each pair that shares pixels."""

    reference_size: np.ndarray  # (objects,) pixels
    prediction_size: np.ndarray  # (objects,) pixels
    reference: np.ndarray  # (pairs,) number of the reference object
    prediction: np.ndarray  # (pairs,) number of the predicted object
    shared: np.ndarray  # (pairs,) pixels

    @property
    def matched(self) -> np.ndarray:
        """(pairs,) whether the pair shares more than half of the reference object; at most one pair per object does."""
        return 2 * self.shared > self.reference_size[self.reference]

    @property
    def jaccard(self) -> np.ndarray:
        """(pairs,) the Jaccard index of each pair, intersection over union."""
        sizes = self.reference_size[self.reference] + self.prediction_size[self.prediction]
        return self.shared / (sizes - self.shared)


def _instances(name: str, image: NdarrayOrTensor) -> np.ndarray:
    array: np.ndarray = convert_to_numpy(image)
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} has shape {array.shape}: give (H, W) or (Z, H, W), or a list of such frames.")
    whole = array.dtype.kind != "f" or (np.isfinite(array) & (array == np.trunc(array))).all()
    if not whole or not (array >= 0).all():
        raise ValueError(
            f"{name} has values in [{array.min()}, {array.max()}], {array.dtype}: instance ids are whole numbers, "
            "0 for background; label the objects of a probability map first."
        )
    return array


def _overlaps(reference: np.ndarray, prediction: np.ndarray, ignore: np.ndarray | None) -> _Overlaps:
    if reference.shape != prediction.shape or (ignore is not None and ignore.shape != reference.shape):
        shapes = f"reference {reference.shape}, prediction {prediction.shape}"
        shapes += "" if ignore is None else f", ignore {ignore.shape}"
        raise ValueError(f"{shapes}: the shapes must be equal; crop or pad the prediction to the reference.")
    if ignore is not None:
        prediction = np.where((ignore != 0) & (reference == 0), 0, prediction)
    reference_ids, reference_size = np.unique(reference[reference > 0], return_counts=True)
    prediction_ids, prediction_size = np.unique(prediction[prediction > 0], return_counts=True)
    both = (reference > 0) & (prediction > 0)
    row = np.searchsorted(reference_ids, reference[both])
    column = np.searchsorted(prediction_ids, prediction[both])
    pairs, shared = np.unique(row * len(prediction_ids) + column, return_counts=True)
    row, column = np.divmod(pairs, len(prediction_ids))
    return _Overlaps(reference_size, prediction_size, row, column, shared)


def _per_frame(reference: Frames, prediction: Frames, ignore: Frames | None) -> Iterator[_Overlaps]:
    def frames(images: Frames) -> list[NdarrayOrTensor]:
        return list(images) if isinstance(images, (list, tuple)) else [images]  # type: ignore[list-item]

    references, predictions = frames(reference), frames(prediction)
    ignores = [None] * len(references) if ignore is None else frames(ignore)
    if not len(references) == len(predictions) == len(ignores):
        raise ValueError(
            f"reference has {len(references)} frames, prediction {len(predictions)}, ignore {len(ignores)}: "
            "give one of each per frame."
        )
    for r, p, i in zip(references, predictions, ignores, strict=True):
        mask = None if i is None else convert_to_numpy(i)
        yield _overlaps(_instances("reference", r), _instances("prediction", p), mask)


def _seg_sum(overlaps: _Overlaps) -> tuple[float, int]:
    """The sum of the matches' Jaccard indices, and the number of reference objects."""
    return float(overlaps.jaccard[overlaps.matched].sum()), len(overlaps.reference_size)


def _precision_sum(overlaps: _Overlaps) -> tuple[float, int]:
    """The number of objects found, and that of found, missed and surplus objects together."""
    found = int((overlaps.jaccard > 0.5).sum())  # of one object at most one pair is above 0.5
    return found, len(overlaps.reference_size) + len(overlaps.prediction_size) - found


def seg_measure(reference: Frames, prediction: Frames, ignore: Frames | None = None) -> float:
    """Compute SEG: the mean over all reference objects of the Jaccard index with the matching predicted object.

    A predicted object S matches a reference object R when ``|R ∩ S| > |R| / 2``, strictly; an unmatched R counts 0.
    Predicted objects without a reference cost nothing.

    Args:
        reference: instance ids, 0 for background, gaps allowed: (H, W), or (Z, H, W) for a volume, where ids are shared
            across Z. A list or tuple is a sequence of frames, such as a time series, each with its own ids.
        prediction: as ``reference``, with the same shapes; the ids need not correspond.
        ignore: as ``reference``, true or nonzero where the reference is unknown, such as unlabelled cells in a partly
            annotated frame. Predicted pixels there count as background, except inside reference objects, which always
            count completely.

    Returns:
        SEG in [0, 1], over all objects of all frames together; **NaN if there is no reference object at all**, since
        the mean does not exist (`py-ctcmetrics` returns 0). Frames without objects add nothing.

    Raises:
        ValueError: shapes or numbers of frames differ, an image is not 2-D or 3-D, ids are negative or fractional.

    >>> reference = np.array([[1, 1, 1, 1, 0, 2, 2]])
    >>> prediction = np.array([[0, 5, 5, 5, 5, 6, 0]])  # 5 shares 3 of 5 pixels; 6 covers just half of 2
    >>> seg_measure(reference, prediction)
    0.3
    """
    sums = [_seg_sum(overlaps) for overlaps in _per_frame(reference, prediction, ignore)]
    objects = sum(count for _, count in sums)
    return sum(score for score, _ in sums) / objects if objects else float("nan")


def det_measure(reference: Frames, prediction: Frames, ignore: Frames | None = None) -> float:
    """Compute DET: 1 − the cost of correcting the detections relative to that of adding all of them, at most 1.

    A missed reference object costs 10, a surplus predicted object 1, and each further reference object matched by the
    same predicted object 5; adding a reference object costs 10. Matches, arguments and errors as for `seg_measure`.
    The challenge computes DET on its tracking markers (TRA), not on the SEG masks: state which were used. NaN without a
    reference object.

    >>> det_measure(np.array([[1, 1, 0, 2, 2]]), np.array([[1, 1, 0, 0, 0]]))  # one of two cells is missed
    0.5
    """
    cost = objects = 0
    for overlaps in _per_frame(reference, prediction, ignore):
        matches = np.bincount(overlaps.prediction[overlaps.matched], minlength=len(overlaps.prediction_size))
        missed = len(overlaps.reference_size) - int(matches.sum())
        cost += 10 * missed + int((matches == 0).sum()) + 5 * int(np.maximum(matches - 1, 0).sum())
        objects += len(overlaps.reference_size)
    return 1 - min(cost, 10 * objects) / (10 * objects) if objects else float("nan")


def average_precision(reference: Frames, prediction: Frames, ignore: Frames | None = None) -> float:
    """Compute the average precision at IoU 0.5 of the 2018 Data Science Bowl: TP / (TP + FP + FN).

    An object is found (TP) if its intersection over union with a predicted object is above 0.5; other reference objects
    are missed (FN), other predicted objects are surplus (FP). Arguments and errors as for `seg_measure`; a predicted
    object that reaches out of ``ignore`` counts with the rest of it.

    Returns:
        a number in [0, 1], over all objects of all frames together; NaN if there is no object at all.

    >>> average_precision(np.array([[1, 1, 0, 2, 2]]), np.array([[7, 7, 0, 8, 0]]))  # 8 covers just half of 2
    0.3333333333333333
    """
    sums = [_precision_sum(overlaps) for overlaps in _per_frame(reference, prediction, ignore)]
    objects = sum(count for _, count in sums)
    return sum(found for found, _ in sums) / objects if objects else float("nan")


class MergesAndSplits(NamedTuple):
    """Numbers of merged and of split reference cells, as `merges_and_splits` counts them.

    >>> MergesAndSplits(merged=2, split=0).merged
    2
    """

    merged: int
    split: int


def merges_and_splits(reference: Frames, prediction: Frames, ignore: Frames | None = None) -> MergesAndSplits:
    """Count the reference cells that the prediction merges with others, and those that it splits.

    - **merged**: a predicted object covers more than half of the cell and also more than half of another one. Three
      cells under one object are three merged cells.
    - **split**: the cell contains two or more predicted objects, each with more than half of its pixels in the cell,
      whatever their size.

    A cell may be both. Arguments and errors as for `seg_measure`; predicted pixels in ``ignore`` do not count towards
    the size of a predicted object either. Frames are summed.

    >>> merges_and_splits(np.array([[1, 1, 0, 2, 2, 0, 3, 3]]), np.array([[7, 7, 7, 7, 7, 0, 8, 9]]))
    MergesAndSplits(merged=2, split=1)
    """
    merged = split = 0
    for overlaps in _per_frame(reference, prediction, ignore):
        covered = np.bincount(overlaps.prediction[overlaps.matched])
        merged += int(covered[covered >= 2].sum())
        inside = 2 * overlaps.shared > overlaps.prediction_size[overlaps.prediction]
        split += int((np.bincount(overlaps.reference[inside]) >= 2).sum())
    return MergesAndSplits(merged, split)


def _frames(
    y_pred: torch.Tensor, y: torch.Tensor | None
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Reference, prediction and mask to ignore of each image of a metric's batch."""
    if y is None or y.shape[1] not in (1, 2) or y_pred.shape[1] != 1:
        raise ValueError(
            f"y_pred has shape {tuple(y_pred.shape)} and y {None if y is None else tuple(y.shape)}: give y_pred "
            "1 channel of instance ids, and y 1 channel of ids or 2 (ids, mask to ignore)."
        )
    return [(r[0], p[0], r[1] if len(r) == 2 else None) for p, r in zip(y_pred, y, strict=True)]


class _Pooled(CumulativeIterationMetric):
    """A sum over the objects of each image and what it is divided by; the image's quotient, and that of all sums.

    Where objects are of several classes, there are sums for each; the quotient of all is the mean over the classes.
    """

    def __init__(self, classes: int = 1, only: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.scored = range(1, classes + 1) if only is None else (only,)

    def _sums(self, overlaps: _Overlaps) -> tuple[float, int]:
        raise NotImplementedError

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        sums = [[self._sums(self._overlaps(c, *frame)) for c in self.scored] for frame in _frames(y_pred, y)]
        return torch.tensor(sums, dtype=torch.float64)

    def _overlaps(
        self, number: int, reference: torch.Tensor, prediction: torch.Tensor, ignore: torch.Tensor | None
    ) -> _Overlaps:
        """Those of the objects of one class."""
        ids, found = _instances("reference", reference), _instances("prediction", prediction)
        if self.classes > 1:
            ids, found = (np.where(class_of(array, self.classes) == number, array, 0) for array in (ids, found))
        return _overlaps(ids, found, None if ignore is None else convert_to_numpy(ignore))

    def get_buffer(self) -> torch.Tensor | None:
        sums = super().get_buffer()
        return None if sums is None else sums[..., 0] / sums[..., 1]

    def aggregate(self) -> torch.Tensor:
        sums = super().get_buffer()
        if sums is None:
            raise ValueError(f"{type(self).__name__} has seen no image: call it before aggregate().")
        total = sums.sum(dim=0)
        return (total[:, 0] / total[:, 1]).nanmean()


class SegMeasure(_Pooled):
    """Compute `seg_measure` over batches, as a MONAI metric.

    Args:
        classes: of the objects; of several, ids say the class as `monai_unet.object_classes` has it, an object matches
            only those of its class, and the result is the mean over the classes that have objects.
        only: the number of the one class to score, from 1 on; None for all.

    Called with ``y_pred``, ``(B, 1, *spatial)`` predicted instance ids, and ``y``, ``(B, 1, *spatial)`` reference ids,
    or ``(B, 2, *spatial)`` with the mask to ignore as second channel; or with lists of such items without B, which may
    differ in size. ``aggregate()`` returns SEG over all objects of all images, float64; ``get_buffer()``, which
    `monai.handlers.IgniteMetricHandler` puts into ``engine.state.metric_details``, that of each image, float64 (N, 1),
    or (N, classes), NaN if it has no reference object.

    Raises:
        ValueError: as `seg_measure`; channels are not as stated; ``aggregate()`` before any image.

    >>> metric, reference = SegMeasure(), torch.tensor([[[[1, 1, 0, 2]]]])
    >>> sums = metric(y_pred=torch.tensor([[[[5, 5, 0, 0]]]]), y=reference)
    >>> metric.aggregate()
    tensor(0.5000, dtype=torch.float64)
    """

    def _sums(self, overlaps: _Overlaps) -> tuple[float, int]:
        return _seg_sum(overlaps)


class AveragePrecision(_Pooled):
    """Compute `average_precision` over batches, as a MONAI metric with the arguments of `SegMeasure`, called like it.

    ``aggregate()`` returns it over all objects of all images, float64; ``get_buffer()`` that of each image, float64
    (N, 1), or (N, classes), NaN if neither reference nor prediction has an object.

    Raises:
        ValueError: as `SegMeasure`.

    >>> metric, reference = AveragePrecision(), torch.tensor([[[[1, 1, 0, 2]]]])
    >>> sums = metric(y_pred=torch.tensor([[[[5, 5, 5, 0]]]]), y=reference)
    >>> metric.aggregate()
    tensor(0.5000, dtype=torch.float64)
    """

    def _sums(self, overlaps: _Overlaps) -> tuple[float, int]:
        return _precision_sum(overlaps)


class CellErrors(CumulativeIterationMetric):
    """Count the merged or the split cells over batches, as a MONAI metric that is called like `SegMeasure`.

    ``aggregate()`` returns their number over all images, float64; ``get_buffer()`` that of each image, float64 (N, 1).

    Args:
        kind: "merged" or "split", as `merges_and_splits` defines them.

    Raises:
        ValueError: another kind; as `SegMeasure`.

    >>> metric = CellErrors("merged")
    >>> counts = metric(y_pred=torch.tensor([[[[5, 5, 5, 5]]]]), y=torch.tensor([[[[1, 1, 2, 2]]]]))
    >>> metric.aggregate()
    tensor(2., dtype=torch.float64)
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = parse_choice("kind", kind, MergesAndSplits._fields)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        counts = [[getattr(merges_and_splits(*frame), self.kind)] for frame in _frames(y_pred, y)]
        return torch.tensor(counts, dtype=torch.float64)

    def aggregate(self) -> torch.Tensor:
        counts = self.get_buffer()
        if counts is None:
            raise ValueError("CellErrors has seen no image: call it before aggregate().")
        return counts.sum()
