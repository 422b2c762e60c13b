"""Pictures of input, target and prediction, side by side, as PNG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor

from monai_unet.doubt import Doubt
from monai_unet.files import replacing
from monai_unet.options import parse_bool, require
from monai_unet.tracking.run import Tracking

__all__ = ["Pictures"]

#: pixels on the longer side of a panel, and above it for its title
SIZE, TITLE = 400, 16


class Pictures:
    """Draw the items of an engine's output, panel by panel, and add the pictures to the MLflow run.

    The panels: the image; the label; the weight map; the probability of the last class (of the item ``probability``, or
    else ``pred``); and the image with the outlines of label (yellow) and prediction (red), each instance with its own;
    its title has the item's ``doubt``. Panels that an item has no data for are left out. Of a stack, the middle page is
    shown. Of two channels the first is magenta, the second green; of more, the first three are red, green and blue.

    If ``tracking`` follows a training, one picture is drawn per validation, of its first item, and named by the epoch.
    Otherwise each item has a picture, named after the image's file; in the MLflow run it has the item's number instead,
    because file names may be patients' names.

    Args:
        folder: where the PNGs go; created if missing.
        tracking: logs the pictures as artifacts, under ``pictures/``.
        enabled: if false, nothing is drawn; "true" and "false" are understood.

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

    def __init__(
        self, folder: str | os.PathLike[str], tracking: Tracking | None = None, enabled: bool | str = True
    ) -> None:
        self.folder = Path(folder)
        self.tracking = tracking
        self.enabled = parse_bool("pictures", enabled)
        self.names: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Draw this evaluator's output."""
        if not self.enabled:
            return
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

    def _draw(self, item: dict[str, Any], path: Path) -> None:
        if item["pred"].ndim < item["image"].ndim:  # MONAI Label wants the mask without channel
            item["pred"] = item["pred"][None]
        image = _shown(coloured(_page(item["image"], slice(None))))
        probability, pred = _page(item.get("probability", item["pred"]), -1), _page(item["pred"], -1)
        label = None if item.get("label") is None else _page(item["label"], 0)
        panels = {"image": image}
        if label is not None:
            panels["label"] = _shown(label / max(label.max(), 1))
        if "weight" in item:
            weight = _page(item["weight"], 0)
            panels["weight"] = _shown(weight / max(weight.max(), 1e-6))
        panels["probability"] = _shown(probability)
        found: Doubt | None = item.get("doubt")
        panels["outlines" if found is None else f"outlines, {found.text}"] = outlined = image.copy()
        for mask, colour in ((label, (255, 215, 0)), (pred if _several(pred) else probability, (255, 0, 0))):
            if mask is not None:
                outlined[edges(_shown(mask, scale=False))] = colour
        pillow, drawing = require("PIL.Image", "tracking"), require("PIL.ImageDraw", "tracking")
        picture = pillow.fromarray(
            np.hstack([np.pad(panel, ((TITLE, 2), (2, 2), (0, 0))) for panel in panels.values()])
        )
        for number, title in enumerate(panels):
            drawing.Draw(picture).text((number * picture.width // len(panels) + 4, 2), title, fill=(255, 255, 255))
        with replacing(path) as partial:
            picture.save(partial, compress_level=1)


def _shown(array: np.ndarray, scale: bool = True) -> np.ndarray:
    """Bring a panel (H, W) or (H, W, 3) to the size of a picture; to colours 0...255 from 0...1, if ``scale``."""
    factor = SIZE / max(array.shape[:2])
    rows, columns = (
        np.minimum((np.arange(max(1, round(n * factor))) / factor).astype(int), n - 1) for n in array.shape[:2]
    )
    array = array[rows][:, columns]
    if not scale:
        return array
    array = (255 * array.clip(0, 1)).astype(np.uint8)
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)


def _several(mask: np.ndarray) -> bool:
    """Whether these are several instances or classes, rather than one mask or a probability."""
    return bool((mask == np.rint(mask)).all()) and len(np.unique(mask)) > 2


def edges(mask: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) at the edges of a mask, a probability (at 0.5), or each of several instances.

    >>> edges(np.array([[1, 1, 2, 2, 0]]))
    array([[False,  True, False,  True, False]])
    """
    ids = mask if _several(mask) else mask > max(mask.max(), 1) / 2
    found = np.zeros(ids.shape, bool)
    found[:-1] |= ids[:-1] != ids[1:]
    found[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    return found


def _page(tensor: Tensor, channel: int | slice) -> np.ndarray:
    """(C, H, W) or (C, Z, H, W), or (H, W) already → (H, W), or (H, W, C) for several channels."""
    array: np.ndarray = tensor.float().numpy(force=True)
    if array.ndim == 2:
        return array
    if array.ndim == 4:
        array = array[:, array.shape[1] // 2]
    array = array[channel]
    return array if array.ndim == 2 else array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)


def coloured(image: np.ndarray, percentiles: tuple[float, float] = (0, 100)) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) of any values as colours (H, W, 3) from 0 to 1, black and white at these.

    One channel is gray, of two the first is magenta and the second green, of more the first three are red, green and
    blue. Three are taken for an image of colours and share a scale, others have their own.

    >>> coloured(np.array([[[0.0, 7], [50, 5]]])).tolist()
    [[[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]]
    """
    image = image if image.ndim == 3 else image[..., None]
    channels = image.shape[-1]
    low, high = np.percentile(image, percentiles, axis=None if channels == 3 else (0, 1))
    image = ((image - low) / np.maximum(high - low, 1e-6)).clip(0, 1)
    return image[..., {1: [0, 0, 0], 2: [0, 1, 0]}.get(channels, [0, 1, 2])]
