"""The measures of the paper's two tables, average precision, and two additions to MONAI's metrics for volumes."""

from monai_unet.metrics.cell_tracking import (
    AveragePrecision,
    CellErrors,
    MergesAndSplits,
    SegMeasure,
    average_precision,
    det_measure,
    merges_and_splits,
    seg_measure,
)
from monai_unet.metrics.isbi import PixelError, RandError, WarpingError, pixel_error, rand_error, warping_error
from monai_unet.metrics.volumes import PerClass, SurfaceMetricHandler

__all__ = [
    "AveragePrecision",
    "CellErrors",
    "MergesAndSplits",
    "PerClass",
    "PixelError",
    "RandError",
    "SegMeasure",
    "SurfaceMetricHandler",
    "WarpingError",
    "average_precision",
    "det_measure",
    "merges_and_splits",
    "pixel_error",
    "rand_error",
    "seg_measure",
    "warping_error",
]
