"""Files that are whole or absent, and folders that one process at a time writes to."""

from __future__ import annotations

import glob
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import ClassVar

from monai_unet.errors import UNWRITABLE, InputError

__all__ = ["LONGEST_NAME", "FolderLock", "creating", "remove_leftovers", "replacing"]

#: bytes in a file's name that all common file systems take
LONGEST_NAME = 255

if sys.platform == "win32":
    import msvcrt

    #: nobody else can read a locked byte: this one is far behind the holder's name
    LOCKED_BYTE = 1 << 30

    def _lock(file: FileIO) -> None:
        file.seek(LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _unlock(file: FileIO) -> None:
        file.seek(LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: FileIO) -> None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: FileIO) -> None:
        fcntl.lockf(file, fcntl.LOCK_UN)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file as a whole or not at all.

    Yields a temporary path in the same folder, which is created if missing. When the block succeeds, the temporary
    file is synced to disk and moved to ``path``; when it raises, the file is removed. A process that is killed leaves
    the old file untouched, and a hidden ``.<name>.<pid>.partial``.

    Raises:
        InputError: the disk is full or read-only, or the name is not possible there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "scores.csv") as partial:
    ...         _ = partial.write_text("epoch,loss")
    ...     [file.name for file in Path(folder).iterdir()]
    ['scores.csv']
    """
    path = Path(path)
    partial = path.with_name(_partial_name(path, str(os.getpid())))
    try:
        with _explained(path, partial):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb+") as file:  # Windows syncs only what is open for writing
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    with suppress(OSError):  # Windows and some network drives cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def creating(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Create a folder with everything in it, or not at all.

    Yields an empty temporary folder on the same disk. When the block succeeds, it becomes ``folder``, whose parents are
    created if missing; when the block raises, it is removed.

    Raises:
        InputError: the folder exists; the disk is full or read-only, or the name is not possible there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     with creating(Path(home) / "bundle") as built:
    ...         (built / "LICENSE").touch()
    ...     [path.relative_to(home).as_posix() for path in sorted(Path(home).rglob("*"))]
    ['bundle', 'bundle/LICENSE']
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise InputError(folder, "it exists", "Name a new folder")
    partial = folder.with_name(_partial_name(folder, str(os.getpid())))
    try:
        with _explained(folder, partial):
            partial.mkdir(parents=True)
            yield partial
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _explained(path: Path, partial: Path) -> Iterator[None]:
    """Say in one sentence why a path cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError whose context is the OSError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno not in UNWRITABLE:
            raise
        if cause.filename is not None:
            at_fault = Path(cause.filename)
            if at_fault not in (path, *path.parents) and partial not in (at_fault, *at_fault.parents):
                raise  # another file's
        existing = next(parent for parent in path.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(existing).free >> 20
        problem = f"it could not be written ({cause.strerror}; {free} MiB are free)"
        raise InputError(path, problem, UNWRITABLE[cause.errno]) from error


def _partial_name(path: Path, process: str) -> str:
    end = f".{process}.partial{path.suffix}"  # the suffix stays last: writers choose the format by it
    stem = os.fsencode(path.stem)[: LONGEST_NAME - 20 - len(os.fsencode(path.suffix))]  # a number of 10 digits fits
    return f".{stem.decode(errors='ignore')}{end}"


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes have left of a file: no other process may be writing it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / ".mask.4711.partial.tif").touch()
    ...     remove_leftovers(Path(folder) / "mask.tif")
    ...     list(Path(folder).iterdir())
    []
    """
    path = Path(path)
    begin, end = (glob.escape(part) for part in _partial_name(path, "/").split("/"))
    for leftover in path.parent.glob(f"{begin}*{end}"):
        leftover.unlink(missing_ok=True)


class FolderLock:
    """Reserve a folder for one process at a time, by a lock on ``<folder>/<name>``.

    The operating system releases the lock however the process ends. On Linux and macOS it is a record lock (``lockf``),
    which child processes do not inherit: a loader's workers may outlive a killed training run by seconds. A record lock
    belongs to the process and is lost as soon as any descriptor of the file is closed, so this class refuses a second
    lock on the same file within the process, and nobody else should open the file.

    Args:
        folder: created when the lock is acquired.
        name: of the lock file.

    Raises:
        InputError: on entering a ``with`` block: the folder is taken; names the process that holds it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with FolderLock(folder):
    ...         FolderLock(folder).acquire()
    ...     (lock := FolderLock(folder)).acquire()
    ...     lock.release()
    False
    True
    """

    _held: ClassVar[dict[tuple[int, Path], object]] = {}

    def __init__(self, folder: str | os.PathLike[str], name: str = ".training.lock") -> None:
        self.path = Path(folder) / name

    def acquire(self) -> bool:
        """Take the folder without waiting; False if it is taken, be it by this process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        key, token = (os.getpid(), self.path.resolve()), object()  # a forked process has the table but not the locks
        if self._held.setdefault(key, token) is not token:
            self._holder = "this process"  # reading the file would close a descriptor of it
            return False
        with ExitStack() as undo:
            undo.callback(self._held.pop, key)
            file = undo.enter_context(self.path.open("ab+", buffering=0))
            try:
                _lock(file)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                self._holder = file.read().decode() or "unknown"
                return False
            undo.callback(_unlock, file)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
            self._undo = undo.pop_all()
        return True

    def release(self) -> None:
        """Leave the folder to others."""
        self._undo.close()

    def __enter__(self) -> FolderLock:
        if not self.acquire():
            raise InputError(
                self.path.parent,
                f"a training run is writing to this folder ({self._holder})",
                "Wait until it ends, stop it, or choose another --output_dir",
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
