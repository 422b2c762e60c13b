"""What may be said about a training elsewhere: no path, no file's name, which often are patients' names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["file_names", "public_config", "public_parameter", "public_text"]

SUFFIXES = r"\.(?:png|jpe?g|tiff?|nii(?:\.gz)?|dcm|nrrd|nhdr|mha|mhd|json|geojson|pt|yaml)"
#: a path in quotes, as Python's own errors have it, blanks and all
QUOTED = re.compile(r"(?<!\w)(['\"])(?=\S)[^'\"\n]*[/\\][^'\"\n]*(?<=\S)\1(?!\w)")
#: a path anywhere in a text, up to the next blank or quote, and a file's name without one
PATH = re.compile(r"(?:[A-Za-z]:)?[^\s'\"`,;:()<>\[\]]*[/\\][^\s'\"`,;:()<>\[\]]+")
FILE = re.compile(rf"[^\s'\"`/\\,;:()<>\[\]]+{SUFFIXES}\b", re.IGNORECASE)
#: what a literal inside a config's expression is, if it is a path: '/pictures' is not one, '/home/Doe' is
LITERAL = re.compile(r"(['\"])(.+?)\1")
PATH_KEYS = re.compile(r"(?:_dir|_path|_root|_file|^input|^path|^folder)$")


def public_text(text: str, secrets: Iterable[str] = ()) -> str:
    """A text, an exception's for example, without paths, file names, and the given words."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "<name>", text)
    text = PATH.sub("<path>", QUOTED.sub(r"\1<path>\1", text))
    return re.sub(r"(<(path|name|file)>){2,}", "<path>", FILE.sub("<file>", text))


def public_parameter(value: Any) -> str:
    """A parameter's value as text; a file is told by its content, ``sha256:…``, and a folder not at all."""
    if isinstance(value, str | os.PathLike) and os.path.sep in str(value) and os.path.isfile(value):  # noqa: PTH113
        return f"sha256:{hashlib.sha256(Path(value).read_bytes()).hexdigest()}"
    return public_text(str(value))


def public_config(config: Any, key: str = "") -> Any:
    """A config without the user's paths: ``<dataset_dir>`` in their place, and datalists written into it cut to their
    length. Expressions stay as they are, unless they name an existing path."""
    if isinstance(config, Mapping):
        return {
            name: value if name == "_meta_" else public_config(value, str(name))  # that is the bundle's metadata.json
            for name, value in config.items()
        }
    if isinstance(config, list | tuple):
        if config and all(isinstance(item, Mapping) and "_target_" not in item and _has_path(item) for item in config):
            return f"<{len(config)} items>"
        return [public_config(value, key) for value in config]
    if isinstance(config, str | os.PathLike):
        text = os.fspath(config)
        if text[:1] in ("$", "@", "%"):
            return LITERAL.sub(lambda found: "'<path>'" if _is_path(found[2]) else found[0], text)
        if PATH_KEYS.search(key) and text != ".":
            return f"<{key}>"
        return "<path>" if _looks_like_path(text) else text
    return config


def file_names(items: Any) -> set[str]:
    """The names of a datalist's files, with and without suffix; too short ones would garble any text."""
    found = set()
    for item in items if isinstance(items, list | tuple) else ():
        for value in item.values() if isinstance(item, Mapping) else ():
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, str | os.PathLike):
                    name = Path(one).name
                    found |= {name, re.sub(rf"{SUFFIXES}$", "", name, flags=re.IGNORECASE)}
    return {name for name in found if len(name) > 2}


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or FILE.fullmatch(text) is not None


def _is_path(text: str) -> bool:
    """Of a literal that may as well be the tail of a path: it exists, or would beside existing ones."""
    if not _looks_like_path(text):
        return False
    text = os.path.expanduser(text)  # noqa: PTH111 - these two raise for no text, be it too long for a path
    if os.path.exists(text):  # noqa: PTH110
        return True
    path = Path(text)
    return path.is_absolute() and len(path.parts) > 2 and os.path.exists(Path(*path.parts[:2]))  # noqa: PTH110


def _has_path(item: Mapping[str, Any]) -> bool:
    return any(isinstance(value, str | os.PathLike) and _looks_like_path(os.fspath(value)) for value in item.values())
