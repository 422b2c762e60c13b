"""Small synthetic data sets, one per kind of task, for tests and for `benchmarks.studies.any_task`.

Each function writes a data set into a folder, as a user would have it, and returns the folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

__all__ = ["histology", "nuclei", "three_classes", "two_channels", "two_kinds"]

#: pixels, height and width of 2-D images
SIZE = 128


def _discs(random: np.random.Generator, radius: float, count: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Ids of round objects, 1 … n, uint16, and how deep a pixel is inside of one; every second one touches another."""
    grid, ids, depth = np.indices((size, size)), np.zeros((size, size), np.uint16), np.zeros((size, size))
    centres = list[np.ndarray]()
    while len(centres) < count:
        centre = random.uniform(radius + 1, size - radius - 2, 2)
        if len(centres) % 2:
            angle = random.uniform(0, 2 * np.pi)
            centre = centres[-1] + 2 * radius * np.array([np.sin(angle), np.cos(angle)])
        near = [np.hypot(*(centre - other)) for other in centres]
        free = all(distance >= 2 * radius + 3 for distance in (near[:-1] if len(centres) % 2 else near))
        if free and (centre > radius).all() and (centre < size - radius - 1).all():
            centres.append(centre)
            inside = radius - np.hypot(*(grid - centre[:, None, None]))
            ids[inside >= 0], depth = len(centres), np.maximum(depth, inside)
        elif len(centres) % 2:
            last = ids == len(centres)
            ids[last] = depth[last] = 0
            centres.pop()
    return ids, depth


def _write_tiff(file: Path, array: np.ndarray, pixel_size_um: float | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    size = {f"PhysicalSize{axis}": pixel_size_um for axis in "YX"} if pixel_size_um else {}
    tifffile.imwrite(file, array, ome=bool(size), metadata={"axes": "YX", **size} if size else None)


def nuclei(folder: Path, count: int = 8) -> Path:
    """Nuclei of 160 pixels of 0.5 µm, many in touch, in 16-bit OME-TIFF, as `images` and `labels`.

    Every fourth image is taken with pixels of 0.25 µm.
    """
    for number in range(count):
        random, zoom = np.random.default_rng(number), 2 if number % 4 == 3 else 1
        ids, depth = (array.repeat(zoom, 0).repeat(zoom, 1) for array in _discs(random, 7.1, 16))
        bright = ndimage.gaussian_filter(1500 * (depth / 3).clip(0, 1), zoom / 2)
        image = (400 + bright + random.normal(0, 60, ids.shape)).clip(0, 65535).astype(np.uint16)
        image[tuple(random.integers(0, ids.shape[0], (2, 5)))] = 65535  # hot pixels
        _write_tiff(folder / "images" / f"well{number}.ome.tif", image, 0.5 / zoom)
        _write_tiff(folder / "labels" / f"well{number}.tif", ids)
    return folder


def two_channels(folder: Path, count: int = 8) -> Path:
    """A bright channel without signal beside a dim one that holds it, in nnU-Net's layout, with a test list."""
    for number in range(count + 2):
        random = np.random.default_rng(number)
        (ids, depth), part = _discs(random, 9, 10), "Tr" if number < count else "Ts"
        clouds = ndimage.gaussian_filter(random.normal(0, 1, ids.shape), 6)
        bright = 30_000 + 15_000 * clouds / np.abs(clouds).max()
        dim = 100 + 40 * (depth / 3).clip(0, 1) + random.normal(0, 4, ids.shape)
        for channel, values in enumerate((bright, dim)):
            file = folder / f"images{part}" / f"x{number}_{channel:04d}.tif"
            _write_tiff(file, values.clip(0, 65535).astype(np.uint16))
        _write_tiff(folder / f"labels{part}" / f"x{number}.tif", ids)
    document = {"channel_names": {"0": "brightfield", "1": "DAPI"}, "labels": {"background": 0, "nucleus": 1}}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def three_classes(folder: Path, count: int = 8) -> Path:
    """Three classes besides the background, in PNG; a strip at one side of every second image is not labelled, 255."""
    for number in range(count):
        random = np.random.default_rng(number)
        ids, _ = _discs(random, 11, 9)
        classes = np.where(ids > 0, 1 + ids % 3, 0).astype(np.uint8)
        image = np.array([110, 20, 175, 240])[classes] + random.normal(0, 8, ids.shape)
        if number % 2:
            classes[:, :30] = 255
        for name, array in (("images", image.clip(0, 255).astype(np.uint8)), ("labels", classes)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / name / f"slice{number}.png")
    names = {"background": 0, "lipid droplet": 1, "mitochondrion": 2, "granule": 3}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    return folder


def two_kinds(folder: Path, count: int = 8) -> Path:
    """Bright round cells and dim long ones, many in touch, in PNG; a folder of labels for each class of objects."""
    for number in range(count):
        random = np.random.default_rng(number)
        ids, depth = _discs(random, 7.1, 8)
        grid, long = np.indices((SIZE, SIZE)), np.zeros_like(ids)
        while long.max() < 6:
            centre, angle = random.uniform(16, SIZE - 17, 2), random.uniform(0, np.pi)
            along, across = (
                (grid[0] - centre[0]) * np.sin(angle + turn) + (grid[1] - centre[1]) * np.cos(angle + turn)
                for turn in (0, np.pi / 2)
            )
            cell = (along / 13) ** 2 + (across / 4) ** 2 <= 1
            near = ndimage.binary_dilation(long > 0, iterations=2)
            if not (cell & (near | (ids > 0))).any():
                long[cell] = long.max() + 1
        image = 40 + 130 * (depth / 3).clip(0, 1) + 50 * (long > 0)
        image = ndimage.gaussian_filter(image, 0.7) + random.normal(0, 5, ids.shape)
        for name, array in (("images", image), ("labels_dim", long), ("labels_round", ids)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(folder / name / f"field{number}.png")
    return folder


def histology(folder: Path, count: int = 8) -> Path:
    """Purple glands in pink tissue, RGB, with masks of 0 and 255, as `images` and `masks`."""
    for number in range(count):
        random = np.random.default_rng(number)
        gland = _discs(random, 14, 6)[0] > 0
        shade = random.uniform(-10, 10)  # of the staining
        colours = np.where(gland[..., None], (120, 70, 150), (225, 170, 195)) + shade
        image = ndimage.gaussian_filter(colours, (1, 1, 0)) + random.normal(0, 6, colours.shape)
        for name, array in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", 255 * gland.astype(np.uint8))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / name / f"core{number}.png")
    return folder
