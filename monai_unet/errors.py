"""The one error of the front door: what is wrong with a user's file, and what to do about it."""

from __future__ import annotations

import os
import sys
from types import TracebackType


class InputError(ValueError):
    """Raised by every reader and check of the package for input that must not go on.

    Args:
        path: the file or folder at fault.
        problem: what is wrong, with the values found ("3 channels, the network takes 1").
        cure: what the user can do ("convert it to grayscale").

    The three are kept as attributes; the message is ``"<path>: <problem>. <cure>."``.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, cure: str) -> None:
        self.path = os.fspath(path)
        self.problem = problem.rstrip(".")
        self.cure = cure.rstrip(".")
        super().__init__(f"{self.path}: {self.problem}. {self.cure}.")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return type(self), (self.path, self.problem, self.cure)  # survives the trip from a loader's worker


def plain_input_errors() -> None:
    """Let a program that an `InputError` ends say just that, instead of a traceback through MONAI's config parser.

    A bundle's ``initialize`` calls it first. Other errors keep their traceback.
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
