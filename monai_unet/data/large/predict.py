"""Fig. 2 for images that no memory holds: read, segmented and written tile by tile, from disk to OME-Zarr.

The paper's overlap-tile strategy lets arbitrarily large images be segmented, "since otherwise the resolution would be
limited by the GPU memory". Here the image is limited by the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from monai_unet.data.large.distribute import each
from monai_unet.data.large.instances import label_blocks
from monai_unet.data.large.reader import LargeImage, open_large_image
from monai_unet.errors import InputError
from monai_unet.inferers import OverlapTileInferer
from monai_unet.memory import keep_freed_memory
from monai_unet.networks import ValidUNet
from monai_unet.options import require
from monai_unet.tile_plan import TilePlan

__all__ = ["predict_large_image"]

logger = logging.getLogger(__name__)
#: tiles that a worker is given at once: it reads the next one while it computes
TASK = 4


def predict_large_image(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    network: ValidUNet,
    inferer: OverlapTileInferer,
    label: Callable[[np.ndarray], np.ndarray] | None = None,
    reach: int = 512,
    level: int = 0,
    scheduler: str | None = None,
) -> Path:
    """Segment an image of any size on disk; run again after it was stopped or killed, it goes on.

    Written is OME-Zarr 0.5 with a pyramid: the image itself is the probability of each class but the first, uint8
    (255 = 1), (C, *spatial); ``labels/classes`` is the most probable class, uint8; with ``label``, ``labels/instances``
    has uint32 ids, 1 … n. The values are those of one pass over the whole image, to rounding, of the image normalised
    by its own mean and standard deviation, which takes a first reading of it.

    Memory: the weights, a pass (`OverlapTileInferer.plan`), and a few tiles and chunks; with ``label`` then some 100
    bytes per voxel of a block and its reach. None of it grows with the image.

    A tile's chunks are each written whole and then marked as done; the marks lie in ``progress`` until the end. A
    killed process loses the tile it was at (a power cut may lose more: then remove the output).

    Args:
        path: as `open_large_image` reads it.
        output: the folder to write, "….ome.zarr".
        network: `ValidUNet`, in evaluation mode, on the device of its tiles.
        inferer: its ``tile_size``, ``padding_mode``, ``averaging``, ``amp``, ``sw_device`` and ``memory`` count. Tiles
            pass one by one; a ``sw_batch_size`` above 1 only makes the plan set memory aside in vain.
        label: foreground (1, *spatial) → ids (1, *spatial), such as `LabelInstances`.
        reach: voxels beyond a block that ``label`` sees, see `label_blocks`.
        level: of the input's pyramid.
        scheduler: address of a Dask scheduler whose workers do it, see `distribute`; they see ``path`` and
            ``output`` under the same names. The tiles are planned here, so give ``inferer`` what a worker has. The
            result is that of one process.

    Returns:
        The output.

    Raises:
        InputError: as `open_large_image`; NaN or Inf in the image; too little room on the disk; an output that belongs
            to another image, network or setting.
    """
    output = Path(output)
    image = open_large_image(path, network.in_channels, network.spatial_dims, level)
    plan = inferer.plan((1, *image.shape), network, out=torch.empty(0))  # the result takes no memory
    try:
        group, plan, record = _opened(output, image, network, inferer, label, reach, plan)
        logger.info("%s", plan)
        if record["finished"]:
            logger.info("%s is there already", output)
            return output
        predict = partial(
            _predict, path=image.path.absolute(), level=level, output=output.absolute(), inferer=inferer, plan=plan
        )
        tiles = list(zip(np.ndindex(plan.grid), plan.origins(), strict=True))
        groups = [tiles] if scheduler is None else [tiles[i : i + TASK] for i in range(0, len(tiles), TASK)]
        each(predict, groups, scheduler, "tiles", network=network, record=record)
        if label is not None:
            classes, instances = group["labels/classes/0"], group["labels/instances/0"]
            label_blocks(classes, instances, group["progress"], label, reach, scheduler)
        _pyramid(group, image, _mean, "c")
        for name in group["labels"]:
            _pyramid(group["labels"][name], image, _nearest, "")
        group.attrs["monai_unet"] = record | {"finished": True}
        del group["progress"]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(output, "the disk is full", "Make room and run the same again: it goes on") from error
    return output


def _predict(
    tiles: list[tuple[tuple[int, ...], tuple[int, ...]]],
    network: Any,
    record: dict[str, Any],
    path: Path,
    level: int,
    output: Path,
    inferer: OverlapTileInferer,
    plan: TilePlan,
) -> None:
    """Segment those tiles that are not done; the next one is read and the last one written meanwhile."""
    keep_freed_memory()
    image = open_large_image(path, network.in_channels, network.spatial_dims, level)
    group = require("zarr", "large").open_group(output, mode="r+")
    done = group["progress/tiles"]
    left = [(index, place) for index, place in tiles if not done[index]]
    device = inferer.sw_device or next(network.parameters()).device

    def read(item: tuple[Any, tuple[int, ...]]) -> torch.Tensor:
        def box_of(box: tuple[slice, ...]) -> torch.Tensor:
            normal = (image.read(box).astype(np.float32) - record["mean"]) / record["std"]
            return torch.from_numpy(normal.astype(np.float32))[None]

        return inferer.window(box_of, item[1], plan)

    def write(item: tuple[Any, tuple[int, ...]], probability: np.ndarray, classes: np.ndarray) -> None:
        owned = plan.exclusive_box(item[1])
        group["0"][(slice(None), *owned)] = probability
        group["labels/classes/0"][owned] = classes
        done[item[0]] = 1

    with torch.inference_mode():
        for item, window, written in tqdm(
            _overlapped(left, read, write), total=len(left), desc="tiles", disable=None if inferer.progress else True
        ):
            owned = plan.exclusive_box(item[1])
            logits = inferer.logits(window.to(device), network)[0]
            logits = logits[(slice(None), *(slice(s.stop - s.start) for s in owned))].float()
            probability = logits.softmax(0)[1:].mul(255).round().to(torch.uint8)
            written(item, probability.numpy(force=True), logits.argmax(0).to(torch.uint8).numpy(force=True))


def _overlapped(
    items: Sequence[Any], read: Callable[[Any], Any], write: Callable[..., None]
) -> Iterator[tuple[Any, Any, Callable[..., None]]]:
    """(item, what was read of it, where to hand what is to be written); one reading and one writing under way."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: list[Future[None]] = []

        def written(*result: Any) -> None:
            if writing:
                writing.pop().result()  # raises what the writing raised
            writing.append(writer.submit(write, *result))

        coming = reader.submit(read, items[0]) if items else None
        for number, item in enumerate(items):
            window = coming.result()  # type: ignore[union-attr]
            coming = reader.submit(read, items[number + 1]) if number + 1 < len(items) else None
            yield item, window, written
        for last in writing:
            last.result()


