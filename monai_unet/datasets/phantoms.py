"""Synthetic images from a seed, so that everything can be tried without data and without a network connection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

__all__ = ["cell_phantom", "em_phantom", "organ_phantom"]


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float | Sequence[float]) -> np.ndarray:
    """Smooth noise with a mean of about 0, a standard deviation of 1 and a correlation length of sigma pixels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return np.asarray(field / field.std())


def _cells(rng: np.random.Generator, size: int, count: int, waviness: float) -> tuple[np.ndarray, np.ndarray]:
    """Wavy Voronoi cells, some of them merged: index of the cell and distance to its border in pixels, (size, size)."""
    points = rng.uniform(-0.15 * size, 1.15 * size, (int(count * 1.7), 2))
    grid = np.indices((size, size), dtype=float)
    for sigma, strength in ((24.0, waviness), (6.0, waviness / 4)):
        grid += strength * np.stack([_smooth(rng, (size, size), sigma) for _ in range(2)])
    tree = cKDTree(points)
    partner = tree.query(points, k=2)[1][:, 1]
    owner = np.where(rng.random(len(points)) < 0.45, partner, np.arange(len(points)))
    index = owner[owner[tree.query(np.moveaxis(grid, 0, -1))[1]]]
    border = np.zeros((size, size), bool)
    border[:-1] |= index[:-1] != index[1:]
    border[:, :-1] |= index[:, :-1] != index[:, 1:]
    return index, ndimage.distance_transform_edt(~border)


