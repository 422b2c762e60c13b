"""SIGTERM and Ctrl-C: noted at once, heeded where the training is at rest."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["StopRequest", "TrainingStopped"]


class TrainingStopped(SystemExit):
    """The training was asked to stop (SIGTERM, Ctrl-C), and has saved its state.

    The process ends without a traceback, with the exit code of the signal (143, 130).
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"{signal.Signals(number).name} after step {step}; the state is saved, --resume true continues"
        )
        self.code = 128 + number


class StopRequest:
    """Within its ``with`` block the first signal is only noted, in ``number``; a second one acts as before.

    Attributes:
        number: of the signal, once there was one.
        heed: False ignores the signals.
    """

    def __init__(self) -> None:
        self.heed = True
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self.number = None
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody listen
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note if self.heed else signal.SIG_IGN)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()
