"""What MONAI's metrics lack in an evaluation of volumes: millimetres, and a value per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics.metric import reinit__is_reduced
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler
from monai.metrics.metric import IterationMetric
from scipy import ndimage

__all__ = ["PerClass", "SurfaceMetricHandler"]


class SurfaceMetricHandler(IgniteMetricHandler):
    """MONAI's `IgniteMetricHandler` for surface distances in millimetres.

    MONAI's `HausdorffDistanceMetric` and `SurfaceDistanceMetric` count in voxels unless they are told the ``spacing``,
    and the plain handler tells none: this one takes it from the affine of each reference. They also take the cut where
    an organ leaves the volume for its surface; here a surface voxel has a neighbour in the volume that is not of the
    organ, as in the CHAOS challenge (Kavur et al. 2021). A class that only one of the two masks holds is infinitely far
    away; one that neither holds has no distance (NaN), and is left out of the means.

    ``output_transform`` gives two lists of binary (K, *spatial), prediction and reference, the latter as `MetaTensor`.
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
            pair = [_surface(pred)], [_surface(reference)]
            spacing = reference.pixdim.tolist()
            values = torch.as_tensor(IterationMetric.__call__(self.metric_fn, *pair, spacing=spacing))
            # MONAI's percentile of infinite distances is NaN, and a missed organ would be left out of the mean
            in_prediction, in_reference = (mask.flatten(1).amax(1) > 0 for (mask,) in pair)
            missed = (in_prediction != in_reference)[-values.shape[1] :]
            self.metric_fn.extend(values.masked_fill(missed, math.inf))


def _surface(mask: torch.Tensor) -> torch.Tensor:
    """(K, *spatial) → its voxels with a face neighbour, inside the volume, that is not of the mask; float32.

    All of them are what MONAI takes for the surface of the result, so it may be handed over in the mask's place.
    """
    plain = mask.numpy(force=True) > 0
    cross = ndimage.generate_binary_structure(plain.ndim - 1, 1)[None]
    return torch.as_tensor(plain & ~ndimage.binary_erosion(plain, cross, border_value=1)).float()


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
