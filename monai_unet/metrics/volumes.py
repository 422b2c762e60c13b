"""Two additions to MONAI's metrics for the evaluation of volumes: surface distances in mm, and values per class."""

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
    """Evaluate surface distances in millimetres: MONAI's `IgniteMetricHandler` with the voxel size of each reference.

    MONAI's `HausdorffDistanceMetric` and `SurfaceDistanceMetric` count voxels unless they are called with ``spacing``,
    which the plain handler never does. They also treat the cut where an organ leaves the volume as part of its surface;
    here a surface voxel has a neighbour inside the volume that is not part of the organ, as in the CHAOS challenge
    (Kavur et al. 2021). A class that only one of the two masks contains is infinitely far away; one that neither
    contains has no distance (NaN) and is left out of the means.

    ``output_transform`` returns two lists of binary ``(K, *spatial)``, prediction and reference, the latter a
    `MetaTensor`.

    >>> from monai.metrics import SurfaceDistanceMetric
    >>> handler = SurfaceMetricHandler(SurfaceDistanceMetric(include_background=True, symmetric=True))
    >>> reference = MetaTensor(torch.zeros(1, 9, 9, 9), affine=torch.diag(torch.tensor([0.5, 2.0, 3.0, 1.0])))
    >>> reference[0, :, 4] = 1  # a plate of one voxel
    >>> handler.update([[reference.roll(1, dims=2)], [reference]])  # off by one voxel of 2 mm
    >>> handler.metric_fn.aggregate().item()
    2.0
    """

    @reinit__is_reduced
    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Score a batch, item by item.

        Raises:
            TypeError: a reference is not a `MetaTensor`, so its voxel size is unknown.
        """
        for pred, reference in zip(*output, strict=True):
            if not isinstance(reference, MetaTensor):
                raise TypeError(f"the reference is a {type(reference).__name__}; only a MetaTensor has a voxel size")
            pair = [_surface(pred)], [_surface(reference)]
            spacing = reference.pixdim.tolist()
            values = torch.as_tensor(IterationMetric.__call__(self.metric_fn, *pair, spacing=spacing))
            # MONAI's percentile of infinite distances is NaN, so the mean would leave out a missed organ
            in_prediction, in_reference = (mask.flatten(1).amax(1) > 0 for (mask,) in pair)
            missed = (in_prediction != in_reference)[-values.shape[1] :]
            self.metric_fn.extend(values.masked_fill(missed, math.inf))


def _surface(mask: torch.Tensor) -> torch.Tensor:
    """The voxels of a mask ``(K, *spatial)`` with a face neighbour inside the volume that is not part of it; float32.

    MONAI takes all of them as the surface of the result, so it can replace the mask.
    """
    plain = mask.numpy(force=True) > 0
    cross = ndimage.generate_binary_structure(plain.ndim - 1, 1)[None]
    return torch.as_tensor(plain & ~ndimage.binary_erosion(plain, cross, border_value=1)).float()


class PerClass:
    """Split the metrics of an evaluator by class: ``dice`` into ``dice_anterior`` and ``dice_posterior``.

    Attach it before the handlers that print, write or log ``engine.state.metrics`` and ``metric_details``. Undefined
    values (NaN) are left out of the mean of their class. Metrics with another number of columns stay as they are.

    Args:
        classes: names of the classes that the metrics score, in order, at least two; usually without the background.

    >>> engine = Engine(lambda engine, batch: None)
    >>> engine.state.metrics, engine.state.metric_details = {}, {"dice": torch.tensor([[0.5, 1.0], [0.7, torch.nan]])}
    >>> PerClass(["anterior", "posterior"])(engine)
    >>> {name: round(value, 3) for name, value in engine.state.metrics.items()}
    {'dice_anterior': 0.6, 'dice_posterior': 1.0}
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        for name, details in list(state.metric_details.items()):
            if details.shape[1] != len(self.classes):  # such as those that an earlier validation was split into
                continue
            for part, values in zip(self.classes, details.split(1, dim=1), strict=True):
                state.metric_details[f"{name}_{part}"] = values
                state.metrics[f"{name}_{part}"] = values.nanmean().item()
