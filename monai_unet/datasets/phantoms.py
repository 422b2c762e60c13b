"""Synthetic images from a seed, so that everything runs without data and without network."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

__all__ = ["em_phantom"]


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Smooth noise of mean about 0 and standard deviation 1, with a correlation length of sigma pixels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return np.asarray(field / field.std())


def _cells(rng: np.random.Generator, size: int, count: int, waviness: float) -> tuple[np.ndarray, np.ndarray]:
    """Wavy Voronoi cells, some grown together: index and distance to the cell's border in pixels, (size, size)."""
    points = rng.uniform(-0.15 * size, 1.15 * size, (int(count * 1.7), 2))
    grid = np.stack(np.meshgrid(*[np.arange(size, dtype=float)] * 2, indexing="ij"))
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
    """Sections that look like the EM stack: wavy dark membranes, textured cells, dark organelles, blur and noise.

    Neither the gray value (organelles are as dark as membranes, and membranes fade where they were cut obliquely) nor
    the edge alone (organelles have edges too) tells a membrane.

    Args:
        slices: number of independent sections.
        size: height and width in pixels.
        seed: slice i depends on (seed, i) only.

    Returns:
        images and labels, uint8 (slices, size, size); labels are 0 on membranes, 255 in cells.
    """
    images = np.empty((slices, size, size), np.uint8)
    labels = np.empty((slices, size, size), np.uint8)
    for number in range(slices):
        rng = np.random.default_rng([seed, number])
        index, border = _cells(rng, size, size * size // 800, waviness=6.0)
        fade = np.clip(1.0 + 0.35 * _smooth(rng, (size, size), 12), 0.35, 1.15)  # oblique cuts are pale
        width = np.clip(1.6 + 0.4 * _smooth(rng, (size, size), 16), 1.05, 2.3)  # half of the membrane's
        membrane = border < width
        tone = 160 + 14 * rng.standard_normal(index.max() + 1)
        image = tone[index] + 9 * _smooth(rng, (size, size), 1.6) + 6 * _smooth(rng, (size, size), 5)
        inside = ndimage.distance_transform_edt(~membrane)
        for _ in range(size * size // 2600):
            centre = rng.uniform(0, size, 2)
            axes, angle = rng.uniform((5, 3), (11, 6)), rng.uniform(0, np.pi)
            y, x = _offsets(size, centre)
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


def _offsets(size: int, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(size)[:, None] - centre[0], np.arange(size)[None, :] - centre[1]
