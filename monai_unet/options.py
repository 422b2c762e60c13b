"""Optional packages, and options as a bundle's command line passes them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

__all__ = ["parse_bool", "parse_choice", "require"]


def require(module: str, extra: str) -> Any:
    """Import a package that one of the extras installs.

    Args:
        module: its import name, ``"pydicom"`` or ``"pydicom.uid"``.
        extra: the extra of this package, ``"dicom"``.

    Raises:
        ImportError: it is not installed; names the extra.

    >>> require("json", "tracking").dumps([1])
    '[1]'
    >>> require("no_such_package", "dicom")
    Traceback (most recent call last):
    ImportError: no_such_package is missing: pip install "monai_unet[dicom]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module.partition(".")[0]} is missing: pip install "monai_unet[{extra}]"') from error


def parse_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Read one of several words, in upper or lower case.

    Raises:
        ValueError: another word; lists the choices.

    >>> parse_choice("resume", True, ("true", "auto", "false"))
    'true'
    >>> parse_choice("averaging", "mean", ("none", "mirror", "all"))
    Traceback (most recent call last):
    ValueError: averaging is 'mean'; it must be none, mirror or all
    """
    if (word := str(value).lower()) not in choices:
        raise ValueError(f"{name} is {value!r}; it must be {', '.join(choices[:-1])} or {choices[-1]}")
    return word


def parse_bool(name: str, value: object) -> bool:
    """Read true or false: ``--name true`` on a bundle's command line arrives as a string.

    Raises:
        ValueError: neither.

    >>> parse_bool("amp", "True"), parse_bool("amp", False)
    (True, False)
    >>> parse_bool("amp", "yes")
    Traceback (most recent call last):
    ValueError: amp is 'yes'; it must be true or false
    """
    return parse_choice(name, value, ("true", "false")) == "true"
