"""The output of a large prediction: created as a whole, resumed, or refused where it belongs to another image."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_unet.data.large.instances import blocks
from monai_unet.data.large.reader import LargeImage
from monai_unet.errors import InputError
from monai_unet.inferers import OverlapTileInferer
from monai_unet.networks import ValidUNet
from monai_unet.options import require
from monai_unet.tile_plan import TilePlan
from monai_unet.transforms.intensity import CLIPPED, Intensities

__all__ = ["open_output"]

#: values that are held to find the percentiles of an image, at most
SAMPLE = 2**24

#: voxels per axis of a chunk, at most
LARGEST_CHUNK = {2: 1024, 3: 128}

#: by which an image is known again: boxes per axis, at most, and their voxels per axis
BOXES = {2: (8, 128), 3: (4, 32)}


def open_output(
    output: Path,
    image: LargeImage,
    network: ValidUNet,
    inferer: OverlapTileInferer,
    plan: TilePlan,
    label: Any,
    seen: LargeImage | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Open the output of an interrupted or finished prediction; create it where there is none.

    Args:
        output: the folder.
        image: to be segmented.
        network: to segment it with.
        inferer: its settings become part of the record.
        plan: the tiles of a new output; an existing one keeps its own.
        label: settings of the labelling; None without instances.
        seen: the image at the voxel size at which the network sees it; None for its own.

    Returns:
        The zarr group, and its record: what it was made from, ``tile``, the ``intensities`` of each channel, and
        ``finished``.

    Raises:
        InputError: too little space on the disk, NaN or Inf in the image, another kind of folder, or an output that
            belongs to another image, pixel size, network or setting, has other tiles, or is of an earlier version.

    >>> import tempfile
    >>> from monai_unet.data.large.reader import open_large_image
    >>> network, inferer = ValidUNet(2, 1, 2, (2, 4)), OverlapTileInferer(20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/slide.npy", np.eye(50))
    ...     slide = open_large_image(f"{folder}/slide.npy", channels=1)
    ...     plan = inferer.plan((1, *slide.shape), network)
    ...     group, record = open_output(Path(folder, "out.ome.zarr"), slide, network, inferer, plan, label=None)
    ...     print(group["labels/classes/0"].shape, Intensities(*record["intensities"][0]).mean)
    (50, 50) 0.02
    """
    zarr = require("zarr", "large")
    place = {"pixel size": image.scale, "origin": image.origin, "unit of length": image.unit}
    settings: dict[str, Any] = {
        "image": _fingerprint(image),
        **place,
        "network": _digest(value.numpy(force=True).tobytes() for value in network.state_dict().values()),
        "averaging": inferer.averaging,
        "padding_mode": inferer.padding_mode,
        "amp": inferer.infer.amp,
        "label": label,
        "normalisation": f"clipped at percentiles {CLIPPED}",
        "voxel": None if seen is None or seen is image else seen.scale,
    }
    settings = json.loads(json.dumps(settings, default=str))  # as zarr returns them
    if not output.exists():
        _create(output, image, seen or image, plan, network.out_channels, settings)
    try:
        group = zarr.open_group(output, mode="r+")
        record: dict[str, Any] = dict(group.attrs["monai_unet"])
    except MemoryError:
        raise
    except Exception as error:  # zarr's many stores and formats raise exceptions of many kinds
        problem = f"it exists and is not the output of a large prediction ({type(error).__name__}: {error})"
        raise InputError(output, problem, "Choose another output") from error
    cure = "Choose another output, or remove this one"
    if missing := [name for name in settings if name not in record]:
        problem = f"it was made by an earlier version, whose record lacks {', '.join(missing)}"
        raise InputError(output, problem, cure)
    if other := [
        f"{name} ({record[name]}, now {value})" if name in place else name
        for name, value in settings.items()
        if record[name] != value
    ]:
        problem = f"it was made with another {' and '.join(other)}"
        raise InputError(output, problem, cure)
    if not record["finished"]:
        begun, grid = group["progress/tiles"].shape, replace(plan, tile=tuple(record["tile"])).grid
        if begun != grid:
            raise InputError(output, f"it was begun with {begun} tiles, and the image now has {grid}", cure)
    return group, record


