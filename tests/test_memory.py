"""Free memory, the memory that work takes, and running out of it; libc, /proc and /sys are fakes."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from platforms import LINUX

from monai_unet import memory
from monai_unet.memory import available_bytes, keep_freed_memory, measured_bytes, out_of_memory

CPU = torch.device("cpu")


@LINUX
def test_measured_memory_is_the_memory_that_was_touched():
    touched = 200 * 2**20
    assert measured_bytes(lambda: torch.ones(touched, dtype=torch.uint8), CPU) == pytest.approx(touched, rel=0.1)


KEPT = """
import resource, sys
import torch
from monai_unet.memory import keep_freed_memory, measured_bytes

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**26, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

released = [faults() for _ in range(12)][-1]
keep_freed_memory()
kept = [faults() for _ in range(12)][-1]  # glibc needs a few rounds until it has room for the alignment
print(released, kept, measured_bytes(lambda: torch.ones(2**26, dtype=torch.uint8), torch.device("cpu")))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's allocator")
def test_kept_memory_is_reused_and_still_counted():
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    released, kept, measured = map(int, done.stdout.split())
    assert released > 10 * max(kept, 1)
    assert measured == pytest.approx(2**26, rel=0.1)


@LINUX
def test_kept_memory_is_released_only_if_it_is_needed(monkeypatch):
    left, released = [100], []
    monkeypatch.setattr(memory, "_available", lambda: left)
    monkeypatch.setattr(memory, "_trim", lambda: released.append(left.pop()) or left.append(300))
    assert (available_bytes(CPU, enough=100), released) == (100, [])
    assert (available_bytes(CPU, enough=101), released) == (300, [100])
    assert (available_bytes(CPU), released) == (300, [100, 300])


@LINUX
@pytest.mark.parametrize(("accepted", "settings"), [(1, [-3, -1]), (0, [-3])])
def test_an_old_glibc_keeps_its_own_thresholds(accepted, settings, monkeypatch):
    """Before 2.36 it refuses the first one; the second alone would switch off its adaptation, and slow it down."""
    set_ = []

    def mallopt(name, value):
        set_.append(name)
        return accepted

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert set_ == settings


def group(folder: Path, names: tuple[str, str, str], limit: str | int, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@LINUX
@pytest.mark.parametrize(
    ("line", "root", "names", "none"),
    [
        ("0::/slurm/job_1/step_0", ".", V2, "max"),
        ("9:cpu,memory:/slurm/job_1/step_0", "memory", V1, 2**63 - 4096),
    ],
)
def test_the_tightest_limit_of_all_control_groups_counts(line, root, names, none, tmp_path, monkeypatch):
    """Slurm limits the job, the process runs in a step of it; a container sees its own group as the root."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "sys")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemFree: 7 kB\nMemAvailable:    4096 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"5:devices:/elsewhere\n{line}\n")
    top = tmp_path / "sys" / root
    group(top / "slurm" / "job_1" / "step_0", names, none, 900_000, 0)
    assert available_bytes(CPU) == 4096 * 1024, "no limit but that of the machine"
    group(top / "slurm" / "job_1", names, 1_000_000, 900_000, 250_000)
    assert available_bytes(CPU) == 350_000, "the job's; file cache counts as free"
    group(top / "slurm" / "job_1" / "step_0", names, 400_000, 300_000, 0)
    assert available_bytes(CPU) == 100_000
    group(top, names, 50_000, 60_000, 0)
    assert available_bytes(CPU) == 0, "the container's own group, all of it used"
    (tmp_path / "proc" / "self" / "cgroup").write_text(line.replace("slurm", "unseen") + "\n")
    group(top, names, 50_000, 30_000, 0)
    assert available_bytes(CPU) == 20_000, "a path that only the host sees"


def test_errors_that_mean_out_of_memory():
    assert out_of_memory(MemoryError("anything"))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(ValueError("can't allocate memory"))
