"""Synthetic images from a seed, so that everything runs without data and without network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

__all__ = ["cell_phantom", "em_phantom", "organ_phantom"]


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float | Sequence[float]) -> np.ndarray:
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


def cell_phantom(size: int, cells: int, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One frame of textured touching cells in the manner of differential interference contrast (DIC).

    The image is the slope of a height map lit from one side, so that cell and background have the same mean gray value,
    and where two cells touch, a faint crease is all that tells them apart.

    Args:
        size: height and width in pixels.
        cells: how many are sown; some overlap and merge into the background of others.
        seed: the frame depends on (seed, number) only.
        number: the frame.

    Returns:
        image uint8 (size, size); label uint16 (size, size), 0 background, cells 1, 2, … without gaps, each connected.
    """
    rng = np.random.default_rng([seed, number])
    radius = size * rng.uniform(0.055, 0.10, cells)
    colonies = rng.uniform(0.2 * size, 0.8 * size, (max(1, cells // 7), 2))
    points = colonies[rng.integers(len(colonies), size=cells)] + 0.16 * size * rng.standard_normal((cells, 2))
    grid = np.stack(np.meshgrid(*[np.arange(size, dtype=float)] * 2, indexing="ij"))
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
    """A volume in the manner of MRI: two wavy ellipsoids that touch, one before the other along the second axis.

    Args:
        size: voxels per axis.
        spacing: voxel size per axis in mm; the organs have about 7 mm radius, whatever it is.
        seed: the volume depends on (seed, number) only.
        number: the volume.

    Returns:
        image uint16 and label uint8, of shape ``size``; label 1 lies towards higher indices of axis 1, 2 towards lower.
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
    image = rng.uniform(0.5, 4) * (image + 6 * rng.standard_normal(shape))  # every scanner has its own scale
    return np.clip(np.rint(image), 0, 4095).astype(np.uint16), label
