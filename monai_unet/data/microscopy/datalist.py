"""Datalists of microscopy images, and their check before the first step of a training or a prediction."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from monai.data.meta_tensor import MetaTensor
from monai.utils.misc import ensure_tuple
from scipy import ndimage

from monai_unet.data.channels import CHANNEL, group_channels, missing_channel
from monai_unet.data.decoded import keeping_decoded
from monai_unet.data.microscopy.reader import LARGE, OUT_OF_SCOPE, SUFFIXES, MicroscopyReader
from monai_unet.data.microscopy.scenes import name_scene
from monai_unet.data.microscopy.tiff import PREDICT
from monai_unet.errors import InputError, raise_problems
from monai_unet.object_classes import join_classes

__all__ = ["check_images", "list_images", "split_pages", "take_page"]

logger = logging.getLogger(__name__)

#: images, too, but of kinds that no reader here takes
NOT_READ = (".bmp", ".gif", ".webp", ".heic", ".psd", ".oib", ".oif", ".vsi", ".dv", ".ims")


def check_images(
    items: Sequence[Mapping[str, Any]],
    label_keys: Sequence[str] = (),
    channels: int | None = 1,
    label_values: Sequence[int] | None = None,
    other_values: Sequence[int] = (),
    stacks: bool | Literal["volume"] = True,
    colour: bool | str = False,
    object_classes: int = 1,
) -> list[dict[str, Any]]:
    """Read every file of a MONAI datalist before the first step of a training or a prediction.

    Each decoded file is kept for the next `MicroscopyReader` that reads it, as far as memory allows.

    Args:
        items: the datalist, ``[{"image": path, "label": path}, ...]``, also that of `split_pages`.
        label_keys: the keys of labels or masks, which every item must have: one channel, whole numbers, the image's
            spatial shape. Where an item has a mask ``ignore`` besides its labels, it is checked too: 0/255 or 0/1.
        channels: the channels the network takes; None for any number.
        label_values: the values a label may have, (0, 255) for example; (0, 1, 2, 255) for three classes and what is
            not labelled. None for instances: 0 is background, and each object has a whole number of its own.
        other_values: another coding that a whole file may have instead, such as the (0, 1) of MONAI Label.
        stacks: whether an image may have several pages (or Z planes); "volume": it must.
        colour: as for `MicroscopyReader`.
        object_classes: of instances: a label is one file for each class, or one whose ids say the class, as
            `monai_unet.object_classes` has it.

    Returns:
        The items as a list, for use in a configuration.

    Raises:
        InputError: with the problems of all items: as `MicroscopyReader`, and for an empty list, a missing key, an
            image listed twice, a stack where there may be none or none where there must be one, labels of another shape
            or with other values, and masks where instances are due.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image, mask = f"{folder}/image.png", f"{folder}/mask.png"
    ...     Image.new("L", (30, 40), 90).save(image)
    ...     Image.new("L", (30, 40), 128).save(mask)
    ...     _ = check_images([{"image": image}])
    ...     check_images([{"image": image, "label": mask}], label_keys=["label"], label_values=(0, 255))
    Traceback (most recent call last):
    monai_unet.errors.InputError: ...mask.png: labels that are not 0/255: 128. Save the labels as 0/255.
    """
    seen: set[tuple[str, ...]] = set()
    reader, labels = MicroscopyReader(channels, colour=colour), MicroscopyReader(1, label=True)
    if not items:
        raise InputError("datalist", "it has no items", "Check the folder or the name of the list")
    problems: list[InputError] = []
    with keeping_decoded():
        for index, item in enumerate(items):
            if missing := [key for key in ("image", *label_keys) if key not in item]:
                problem = f"has no {missing[0]!r}, only {list(item)}"
                problems.append(InputError(f"datalist item {index}", problem, "Add its path"))
                continue
            files, shape = ensure_tuple(item["image"]), None
            real_files = (*(os.path.realpath(file) for file in files), str(item.get("page")))
            if real_files in seen:
                problems.append(InputError(files[0], "listed twice", "Keep one of the two items"))
                continue
            seen.add(real_files)
            try:
                shape = reader.get_data(reader.read(files))[0].shape[1:]
                _check_pages(files[0], shape, True if "page" in item else stacks)
            except InputError as error:
                problems.append(error)
            rules = dict.fromkeys(label_keys, (label_values, other_values))
            if label_keys and "ignore" in item:
                rules.setdefault("ignore", ((0, 255), (0, 1)))
            for key, values in rules.items():
                paths = ensure_tuple(item[key])
                try:
                    if len(paths) not in (1, object_classes if key in label_keys else 1):
                        problem = (
                            f"{len(paths)} files under {key!r}, the network has {object_classes} classes of objects"
                        )
                        raise InputError(paths[0], problem, "Give a file for each class, in their order, or one")
                    found = [labels.get_data(labels.read(path))[0] for path in paths]
                    for path, label in zip(paths, found, strict=True):
                        if shape is not None and label.shape[1:] != shape:
                            problem = f"labels of another shape: {label.shape[1:]}, the image {files[0]} has {shape}"
                            raise InputError(path, problem, "Pair every image with the labels drawn on it")
                        _check_values(path, label[:, item["page"]] if "page" in item else label, *values)
                    if len(found) > 1:
                        join_classes(np.concatenate(found), paths)
                except InputError as error:
                    problems.append(error)
    raise_problems("datalist", problems)
    return [dict(item) for item in items]


def _check_pages(path: Any, shape: Sequence[int], stacks: bool | Literal["volume"]) -> None:
    if len(shape) > 2 and not stacks:
        problem = f"a stack of {shape[0]} pages, but only single images are accepted here"
        raise InputError(path, problem, "Save each page as a file of its own")
    if len(shape) == 2 and stacks == "volume":
        problem = f"a single image of {shape[0]} x {shape[1]} pixels, but the network takes stacks"
        raise InputError(path, problem, "Save the pages of a stack as one TIFF")


def _check_values(path: Any, label: np.ndarray, allowed: Sequence[int] | None, other_values: Sequence[int]) -> None:
    values = np.unique(label)
    wrong, rule = values[values != np.rint(values)], "whole numbers"
    if not len(wrong) and allowed is not None:
        wrong, rule = np.setdiff1d(values, allowed), "/".join(map(str, allowed))
    if len(wrong) and not np.isin(values, other_values).all():
        found = ", ".join(f"{value:g}" for value in wrong[:5]) + (", …" if len(wrong) > 5 else "")
        raise InputError(path, f"labels that are not {rule}: {found}", f"Save the labels as {rule}")
    if allowed is None:
        _check_instances(path, label[0], values)


def _check_instances(path: Any, ids: np.ndarray, values: np.ndarray) -> None:
    """Refuse masks and classes that would pass as instances: whole cells would be merged, or be background."""
    found = ", ".join(f"{value:g}" for value in values[:5]) + (", …" if len(values) > 5 else "")
    if values[0] < 0:
        problem = f"labels below 0: {values[0]:g}; 0 is background, and cells have numbers from 1 on"
        raise InputError(path, problem, "Save borders and whatever else is not a cell as 0")
    names, numbers, counts = np.unique(ids, return_inverse=True, return_counts=True)
    if names[0] > 0 and (len(names) == 2 or ids.size > counts.max() > ids.size / 2):
        problem = (
            f"labels without a background: the values are {found}; 0 is background, and cells have numbers from 1 on"
        )
        raise InputError(path, problem, f"Save the background as 0, where it is now {names[counts.argmax()]:g}")
    numbers = numbers.reshape(ids.shape) + (names[0] > 0)
    pieces = [_pieces(numbers[box] == number) for number, box in enumerate(ndimage.find_objects(numbers), 1) if box]
    if pieces and min(pieces) > 1:  # a cell in two pieces is possible, all of them are not
        problem = f"a mask, not numbered cells: the values are {found}, and {sum(pieces)} separate pieces share them"
        cure = "Give each cell a number of its own, for example with skimage.measure.label or MorphoLibJ in Fiji"
        raise InputError(path, problem, f"{cure}, after separating cells that touch")


def _pieces(mask: np.ndarray) -> int:
    """The number of separate pieces, without specks of less than a tenth of the largest."""
    labelled, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(labelled.ravel())[1:]
    return int((10 * sizes >= sizes.max()).sum())


def split_pages(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make an item of each page of a stack, for a training page by page; `take_page` takes it when it is loaded.

    Raises:
        InputError: as `MicroscopyReader`, and for labels of another shape than the image's.

    >>> import tempfile
    >>> import tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/train-volume.tif"
    ...     tifffile.imwrite(path, np.zeros((3, 8, 6), np.uint8), photometric="minisblack")
    ...     [item["page"] for item in split_pages([{"image": path}])]
    [0, 1, 2]
    """
    reader, pages = MicroscopyReader(None), list[dict[str, Any]]()
    with keeping_decoded():
        for item in items:
            shape = reader.get_data(reader.read(item["image"]))[0].shape
            pages += [{**item, "page": page} for page in range(shape[1])] if len(shape) > 3 else [dict(item)]
    return pages


