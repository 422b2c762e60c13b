"""Fig. 2 for images larger than memory: read, segmented and written tile by tile, from disk to OME-Zarr.

The paper's overlap-tile strategy lets arbitrarily large images be segmented, "since otherwise the resolution would be
limited by the GPU memory". Here the disk is the limit.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from monai_unet.data.large.distribute import map_items
from monai_unet.data.large.instances import blocks, label_blocks
from monai_unet.data.large.output import open_output
from monai_unet.data.large.pyramid import write_pyramid
from monai_unet.data.large.reader import LargeImage, open_large_image
from monai_unet.data.large.rescale import at_voxel_size, between_voxels
from monai_unet.errors import InputError
from monai_unet.inferers import OverlapTileInferer
from monai_unet.memory import keep_freed_memory
from monai_unet.networks import ValidUNet
from monai_unet.options import parse_bool, require
from monai_unet.tile_plan import TilePlan
from monai_unet.transfers import fetch, send
from monai_unet.transforms.instances import LabelInstances
from monai_unet.transforms.intensity import Intensities
from monai_unet.transforms.rescale import LARGEST_FACTOR, TOLERANCE

__all__ = ["predict_large_image"]

logger = logging.getLogger(__name__)
#: in which probabilities are kept until they are back on the grid of the image, 1
FINE = 65_535
#: a Dask worker is given this many tiles at a time, so that it can read one while it computes another
TILES_PER_TASK = 4


def predict_large_image(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    network: ValidUNet,
    inferer: OverlapTileInferer,
    label: Callable[[Any], Any] | None = None,
    reach: int = 512,
    level: int = 0,
    scheduler: str | None = None,
    pixel_size_um: Sequence[float] | None = None,
    colour: bool = False,
    rescale: bool | str = True,
) -> Path:
    """Segment an image of any size on disk; run again after an interruption, it resumes.

    The output is OME-Zarr 0.5 with a pyramid. The image is the probability of each class but the first, uint8
    (255 = 1), ``(C, *spatial)``; ``labels/classes`` is the most probable class, uint8; with ``label``,
    ``labels/instances`` holds uint32 ids, 1 … n, which say the class where objects are of several. Up to rounding, the
    values are those of one pass over the whole image, whose channels are normalised as by `NormalizePages`, a volume as
    one page. For this it is read a first time; of an image with more than 16 million values, a regular sample of about
    that many counts.

    The memory needed does not grow with the image: the weights, one pass (`OverlapTileInferer.plan`) and a few tiles
    and chunks; with ``label``, then some 100 bytes per voxel of a block and its surroundings.

    The chunks of a tile are written, then the tile is marked as done in ``progress``, which is removed at the end. A
    killed process loses the tile it was working on. After a power cut more may be lost: remove the output then.

    Args:
        path: as for `open_large_image`.
        output: the folder to write, "….ome.zarr".
        network: `ValidUNet`, in evaluation mode, on the device of its tiles.
        inferer: its ``tile_size``, ``padding_mode``, ``averaging``, ``amp``, ``sw_device`` and ``memory`` apply. Tiles
            pass one by one; a ``sw_batch_size`` above 1 makes the plan reserve memory that is not used.
        label: as for `label_blocks`, such as `LabelInstances`.
        reach: voxels around a block that ``label`` sees, see `label_blocks`.
        level: of the input's pyramid.
        scheduler: address of a Dask scheduler whose workers do the work, see `map_items`. They must see ``path`` and
            ``output`` under the same names. The tiles are planned in this process: choose the memory of ``inferer``
            for the workers. The result equals that of one process.
        pixel_size_um: of the task, µm per axis. An image whose own pixel size is known and differs by more than a tenth
            is predicted at this size, and probabilities are brought back to its grid, as `RescaleToPixelSized` does
            with a whole image. ``reach`` and the rules of `LabelInstances` are in pixels of this size. Until then, the
            output holds the probabilities at this size, in 16 bits.
        colour: as for `open_large_image`.
        rescale: if false, no image is rescaled, and of another pixel size a warning is logged; "true" and "false" are
            understood.

    Returns:
        ``output``.

    Raises:
        InputError: as `open_large_image`; a pixel size more than 8 times the task's, or less than an eighth; NaN or Inf
            in the image; too little space on the disk; an output that belongs to another image, pixel size, network or
            setting, or is of an earlier version.

    >>> import tempfile, zarr
    >>> network = ValidUNet(2, 1, 2, features=(2, 4)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/slide.npy", np.eye(60))
    ...     output = predict_large_image(f"{folder}/slide.npy", f"{folder}/out.ome.zarr", network, OverlapTileInferer())
    ...     group = zarr.open_group(output, mode="r")
    ...     group["0"].shape, group["labels/classes/0"].shape
    ((1, 60, 60), (60, 60))
    """
    output = Path(output)
    image = open_large_image(path, network.in_channels, network.spatial_dims, level, colour)
    ratio = _relative_size(image, pixel_size_um, parse_bool("rescale", rescale))
    seen, voxel = image, None
    if (ratio != 1).any():
        seen = at_voxel_size(image, voxel := tuple(map(float, pixel_size_um or ())))
        reach = math.ceil(reach / ratio.min())
        label = label.in_pixels_of(ratio) if isinstance(label, LabelInstances) else label
    plan = inferer.plan((1, *seen.shape), network, out=torch.empty(0))  # the result takes no memory
    rule = None if label is None else {"reach": reach, **{k: v for k, v in vars(label).items() if k[0] != "_"}}
    try:
        group, record = open_output(output, image, network, inferer, plan, rule, seen)
        if plan.tile != (tile := tuple(record["tile"])):  # begun with other tiles
            plan = replace(plan, tile=tile, bytes=None, available=None)
        logger.info("%s", plan)
        if record["finished"]:
            logger.info("%s is finished already", output)
            return output
        predict = partial(
            _predict,
            path=image.path.absolute(),
            level=level,
            colour=colour,
            voxel=voxel,
            output=output.absolute(),
            inferer=inferer,
            plan=plan,
        )
        tiles = list(zip(np.ndindex(plan.grid), plan.origins(), strict=True))
        size = len(tiles) if scheduler is None else TILES_PER_TASK
        tasks = [tiles[i : i + size] for i in range(0, len(tiles), size)]
        map_items(predict, tasks, scheduler, "tiles", network=network, record=record)
        if seen is not image:
            step = [own / of_task for own, of_task in zip(image.scale, seen.scale, strict=True)]
            boxes, back = enumerate(blocks(group["labels/classes/0"])), group["progress/back"][:]
            left = [(number, box) for number, box in boxes if not back[number]]
            map_items(partial(_bring_back, output=output.absolute(), step=step), left, scheduler, "own pixels")
        if label is not None:
            classes, instances = group["labels/classes/0"], group["labels/instances/0"]
            label_blocks(classes, instances, group["progress"], label, reach, scheduler, group["0"])
        for pyramid in (group, *(group["labels"][name] for name in group["labels"])):
            write_pyramid(pyramid, image)
        group.attrs["monai_unet"] = record | {"finished": True}
        del group["progress"]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(output, "the disk is full", "Make room and run the same command again to resume") from error
    return output


def _relative_size(image: LargeImage, pixel_size_um: Sequence[float] | None, rescale: bool) -> np.ndarray:
    """The voxel size divided by that of the task, per axis; 1 where nothing is to be rescaled."""
    same = np.ones(len(image.scale))
    if pixel_size_um is None:
        return same
    own, task = (" x ".join(f"{length:.4g}" for length in size) for size in (image.scale, pixel_size_um))
    if image.unit != "micrometer":
        logger.warning("%s: its pixel size is unknown, and taken for the task's, %s µm", image.path, task)
        return same
    ratio = np.asarray(image.scale, float) / np.asarray(pixel_size_um, float)
    ratio = np.where(np.abs(ratio - 1) > TOLERANCE, ratio, 1.0)
    if (ratio != 1).any() and not rescale:
        text = "%s: pixels of %s µm, and the network was trained on %s µm; --rescale false leaves it as it is"
        logger.warning(text, image.path, own, task)
        return same
    if ratio.max() > LARGEST_FACTOR or ratio.min() < 1 / LARGEST_FACTOR:
        cure = "Correct the pixel size in the file, choose another --level, or leave it as it is with --rescale false"
        raise InputError(image.path, f"a pixel size of {own} µm, that of the task is {task} µm", cure)
    return ratio


def _bring_back(block: tuple[int, tuple[slice, ...]], output: Path, step: Sequence[float]) -> None:
    """Interpolate the probabilities of a block of the image's own grid from those at the task's voxel size."""
    number, box = block
    group = require("zarr", "large").open_group(output, mode="r+")
    found = group["progress/probability"]
    values = between_voxels(lambda part: found[(slice(None), *part)], box, step, found.shape[1:]) / FINE
    group["0"][(slice(None), *box)] = np.rint(255 * values).astype(np.uint8)
    all_classes = np.concatenate([1 - values.sum(axis=0, keepdims=True), values])
    group["labels/classes/0"][box] = all_classes.argmax(axis=0).astype(np.uint8)
    group["progress/back"][number] = 1


_Tile = tuple[tuple[int, ...], tuple[int, ...]]  # index in the grid, first output voxel


def _predict(
    tiles: list[_Tile],
    network: ValidUNet,
    record: dict[str, Any],
    path: Path,
    level: int,
    colour: bool,
    voxel: tuple[float, ...] | None,
    output: Path,
    inferer: OverlapTileInferer,
    plan: TilePlan,
) -> None:
    """Segment those of the tiles that are not done."""
    keep_freed_memory()
    image = open_large_image(path, network.in_channels, network.spatial_dims, level, colour)
    image = image if voxel is None else at_voxel_size(image, voxel)
    group = require("zarr", "large").open_group(output, mode="r+")
    done = group["progress/tiles"]
    left = [(index, origin) for index, origin in tiles if not done[index]]
    device = inferer.sw_device or next(network.parameters()).device

    def read_box(box: tuple[slice, ...]) -> torch.Tensor:
        channels = zip(image.read(box), record["intensities"], strict=True)
        return torch.from_numpy(np.stack([Intensities(*of).normalize(values) for values, of in channels]))[None]

    def read(tile: _Tile) -> torch.Tensor:
        return inferer.window(read_box, tile[1], plan)

    def write(tile: _Tile, *arrived: Callable[[], torch.Tensor]) -> None:
        index, origin = tile
        box = plan.exclusive_box(origin)
        probability, *classes = (each().numpy() for each in arrived)
        if classes:
            group["0"][(slice(None), *box)], group["labels/classes/0"][box] = probability, classes[0]
        else:
            group["progress/probability"][(slice(None), *box)] = np.rint(FINE * probability)
        done[index] = 1

    steps = _overlapped(left, read, write)
    with torch.inference_mode():
        bar = tqdm(steps, total=len(left), desc="tiles", disable=None if inferer.progress else True)
        for tile, window, submit in bar:
            logits = inferer.logits(send(window, device), network)[0]
            logits = logits[(slice(None), *(slice(s.stop - s.start) for s in plan.exclusive_box(tile[1])))].float()
            found = [logits.softmax(0)[1:]]
            if voxel is None:  # else classes are found on the image's own grid
                found = [found[0].mul(255).round().to(torch.uint8), logits.argmax(0).to(torch.uint8)]
            submit(tile, *(fetch(each, "cpu") for each in found))


def _overlapped(
    items: Sequence[Any], read: Callable[[Any], Any], write: Callable[..., None]
) -> Iterator[tuple[Any, Any, Callable[..., None]]]:
    """Yield (item, read(item), function that submits the arguments of write): read and write run in threads."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: list[Future[None]] = []

        def submit(*result: Any) -> None:
            if writing:
                writing.pop().result()  # raises an error of the last write; at most one is under way
            writing.append(writer.submit(write, *result))

        coming = reader.submit(read, items[0]) if items else None
        for number, item in enumerate(items):
            window = coming.result()  # type: ignore[union-attr]
            coming = reader.submit(read, items[number + 1]) if number + 1 < len(items) else None
            yield item, window, submit
        for last in writing:
            last.result()
