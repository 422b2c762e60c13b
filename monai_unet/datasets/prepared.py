"""A prepared data set: the lists of its dataset.json, and its name and checksum for the record."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import load_decathlon_datalist
from monai.utils.enums import CommonKeys
from monai.utils.misc import ensure_tuple

from monai_unet.data import CheckedVolumeReader, MicroscopyReader
from monai_unet.data.decoded import keeping_decoded
from monai_unet.data.microscopy.reader import SUFFIXES
from monai_unet.errors import InputError

__all__ = ["add_pixels", "datalist", "hold_out", "identity", "read_document"]

#: the lists that MONAI knows
LISTS = ("training", "validation", "test")


def datalist(folder: str | os.PathLike[str], split: str) -> list[dict[str, Any]]:
    """Read one list of the dataset.json in a folder, with absolute paths.

    An item is an object of paths by key, or the path of an image alone; a list may be empty.

    Raises:
        InputError: there is no dataset.json, it is not JSON, it has no such list, or an item is neither.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "dataset.json").write_text('{"training": [{"image": "a.png"}, "b.png"]}')
    ...     [Path(item["image"]).name for item in datalist(folder, "training")]
    ['a.png', 'b.png']
    """
    file, document = read_document(folder)
    if not isinstance(items := document.get(split), list):
        known = ", ".join(key for key, value in document.items() if isinstance(value, list))
        raise InputError(file, f"it has no list {split!r}, only {known or 'none'}", "Choose one of these, or add it")
    found = [{"image": item} if isinstance(item, str) else item for item in items]
    for number, item in enumerate(found):
        if not isinstance(item, dict):
            problem = f"item {number} of {split!r} is {item!r}"
            raise InputError(file, problem, 'Write {"image": PATH, "label": PATH} or the path of an image')
    with tempfile.TemporaryDirectory() as temporary:  # MONAI's own reader resolves the paths
        (copy := Path(temporary) / "dataset.json").write_text(json.dumps({"items": found}), encoding="utf-8")
        return load_decathlon_datalist(copy, True, "items", file.parent)


def hold_out(items: Sequence[dict[str, Any]], count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split a list into the items to train on and the last ``count``, which choose the checkpoint.

    Raises:
        InputError: there are not so many, or none would be left to train on.

    >>> hold_out([{"image": "a.png"}, {"image": "b.png"}, {"image": "c.png"}], 1)
    ([{'image': 'a.png'}, {'image': 'b.png'}], [{'image': 'c.png'}])
    """
    kept = len(items) - count
    if items and kept < 1:
        problem = f"it is {count}, and the list 'training' has {len(items)} items"
        raise InputError("--validation_items", problem, f"Use at most {len(items) - 1}")
    return list(items[:kept]), list(items[kept:])


def identity(folder: str | os.PathLike[str], items: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Return name and checksum of a prepared data set; if its dataset.json has none, the checksum of the pixels.

    That of the pixels counts, too, if one of the lists that are used has been edited since `prepare` wrote it.

    Args:
        folder: of dataset.json.
        items: those used; all by default. If one of them is not in dataset.json (MONAI Label passes its own), the
            result is their number and the checksum of their pixels.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "dataset.json").write_text('{"name": "mine", "checksum": "1f3a", "training": []}')
    ...     identity(folder)
    'mine sha256:1f3a'
    """
    if items is not None:  # a stack once, not once per page
        files = [{key: value for key, value in item.items() if key != "page"} for item in items]
        items = list({_key(item): item for item in files}.values())
    lists = _lists(folder)
    known = {_key(item) for listed in lists.values() for item in listed}
    if items is not None and not known.issuperset(map(_key, items)):
        return f"{len(items)} items sha256:{checksum_of(items)}"
    document = read_document(folder)[1]
    if items is None:
        items = [item for listed in lists.values() for item in listed]
    used = {_key(item) for item in items}
    as_prepared = all(
        checksum_of(lists[name]) == pixels
        for name, pixels in document.get("pixels", {}).items()
        if used.intersection(map(_key, lists.get(name, ())))
    )
    checksum = (as_prepared and document.get("checksum")) or checksum_of(items)
    return f"{document.get('name', 'dataset.json')} sha256:{checksum}"


def _key(item: Mapping[str, Any]) -> str:
    """Equal for equal items; to look each up in a list would take minutes with ten thousand."""
    return json.dumps(item, sort_keys=True, default=os.fspath)


def checksum_of(items: Sequence[Mapping[str, Any]]) -> str:
    """The checksum of items, as `add_pixels` adds them."""
    digest = hashlib.sha256()
    with keeping_decoded():  # for the loader
        for item in items:
            add_pixels(digest, item)
    return digest.hexdigest()


def add_pixels(digest: hashlib._Hash, item: Mapping[str, Any]) -> None:
    """Add everything that an item holds to a checksum: pixels, whatever the files' names and compression.

    Folders, which only phantoms have, do not count.

    >>> import tempfile
    >>> from PIL import Image
    >>> digests = [hashlib.sha256(), hashlib.sha256()]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for digest, name in zip(digests, ("a.png", "b.tif")):
    ...         Image.new("L", (30, 40), 90).save(f"{folder}/{name}")
    ...         add_pixels(digest, {"image": f"{folder}/{name}"})
    >>> digests[0].hexdigest() == digests[1].hexdigest()
    True
    """
    for key, files in sorted(item.items()):
        digest.update(key.encode())
        for file in ensure_tuple(files):
            path = Path(file) if isinstance(file, str | os.PathLike) else None
            if path and path.is_dir():
                continue
            if not path or not (path.suffix or path.is_file()):
                digest.update(repr(file).encode())  # MSD's "fold", for example, or an image's "type"
                continue
            microscopy = Path(file).suffix.lower() in SUFFIXES
            label = key != CommonKeys.IMAGE
            reader = MicroscopyReader(None, label) if microscopy else CheckedVolumeReader(channels=None)
            array = np.ascontiguousarray(reader.get_data(reader.read(file))[0])
            array = array[0] if not microscopy and len(array) == 1 else array
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.data)


def _lists(folder: str | os.PathLike[str]) -> dict[str, list[dict[str, Any]]]:
    """The lists of the dataset.json in a folder; none if there is no such file."""
    if not (Path(folder) / "dataset.json").is_file():
        return {}
    document = read_document(folder)[1]
    return {name: datalist(folder, name) for name in LISTS if isinstance(document.get(name), list)}


def read_document(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Read the dataset.json in a folder; return its path and what it holds.

    Raises:
        InputError: there is none, or it is not a JSON object.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "dataset.json").write_text('{"name": "mine", "training": []}')
    ...     read_document(folder)[1]["name"]
    'mine'
    """
    file = Path(folder) / "dataset.json"
    if not file.is_file():
        cure = "Run python -m monai_unet.datasets prepare NAME, or write one, and give its folder as --dataset_dir"
        raise InputError(file, "there is no such datalist", cure)
    try:
        return file, dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:  # TypeError: a list, not an object
        raise InputError(file, f"not a JSON datalist ({error})", "Prepare the data set again") from error
