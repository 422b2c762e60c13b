"""Datalists of microscopy images, and their check before the first step of a training or a prediction."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils.misc import ensure_tuple

from monai_unet.data.microscopy.reader import LARGE, OUT_OF_SCOPE, PREDICT, SUFFIXES, MicroscopyReader
from monai_unet.errors import InputError

__all__ = ["check_images", "list_images"]


def check_images(
    items: Sequence[Mapping[str, Any]],
    keys: Sequence[str] = ("image",),
    label_keys: Sequence[str] = (),
    channels: int | None = 1,
    label_values: Sequence[int] | None = None,
    other_values: Sequence[int] = (),
    stacks: bool = True,
) -> list[dict[str, Any]]:
    """Read every file of a MONAI datalist once, before any step of training or prediction.

    Args:
        items: the datalist, ``[{"image": path, "label": path}, ...]``.
        keys: the keys of images; every item must have them.
        label_keys: the keys of labels or masks; every item must have them. One channel, whole numbers, the spatial
            shape of the item's first image.
        channels: the channels the network takes; None for any number.
        label_values: the values a label may have, (0, 255) for example; None for any whole numbers.
        other_values: another coding that a whole file may have instead, such as the (0, 1) of MONAI Label.
        stacks: whether an image may have several pages (or Z planes).

    Returns:
        The items, as a list, so that a configuration can hand them on.

    Raises:
        InputError: at the first bad item: as `MicroscopyReader`, and for an empty list, a missing key, an image listed
            twice, a stack where there may be none, labels of another shape or with other values.
    """
    seen: set[str] = set()
    readers = {key: MicroscopyReader(channels) for key in keys} | {key: MicroscopyReader(1) for key in label_keys}
    if not items:
        raise InputError("datalist", "it has no items", "Check the folder or the name of the list")
    for index, item in enumerate(items):
        missing = [key for key in readers if key not in item]
        if missing:
            raise InputError(f"datalist item {index}", f"has no {missing[0]!r}, only {list(item)}", "Add its path")
        arrays = {key: reader.get_data(reader.read(item[key]))[0] for key, reader in readers.items()}
        for key in keys:
            name = str(tuple(os.path.realpath(path) for path in ensure_tuple(item[key])))
            if name in seen:
                raise InputError(ensure_tuple(item[key])[0], "listed twice", "Keep one of the two items")
            seen.add(name)
            if arrays[key].ndim > 3 and not stacks:
                problem = f"a stack of {arrays[key].shape[1]} pages, and single images are taken here"
                raise InputError(ensure_tuple(item[key])[0], problem, "Save each page as a file of its own")
        for key in label_keys:
            path, label, image = ensure_tuple(item[key])[0], arrays[key], arrays[keys[0]]
            if label.shape[1:] != image.shape[1:]:
                problem = f"labels of another shape: {label.shape[1:]}, the image {item[keys[0]]} has {image.shape[1:]}"
                raise InputError(path, problem, "Pair every image with the labels drawn on it")
            found = np.unique(label)
            if (found != np.rint(found)).any():
                wrong, rule = found[found != np.rint(found)], "whole numbers"
            else:
                wrong = found[:0] if label_values is None else np.setdiff1d(found, label_values)
                rule = "/".join(str(value) for value in label_values or ())
            if len(wrong) and not np.isin(found, other_values).all():
                values = ", ".join(f"{value:g}" for value in wrong[:5]) + (", …" if len(wrong) > 5 else "")
                raise InputError(path, f"labels that are not {rule}: {values}", f"Save the labels as {rule}")
    return [dict(item) for item in items]


def list_images(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The images of a folder (not of its subfolders), or the one file, as a MONAI datalist.

    Returns:
        ``[{"image": path}, ...]`` in natural order (slice 2 before slice 10); hidden files are left out.

    Raises:
        InputError: no such path, no image in the folder, two images that differ in the suffix only (their results
            would share a name), OME-Zarr and whole slides.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(path, "there is no such file or folder", "Check the path")
    if path.is_dir() and path.suffix.lower() not in OUT_OF_SCOPE:
        files = [f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file() and f.name[0] != "."]
        if not files:
            cure = f"Put images of these kinds there: {', '.join(SUFFIXES)}"
            raise InputError(path, f"no image in this folder of {len(list(path.iterdir()))} entries", cure)
    elif path.suffix.lower() in SUFFIXES:
        files = [path]
    else:
        problem = f"{path.suffix or 'a name without suffix'} is not read here"
        cure = f"Export it as TIFF; these are read: {', '.join(SUFFIXES)}"
        raise InputError(path, problem, PREDICT if path.suffix.lower() in LARGE else cure)
    files.sort(key=lambda file: [(not c.isdecimal(), int(c) if c.isdecimal() else c) for c in _chunks(file)])
    for one, two in itertools.pairwise(sorted(files, key=lambda file: file.stem)):
        if one.stem == two.stem:
            raise InputError(two, f"differs from {one.name} in the suffix only", "Rename one of the two")
    return [{"image": str(file)} for file in files]


def _chunks(file: Path) -> list[str]:
    return [chunk for chunk in re.split(r"(\d+)", file.name.lower()) if chunk]
