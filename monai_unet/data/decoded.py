"""Each file decoded once: a check keeps what it has decoded for the reader that loads the file next.

Checks read every file before the first step of a training or a prediction; without this, loading would decode each of
them again. A file is kept until a reader loads it, until a reader loads another one that was not kept (loading has then
passed the files that were), or until the process forks a worker, which decodes for itself.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import torch

from monai_unet.memory import available_bytes

__all__ = ["Decoded", "decoded_once", "keeping_decoded"]

#: Fraction of the free memory that decoded files may occupy until they are loaded.
SHARE = 1 / 8

_kept: dict[tuple[Callable[[Path], Decoded], str], tuple[tuple[int, ...], Decoded]] = {}  # with the file's version
_room: ContextVar[float | None] = ContextVar("bytes that may still be kept, within a check", default=None)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_kept.clear)  # nothing would tell this process which files a worker has loaded


class Decoded(NamedTuple):
    """Hold the content of a file as its decoder returns it.

    >>> import numpy as np
    >>> Decoded(np.zeros((1, 4, 4), np.float32), {"Y": 0.5, "X": 0.5}).array.nbytes
    64
    """

    array: npt.NDArray[Any]
    #: where the array's elements are, in the terms of the format
    geometry: Any
    #: whether all of it comes from this one file; only then is it unchanged if the file is
    one_file: bool = True


def decoded_once(decode: Callable[[Path], Decoded]) -> Callable[[Path], Decoded]:
    """Let a decoder return, once, the content that a check has kept of an unchanged file.

    A file is unchanged if inode, size and modification time are those of the check.

    >>> import tempfile
    >>> import numpy as np
    >>> read = decoded_once(lambda path: print("decoding") or Decoded(np.fromfile(path, np.uint8), None))
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     with keeping_decoded():
    ...         checked = read(Path(file.name))
    ...     loaded = read(Path(file.name))
    ...     loaded_again = read(Path(file.name))
    decoding
    decoding
    """

    @functools.wraps(decode)
    def read(path: Path) -> Decoded:
        key = (decode, os.path.realpath(path))
        try:
            stat = path.stat()
        except OSError:
            return decode(path)  # the decoder reports what is wrong
        version = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        kept_version, decoded = _kept.pop(key, (None, None))
        if decoded is None or kept_version != version:
            decoded = decode(path)
        room = _room.get()
        if room is None:
            if decoded.one_file and kept_version is None:
                _kept.clear()
        elif decoded.one_file and decoded.array.nbytes <= room:
            _kept[key] = version, decoded
            _room.set(room - decoded.array.nbytes)
        return decoded

    return read


@contextmanager
def keeping_decoded() -> Iterator[None]:
    """Keep the files that are decoded in this block, as far as memory allows, until they are read again.

    Where free memory is unknown (see :func:`monai_unet.memory.available_bytes`), nothing is kept.

    >>> with keeping_decoded():
    ...     pass  # check all files here
    """
    used = sum(decoded.array.nbytes for _, decoded in list(_kept.values()))
    free = available_bytes(torch.device("cpu"))
    room = _room.set(0 if free is None else SHARE * (free + used) - used)
    try:
        yield
    finally:
        _room.reset(room)