def _opened(
    output: Path, image: LargeImage, network: Any, inferer: OverlapTileInferer, label: Any, reach: int, plan: TilePlan
) -> tuple[Any, TilePlan, dict[str, Any]]:
    """The output, new or begun, its tiles and its record."""
    zarr = require("zarr", "large")  # which needs Python 3.11
    settings = {
        "image": _fingerprint(image),
        "network": _digest(value.numpy(force=True).tobytes() for value in network.state_dict().values()),
        "averaging": inferer.averaging,
        "padding_mode": inferer.padding_mode,
        "amp": inferer.infer.amp,
        "label": None if label is None else {"reach": reach, **{k: v for k, v in vars(label).items() if k[0] != "_"}},
    }
    settings = json.loads(json.dumps(settings, default=str))  # as they come back from the output
    if output.exists():
        try:
            group = zarr.open_group(output, mode="r+")
            record: dict[str, Any] = dict(group.attrs["monai_unet"])
        except Exception as error:  # zarr raises what its formats lead it to
            raise InputError(output, "is there, and not one of these outputs", "Name another one") from error
        if other := [name for name, value in settings.items() if record[name] != value]:
            raise InputError(output, f"was made with another {' and '.join(other)}", "Name another one, or remove it")
        return group, TilePlan(plan.size, tuple(record["tile"]), plan.margin, plan.multiple), record
    _check_room(output, plan.size, network.out_channels, label)
    mean, std = _moments(image, plan)
    record = settings | {"tile": plan.tile, "mean": mean, "std": std, "finished": False}
    partial = output.with_name(f".{output.name}.partial")
    group = zarr.open_group(partial, mode="w", zarr_format=3)
    chunk = tuple(min(_divisor(s, len(plan.size)), n) for s, n in zip(plan.stride, plan.size, strict=True))
    channels = network.out_channels - 1
    new = {"dtype": "uint8", "fill_value": 0}
    names = tuple("zyx"[-len(chunk) :])
    group.create_array("0", shape=(channels, *plan.size), chunks=(1, *chunk), dimension_names=("c", *names), **new)
    labels = new | {"shape": plan.size, "chunks": chunk, "dimension_names": names}
    group.create_array("labels/classes/0", **labels)
    if label is not None:
        group.create_array("labels/instances/0", **(labels | {"dtype": "uint32"}))
    group["labels"].attrs["ome"] = {"version": "0.5", "labels": sorted(group["labels"])}
    group.create_array("progress/tiles", shape=plan.grid, chunks=(1,) * len(plan.grid), **new)
    group.attrs["monai_unet"] = record
    partial.rename(output)  # what is there can always go on
    return zarr.open_group(output, mode="r+"), plan, record


