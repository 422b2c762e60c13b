"""Section 4.2 for images larger than memory: instances labelled block by block, one id per instance across the blocks.

Each block is labelled together with its surroundings. Two neighbouring blocks then both have a local name for the
voxels along their common face; names that meet at a voxel are the same instance (union-find, by scipy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from monai_unet.data.large.distribute import map_items
from monai_unet.object_classes import id_of
from monai_unet.transforms.instances import LabelInstances

__all__ = ["blocks", "label_blocks"]

#: approximate voxels per axis of a block; labelling takes some 100 bytes per voxel of a block and its surroundings
BLOCK = {2: 2048, 3: 128}


def label_blocks(
    classes: Any,
    instances: Any,
    progress: Any,
    label: Callable[[np.ndarray], np.ndarray],
    reach: int,
    scheduler: str | None = None,
    probabilities: Any = None,
) -> int:
    """Label the foreground of ``classes`` into ``instances``, both zarr arrays of the same shape and chunks.

    Up to numbering, the result equals that of ``label`` on the whole image

    - for plain components of any size (`LabelInstances` with ``min_size`` and ``connectivity`` only), if ``reach`` is
      at least ``min_size``;
    - with ``grow``, ``neck``, ``core`` and ``fill_holes``, for every component of the foreground that is nowhere longer
      than ``reach`` minus ``neck``, ``grow`` and, where holes are filled or cores are found, ``min_size``. In larger
      components (a confluent layer), decisions that depend on voxels within that distance are the same. Those that
      depend on voxels farther away, such as a hole or a cell of that length, may differ between the two sides of a
      block's face.

    Args:
        classes: foreground where not 0.
        instances: receives the ids 1 … n, uint32, in the order of the blocks.
        progress: zarr group for the finished blocks and their local names; a second call skips these blocks.
        label: foreground ``(1, *spatial)``, uint8 → ids ``(1, *spatial)``; `LabelInstances` with ``core`` is given the
            probability of the foreground, 0 elsewhere.
        reach: voxels around the block that ``label`` sees.
        scheduler: address of a Dask scheduler whose workers label the blocks.
        probabilities: zarr array ``(K, *spatial)`` of K classes of objects, from 0 to 255, for ``core`` and for K above
            1. Object i of class c then has the id (i − 1) K + c, as `classify_instances` gives it.

    Returns:
        n.

    Raises:
        ValueError: reach is below 1; no ``probabilities`` for ``core``.

    >>> import zarr
    >>> from monai_unet.transforms import LabelInstances
    >>> group = zarr.create_group({})
    >>> classes = group.create_array("classes", data=np.array([[1, 1, 0, 1], [1, 0, 0, 1]], np.uint8))
    >>> instances = group.create_array("instances", shape=(2, 4), dtype="uint32")
    >>> label_blocks(classes, instances, group.create_group("progress"), LabelInstances(grow=0), reach=2)
    2
    >>> instances[:].tolist()
    [[1, 1, 0, 2], [1, 0, 0, 2]]
    """
    if reach < 1:
        raise ValueError(f"reach is {reach}; it must be at least 1, and the longest component for the exact result")
    if probabilities is None and isinstance(label, LabelInstances) and label.core:
        raise ValueError(f"core is {label.core}, and there are no probabilities")
    size, dims = classes.shape, len(classes.shape)
    block, grid = _blocks(classes)
    if "counts" not in progress:
        new = {"dtype": "uint32", "fill_value": 0, "overwrite": True}
        progress.create_array("names", shape=size, chunks=classes.chunks, **new)
        progress.create_array("relabelled", shape=grid, chunks=(1,) * dims, **new)
        progress.create_array("counts", shape=grid, chunks=(1,) * dims, **new)  # names and background; 0: not done
    indices = list(np.ndindex(grid))
    work = partial(
        _label, block=block, classes=classes, progress=progress, label=label, reach=reach, probabilities=probabilities
    )
    map_items(work, [index for index in indices if not progress["counts"][index]], scheduler, "instances")
    ids = _global_ids(block, progress)
    count = max(int(own.max()) for own in ids)
    if _several(probabilities):
        ids = _classified(ids, count, [progress[_sums(index)][:] for index in indices])
    left = [(index, own) for index, own in zip(indices, ids, strict=True) if not progress["relabelled"][index]]
    map_items(partial(_relabel, block=block, instances=instances, progress=progress), left, scheduler, "ids")
    return count


def blocks(array: Any) -> Iterator[tuple[slice, ...]]:
    """Go through a zarr array in blocks of whole chunks, as `label_blocks` does.

    >>> import zarr
    >>> len(list(blocks(zarr.create_array({}, shape=(5000, 3000), chunks=(1024, 1024), dtype="uint8"))))
    6
    """
    block, grid = _blocks(array)
    return (_box(index, block, array.shape) for index in np.ndindex(grid))


def _blocks(array: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a block, and how many there are along each axis."""
    block = tuple(c * max(1, BLOCK[array.ndim] // c) for c in array.chunks)
    return block, tuple(math.ceil(n / b) for n, b in zip(array.shape, block, strict=True))


def _box(index: tuple[int, ...], block: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(i * b, min(i * b + b, n)) for i, b, n in zip(index, block, size, strict=True))


def _within(box: tuple[slice, ...], outer: tuple[slice, ...]) -> tuple[slice, ...]:
    """The box in the coordinates of the one around it."""
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer, strict=True))


