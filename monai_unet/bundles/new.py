"""A new bundle from a folder of images and labels: fingerprint, plan, files."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai_unet.bundles.decide import decide
from monai_unet.bundles.fingerprint import take_fingerprint
from monai_unet.bundles.items import find_items
from monai_unet.bundles.page import write_page
from monai_unet.bundles.plan import Plan, shipped_plans
from monai_unet.bundles.write import bundle_files
from monai_unet.datasets import default_folder
from monai_unet.errors import InputError
from monai_unet.files import creating

__all__ = ["new_bundle"]

#: the share of "training" that chooses the checkpoint where there is no list "validation"
HELD_OUT = 0.2


def new_bundle(
    name: str,
    dataset_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] = ".",
    kind: str | None = None,
    memory: float | None = None,
    minutes: float = 60,
    label_components: bool = False,
) -> tuple[Path, Plan]:
    """Write a bundle that trains on a data set, planned from it; as a whole, or not at all.

    A data set that `monai_unet.datasets` has prepared gets the bundle that its card describes, if it does.

    Args:
        name: of the bundle, a new folder in ``output``.
        dataset_dir: see `find_items`.
        output: folder of the bundle.
        kind: "instances" or "classes"; None to infer it from the labels.
        memory: GiB that a training step may take; None for half of what is free.
        minutes: that training may take.
        label_components: take the connected components of masks for instances.

    Returns:
        The bundle's folder, and its plan.

    Raises:
        InputError: the name is no identifier; the folder exists; the data set has problems, all of which are listed.

    >>> import tempfile
    >>> import numpy as np
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as home:
    ...     for number in range(4):
    ...         ids = np.zeros((48, 48), np.uint8)
    ...         ids[3:9, 3:9], ids[20 : 25 + number, 3:9] = 1, 2
    ...         for part in ("images", "labels"):
    ...             Path(home, "data", part).mkdir(parents=True, exist_ok=True)
    ...             Image.fromarray(ids).save(f"{home}/data/{part}/{number}.png")
    ...     folder, plan = new_bundle("spots", f"{home}/data", home, kind="instances", minutes=1)
    ...     sorted(path.name for path in folder.iterdir())
    ['LICENSE', 'configs', 'data', 'docs']
    """
    folder = Path(output).expanduser().absolute() / name
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise InputError("NAME", f"it is {name!r}", "Use letters from a to z, digits and _, a letter first")
    if folder.exists():
        raise InputError(folder, "it exists", "Choose another name, or remove it")
    items = find_items(dataset_dir)
    shipped = {plan.card: plan for plan in shipped_plans().values()}.get(items.card)
    if shipped:
        plan, lists, fingerprint = replace(shipped, name=name), None, None
        if shipped.card and items.folder != default_folder(shipped.card):
            plan = replace(plan, dataset_dir=str(items.folder))
    else:
        fingerprint = take_fingerprint(items, kind, label_components)
        lists = _lists(items.lists)
        counts = {key: len(value) for key, value in lists.items()}
        plan = decide(name, replace(fingerprint, items=counts), memory, minutes)
    with creating(folder) as built:
        for path, text in bundle_files(plan).items():
            (built / path).parent.mkdir(parents=True, exist_ok=True)
            (built / path).write_text(text, encoding="utf-8")
        if fingerprint and lists:
            document = {"name": fingerprint.name, "labels": _named(plan), **lists}
            (built / "data").mkdir()
            (built / "data" / "dataset.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            write_page(built / "docs", plan, fingerprint, lists["training"])
    return folder, plan


def _named(plan: Plan) -> dict[str, str]:
    return {str(value): label for value, label in enumerate(plan.class_names)}


def _lists(lists: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The lists, with the last fifth of "training" for validation if there is none: neighbours stay together."""
    if "validation" in lists:
        return lists
    training = lists["training"]
    count = max(1, round(HELD_OUT * len(training)))
    return {**lists, "training": training[:-count], "validation": training[-count:]}
