"""The objects of a label image: how large and wide they are, and how close to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

__all__ = ["Objects", "measure"]

#: pixels around an object in which its neighbours are looked for, by dimension
REACH = {2: 16, 3: 8}
#: pixels of a box beyond which only every n-th along each axis counts
BOX = 2**16
#: pixels: no object is split at wider ones
NECK = 12
#: sizes that a summary keeps
KEPT = 10_000


class Measures(NamedTuple):
    """The objects of one image, in pixels; widths and necks in the shortest side of one; see `measure`."""

    #: of all objects
    sizes: list[int]
    #: the boxes of all objects
    extents: list[tuple[int, ...]]
    #: of some objects, the number of separate pieces by value
    pieces: dict[int, int]
    #: of those that are in one piece
    widths: list[float]
    gaps: list[float]
    #: the largest ``neck`` of `LabelInstances`, up to 12, that splits none of its parts off
    necks: list[float]

    def in_pixels_of(self, sides: np.ndarray, own: np.ndarray) -> Measures:
        """Convert to pixels with other sides per axis than the image's own.

        >>> image = Measures([40], [(8, 5)], {1: 1}, [5.0], [2.0], [4.0])
        >>> image.in_pixels_of(np.array([0.5, 0.5]), own=np.array([0.25, 0.25]))
        Measures(sizes=[10], extents=[(4, 2)], pieces={1: 1}, widths=[2.5], gaps=[1.0], necks=[2.0])
        """
        ratio, length = own / sides, float(own.min() / sides.min())
        return Measures(
            [round(size * float(ratio.prod())) for size in self.sizes],
            [tuple(np.rint(extent * ratio).astype(int).tolist()) for extent in self.extents],
            self.pieces,
            [width * length for width in self.widths],
            [gap * length for gap in self.gaps],
            [neck * length for neck in self.necks],
        )


@dataclass(frozen=True)
class Objects:
    """The objects of a data set, in pixels; widths and necks in the shortest side of one.

    >>> ids = np.zeros((20, 20), int)
    >>> ids[2:7, 2:7], ids[2:7, 7:14] = 1, 2
    >>> found = Objects.of([measure(ids)])
    >>> found.count, found.sizes, found.smallest_width, found.touching
    (2, [25, 35], 5.0, 1.0)
    """

    count: int
    per_image: list[int]
    #: sorted; of more than 10,000 that many, evenly
    sizes: list[int]
    smallest: int
    median: float
    largest: int
    #: the width is that of the largest disc or ball within an object, up to a pixel less if it is even
    smallest_width: float
    median_width: float
    #: median box, per axis
    extent: list[float]
    #: the share of objects that touch another one, be it with a corner
    touching: float
    #: the percentiles 5, 25 and 50 of the background pixels between an object and the nearest other, as far as `reach`
    gaps: list[float]
    reach: int
    #: the largest ``neck`` of `LabelInstances`, up to 12, that splits at most one in a hundred
    neck: float

    @classmethod
    def of(cls, images: Sequence[Measures]) -> Objects | None:
        """Summarise the objects of all images; None if there are none."""
        sizes = sorted(size for image in images for size in image.sizes)
        if not sizes:
            return None
        kept = np.linspace(0, len(sizes) - 1, min(len(sizes), KEPT)).round().astype(int)
        extents = np.array([extent for image in images for extent in image.extents])
        widths = [width for image in images for width in image.widths] or [math.nan]
        necks = [neck for image in images for neck in image.necks] or [0.0]
        reach = REACH[extents.shape[1]]
        gaps = np.array([gap for image in images for gap in image.gaps] or [reach]).clip(max=reach)
        return cls(
            count=len(sizes),
            per_image=[len(image.sizes) for image in images],
            sizes=[sizes[index] for index in kept],
            smallest=sizes[0],
            median=float(np.median(sizes)),
            largest=sizes[-1],
            smallest_width=float(min(widths)),
            median_width=float(np.median(widths)),
            extent=[float(number) for number in np.median(extents, axis=0)],
            touching=float((gaps < 1).mean()),
            gaps=[float(number) for number in np.percentile(gaps, (5, 25, 50))],
            reach=reach,
            neck=float(np.percentile(necks, 1, method="lower")),
        )


def measure(ids: np.ndarray, detailed: int = 100, spacing: Sequence[float] | None = None) -> Measures:
    """Measure the objects of a label image (H, W) or (D, H, W) of whole numbers, 0 = background.

    Width and gap are measured only of values that are in one piece, without specks of less than a tenth of the
    largest: those in several are classes, or masks.

    Args:
        ids: of the objects.
        detailed: the objects, from the smallest to the largest, of which more than the size is measured.
        spacing: sides of a voxel, in the shortest of them, for widths and necks; None: all are 1.

    >>> ids = np.zeros((20, 20), int)
    >>> ids[2:7, 2:7], ids[2:9, 11:18] = 1, 5
    >>> measure(ids)
    Measures(sizes=[25, 49], extents=[(5, 5), (7, 7)], pieces={1: 1, 5: 1}, widths=[5.0, 7.0], gaps=[4.0, 4.0],
    necks=[12.0, 12.0])
    """
    values = None
    if ids.max(initial=0) > ids.size:  # time and memory of find_objects depend on the largest
        values, ids = np.unique(ids, return_inverse=True)
        ids = ids.reshape(ids.shape) + int(values[0] > 0)
        values = values if values[0] == 0 else np.append(0, values)
    sizes = np.bincount(ids.ravel())
    boxes = [(number, box) for number, box in enumerate(ndimage.find_objects(ids), 1) if box is not None]
    found = Measures([], [], {}, [], [], [])
    for number, box in boxes:
        found.sizes.append(int(sizes[number]))
        found.extents.append(tuple(part.stop - part.start for part in box))
    order = np.argsort(found.sizes, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), detailed)).round().astype(int)]
    for number, box in (boxes[index] for index in sorted(chosen)):
        mask = ids[box] == number
        pieces = _pieces(mask)
        found.pieces[number if values is None else int(values[number])] = pieces
        if pieces == 1:
            depth, step = _depth(mask, spacing)
            found.widths.append(float(step * max(2 * depth.max() - 1, 1)))
            found.necks.append(float(min(step * _neck(depth), NECK)))
            found.gaps.append(_gap(ids, box, number))
    return found


def _pieces(mask: np.ndarray) -> int:
    labelled, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    if count == 1:
        return 1
    sizes = np.bincount(labelled.ravel())[1:]
    return int((10 * sizes >= sizes.max()).sum())


def _thinned(array: np.ndarray) -> tuple[np.ndarray, int]:
    """Every n-th pixel along each axis of what is too large, and n."""
    step = math.ceil((array.size / BOX) ** (1 / array.ndim))
    return array[(slice(None, None, step),) * array.ndim], step


def _depth(mask: np.ndarray, spacing: Sequence[float] | None) -> tuple[np.ndarray, int]:
    """How far each pixel of an object is from the surface, in steps, and the pixels of a step."""
    thin, step = _thinned(mask)
    framed = np.zeros([length + 2 for length in thin.shape], bool)
    framed[(slice(1, -1),) * thin.ndim] = thin
    return ndimage.distance_transform_edt(framed, sampling=spacing), step


def _neck(depth: np.ndarray) -> int:
    """The depth up to which an object shrinks without falling apart."""
    faces = ndimage.generate_binary_structure(depth.ndim, 1)  # made anew by each `label` without it
    last = min(int(depth.max()), NECK)
    return next((n - 1 for n in range(1, last + 1) if ndimage.label(depth > n, faces)[1] > 1), NECK)


def _gap(ids: np.ndarray, box: tuple[slice, ...], number: int) -> float:
    reach = REACH[ids.ndim]
    near, step = _thinned(ids[tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in box)])
    own = near == number
    others = (near > 0) & ~own
    if not (own.any() and others.any()):
        return math.inf
    return float(step * (ndimage.distance_transform_edt(~others)[own].min() - 1))
