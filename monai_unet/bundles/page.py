"""A page of pictures of a data set: samples with their labels, and how intensities and sizes are distributed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils.enums import MetaKeys

from monai_unet.bundles.fingerprint import Fingerprint
from monai_unet.bundles.plan import Plan
from monai_unet.data import CheckedVolumeReader, MicroscopyReader
from monai_unet.object_classes import join_classes
from monai_unet.options import require
from monai_unet.tracking.pictures import coloured, edges

#: samples, and pixels of each
SAMPLES, SIZE = 6, 320
BARS = 64


def write_page(folder: Path, plan: Plan, fingerprint: Fingerprint, items: Sequence[Mapping[str, Any]]) -> None:
    """Write samples.png, histograms.png and fingerprint.json into a folder.

    Args:
        folder: the bundle's docs.
        plan: tells readers and kind.
        fingerprint: of the data set.
        items: to choose the samples from.
    """
    pillow = require("PIL.Image", "microscopy")
    (folder / "fingerprint.json").write_text(json.dumps(fingerprint.to_dict(), indent=1) + "\n", encoding="utf-8")
    chosen = [items[index] for index in np.linspace(0, len(items) - 1, min(SAMPLES, len(items))).round().astype(int)]
    panels, values = [], []
    for item in chosen:
        image, label = (_read(plan, item[key], key == "label") for key in ("image", "label"))
        values.append([channel.ravel()[:: max(channel.size // 10_000, 1)] for channel in image])
        if image.ndim == 4:  # the page with most foreground
            busiest = int(label[0].reshape(label.shape[1], -1).astype(bool).sum(1).argmax())
            image, label = image[:, busiest], label[:, busiest]
        panels.append(_sample(image, label[0]))
    pillow.fromarray(_grid(panels)).save(folder / "samples.png")
    charts = {
        name: _bars(np.concatenate([each[channel] for each in values]))
        for channel, name in enumerate(plan.channel_names)
    }
    if fingerprint.objects:
        charts["sizes of objects, as powers of ten"] = _bars(np.log10(fingerprint.objects.sizes))
    picture = pillow.fromarray(_grid([chart for chart, _ in charts.values()]))
    drawing = require("PIL.ImageDraw", "microscopy").Draw(picture)
    for row, (name, (_, (low, high))) in enumerate(charts.items()):
        drawing.text((SIZE // 2, row * picture.height // len(charts) + 4), f"{name}\n{low:.4g} to {high:.4g}", "yellow")
    picture.save(folder / "histograms.png")


def _read(plan: Plan, path: Any, label: bool) -> np.ndarray:
    if plan.volumes:
        volumes = CheckedVolumeReader(channels=None)
        array, meta = volumes.get_data(volumes.read(path))
        axes = np.argsort(nib.orientations.io_orientation(meta[MetaKeys.AFFINE])[:, 0])
        return array.transpose(0, *(1 + axes[::-1]))  # slices from below upwards
    reader = MicroscopyReader(1 if label and isinstance(path, str) else None, label=label)
    array = reader.get_data(reader.read(path))[0]
    return join_classes(array.astype(np.int64)) if label else array


def _sample(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The image, and beside it the same with outlines; every n-th pixel of large ones."""
    step = max(1, max(label.shape) // SIZE)
    shown = np.moveaxis(image[:, ::step, ::step], 0, -1).astype(np.float64)
    shown = (255 * coloured(shown, (0.5, 99.5))).astype(np.uint8)
    outlined = shown.copy()
    outlined[edges(label[::step, ::step])] = (255, 0, 0)
    return np.hstack([shown, outlined])


def _bars(values: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """A histogram, white on black, between the percentiles 0.5 and 99.5, and these."""
    low, high = np.percentile(values, (0.5, 99.5))
    counts, _ = np.histogram(values, BARS, (low, max(high, low + 1e-6)))
    heights = (SIZE // 2 * counts / max(counts.max(), 1)).round().astype(int)
    drawn = np.arange(SIZE // 2, 0, -1)[:, None] <= heights
    bars = np.repeat(np.repeat(255 * drawn.astype(np.uint8), SIZE // BARS, axis=1)[..., None], 3, axis=2)
    return bars, (low, high)


def _grid(panels: Sequence[np.ndarray]) -> np.ndarray:
    """One below the other, on black."""
    width = max(panel.shape[1] for panel in panels)
    rows = [np.pad(panel, ((2, 2), (2, width - panel.shape[1] + 2), (0, 0))) for panel in panels]
    return np.vstack(rows)
