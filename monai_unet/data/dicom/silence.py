"""Keep values of DICOM files out of logs, warnings and errors: pydicom and highdicom quote them, patients' names too.

Warnings can be silenced for a whole process only, as Python's `warnings.catch_warnings` does: while one thread reads,
those of the other threads are lost. Nothing stays silenced once no thread reads.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from monai_unet.errors import InputError

__all__ = ["reading", "silence_dicom_libraries"]

EXPORT_AGAIN = "Export the series again from the scanner or the archive"


class _Silence:
    """Nested and concurrent blocks share one silence: the first to enter begins it, the last to leave ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._levels = {logger: logger.level for logger in map(logging.getLogger, ("pydicom", "highdicom"))}
                for logger in self._levels:
                    logger.setLevel(logging.CRITICAL + 1)
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._warnings.__exit__(None, None, None)
                for logger, level in self._levels.items():
                    logger.setLevel(level)


#: ``with silence_dicom_libraries:`` neither logs nor warnings of pydicom and highdicom.
silence_dicom_libraries = _Silence()


@contextmanager
def reading(source: object) -> Iterator[None]:
    """Turn the errors that a damaged file provokes into an `InputError` without the libraries' texts, in silence.

    Raises:
        InputError: with the path of ``source``, for any exception but MemoryError and ImportError: those say nothing
            about the file.

    >>> with reading("slice.dcm"):
    ...     int("Doe^Jane")
    Traceback (most recent call last):
    monai_unet.errors.InputError: slice.dcm: not readable as DICOM (ValueError). Export the series again ...
    """
    try:
        with silence_dicom_libraries:
            yield
    except (InputError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise InputError(str(source), f"not readable as DICOM ({type(error).__name__})", EXPORT_AGAIN) from error
