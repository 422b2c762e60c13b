"""Redaction of paths and file names, which are often patients' names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["file_names", "redact_command", "redact_config", "redact_parameter", "redact_text", "redact_uri"]

#: of images, volumes, slides, archives, arrays, tables, checkpoints and their kind, also ones that the readers refuse:
#: an error names them all the more
SUFFIXES = (
    r"\.(?:png|jpe?g|jp2|bmp|gif|webp|tiff?|btf|tf[28]|svs|ndpi|scn|mrxs|vsi|ets|bif|svslide|czi|lif|lsm|nd2|oib|oif|"
    r"ims|stk|zarr|n5|dcm|dicom|dic|ima|nii|img|hdr|nrrd|nhdr|mha|mhd|mgh|mgz|mnc|raw|ome|npy|npz|h5|hdf5?|mat|zip|tar|"
    r"tgz|gz|bz2|xz|zst|7z|json|geojson|ya?ml|xml|csv|tsv|xlsx?|txt|pdf|pth?|ckpt|safetensors|onnx|pkl)"
)
#: a path in quotes, spaces included, as Python's own errors print it
QUOTED = re.compile(r"(?<!\w)(['\"])(?=\S)[^'\"\n]*[/\\][^'\"\n]*(?<=\S)\1(?!\w)")
#: a path anywhere in a text, up to the next space or quote, and the name of a file without its folder
PATH = re.compile(r"(?:[A-Za-z]:)?[^\s'\"`,;:()<>\[\]]*[/\\][^\s'\"`,;:()<>\[\]]+")
FILE = re.compile(rf"[^\s'\"`/\\,;:()<>\[\]]+{SUFFIXES}\b", re.IGNORECASE)
#: a literal within a config's expression, which may be a path: '/pictures' is not one, '/home/Doe' is
LITERAL = re.compile(r"(['\"])(.+?)\1")
PATH_KEYS = re.compile(r"(?:_dir|_path|_root|_file|^input|^path|^folder)$")


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace paths, file names and the given words in a text, such as an exception's.

    >>> redact_text("item Doe_1: NaN in image.ome.tif, see /data/Doe", secrets=["Doe_1"])
    'item <name>: NaN in <file>, see <path>'
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "<name>", text)
    text = PATH.sub("<path>", QUOTED.sub(r"\1<path>\1", text))
    return re.sub(r"(<(path|name|file)>){2,}", "<path>", FILE.sub("<file>", text))


def redact_parameter(value: Any) -> str:
    """Convert a parameter of plain values to text; a file becomes the hash of its content, ``sha256:…``.

    >>> redact_parameter([64, "/data/Doe/1.png"])
    "[64, '<path>']"
    """
    if isinstance(value, str) and os.path.sep in value and os.path.isfile(value):  # noqa: PTH113
        return f"sha256:{hashlib.sha256(Path(value).read_bytes()).hexdigest()}"
    return redact_text(str(value))


def redact_uri(uri: str) -> str | None:
    """Return a tracking URI if it may be written to a file, or None if it contains a password.

    >>> redact_uri("https://host:5000"), redact_uri("postgresql://ada:secret@host/db")
    ('https://host:5000', None)
    """
    return None if urlsplit(uri).password else uri


def redact_config(config: Any, key: str = "") -> Any:
    """Replace the user's paths in a config of plain values.

    ``<dataset_dir>`` and the like stand for them, and lists of files are replaced by their length. Expressions stay as
    they are, unless they contain an existing path.

    >>> redact_config({"dataset_dir": "/data/Doe", "output_dir": "$@bundle_root + '/models'", "seed": 1})
    {'dataset_dir': '<dataset_dir>', 'output_dir': "$@bundle_root + '/models'", 'seed': 1}
    """
    if isinstance(config, Mapping):
        return {
            name: value if name == "_meta_" else redact_config(value, str(name))  # the bundle's metadata.json
            for name, value in config.items()
        }
    if isinstance(config, list):
        if config and all(isinstance(item, Mapping) and "_target_" not in item and _has_path(item) for item in config):
            return f"<{len(config)} items>"
        return [redact_config(value, key) for value in config]
    if not isinstance(config, str):
        return config
    if config[:1] in ("$", "@", "%"):
        return LITERAL.sub(lambda found: "'<path>'" if _is_path(found[2]) else found[0], config)
    if PATH_KEYS.search(key) and config != ".":
        return f"<{key}>"
    return "<path>" if _looks_like_path(config) else config


def redact_command(arguments: Sequence[str]) -> str:
    """Join the words of a command line, with the user's paths replaced as in a config.

    >>> redact_command(["monai.bundle", "run", "--dataset_dir", "Doe", "--input=Doe.png", "--max_epochs", "3"])
    'monai.bundle run --dataset_dir <dataset_dir> --input=<input> --max_epochs 3'
    """
    words, key = [], ""
    for argument in arguments:
        if argument.startswith("-") and "=" not in argument:
            words.append(argument)
            key = argument.lstrip("-")
        else:
            option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
            words.append(f"{option}{equals}{redact_config(value, option.lstrip('-') or key)}")
            key = ""
    return " ".join(words)


def file_names(items: Any) -> set[str]:
    """Collect the names of a datalist's files, with and without suffix.

    Names of one or two characters are left out: to replace them would garble any text.

    >>> sorted(file_names([{"image": "/data/Doe.nii.gz", "fold": 0}]))
    ['Doe', 'Doe.nii.gz']
    """
    if isinstance(items, str | os.PathLike):
        name = Path(items).name
        return {n for n in (name, re.sub(rf"(?:{SUFFIXES})+$", "", name, flags=re.IGNORECASE)) if len(n) > 2}
    if isinstance(items, Mapping):
        items = items.values()
    elif not isinstance(items, list | tuple):
        return set()
    return {name for item in items for name in file_names(item)}


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or FILE.fullmatch(text) is not None


def _is_path(text: str) -> bool:
    """Whether a literal that may as well be the end of a path exists, or could be created next to existing files."""
    if not _looks_like_path(text):
        return False
    text = os.path.expanduser(text)  # noqa: PTH111 - unlike pathlib's, these raise for no text, however long
    if os.path.exists(text):  # noqa: PTH110
        return True
    path = Path(text)
    return path.is_absolute() and len(path.parts) > 2 and os.path.exists(Path(*path.parts[:2]))  # noqa: PTH110


def _has_path(item: Mapping[str, Any]) -> bool:
    return any(isinstance(value, str) and _looks_like_path(value) for value in item.values())
