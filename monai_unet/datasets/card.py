"""Cards of data sets, and the preparation of the data set that a card describes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from monai_unet.datasets.archive import find_archive
from monai_unet.datasets.layouts import LAYOUTS, Datalists
from monai_unet.datasets.prepared import LISTS, checksum_of
from monai_unet.datasets.store import Store
from monai_unet.errors import InputError

__all__ = ["cards", "default_folder", "prepare"]


def cards() -> dict[str, dict[str, Any]]:
    """Read all cards, by name.

    >>> cards()["isbi2012"]["shape"]
    [30, 512, 512]
    """
    here = Path(__file__).parent
    folder = (
        here / "cards" if (here / "cards").is_dir() else here.parents[1] / "datasets"
    )  # a wheel's, the repository's
    read = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.yaml"))}
    return {name: {"name": name, **card} for name, card in read.items()}


def _root(root: str | os.PathLike[str] | None = None) -> Path:
    return Path(root or os.environ.get("MONAI_UNET_DATA") or "~/.cache/monai_unet").expanduser().absolute()


def default_folder(name: str) -> Path:
    """Name the folder where `prepare` writes dataset.json if no other is given: next to the archive.

    >>> default_folder("isbi2012").relative_to(_root()).as_posix()
    'isbi2012/isbi2012'
    """
    return (_root() / cards()[name]["folder"]).parent / name


def prepare(
    name: str, root: str | os.PathLike[str] | None = None, output: str | os.PathLike[str] | None = None
) -> Path:
    """Prepare the data set of a card; a second run verifies it, and rewrites only damaged files.

    Args:
        name: of the card, for example ``"isbi2012"``.
        root: folder of the archives; the card's ``folder`` is looked for in it, and downloaded to it. Default: the
            environment variable MONAI_UNET_DATA, else `~/.cache/monai_unet`.
        output: folder of dataset.json. Default: a folder of the card's name next to the archive.

    Returns:
        The path of dataset.json: a MONAI datalist with absolute paths, the lists, labels, licence and citation of the
        card, ``checksum``, the SHA-256 over all decoded pixels, and ``pixels``, that of each list, by which `identity`
        notices an edited label.

    Raises:
        ValueError: no such card.
        InputError: a file or folder is missing, damaged, unreachable or read-only.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset = json.loads(prepare("cell_phantom", output=folder).read_text())
    >>> len(dataset["training"]), sorted(dataset["training"][0])
    (10, ['ignore', 'image', 'label'])
    """
    known = cards()
    if name not in known:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(known)}")
    card = known[name]
    target = Path(output).expanduser().absolute() if output else (_root(root) / card["folder"]).parent / name
    about = {key: card[key] for key in ("name", "description", "licence", "citation")}
    about["labels"] = {str(value): meaning for value, meaning in card["labels"].items()}
    try:
        with tqdm(desc=f"prepare {name}", unit=" arrays", leave=False) as bar:
            store = Store(target, bar)
            if "parts" in card:
                found = {kind: _lists(known[part], root, store)["."] for kind, part in card["parts"].items()}
                datalists = {".": _joined(found)}
            else:
                datalists = _lists(card, root, store)
        for fold, lists in datalists.items():
            pixels = {title: checksum_of(lists[title]) for title in LISTS if title in lists}  # of what is read back
            document = {**about, "checksum": store.checksum, "pixels": pixels, **lists}
            store.write(Path(fold) / "dataset.json", (json.dumps(document, indent=1) + "\n").encode())
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise InputError(target, problem, "Choose another folder with --output DIR") from error
    return target / "dataset.json"


def _lists(card: dict[str, Any], root: str | os.PathLike[str] | None, store: Store) -> Datalists:
    """The lists of one archive, which is found or downloaded, and verified."""
    folder = _root(root) / card["folder"]
    if "url" in card:
        find_archive(card, folder)
    return LAYOUTS[card["kind"]](card, folder, store)


def _joined(parts: dict[str, dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The lists of several data sets as one; an item's ``type`` names its set.

    The last training item of each stands at the end, where `hold_out` takes as many as there are sets.
    """
    typed = {
        kind: {title: [{**item, "type": kind} for item in lists[title]] for title in LISTS if title in lists}
        for kind, lists in parts.items()
    }
    joined = {title: [item for lists in typed.values() for item in lists.get(title, [])] for title in LISTS}
    last = [lists["training"][-1] for lists in typed.values()]
    joined["training"] = [item for item in joined["training"] if item not in last] + last
    return {title: items for title, items in joined.items() if items}
