"""Memory: what is free, what a piece of work takes, how torch says that none is left; and freed memory kept at hand."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["available_bytes", "keep_freed_memory", "measured_bytes", "out_of_memory"]

#: how torch's allocator and its oneDNN say that there is no memory
NO_MEMORY = ("can't allocate memory", "could not create a primitive", "could not create a memory object")
CGROUP = Path("/sys/fs/cgroup")
#: glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def available_bytes(device: torch.device, enough: float = math.inf) -> int | None:
    """Memory that is free for this process on the device; None where that cannot be known.

    Freed memory that the process keeps counts too, for which it is given back first; where ``enough`` bytes are free
    without it, it is kept, and not counted.
    """
    if device.type == "cuda":
        if torch.cuda.mem_get_info(device)[0] < enough:
            torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or sys.platform != "linux":
        return None
    free = min(_left(), default=None)
    if free is not None and free < enough:
        _give_back()
        free = min(_left(), default=None)
    return free


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones, on Linux with glibc; elsewhere nothing.

    glibc gives each tensor above 32 MiB back to Linux when it is freed, and gets the next one page by page, zeroed: on
    a CPU a good part of a pass over a large tile (docs/benchmarks.md). The price: what the process has once taken it
    keeps.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def measured_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that ``work`` takes beyond what is taken before it; None where that cannot be measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    _give_back()  # kept memory would be used again unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident now
    except OSError:
        return None
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in NO_MEMORY)


def _give_back() -> None:
    """What glibc has kept of freed memory goes back to Linux, and is free to be counted."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _left() -> list[int]:
    """What the machine, the process' own limit and its control group leave, as far as they are known."""
    import resource

    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    free = [int(found[1]) << 10] if found else []
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        free.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    return free + _left_to_container()


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) << 10 if found else 0


def _left_to_container() -> list[int]:
    """What the control group (a container, a batch job) leaves, where it has a limit; its file cache counts as free."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        folder = CGROUP / own if (CGROUP / own / "memory.max").exists() else CGROUP
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return []
        cache = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
        used = int((folder / "memory.current").read_text()) - (int(cache[1]) if cache else 0)
        return [max(int(limit) - used, 0)]
    except (OSError, ValueError):
        return []
