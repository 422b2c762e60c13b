"""What is wrong with a user's file and what to do about it, said in one sentence."""

from __future__ import annotations

import os
import sys
from types import TracebackType

__all__ = ["InputError", "plain_input_errors"]


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
        super().__init__(f"{self.path}: {self.problem}{'' if self.problem.endswith('?') else '.'} {self.cure}.")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return type(self), (self.path, self.problem, self.cure)  # a worker process pickles it


def plain_input_errors() -> None:
    """Let a program that ends with an `InputError` print its message without the traceback through MONAI's parser.

    A bundle's ``initialize`` calls it first. Other errors keep their traceback.

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
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            previous(kind, error, trace)
        else:
            print(f"error: {cause}", file=sys.stderr)

    sys.excepthook = hook
