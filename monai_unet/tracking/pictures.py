"""Pictures of input, target and prediction, side by side, as PNG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from scipy import ndimage
from torch import Tensor

from monai_unet.files import replacing
from monai_unet.tracking.run import Tracking

__all__ = ["Pictures"]

#: with more outlines than this, they are drawn in one go, a pixel inside where instances touch: it is faster
ONE_BY_ONE = 100


class Pictures:
    """Draw the items of an engine's output, panel by panel, and add the pictures to the MLflow run.

    The panels: the image; the label; the weight map; the probability of the last class (of the item ``probability``, or
    else ``pred``); and the image with the outlines of label (yellow) and prediction (red), each instance with its own.
    Panels that an item has no data for are left out. Of a stack, the middle page is shown.

    If ``tracking`` follows a training, one picture is drawn per validation, of its first item, and named by the epoch.
    Otherwise each item has a picture, named after the image's file; in the MLflow run it has the item's number instead,
    because file names may be patients' names.

    Args:
        folder: where the PNGs go; created if missing.
        tracking: logs the pictures as artifacts, under ``pictures/``.

    >>> import tempfile, torch
    >>> from monai.data import MetaTensor
    >>> image = MetaTensor(torch.rand(1, 20, 30), meta={"filename_or_obj": "cells.tif"})
    >>> evaluator = Engine(lambda engine, batch: [{"pred": (image > 0.5).float()}])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Pictures(folder).attach(evaluator)
    ...     _ = evaluator.run([[{"image": image}]])
    ...     os.listdir(folder)
    ['cells.png']
    """

    def __init__(self, folder: str | os.PathLike[str], tracking: Tracking | None = None) -> None:
        self.folder = Path(folder)
        self.tracking = tracking
        self.names: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Draw this evaluator's output."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.names.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state  # ignite types what a handler finds there as optional
        trainer = self.tracking.trainer if self.tracking else None
        journal = self.tracking.journal if self.tracking else None
        for batch, output in zip(state.batch, state.output, strict=True):
            if trainer is not None and self.names:
                return
            item = {**batch, **output}
            name = Path(item["image"].meta["filename_or_obj"]).stem
            number = f"{len(self.names) + 1:04d}"
            if trainer is not None:
                name = public = f"epoch_{trainer.state.epoch:04d}"
            else:
                name, public = f"{name}_{number}" if name in self.names else name, f"item_{number}"
            self.names.append(name)
            path = self.folder / f"{name}.png"
            self._draw(item, path)
            if journal is not None:
                journal.log_file(f"{public}.png", path.read_bytes(), "pictures")

    def _draw(self, item: dict[str, Tensor], path: Path) -> None:
        from matplotlib.figure import Figure  # no pyplot: nothing global, no display

        image = _page(item["image"], slice(None))
        image = (image - image.min()) / max(float(np.ptp(image)), 1e-6)
        probability = _page(item.get("probability", item["pred"]), -1)
        label = None if item.get("label") is None else _page(item["label"], 0)
        panels: list[tuple[str, np.ndarray, dict[str, Any]]] = [("image", image, {"cmap": "gray"})]
        if label is not None:
            panels.append(("label", label, {"cmap": "gray", "interpolation": "nearest"}))
        if "weight" in item:
            panels.append(("weight", _page(item["weight"], 0), {"cmap": "viridis"}))
        panels.append(("probability", probability, {"cmap": "gray", "vmin": 0, "vmax": 1}))
        panels.append(("outlines", image, {"cmap": "gray"}))
        figure = Figure(figsize=(4 * len(panels), 4.3), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, picture, style) in zip(axes, panels, strict=True):
            axis.imshow(picture, **style)
            axis.set_title(title)
            axis.set_axis_off()
        pred = _page(item["pred"], -1)
        for mask, colour in ((label, "gold"), (pred if _several(pred) else probability, "red")):
            for part in _parts(mask) if mask is not None else ():
                if np.ptp(part) > 0:
                    axes[-1].contour(part, [0.5], colors=colour, linewidths=0.7)
        with replacing(path) as partial:
            figure.savefig(partial, dpi=80)


def _several(mask: np.ndarray) -> bool:
    """Whether these are several instances or classes, rather than one mask or a probability."""
    return bool((mask == np.rint(mask)).all()) and len(np.unique(mask)) > 2


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """The masks to outline: touching instances and classes one by one."""
    if not _several(mask):
        return [mask / max(mask.max(), 1)]  # 0 / 255, or a single instance: its edge is at 0.5 all the same
    values = np.unique(mask[mask > 0])
    if len(values) <= ONE_BY_ONE:
        return [(mask == value).astype(np.uint8) for value in values]
    apart = (mask > 0) & (ndimage.minimum_filter(mask, 3) == ndimage.maximum_filter(mask, 3))
    return [apart.astype(np.uint8)]


def _page(tensor: Tensor, channel: int | slice) -> np.ndarray:
    """(C, H, W) or (C, Z, H, W), or (H, W) already → (H, W), or (H, W, 3) for all channels of an RGB image."""
    array: np.ndarray = tensor.float().numpy(force=True)
    if array.ndim == 2:
        return array
    if array.ndim == 4:
        array = array[:, array.shape[1] // 2]
    array = array[channel]
    return array[0] if array.ndim == 3 and len(array) == 1 else np.moveaxis(array, 0, -1) if array.ndim == 3 else array
