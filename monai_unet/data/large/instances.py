"""Section 4.2 beyond memory: instances labelled block by block, with one id per instance across the blocks.

Each block is labelled together with what lies within reach around it. Two neighbouring blocks then both have a name for
the voxels along their common face; names that meet on a voxel are one instance (union-find, by scipy).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from monai_unet.data.large.distribute import each

__all__ = ["label_blocks"]

#: voxels per axis of a block, about; labelling takes some 100 bytes for each, those within reach included
BLOCK = {2: 2048, 3: 128}


def label_blocks(
    classes: Any,
    instances: Any,
    progress: Any,
    label: Callable[[np.ndarray], np.ndarray],
    reach: int,
    scheduler: str | None = None,
) -> int:
    """Label the foreground of ``classes`` into ``instances``, both zarr arrays of the same shape and chunks.

    Up to numbering, the result is that of ``label`` on the whole image

    - for plain components of any size (`LabelInstances` with ``min_size`` and ``connectivity`` only), if ``reach`` is
      at least ``min_size``;
    - with ``grow``, ``neck`` and ``fill_holes``, for every component of foreground that is nowhere longer than
      ``reach`` less the neck, the growth and, with holes filled beside necks, ``min_size``. Of larger components (a
      confluent layer) whatever the rule decides within that distance is the same; what hangs on voxels farther away, a
      hole as large as that or a cell as long, may be decided otherwise on the two sides of a block's face.

    Args:
        classes: foreground where not 0.
        instances: receives ids 1 … n, uint32; in the order of the blocks.
        progress: zarr group for what is done and for the blocks' own names; what is there is not done again.
        label: foreground (1, *spatial), uint8 → ids (1, *spatial).
        reach: voxels beyond the block.
        scheduler: address of a Dask scheduler whose workers label the blocks.

    Returns:
        n.

    Raises:
        ValueError: reach is below 1.
    """
    if reach < 1:
        raise ValueError(f"reach is {reach}; it must be at least 1, and the longest component for the exact result")
    size, dims = classes.shape, len(classes.shape)
    block = tuple(c * max(1, BLOCK[dims] // c) for c in classes.chunks)
    grid = tuple(math.ceil(n / b) for n, b in zip(size, block, strict=True))
    if "counts" not in progress:
        shared = {"dtype": "uint32", "fill_value": 0, "overwrite": True}
        progress.create_array("names", shape=size, chunks=classes.chunks, **shared)
        progress.create_array("relabelled", shape=grid, chunks=(1,) * dims, **shared)
        progress.create_array("counts", shape=grid, chunks=(1,) * dims, **shared)  # names + 1, 0 before
    places = list(np.ndindex(grid))
    work = partial(_label, block=block, classes=classes, progress=progress, label=label, reach=reach)
    each(work, [place for place in places if not progress["counts"][place]], scheduler, "instances")
    ids = _joined(block, progress)
    left = [(place, own) for place, own in zip(places, ids, strict=True) if not progress["relabelled"][place]]
    each(partial(_relabel, block=block, instances=instances, progress=progress), left, scheduler, "ids")
    return max(int(own.max()) for own in ids)


def _box(index: tuple[int, ...], block: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(i * b, min(i * b + b, n)) for i, b, n in zip(index, block, size, strict=True))


def _label(index: tuple[int, ...], block: tuple[int, ...], classes: Any, progress: Any, label: Any, reach: int) -> None:
    """A block's own names, 1 … m, those of its far faces' neighbours, and m."""
    box = _box(index, block, classes.shape)
    around = tuple(
        slice(max(s.start - reach, 0), min(s.stop + reach, n)) for s, n in zip(box, classes.shape, strict=True)
    )
    ids = np.asarray(label((classes[around] != 0).astype(np.uint8)[None]))[0]
    inside = tuple(slice(s.start - a.start, s.stop - a.start) for s, a in zip(box, around, strict=True))
    found, names = np.unique(ids[inside], return_inverse=True)
    found, first = (found, 0) if found[0] == 0 else (np.insert(found, 0, 0), 1)
    progress["names"][box] = (names + first).astype(np.uint32).reshape(ids[inside].shape)
    # what this block's names are called beyond its faces, edges and corners: (voxel, name)
    rim = tuple(slice(max(i.start - 1, 0), i.stop + 1) for i in inside)
    beyond = ids[rim].copy()
    beyond[tuple(slice(i.start - r.start, i.stop - r.start) for i, r in zip(inside, rim, strict=True))] = 0
    beyond = np.where(np.isin(beyond, found), beyond, 0)
    voxels = np.argwhere(beyond) + [a.start + r.start for a, r in zip(around, rim, strict=True)]
    pairs = np.column_stack([voxels, np.searchsorted(found, beyond[beyond > 0])])
    name = f"beyond{'.'.join(map(str, index))}"
    progress.create_array(name, data=pairs.astype(np.int64), overwrite=True)
    progress["counts"][index] = len(found)


def _relabel(item: tuple[tuple[int, ...], np.ndarray], block: tuple[int, ...], instances: Any, progress: Any) -> None:
    """The block's names replaced by their ids."""
    index, ids = item
    box = _box(index, block, instances.shape)
    instances[box] = ids[progress["names"][box]]
    progress["relabelled"][index] = 1


def _joined(block: tuple[int, ...], progress: Any) -> list[np.ndarray]:
    """Per block, the id of each of its names."""
    counts = progress["counts"][:].astype(np.int64)
    firsts = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape)
    pairs = [_meetings(index, block, progress, firsts) for index in np.ndindex(counts.shape)]
    one, two = np.concatenate(pairs, axis=1)
    total = int(counts.sum())
    graph = coo_array((np.ones(len(one), bool), (one, two)), shape=(total, total))
    _, roots = connected_components(graph, directed=False)
    background = np.zeros(total, bool)
    background[firsts.ravel()] = True
    # ids in the order of the blocks, and of their names in the block
    _, first, order = np.unique(roots[~background], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.uint32)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1, dtype=np.uint32)
    ids = np.zeros(total, np.uint32)
    ids[~background] = rank[order]
    return np.split(ids, firsts.ravel()[1:])


def _meetings(index: tuple[int, ...], block: tuple[int, ...], progress: Any, firsts: np.ndarray) -> np.ndarray:
    """Names that this block and those around it have for one voxel, counted through all blocks, (2, n)."""
    beyond = progress[f"beyond{'.'.join(map(str, index))}"][:]
    if not len(beyond):
        return np.zeros((2, 0), np.int64)
    voxels = tuple(beyond[:, :-1].T)
    theirs = progress["names"].vindex[voxels].astype(np.int64)
    owners = tuple(v // b for v, b in zip(voxels, block, strict=True))
    met = theirs > 0
    return np.unique([(beyond[:, -1] + firsts[index])[met], (theirs + firsts[owners])[met]], axis=1)
