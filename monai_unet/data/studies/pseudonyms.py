"""Pseudonyms: names for studies that tell nothing to whoever does not hold the key.

The key and the table that leads back from pseudonym to study lie in the user's own configuration folder, readable by
him alone: ``$XDG_CONFIG_HOME/monai_unet``, by default ``~/.config/monai_unet``; never beside the results.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from monai_unet.errors import InputError

__all__ = ["Pseudonyms"]

KEY_VARIABLE = "MONAI_UNET_PSEUDONYM_KEY"


class Pseudonyms:
    """Identity → pseudonym, 16 hexadecimal digits: HMAC-SHA256 under a secret key, the same in every run.

    The key is the environment variable ``MONAI_UNET_PSEUDONYM_KEY`` where it is set (sites that share it give the same
    pseudonyms), else the file ``pseudonyms.key``, made at random when it is not there.

    Raises:
        InputError: the folder cannot be written, or the key file is damaged.
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
        """Add (pseudonym, path, series UID) to the table where they are not in it."""
        try:
            descriptor = os.open(self._folder() / self.table.name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+", newline="", encoding="utf-8", errors="surrogateescape") as file:
                known = set(map(tuple, csv.reader(file))) or {()}
                header = [] if len(known) > 1 else [("pseudonym", "path", "series_uid")]
                csv.writer(file).writerows([*header, *sorted(set(rows) - known)])
        except OSError as error:
            raise self._unwritable(error) from error

    def _stored_key(self) -> str:
        path = self._folder() / "pseudonyms.key"
        try:
            if not path.exists():
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(secrets.token_hex(32))
            key = path.read_text()
        except OSError as error:
            raise self._unwritable(error) from error
        if len(key) != 64:
            raise InputError(path, "not the key that was written there", "Delete it: new pseudonyms will differ")
        return key

    def _folder(self) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise self._unwritable(error) from error
        return self.folder

    def _unwritable(self, error: OSError) -> InputError:
        problem = f"key and table of the pseudonyms cannot be kept there ({error.strerror})"
        return InputError(self.folder, problem, "Set XDG_CONFIG_HOME to a folder of your own")
