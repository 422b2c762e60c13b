"""Datasets by card: find or fetch the archive, verify its pixels, write a MONAI datalist.

A card is `datasets/<name>.yaml`: source, licence, citation, folder, checksums, split. The code knows no dataset by
name; a card names the layout (``kind``) that reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.data import load_decathlon_datalist
from tqdm import tqdm

from monai_unet.datasets.archive import find_archive
from monai_unet.datasets.layouts import LAYOUTS
from monai_unet.datasets.store import Store
from monai_unet.errors import InputError

__all__ = ["cards", "datalist", "default_folder", "identity", "prepare"]


def cards() -> dict[str, dict[str, Any]]:
    """All cards by name. In a wheel they lie in `monai_unet/cards`, in the repository in `datasets`."""
    package = Path(__file__).parents[1]
    folder = package / "cards" if (package / "cards").is_dir() else package.parent / "datasets"
    found = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.yaml"))}
    return {name: {"name": name, **card} for name, card in found.items()}


def _root(root: str | os.PathLike[str] | None = None) -> Path:
    return Path(root or os.environ.get("MONAI_UNET_DATA") or "~/.cache/monai_unet").expanduser().absolute()


def default_folder(name: str) -> Path:
    """Where `prepare(name)` puts dataset.json unless told otherwise: beside the archive."""
    return (_root() / cards()[name]["folder"]).parent / name


def datalist(folder: str | os.PathLike[str], split: str) -> list[dict[str, Any]]:
    """One list of a prepared folder's dataset.json, with absolute paths; what a bundle trains or tests on.

    Raises:
        InputError: no dataset.json there, not JSON, or without such a list.
    """
    file, lists = _document(folder)
    if not isinstance(lists.get(split), list):
        known = ", ".join(key for key, value in lists.items() if isinstance(value, list))
        raise InputError(file, f"it has no list {split!r}, only {known or 'none'}", "Name one of these, or add it")
    return load_decathlon_datalist(file, True, split)


def identity(folder: str | os.PathLike[str], items: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Name and checksum of a prepared dataset, for the record; the file's own checksum where it tells none.

    Args:
        folder: where dataset.json is.
        items: what is trained on. Where these are no items of dataset.json (MONAI Label hands over its own), their
            number, and the checksum of their files.
    """
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
    lists = [key for key, value in _document(folder)[1].items() if isinstance(value, list)]
    known = [item for key in lists if key in ("training", "validation", "test") for item in datalist(folder, key)]
    return all(item in known for item in items)


def _document(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    file = Path(folder) / "dataset.json"
    if not file.is_file():
        cure = "Run python -m monai_unet.datasets prepare NAME, or write one, and give its folder as --dataset_dir"
        raise InputError(file, "there is no such datalist", cure)
    try:
        return file, dict(json.loads(file.read_bytes()))
    except ValueError as error:
        raise InputError(file, f"it is not a JSON datalist ({error})", "Prepare the dataset again") from error


def prepare(
    name: str, root: str | os.PathLike[str] | None = None, output: str | os.PathLike[str] | None = None
) -> Path:
    """Prepare the dataset of a card; a second run verifies, and rewrites nothing that is right.

    Args:
        name: the card, ``"isbi2012"`` for example.
        root: where archives lie; the card's ``folder`` is looked for in it, and downloaded to it. Default: the
            environment variable MONAI_UNET_DATA, else `~/.cache/monai_unet`.
        output: where dataset.json goes. Default: a folder of the card's name beside the archive.

    Returns:
        The path of dataset.json: a MONAI datalist with absolute paths, the card's lists, its labels, licence and
        citation, and ``checksum``, the SHA-256 over all decoded pixels.

    Raises:
        ValueError: no such card.
        InputError: something missing, damaged, unreachable or read-only; the message says what to do.
    """
    known = cards()
    if name not in known:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(known)}")
    card = known[name]
    folder = _root(root) / card["folder"]
    target = Path(output).expanduser().absolute() if output else folder.parent / name
    archive = find_archive(card, folder) if "url" in card else None
    about = {key: card[key] for key in ("name", "description", "licence", "citation", "labels")}
    about["labels"] = {str(value): meaning for value, meaning in card["labels"].items()}
    try:
        with tqdm(desc=f"prepare {name}", unit=" arrays", leave=False) as bar:
            store = Store(target, bar)
            datalists = LAYOUTS[card["kind"]](card, archive, store)
        for place, lists in datalists.items():
            document = {**about, "checksum": store.checksum, **lists}
            store.write(Path(place) / "dataset.json", (json.dumps(document, indent=1) + "\n").encode())
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise InputError(target, problem, "Choose another folder with --output DIR") from error
    return target / "dataset.json"
