"""One function per layout of an archive: `(card, archive, store)` → the lists of dataset.json.

Each returns `{place: {list name: [item, ...]}}`; place "." is the dataset's own folder, another a fold of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from monai_unet.data.errors import InputError
from monai_unet.datasets.phantoms import em_phantom
from monai_unet.datasets.store import Store, load, sha256

__all__ = ["LAYOUTS"]

Datalists = dict[str, dict[str, list[dict[str, str]]]]
Layout = Callable[[dict[str, Any], Path | None, Store], Datalists]


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(path, "the archive lacks this file", "Delete the archive's folder and run again")
    try:
        return load(path)
    except ImportError:
        raise
    except Exception as error:  # decoders raise whatever a damaged stream leads them to
        raise InputError(path, f"damaged file ({error})", "Delete the archive's folder and run again") from error


def _verify(path: Path, expected: str | None, *arrays: np.ndarray) -> None:
    """Compare with the card's checksum, which may be the first digits of one; None: the card knows none."""
    found = sha256(*arrays)
    if expected is not None and not found.startswith(expected):
        problem = f"wrong checksum of the pixels: expected {expected}, got {found}"
        raise InputError(path, problem, "Delete it, and the archive it came from, and run again")


def _slices(card: dict[str, Any], volumes: dict[str, np.ndarray], store: Store) -> Datalists:
    """Pages as PNG files, because Pillow, and so MONAI's and MONAI Label's readers, sees page 1 of a stack only."""
    for volume in volumes.values():
        store.count(volume)
    names = {
        key: [store.image(f"slices/{key}-{index:02d}.png", page) for index, page in enumerate(volume)]
        for key, volume in volumes.items()
    }
    lists: dict[str, list[dict[str, str]]] = {}
    for title, rule in card["split"].items():
        first, last = rule["slices"]
        keys = {key: rule[key] for key in ("image", "label") if rule.get(key) in names}
        lists[title] = [{key: names[stem][i] for key, stem in keys.items()} for i in range(first, last + 1)]
    return {".": lists}


def stack(card: dict[str, Any], archive: Path | None, store: Store) -> Datalists:
    """Multi-page TIFF volumes with their labels, 0 and 255, as in the ISBI 2012 challenge."""
    assert archive is not None
    volumes = {}
    for stem, rule in card["volumes"].items():
        path = archive / f"{stem}.tif"
        if rule.get("optional") and not path.is_file():
            print(f"{path.name} is not in the archive: its list has no labels")
            continue
        volume = _read(path)
        _verify(path, rule.get("sha256"), volume)
        if list(volume.shape) != card["shape"] or volume.dtype != np.uint8:
            problem = f"{volume.dtype} of shape {volume.shape}, expected uint8 of {tuple(card['shape'])}"
            raise InputError(path, problem, "Delete it and run again")
        wrong = np.setdiff1d(volume, rule.get("values", volume))
        if len(wrong):
            raise InputError(path, f"labels that are not {rule['values']}: {wrong[:5]}", "Delete it and run again")
        volumes[stem] = volume
    return _slices(card, volumes, store)


def em_stack(card: dict[str, Any], archive: Path | None, store: Store) -> Datalists:
    """Synthetic sections in the shape of `stack`."""
    images, labels = em_phantom(card["slices"], card["size"], card["seed"])
    return _slices(card, {"train-volume": images, "train-labels": labels}, store)


LAYOUTS: dict[str, Layout] = {"stack": stack, "em_phantom": em_stack}
