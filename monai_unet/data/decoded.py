"""Each file decoded once: a check keeps what it has decoded for the reader that loads the file next.

Checks read every file before the first step of a training or a prediction; without this, loading would decode each of
them again.
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
_room: ContextVar[float] = ContextVar("bytes that may still be kept", default=0)  # above 0 within a check only
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_kept.clear)  # what worker processes load would never be forgotten here


class Decoded(NamedTuple):
    """Hold what a decoder has read from a file.

    >>> import numpy as np
    >>> Decoded(np.zeros((1, 4, 4), np.float32), {"Y": 0.5, "X": 0.5}).array.nbytes
    64
    """

    array: npt.NDArray[Any]
    #: where the array's elements are, in the terms of the format
    geometry: Any
    #: whether all of it comes from this one file, whose version then is the array's
    one_file: bool = True


def decoded_once(decode: Callable[[Path], Decoded]) -> Callable[[Path], Decoded]:
    """Let a decoder hand out, once, what a check has kept of an unchanged file.

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
        if decoded.one_file and decoded.array.nbytes < _room.get():
            _kept[key] = version, decoded
            _room.set(_room.get() - decoded.array.nbytes)
        return decoded

    return read


@contextmanager
def keeping_decoded() -> Iterator[None]:
    """Keep what is decoded in this block, as far as memory allows, each file until it is read again.

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
