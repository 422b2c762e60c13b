"""SIGTERM and Ctrl-C: recorded at once, acted on at the next point where the state can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["StopRequest", "TrainingStopped", "shield_worker"]


class TrainingStopped(SystemExit):
    """Raised when a training run was asked to stop (SIGTERM, Ctrl-C) and has saved its state.

    The process ends without a traceback, with the signal's exit code (143, 130).

    >>> stopped = TrainingStopped(signal.SIGINT, step=120)
    >>> print(stopped)
    SIGINT after step 120; the state is saved, --resume true continues
    >>> stopped.code
    130
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"{signal.Signals(number).name} after step {step}; the state is saved, --resume true continues"
        )
        self.code = 128 + number


class StopRequest:
    """Record the first SIGTERM or Ctrl-C within a ``with`` block; a second one acts as it did before the block.

    Attributes:
        number: the signal's, once there was one.
        enabled: if False, the signals are ignored.

    >>> with StopRequest() as stop_request:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     print("saving the state")
    saving the state
    >>> stop_request.number == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.enabled = True
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self.number = None
        if threading.current_thread() is threading.main_thread():  # Python sets signal handlers only there
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._record if self.enabled else signal.SIG_IGN)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()


def shield_worker(worker_id: int) -> None:
    """Let a loader's worker ignore the signals that ask its training run to stop.

    Terminals and schedulers signal every process of a job. A worker that died would break the step after which the run
    wants to stop. Workers end with their training run in any case.

    >>> from torch.utils.data import DataLoader
    >>> loader = DataLoader(range(10), num_workers=2, worker_init_fn=shield_worker)
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
