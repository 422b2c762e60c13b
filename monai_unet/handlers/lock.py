"""One training at a time in an output folder."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from monai_unet.data.errors import InputError

__all__ = ["FolderLock"]


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