def take_page(item: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Replace the stack (C, Z, H, W) under a key by the item's ``page`` (C, H, W); without a page it stays as it is.

    >>> import torch
    >>> stack = MetaTensor(torch.arange(4.0).reshape(1, 4, 1, 1), meta={"pixel_size_um": np.array([3, 0.5, 0.5])})
    >>> page = take_page({"image": stack, "page": 2}, "image")["image"]
    >>> page.flatten().tolist(), page.meta["pixel_size_um"].tolist(), tuple(page.affine.shape)
    ([2.0], [0.5, 0.5], (3, 3))
    """
    if "page" not in item:
        return dict(item)
    stack = item[key]
    own = {name: np.asarray(stack.meta[name])[1:] for name in ("spatial_shape", "pixel_size_um") if name in stack.meta}
    meta = {**stack.meta, **own, "affine": stack.affine[1:, 1:], "original_affine": stack.affine[1:, 1:]}
    return {**item, key: MetaTensor(stack.as_tensor()[:, item["page"]], meta=meta)}


def _is_image(file: Path) -> bool:
    return file.name[0] != "." and file.suffix.lower() in SUFFIXES


def _subfolders(path: Path, output: Path | None) -> list[Path]:
    """All folders below this one that hold images, without that of the predictions."""
    found = []
    for folder, names, files in os.walk(path):
        names[:] = sorted(
            name
            for name in names
            if name[0] != "."
            and Path(name).suffix.lower() not in OUT_OF_SCOPE
            and Path(folder, name).resolve() != output
        )
        if Path(folder) != path and any(_is_image(Path(file)) for file in files):
            found.append(Path(folder))
    return found


def _images_of(files: list[Path], channels: int) -> list[Path]:
    """The images, each once, of files that may be their channels."""
    parts = sorted(file for file in files if CHANNEL.fullmatch(file.name)) if channels > 1 else []
    if not parts or _holds_several_channels(parts[0]):
        return files
    around = [file for file in files[0].parent.iterdir() if _is_image(file)]  # one of the channels may be given alone
    groups = {image: own for image, own in group_channels(around, channels).items() if set(own) & set(files)}
    missing = [missing_channel(image, own, channels) for image, own in groups.items() if own != [image]]
    raise_problems(parts[0].parent, [error for error in missing if error])
    return list(groups)


def _holds_several_channels(file: Path) -> bool:
    try:
        return len(MicroscopyReader(None).get_data([file])[0]) > 1
    except InputError:
        return False  # reading it as an image will give the error


def list_images(
    path: object, output_dir: object = None, channels: int | None = 1, scene: object = None
) -> list[dict[str, str]]:
    """List the images of a folder (not of its subfolders), or the one file, as a MONAI datalist.

    For a network of two channels, x_0000.tif and x_0001.tif are the image x.tif, which `MicroscopyReader` knows how to
    read, unless these files have several channels themselves.

    Args:
        path: of the folder or file. The number that a command line makes of the name 20240501 is understood.
        output_dir: where predictions go.
        channels: the channels the network takes; 1 for one that takes colours, which are in one file.
        scene: of each file, where they hold several: its number, from 1 on. Results are named after file#number.

    Returns:
        ``[{"image": path}, ...]`` in natural order (slice 2 before slice 10); hidden files are left out.

    Raises:
        InputError: no such path, no image in the folder, two images that differ only in the suffix (their results
            would share a name), a missing channel, predictions that would go into the folder itself, OME-Zarr and whole
            slides, a scene that is no number.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("slice10.png", "slice2.png", "notes.txt"):
    ...         (Path(folder) / name).touch()
    ...     [Path(item["image"]).name for item in list_images(folder)]
    ['slice2.png', 'slice10.png']
    """
    path = Path(str(path)).expanduser()
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(path, "there is no such file or folder", "Check the path")
    if path.is_dir() and suffix not in OUT_OF_SCOPE:
        output = None if output_dir is None else Path(str(output_dir)).expanduser().resolve()
        if output == path.resolve():
            problem = "predictions would go among the images, and the next run would predict them"
            raise InputError(path, problem, "Choose another --output_dir")
        files = [file for file in path.iterdir() if _is_image(file) and not file.is_dir()]  # broken links, too
        deeper = _subfolders(path, output)
        if deeper and not files:
            problem = f"no image in this folder, but in {len(deeper)} below it"
            raise InputError(path, problem, f"Give one of them, such as {deeper[0]}")
        if deeper:
            logger.warning("%s: %d folders with images below it are left out, such as %s", path, len(deeper), deeper[0])
        others = [file.name for file in path.iterdir() if file.suffix.lower() in NOT_READ and file.name[0] != "."]
        if others and files:
            problem = f"{len(others)} images of kinds that are not read are left out, such as {min(others)}"
            logger.warning("%s: %s", path, problem)
        if not files:
            cure = f"Put images of these kinds there: {', '.join(SUFFIXES)}"
            raise InputError(path, f"no image in this folder of {len(list(path.iterdir()))} entries", cure)
    elif suffix in SUFFIXES:
        files = [path]
    else:
        problem = f"{path.suffix or 'a name without suffix'} is not read here"
        cure = f"Export it as TIFF; these are read: {', '.join(SUFFIXES)}"
        raise InputError(path, problem, PREDICT if suffix in LARGE else cure)
    files = _images_of(files, channels or 1)
    files.sort(key=lambda file: [int(c) if c.isdecimal() else c for c in re.split(r"(\d+)", file.name.lower())])
    for one, two in itertools.pairwise(sorted(files, key=lambda file: file.stem)):
        if one.stem == two.stem:
            raise InputError(two, f"differs from {one.name} only in the suffix", "Rename one of the two")
    if scene is not None and not str(scene).isdecimal():
        raise InputError("--scene", f"it is {scene!r}", "Give the number of a scene, from 1 on")
    return [{"image": str(file if scene is None else name_scene(file, int(str(scene))))} for file in files]