def _moments(image: LargeImage, plan: TilePlan) -> tuple[float, float]:
    """Mean and standard deviation of all voxels and channels, as `NormalizeIntensity` takes them."""
    count, mean, squares = 0, 0.0, 0.0
    for place in tqdm(plan.origins(), total=plan.tiles, desc="mean and standard deviation", disable=None):
        part = image.read(plan.exclusive_box(place)).astype(np.float64)
        if not np.isfinite(part).all():
            raise InputError(image.path, f"NaN or Inf at {place}", "Replace them in the software that wrote the image")
        own = float(part.mean())
        total = count + part.size  # Chan, Golub and LeVeque 1979
        squares += float(np.square(part - own).sum()) + (own - mean) ** 2 * count * part.size / total
        mean += (own - mean) * part.size / total
        count = total
    return mean, math.sqrt(squares / count) or 1.0


def _pyramid(group: Any, image: LargeImage, reduce: Callable[[np.ndarray], np.ndarray], leading: str) -> None:
    """Coarser and coarser copies, each half as large, until one fits a screen; and the metadata that announce them."""
    dims = len(image.scale)
    count = 1
    while max(group[str(count - 1)].shape[-dims:]) > 1024:
        fine = group[str(count - 1)]
        shape = (*fine.shape[:-dims], *(math.ceil(n / 2) for n in fine.shape[-dims:]))
        chunks = tuple(min(c, n) for c, n in zip(fine.chunks, shape, strict=True))
        names = fine.metadata.dimension_names
        coarse = group.create_array(
            str(count), shape=shape, chunks=chunks, dtype=fine.dtype, dimension_names=names, overwrite=True
        )
        for place in product(*(range(0, n, c) for n, c in zip(shape, chunks, strict=True))):
            box = [slice(s, min(s + c, n)) for s, c, n in zip(place, chunks, shape, strict=True)]
            twice = [slice(2 * b.start, 2 * b.stop) for b in box[-dims:]]
            coarse[tuple(box)] = reduce(fine[(*box[:-dims], *twice)])
        count += 1
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if leading else []
    unit = {"unit": image.unit} if image.unit else {}
    axes += [{"name": name, "type": "space", **unit} for name in "zyx"[-dims:]]
    datasets = []
    for number in range(count):
        ones = [1.0] * len(leading)
        transformations: list[dict[str, Any]] = [
            {"type": "scale", "scale": [*ones, *(s * 2**number for s in image.scale)]}
        ]
        between = (2**number - 1) / 2 if reduce is _mean else 0  # the mean of two voxels lies between their centres
        shift = [o + s * between for o, s in zip(image.origin, image.scale, strict=True)]
        if any(shift):
            transformations.append({"type": "translation", "translation": [*(0.0 for _ in leading), *shift]})
        datasets.append({"path": str(number), "coordinateTransformations": transformations})
    multiscales = [{"name": "probability" if leading else "labels", "axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales} | (
        {} if leading else {"image-label": {"colors": []}}
    )


def _mean(array: np.ndarray) -> np.ndarray:
    """(C, *spatial) → half of it per spatial axis, the mean of 2^d voxels; a last odd one counts twice."""
    padded = np.pad(array, [(0, 0), *((0, n % 2) for n in array.shape[1:])], mode="edge").astype(np.float32)
    split = padded.reshape(array.shape[0], *(k for n in padded.shape[1:] for k in (n // 2, 2)))
    return np.rint(split.mean(axis=tuple(range(2, split.ndim, 2)))).astype(array.dtype)


def _nearest(array: np.ndarray) -> np.ndarray:
    return array[(slice(None, None, 2),) * array.ndim]


def _divisor(stride: int, dims: int) -> int:
    """The largest divisor of the stride that makes a handy chunk: so that each chunk is one tile's."""
    return max(d for d in range(1, {2: 1024, 3: 128}[dims] + 1) if stride % d == 0)


def _fingerprint(image: LargeImage) -> str:
    """Tells images apart by their shape, type and three small boxes, wherever they lie."""
    boxes = [
        tuple(slice(int(f * max(n - 64, 0)), int(f * max(n - 64, 0)) + 64) for n in image.shape[1:])
        for f in (0, 0.5, 1)
    ]
    clipped = [tuple(slice(s.start, min(s.stop, n)) for s, n in zip(b, image.shape[1:], strict=True)) for b in boxes]
    head = json.dumps([image.shape, str(image.dtype)]).encode()
    return _digest([head, *(np.ascontiguousarray(image.read(box)).tobytes() for box in clipped)])


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _check_room(output: Path, size: Sequence[int], classes: int, label: Any) -> None:
    """Probabilities may not compress at all; classes and ids do, about tenfold, and ids are held twice for a while."""
    voxels = math.prod(size)
    need = int(4 / 3 * voxels * (classes - 1 + 0.1 + (0 if label is None else 0.8)))
    parent = next(p for p in output.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < need:
        problem = f"{free / 2**30:.1f} GiB are free, and the output may need {need / 2**30:.1f}"
        raise InputError(output, problem, "Make room, or name an output on another disk")
