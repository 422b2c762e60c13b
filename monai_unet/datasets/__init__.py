"""Datasets by card: find or fetch the archive, verify its pixels, write a MONAI datalist.

A card is `datasets/<name>.yaml`: source, licence, citation, folder, checksums, split. The code knows no dataset by
name; a card names the layout (``kind``) that reads it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from monai_unet.data.errors import InputError
from monai_unet.datasets.archive import find_archive
from monai_unet.datasets.layouts import LAYOUTS
from monai_unet.datasets.store import Store

__all__ = ["cards", "prepare"]


def cards() -> dict[str, dict[str, Any]]:
    """All cards by name. In a wheel they lie in `monai_unet/cards`, in the repository in `datasets`."""
    package = Path(__file__).parents[1]
    folder = package / "cards" if (package / "cards").is_dir() else package.parent / "datasets"
    found = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.yaml"))}
    return {name: {"name": name, **card} for name, card in found.items()}


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
    base = Path(root or os.environ.get("MONAI_UNET_DATA") or "~/.cache/monai_unet").expanduser().absolute()
    folder = base / card["folder"]
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
