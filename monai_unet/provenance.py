"""Everything needed to repeat a run: versions, packages, hardware, the command line and the config."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite
import monai
import numpy as np
import torch
from monai.bundle import ConfigParser

import monai_unet
from monai_unet.redaction import redact_command

__all__ = ["code_version", "command_line", "config_under_construction", "environment", "hardware", "plain"]


def code_version() -> dict[str, str]:
    """Collect the versions of the code that is running.

    In a git checkout, ``commit`` is the hash, with a "+" if there are uncommitted changes, and ``tree`` is "clean" or
    "modified".

    >>> code_version()["torch"] == torch.__version__
    True
    """
    versions = {
        "monai_unet": monai_unet.__version__,
        "torch": torch.__version__,
        "monai": monai.__version__,
        "ignite": ignite.__version__,
        "python": platform.python_version(),
    }
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # an installed wheel has no git history
        versions["commit"] = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        versions["tree"] = "modified" if versions["commit"].endswith("+") else "clean"
    return versions


def command_line() -> str:
    """Return the command that has started this process, without the user's paths.

    >>> command_line().split()[0]
    'python'
    """
    return redact_command(["python", *sys.orig_argv[1:]])


def hardware(device: torch.device) -> str:
    """Name the GPU, or the CPU with the number of threads that torch uses of it.

    >>> hardware(torch.device("cpu")).endswith("threads")
    True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def environment() -> str:
    """List all installed packages in pip's format, below a comment with Python's version and the platform.

    >>> f"torch=={importlib.metadata.version('torch')}" in environment().splitlines()
    True
    """
    installed = {f"{package.name}=={package.version}" for package in importlib.metadata.distributions()}
    first = f"# Python {platform.python_version()}, {platform.platform()}"
    return "\n".join([first, *sorted(installed, key=str.lower)])


def config_under_construction() -> dict[str, Any] | None:
    """Find the bundle's config from which the caller is being created, as plain values; None outside a bundle.

    MONAI's parser passes neither itself nor its config to the objects it creates, so it is looked up among the callers.

    >>> config = {"seed": 1, "found": "$provenance.config_under_construction()"}
    >>> parser = ConfigParser({"imports": ["$from monai_unet import provenance"], **config})
    >>> parser.get_parsed_content("found")["seed"]
    1
    """
    for frame, _ in traceback.walk_stack(None):
        if isinstance(parser := frame.f_locals.get("self"), ConfigParser):
            return dict(plain(parser.get()))
    return None


def plain(value: Any) -> Any:
    """Convert to the types that JSON and YAML know: arrays and tensors to numbers and lists, other objects to text.

    >>> plain({"learning_rate": np.float64(0.1), "device": torch.device("cpu"), "features": (64, 128)})
    {'learning_rate': 0.1, 'device': 'cpu', 'features': [64, 128]}
    """
    if isinstance(value, Mapping):
        return {name if type(name) is int else str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, set | frozenset):
        return plain(sorted(value, key=str))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or type(value) in (str, int, float, bool) else str(value)
