"""CPU, memory and GPU in use, measured by MLflow's own monitors."""

from __future__ import annotations

import contextlib
import time
from typing import Any

__all__ = ["SystemMetrics"]

#: seconds between two measurements
INTERVAL = 10.0


class SystemMetrics:
    """Measure CPU, memory and Nvidia GPUs, at most every ten seconds.

    Calling it returns the values under the names that MLflow shows as system metrics, or nothing if the last
    measurement is recent or psutil is not installed.

    >>> measure = SystemMetrics()
    >>> "system/cpu_utilization_percentage" in measure(), measure()
    (True, {})
    """

    def __init__(self) -> None:
        self._monitors: list[Any] = []
        self._next = 0.0
        with contextlib.suppress(ImportError, RuntimeError):  # no psutil; no nvidia-ml-py or no Nvidia GPU
            from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

            self._monitors.append(CPUMonitor())
            self._monitors.append(GPUMonitor())

    def __call__(self) -> dict[str, float]:
        values: dict[str, float] = {}
        if time.monotonic() < self._next:
            return values
        self._next = time.monotonic() + INTERVAL
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
