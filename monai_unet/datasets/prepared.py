"""A prepared data set: the lists of its dataset.json, and its name and checksum for the record."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist

from monai_unet.errors import InputError

__all__ = ["datalist", "identity"]


def datalist(folder: str | os.PathLike[str], split: str) -> list[dict[str, Any]]:
    """Read one list of the dataset.json in a folder, with absolute paths.

    Raises:
        InputError: there is no dataset.json, it is not JSON, or it has no such list.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "dataset.json").write_text('{"training": [{"image": "a.png"}, {"image": "b.png"}]}')
    ...     [Path(item["image"]).name for item in datalist(folder, "training")]
    ['a.png', 'b.png']
    """
    file, document = _document(folder)
    if not isinstance(document.get(split), list):
        known = ", ".join(key for key, value in document.items() if isinstance(value, list))
        raise InputError(file, f"it has no list {split!r}, only {known or 'none'}", "Choose one of these, or add it")
    return load_decathlon_datalist(file, True, split)


def identity(folder: str | os.PathLike[str], items: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Return name and checksum of a prepared data set; the checksum of dataset.json if it contains none.

    Args:
        folder: of dataset.json.
        items: those used for training. If one of them is not in dataset.json (MONAI Label passes its own), the result
            is their number and the checksum of their files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "dataset.json").write_text('{"name": "mine", "checksum": "1f3a", "training": []}')
    ...     identity(folder)
    'mine sha256:1f3a'
    """
    items = None if items is None else [{k: v for k, v in item.items() if k != "page"} for item in items]
    if items is not None and not _listed(folder, items):
        digest = hashlib.sha256()
        for item in items:
            for _, file in sorted(item.items()):
                digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
        return f"{len(items)} items sha256:{digest.hexdigest()}"
    file, document = _document(folder)
    checksum = document.get("checksum") or hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{document.get('name', 'dataset.json')} sha256:{checksum}"


def _listed(folder: str | os.PathLike[str], items: Sequence[Mapping[str, Any]]) -> bool:
    if not (Path(folder) / "dataset.json").is_file():
        return False
    document = _document(folder)[1]
    lists = [key for key in ("training", "validation", "test") if isinstance(document.get(key), list)]
    known = [item for key in lists for item in datalist(folder, key)]
    return all(item in known for item in items)


def _document(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    file = Path(folder) / "dataset.json"
    if not file.is_file():
        cure = "Run python -m monai_unet.datasets prepare NAME, or write one, and give its folder as --dataset_dir"
        raise InputError(file, "there is no such datalist", cure)
    try:
        return file, dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:  # TypeError: a list, not an object
        raise InputError(file, f"not a JSON datalist ({error})", "Prepare the data set again") from error
