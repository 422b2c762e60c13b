"""The bundles that come with the package: found by name, and copied out of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from monai_unet.errors import InputError
from monai_unet.files import creating

__all__ = ["copy_bundle", "shipped_bundle"]

#: what belongs to a bundle, as in pyproject.toml; the rest of its folder is what runs have left there
SHIPPED = ("LICENSE", "configs/*", "docs/**/*", "models/model.pt", "samples/*")


def shipped_bundle(name: str) -> Path:
    """Find a bundle that comes with the package.

    Raises:
        InputError: there is none of this name; names those that there are.

    >>> (shipped_bundle("cell_segmentation") / "configs" / "train.yaml").is_file()
    True
    """
    here = Path(__file__).parent
    folder = here / "shipped"  # in a wheel
    if not folder.is_dir():
        folder = here.parents[1] / "bundles"  # in the repository
    known = sorted(path.parents[1].name for path in folder.glob("*/configs/metadata.json"))
    if name not in known:
        raise InputError(name, "no bundle of this name comes with the package", f"Choose one of {', '.join(known)}")
    return folder / name


def copy_bundle(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Copy a bundle that comes with the package, with its weights if it has any; as a whole, or not at all.

    Args:
        name: of the bundle.
        folder: the new folder; None for one of the bundle's name in the working folder.

    Returns:
        The new folder.

    Raises:
        InputError: no such bundle; the folder exists or cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     copied = copy_bundle("cell_segmentation", Path(home) / "cells")
    ...     sorted(path.name for path in copied.iterdir())[:3]
    ['LICENSE', 'configs', 'docs']
    """
    source, target = shipped_bundle(name), Path(folder or name).expanduser().absolute()
    with creating(target) as built:
        for path in (file for pattern in SHIPPED for file in source.glob(pattern)):
            if path.is_file():
                copied = built / path.relative_to(source)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copied)
    return target
