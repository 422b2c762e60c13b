"""What is wrong with a user's file or option and what to do about it, said in one sentence."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["UNWRITABLE", "InputError", "explain", "plain_input_errors", "raise_problems"]

PACKAGE = Path(__file__).parent
#: how many of several problems are listed
LISTED = 20
#: why a file cannot be written, and the cure
UNWRITABLE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Make room, or choose another output folder")
UNWRITABLE |= dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), "Choose another output folder, or correct the folder's permissions"
)
UNWRITABLE |= dict.fromkeys(
    (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "Choose another output folder, or rename the file"
)


class InputError(ValueError):
    """Raised by every reader and check of the package for input that it cannot use.

    Args:
        path: the file or folder at fault.
        problem: what is wrong, with the values found.
        cure: what the user can do.

    All three are attributes, too; the message is ``"<path>: <problem>. <cure>."``.

    >>> raise InputError("cells.tif", "3 channels, the network takes 1", "Convert it to grayscale")
    Traceback (most recent call last):
    monai_unet.errors.InputError: cells.tif: 3 channels, the network takes 1. Convert it to grayscale.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, cure: str) -> None:
        self.path = os.fspath(path)
        self.problem = problem.rstrip(".")
        self.cure = cure.rstrip(".")
        end = ("" if self.problem.endswith("?") else ".") + ("\n" if "\n" in self.problem else " ")
        super().__init__(f"{self.path}: {self.problem}{end}{self.cure}.")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return type(self), (self.path, self.problem, self.cure)  # a worker process pickles it


def raise_problems(path: str | os.PathLike[str], problems: Sequence[InputError]) -> None:
    """Raise what is wrong with the files of a list: the one problem as it is, or a line for each of several.

    Args:
        path: of the list, or its name.
        problems: of the files. Of more than 20 the rest is counted; without any, nothing happens.

    Raises:
        InputError: there is a problem.

    >>> raise_problems("dataset.json", [InputError(f"{name}.png", "empty file", "Copy it again") for name in "ab"])
    Traceback (most recent call last):
    monai_unet.errors.InputError: dataset.json: 2 problems:
    a.png: empty file. Copy it again.
    b.png: empty file. Copy it again.
    Correct them, and start again.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"{len(problems)} problems:", *map(str, problems[:LISTED])]
        lines += [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise InputError(path, "\n".join(lines), "Correct them, and start again")


def plain_input_errors() -> None:
    """Let a program that ends with an error for its user print one sentence instead of the traceback through MONAI.

    That is an `InputError`, a wrong value that this package has refused, a full or read-only disk, memory that has run
    out, and Ctrl-C; other errors keep their traceback. In a notebook, too. A bundle's ``initialize`` calls it first.

    >>> from contextlib import redirect_stderr
    >>> before = sys.excepthook
    >>> plain_input_errors()
    >>> with redirect_stderr(sys.stdout):  # as Python does when the program ends
    ...     sys.excepthook(InputError, InputError("cells.tif", "3 channels", "Convert it to grayscale"), None)
    error: cells.tif: 3 channels. Convert it to grayscale.
    >>> sys.excepthook = before
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if (text := explain(error)) is None:
            previous(kind, error, trace)
        else:
            print(f"error: {text}", file=sys.stderr)

    def show(shell: Any, kind: Any, error: BaseException, trace: Any, tb_offset: int | None = None) -> None:
        if (text := explain(error)) is None:
            shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        else:
            print(f"error: {text}", file=sys.stderr)

    sys.excepthook = hook
    notebook = sys.modules.get("IPython")  # it does not call the hook
    if notebook is not None and (shell := notebook.get_ipython()) is not None:
        shell.set_custom_exc((Exception, KeyboardInterrupt), show)


def explain(error: BaseException) -> str | None:
    """Say in one sentence what a user can do about an error; None if it is not a user's.

    The causes are searched, too: MONAI wraps what is raised while it builds a config or applies a transform.

    >>> explain(PermissionError(13, "Permission denied", "/out/cells.png"))
    "/out/cells.png: Permission denied. Choose another output folder, or correct the folder's permissions."
    >>> explain(KeyError("image")) is None
    True
    """
    from monai_unet.memory import out_of_memory  # imports torch

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        if isinstance(cause, KeyboardInterrupt):
            return "stopped by Ctrl-C"
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            return f"{cause.filename or 'the output'}: {cause.strerror}. {UNWRITABLE[cause.errno]}."
        if isinstance(cause, Exception) and _refused(cause):
            return str(cause)
        if found := re.search(r"^(?:\S*InputError: |\w*Error: \[Errno \d+\] )(.+)$", str(cause), re.MULTILINE):
            return found[1]  # MONAI's SaveImage raises an error of its own, with the traceback as its text
        if out_of_memory(cause):
            return "out of memory. Choose a smaller --tile_size or --averaging none, or close other programs."
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _refused(error: Exception) -> bool:
    """Whether this package itself has raised an error, as it does for a wrong value; then the text has the cure."""
    origin = traceback.extract_tb(error.__traceback__)[-1:]
    return any(
        Path(frame.filename).is_relative_to(PACKAGE) and (frame.line or "").startswith("raise") for frame in origin
    )
