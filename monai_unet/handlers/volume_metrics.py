"""What MONAI's metrics lack in an evaluation of volumes: millimetres, and a value per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics.metric import reinit__is_reduced
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler

__all__ = ["PerClass", "SpacingMetricHandler"]


class SpacingMetricHandler(IgniteMetricHandler):
    """MONAI's `IgniteMetricHandler` for surface distances in millimetres.

    MONAI's `HausdorffDistanceMetric` and `SurfaceDistanceMetric` count in voxels unless they are told the ``spacing``,
    and the plain handler tells none. This one takes it from the affine of each reference.

    ``output_transform`` gives two lists of (K, *spatial), prediction and reference, the latter as `MetaTensor`.
    """

    @reinit__is_reduced
    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Score a batch, item by item.

        Raises:
            TypeError: a reference is no `MetaTensor`, so that its voxel size is unknown.
        """
        for pred, reference in zip(*output, strict=True):
            if not isinstance(reference, MetaTensor):
                raise TypeError(
                    f"the reference is a {type(reference).__name__}; only a MetaTensor tells its voxel size"
                )
            self.metric_fn([pred], [reference], spacing=reference.pixdim.tolist())


class PerClass:
    """Splits the metrics of an evaluator by class: beside ``dice`` it puts ``dice_anterior`` and ``dice_posterior``.

    It stands before the handlers that print, write or log ``engine.state.metrics`` and ``metric_details``. A value that
    is not defined (NaN) is left out of the mean of its class. Metrics of another number of columns stay as they are.

    Args:
        classes: names of the classes that the metrics score, in order, at least two; usually without the background.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        for name, details in list(state.metric_details.items()):
            if details.shape[1] != len(self.classes):  # among them what an earlier validation was split into
                continue
            for part, values in zip(self.classes, details.split(1, dim=1), strict=True):
                state.metric_details[f"{name}_{part}"] = values
                state.metrics[f"{name}_{part}"] = values.nanmean().item()