def em_phantom(slices: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw sections like those of the EM stack: wavy dark membranes, textured cells, dark organelles, blur and noise.

    Neither the gray value (organelles are as dark as membranes, and membranes cut obliquely are pale) nor the edges
    (organelles have edges too) are enough to find the membranes.

    Args:
        slices: number of independent sections.
        size: height and width in pixels.
        seed: slice i depends on (seed, i) only.

    Returns:
        Images and labels, uint8 (slices, size, size); labels are 0 on membranes and 255 in cells.

    >>> images, labels = em_phantom(slices=2, size=64, seed=2015)
    >>> images.shape, np.unique(labels).tolist()
    ((2, 64, 64), [0, 255])
    """
    images = np.empty((slices, size, size), np.uint8)
    labels = np.empty((slices, size, size), np.uint8)
    for number in range(slices):
        rng = np.random.default_rng([seed, number])
        index, border = _cells(rng, size, size * size // 800, waviness=6.0)
        fade = np.clip(1.0 + 0.35 * _smooth(rng, (size, size), 12), 0.35, 1.15)  # oblique cuts are pale
        width = np.clip(1.6 + 0.4 * _smooth(rng, (size, size), 16), 1.05, 2.3)  # half the membrane
        membrane = border < width
        tone = 160 + 14 * rng.standard_normal(index.max() + 1)
        image = tone[index] + 9 * _smooth(rng, (size, size), 1.6) + 6 * _smooth(rng, (size, size), 5)
        inside = ndimage.distance_transform_edt(~membrane)
        for _ in range(size * size // 2600):
            centre = rng.uniform(0, size, 2)
            axes, angle = rng.uniform((5, 3), (11, 6)), rng.uniform(0, np.pi)
            y, x = np.arange(size)[:, None] - centre[0], np.arange(size) - centre[1]
            u, v = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
            reach = np.hypot(u / axes[0], v / axes[1])
            body = (reach < 1) & (inside > 2.5) & (index == index[tuple(centre.astype(int))])
            depth = rng.uniform(35, 75)
            stripes = 14 * np.sin(u * rng.uniform(1.0, 1.6)) if depth > 50 else 0.0  # cristae
            image = np.where(body, image - depth - 30 * (reach > 0.75) + stripes, image)
        for radius in (1.0, 1.7, 2.4):  # vesicles
            ring = np.exp(-(((np.hypot(*np.mgrid[-5:6, -5:6]) - radius) / 0.8) ** 2))
            sparse = (rng.random((size, size)) < 1 / 800) * rng.uniform(15, 55, (size, size))
            image -= ndimage.convolve(sparse, ring) * (inside > 3)
        profile = 1 / (1 + np.exp(np.clip((border - width) / 0.35, -30, 30)))
        image += profile * (70 - image) * fade
        image = ndimage.gaussian_filter(image, 0.9) + 14 * rng.standard_normal((size, size))
        image += 10 * _smooth(rng, (size, size), 60)
        images[number] = np.clip(np.rint(image), 0, 255)
        labels[number] = np.where(membrane, 0, 255)
    return images, labels


def cell_phantom(size: int, cells: int, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one frame of textured touching cells, as if in differential interference contrast (DIC).

    The image is the slope of a height map lit from one side: cells and background have the same mean gray value, and
    only a faint crease separates two cells that touch.

    Args:
        size: height and width in pixels.
        cells: number of cells that are placed; those that others cover almost completely are left out.
        seed: the frame depends on (seed, number) only.
        number: of the frame.

    Returns:
        Image uint8 (size, size); label uint16 (size, size), 0 background, cells 1, 2, … without gaps, each connected.

    >>> image, label = cell_phantom(size=128, cells=12, seed=2015, number=0)
    >>> image.shape, bool(label.max() > 5)
    ((128, 128), True)
    """
    rng = np.random.default_rng([seed, number])
    radius = size * rng.uniform(0.055, 0.10, cells)
    colonies = rng.uniform(0.2 * size, 0.8 * size, (max(1, cells // 7), 2))
    points = colonies[rng.integers(len(colonies), size=cells)] + 0.16 * size * rng.standard_normal((cells, 2))
    grid = np.indices((size, size), dtype=float)
    for sigma, strength in ((0.08 * size, 0.02 * size), (0.03 * size, 0.006 * size)):
        grid += strength * np.stack([_smooth(rng, (size, size), sigma) for _ in range(2)])
    reach = np.stack([np.hypot(*(grid - p[:, None, None])) / r for p, r in zip(points, radius, strict=True)])
    owner = np.where(reach.min(0) < 1, reach.argmin(0) + 1, 0)
    label = np.zeros((size, size), np.uint16)
    for cell in range(1, cells + 1):
        pieces, count = ndimage.label(owner == cell)
        area = np.bincount(pieces.ravel())[1:]
        if count and area.max() >= size * size // 1000:
            label[pieces == area.argmax() + 1] = label.max() + 1
    height = 0.35 * _smooth(rng, (size, size), 2.5) * (label > 0) + 0.5 * _smooth(rng, (size, size), 40)
    for cell in range(1, int(label.max()) + 1):
        inside = ndimage.distance_transform_edt(np.pad(label == cell, 1))[1:-1, 1:-1]
        height += rng.uniform(2.2, 3.4) * np.sqrt(inside)
    slope = sum(ndimage.gaussian_filter(height, 1.4, order=order) for order in ((1, 0), (0, 1)))
    image = 118 + 38 * np.tanh(1.1 * slope) + 5 * rng.standard_normal((size, size))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def organ_phantom(
    size: Sequence[int], spacing: Sequence[float], seed: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a volume as if from MRI: two wavy ellipsoids that touch, one in front of the other along the second axis.

    Args:
        size: voxels per axis.
        spacing: voxel size per axis in mm; the radius of the organs is about 7 mm.
        seed: the volume depends on (seed, number) only.
        number: of the volume.

    Returns:
        Image uint16 and label uint8, of shape ``size``; label 1 is at higher indices of axis 1 than label 2.

    >>> image, label = organ_phantom(size=(20, 24, 12), spacing=(2, 2, 3), seed=2015, number=0)
    >>> image.shape, np.unique(label).tolist()
    ((20, 24, 12), [0, 1, 2])
    """
    rng = np.random.default_rng([seed, number])
    shape = tuple(size)
    at = np.stack(
        np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing, strict=True)], indexing="ij")
    )
    at += np.stack([_smooth(rng, shape, [5 / mm for mm in spacing]) for _ in range(3)])
    centre = rng.uniform(-3, 3, 3)
    label = np.zeros(shape, np.uint8)
    for value, side in ((1, 6.5), (2, -6.5)):
        radii, place = rng.uniform((5, 6, 5), (8, 8, 8)), centre + np.array([0, side, 0])
        reach = (((at - place[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0)
        label[(reach < 1) & (label == 0)] = value
    image = ndimage.gaussian_filter(np.array([100.0, 190.0, 150.0])[label], [0.7 / mm for mm in spacing])
    for mm, strength in ((1.5, 10), (8, 12)):
        image += strength * _smooth(rng, shape, [mm / axis for axis in spacing])
    image = rng.uniform(0.5, 4) * (image + 6 * rng.standard_normal(shape))  # scanners differ in scale
    return np.clip(np.rint(image), 0, 4095).astype(np.uint16), label
