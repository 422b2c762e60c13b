"""Pseudonyms: names of studies that mean nothing to anyone without the key.

The key, and the table that leads back from pseudonym to study, are kept in the user's own configuration folder, which
nobody else can read, and not with the results: ``$XDG_CONFIG_HOME/monai_unet``, by default ``~/.config/monai_unet``.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from monai_unet.errors import InputError

__all__ = ["Pseudonyms"]

KEY_VARIABLE = "MONAI_UNET_PSEUDONYM_KEY"


class Pseudonyms:
    """Turn identities into pseudonyms: 16 hexadecimal digits of HMAC-SHA256 under a secret key, the same in every run.

    The key is the environment variable ``MONAI_UNET_PSEUDONYM_KEY`` if it is set (sites that share it get the same
    pseudonyms), else the file ``pseudonyms.key``, which the first run fills at random.

    Raises:
        InputError: the folder cannot be written to, or the key file is damaged.

    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> with TemporaryDirectory() as folder, patch.dict(os.environ, {"XDG_CONFIG_HOME": folder, KEY_VARIABLE: "sites"}):
    ...     pseudonyms = Pseudonyms()
    ...     pseudonyms("1.2.840.113619.2.1")
    'f848793de0b796ee'
    """

    def __init__(self) -> None:
        self.folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "monai_unet"
        self.key = (os.environ.get(KEY_VARIABLE) or self._stored_key()).encode()

    def __call__(self, identity: str) -> str:
        """The pseudonym of a series UID or of a file's digest."""
        return hmac.new(self.key, identity.encode(), hashlib.sha256).hexdigest()[:16]

    @property
    def table(self) -> Path:
        """``pseudonyms.csv``: pseudonym, path, series UID."""
        return self.folder / "pseudonyms.csv"

    def remember(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Add (pseudonym, path, series UID) to the table if they are not in it."""
        with self._writing():
            self._create(self.table, "pseudonym,path,series_uid\r\n")
            with self.table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                known = set(map(tuple, csv.reader(file)))
            added = io.StringIO(newline="")
            csv.writer(added).writerows(sorted(set(rows) - known))
            with self.table.open("ab", buffering=0) as unbuffered:  # one write: no other process writes in between
                unbuffered.write(added.getvalue().encode("utf-8", "surrogateescape"))

    def _stored_key(self) -> str:
        path = self.folder / "pseudonyms.key"
        with self._writing():
            self._create(path, secrets.token_hex(32))
            key = path.read_text()
        if len(key) != 64:
            raise InputError(path, "not the key that was written there", "Delete it: new pseudonyms will differ")
        return key

    def _create(self, path: Path, content: str) -> None:
        """Make a file that only its owner can read, unless it exists; if several processes try, the first succeeds."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists():
            return
        descriptor, partial = tempfile.mkstemp(dir=self.folder)
        try:
            with os.fdopen(descriptor, "w", newline="") as file:
                file.write(content)
            with suppress(FileExistsError):
                os.link(partial, path)
        finally:
            Path(partial).unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = f"key and table of the pseudonyms cannot be kept there ({error.strerror})"
            raise InputError(self.folder, problem, "Set XDG_CONFIG_HOME to a folder of your own") from error