def _create(
    output: Path, image: LargeImage, seen: LargeImage, plan: TilePlan, classes: int, settings: dict[str, Any]
) -> None:
    """Write empty arrays and the record under a temporary name, and rename: an existing output can be resumed."""
    with_instances, size = settings["label"] is not None, image.shape[1:]
    _check_space(output, size, classes, with_instances, math.prod(plan.size) if seen is not image else 0)
    intensities = _measure(seen, plan)
    partial = output.with_name(f".{output.name}.partial")
    group = require("zarr", "large").open_group(partial, mode="w", zarr_format=3)
    dims = len(plan.size)
    # chunks divide the stride, so that each is written by one tile only
    chunks = tuple(
        min(max(d for d in range(1, LARGEST_CHUNK[dims] + 1) if stride % d == 0), n)
        for stride, n in zip(plan.stride, plan.size, strict=True)
    )
    names = tuple("zyx"[-dims:])
    new = {"dtype": "uint8", "fill_value": 0}
    if seen is not image:
        probability = new | {"shape": (classes - 1, *plan.size), "chunks": (1, *chunks), "dtype": "uint16"}
        group.create_array("progress/probability", **probability)
        chunks = tuple(min(LARGEST_CHUNK[dims], n) for n in size)
    shape = (classes - 1, *size)
    group.create_array("0", shape=shape, chunks=(1, *chunks), dimension_names=("c", *names), **new)
    labels = new | {"shape": size, "chunks": chunks, "dimension_names": names}
    classes_array = group.create_array("labels/classes/0", **labels)
    if seen is not image:
        group.create_array("progress/back", shape=len(list(blocks(classes_array))), chunks=1, **new)
    if with_instances:
        group.create_array("labels/instances/0", **(labels | {"dtype": "uint32"}))
    group["labels"].attrs["ome"] = {"version": "0.5", "labels": sorted(group["labels"])}
    group.create_array("progress/tiles", shape=plan.grid, chunks=(1,) * dims, **new)
    group.attrs["monai_unet"] = settings | {"tile": plan.tile, "intensities": intensities, "finished": False}
    partial.rename(output)


def _check_space(output: Path, size: Sequence[int], classes: int, with_instances: bool, rescaled: int = 0) -> None:
    """Assume that probabilities do not compress, and that classes and ids, which are held twice, do so tenfold."""
    need = int(4 / 3 * math.prod(size) * (classes - 1 + 0.1 + 0.8 * with_instances)) + 2 * rescaled * (classes - 1)
    free = shutil.disk_usage(next(p for p in output.absolute().parents if p.exists())).free
    if free < need:
        problem = f"{free / 2**30:.1f} GiB are free, and the output may need {need / 2**30:.1f}"
        raise InputError(output, problem, "Make room, or choose an output on another disk")


def _measure(image: LargeImage, plan: TilePlan) -> list[Intensities]:
    """Measure each channel, as `NormalizePages` does, on every n-th voxel per axis: all of them in a small image."""
    step = 1
    while math.prod(image.shape) > SAMPLE * step ** len(plan.size):
        step += 2  # odd, so that it does not beat with detectors and tiles
    sample = []
    for origin in tqdm(plan.origins(), total=plan.tiles, desc="range of the values", disable=None):
        box = plan.exclusive_box(origin)
        part = image.read(box)
        if not np.isfinite(part).all():
            problem = f"NaN or Inf in the tile at {origin}"
            raise InputError(image.path, problem, "Replace them in the software that wrote the image")
        grid = tuple(slice(-side.start % step, None, step) for side in box)
        sample.append(part[(slice(None), *grid)].reshape(len(part), -1))
    return [Intensities.of(channel) for channel in np.concatenate(sample, axis=1)]


def _fingerprint(image: LargeImage) -> str:
    """Hash of shape, dtype and boxes all over the image: the same image in another place has the same."""
    most, side = BOXES[len(image.shape) - 1]
    steps = [math.ceil(n / (most * side)) * side for n in image.shape[1:]]  # in few chunks: whole boxes lie apart
    sides = [
        [slice(start, min(start + side, n)) for start in range(0, n, step)]
        for n, step in zip(image.shape[1:], steps, strict=True)
    ]
    boxes = (np.ascontiguousarray(image.read(box)).tobytes() for box in product(*sides))
    return _digest([json.dumps([image.shape, str(image.dtype)]).encode(), *boxes])


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
