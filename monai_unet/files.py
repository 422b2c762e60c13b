"""Whole files or none, and folders taken by one training at a time."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_unet.errors import InputError

__all__ = ["FolderLock", "replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; moved to ``path`` when the block ends well, removed otherwise.

    A process that is killed leaves the old file, or none, and a hidden ``.<name>.<pid>.partial``. The folder is made
    when needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays last: writers choose the format by it
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class FolderLock:
    """Holds ``<folder>/.training.lock`` for the time of a ``with`` block.

    The kernel gives it back however the process ends. A record lock rather than flock: loader workers, which may
    outlive a killed training by seconds, do not inherit it. On Windows, which has none, nothing is held.

    Args:
        folder: made when needed.

    Raises:
        InputError: on entering: a live training has the folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / ".training.lock"

    def __enter__(self) -> FolderLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                file.close()
                raise InputError(
                    self.path.parent,
                    f"a training is writing to this folder ({holder})",
                    "Wait for its end, stop it, or name another --output_dir",
                ) from e
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        self.file = file
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()
