"""Memory: how much is free, how much a piece of work takes, and how torch reports that it has run out."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["available_bytes", "keep_freed_memory", "measured_bytes", "out_of_memory"]

#: how torch's CPU allocator and oneDNN report that memory has run out
OUT_OF_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory object",
    "bad_alloc",
)
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
#: files of a control group with the limit and the use, and the name of its file cache in memory.stat
CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
#: glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def available_bytes(device: torch.device, enough: float = math.inf) -> int | None:
    """Return the memory in bytes that this process can still allocate on a device; None if that cannot be known.

    On Linux the limits of the process and of all control groups around it (container, Slurm job) count. Freed memory
    that the process has kept is released first, unless ``enough`` bytes are free without it.

    >>> available_bytes(torch.device("cpu")) > 2**20  # on Linux
    True
    >>> available_bytes(torch.device("meta")) is None
    True
    """
    if device.type == "cuda":
        if torch.cuda.mem_get_info(device)[0] < enough:
            torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or sys.platform != "linux":
        return None
    free = min(_available(), default=None)
    if free is not None and free < enough:
        _trim()
        free = min(_available(), default=None)
    return free


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones: on Linux with glibc 2.36 or later.

    By default glibc returns each tensor above 32 MiB to Linux when it is freed, and gets the next one page by page,
    zeroed: on a CPU a good part of the time of a pass over a large tile (docs/benchmarks.md). The price is that the
    process never shrinks. Elsewhere nothing changes: older versions of glibc refuse a threshold above 32 MiB.

    >>> keep_freed_memory()  # once, at the start of a run
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # the second setting without the first would freeze the threshold at its initial 128 KiB
        if libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1):
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def measured_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak memory in bytes that ``work`` takes on top of what is in use; None if it cannot be measured.

    >>> peak = measured_bytes(lambda: torch.ones(2**24), torch.device("cpu"))  # 64 MiB
    >>> peak is None or peak >= 2**24
    True
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    _trim()  # kept memory would be reused without being seen
    try:
        (PROC / "self/clear_refs").write_text("5")  # resets the high-water mark to what is resident now
    except OSError:
        return None
    before = _kib("self/status", "VmRSS")
    work()
    return _kib("self/status", "VmHWM") - before


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that memory has run out.

    >>> out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    True
    >>> out_of_memory(RuntimeError("shape mismatch"))
    False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def _trim() -> None:
    """Return the freed memory that glibc has kept to Linux, so that it counts as free."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _available() -> list[int]:
    """What the machine, the limit of the process and its control groups leave, as far as they are known."""
    import resource  # not on Windows

    free = _cgroup_available()
    if machine := _kib("meminfo", "MemAvailable"):
        free.append(machine)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        free.append(limit - int((PROC / "self/statm").read_text().split()[0]) * resource.getpagesize())
    return free


def _kib(file: str, name: str) -> int:
    """A value in bytes from a file of /proc that states it in KiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", (PROC / file).read_text())
    return int(found[1]) << 10 if found else 0


def _cgroup_available() -> list[int]:
    """What each control group that has a limit leaves, from the process's own up to the root; file cache is free."""
    free = []
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        limit, used, cache = CGROUP_V1 if controllers else CGROUP_V2
        root = CGROUP / "memory" if controllers else CGROUP
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            try:
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = (folder / "memory.stat").read_text()
            except (OSError, ValueError):  # outside the container's view; no limit ("max")
                continue
            found = re.search(rf"^{cache} (\d+)", stat, re.MULTILINE)
            free.append(max(left + int(found[1]) if found else left, 0))
    return free