def _grown(box: tuple[slice, ...], by: int, size: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(max(s.start - by, 0), min(s.stop + by, n)) for s, n in zip(box, size, strict=True))


def _label(
    index: tuple[int, ...],
    block: tuple[int, ...],
    classes: Any,
    progress: Any,
    label: Any,
    reach: int,
    probabilities: Any = None,
) -> None:
    """Store a block's local names 1 … m, the voxels just outside that have one of them, and m + 1."""
    box = _box(index, block, classes.shape)
    around = _grown(box, reach, classes.shape)
    foreground = (classes[around] != 0).astype(np.uint8)
    if isinstance(label, LabelInstances) and label.core:
        together = probabilities[(slice(None), *around)].sum(0, dtype=np.uint16).clip(max=255)
        foreground = np.where(foreground, together / np.float32(255), np.float32(0))
    ids = np.asarray(label(foreground[None]))[0]
    inside = ids[_within(box, around)]
    found, names = np.unique(
        np.append(0, inside), return_inverse=True
    )  # name 0 is background, also where there is none
    progress["names"][box] = names[1:].reshape(inside.shape).astype(np.uint32)
    if _several(probabilities):
        sums = np.stack([np.bincount(names[1:], each.ravel()) for each in probabilities[(slice(None), *box)]])
        progress.create_array(_sums(index), data=sums, overwrite=True)
    rim = _grown(box, 1, classes.shape)
    outside = ids[_within(rim, around)].copy()
    outside[_within(box, rim)] = 0
    outside[~np.isin(outside, found)] = 0
    voxels = np.argwhere(outside) + [s.start for s in rim]
    pairs = np.column_stack([voxels, np.searchsorted(found, outside[outside > 0])])  # (voxel, name)
    progress.create_array(_outside(index), data=pairs.astype(np.int64), overwrite=True)
    progress["counts"][index] = len(found)


def _several(probabilities: Any) -> bool:
    """Whether objects are of several classes."""
    return probabilities is not None and probabilities.shape[0] > 1


def _outside(index: tuple[int, ...]) -> str:
    """The array with the voxels outside a block that have one of its names."""
    return f"outside{'.'.join(map(str, index))}"


def _sums(index: tuple[int, ...]) -> str:
    """The array with the sum of each class's probability over each name of a block, background first."""
    return f"sums{'.'.join(map(str, index))}"


def _classified(ids: list[np.ndarray], count: int, sums: list[np.ndarray]) -> list[np.ndarray]:
    """Give each object the id that says its class, that of the highest probability over all its blocks."""
    totals = np.zeros((len(sums[0]), count + 1))
    for own, each in zip(ids, sums, strict=True):
        totals += [np.bincount(own[: each.shape[1]], of_class, count + 1) for of_class in each]
    named = id_of(np.arange(count + 1), totals.argmax(0) + 1, len(totals))
    return [named[own].astype(np.uint32) for own in ids]


def _relabel(item: tuple[tuple[int, ...], np.ndarray], block: tuple[int, ...], instances: Any, progress: Any) -> None:
    """Replace the block's names by their ids."""
    index, ids = item
    box = _box(index, block, instances.shape)
    instances[box] = ids[progress["names"][box]]
    progress["relabelled"][index] = 1


def _global_ids(block: tuple[int, ...], progress: Any) -> list[np.ndarray]:
    """Per block, the id of each of its names."""
    counts = progress["counts"][:].astype(np.int64)
    firsts = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape)
    pairs = [_same_instance(index, block, progress, firsts) for index in np.ndindex(counts.shape)]
    one, two = np.concatenate(pairs, axis=1)
    total = int(counts.sum())
    graph = coo_array((np.ones(len(one), bool), (one, two)), shape=(total, total))
    _, roots = connected_components(graph, directed=False)
    background = np.zeros(total, bool)
    background[firsts.ravel()] = True
    ids = np.zeros(total, np.uint32)
    ids[~background] = np.unique(roots[~background], return_inverse=True)[1] + 1
    return np.split(ids, firsts.ravel()[1:])


def _same_instance(index: tuple[int, ...], block: tuple[int, ...], progress: Any, firsts: np.ndarray) -> np.ndarray:
    """Pairs of names that this block and a neighbour have for the same voxel, (2, n), counted across all blocks."""
    outside = progress[_outside(index)][:]
    if not len(outside):
        return np.zeros((2, 0), np.int64)
    voxels = tuple(outside[:, :-1].T)
    theirs = progress["names"].vindex[voxels].astype(np.int64)
    owners = tuple(v // b for v, b in zip(voxels, block, strict=True))
    met = theirs > 0
    return np.unique([(outside[:, -1] + firsts[index])[met], (theirs + firsts[owners])[met]], axis=1)
