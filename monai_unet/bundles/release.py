"""Weights that travel with a bundle: half as large, with their checksum."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from monai_unet.errors import InputError
from monai_unet.files import replacing
from monai_unet.networks import load_network, load_task

__all__ = ["record_checksum", "release"]

#: bytes of a file of weights: several bundles are to fit into one wheel
LARGEST = 10_000_000
METADATA = Path("configs", "metadata.json")


def release(bundle: str | os.PathLike[str], ckpt_path: str | os.PathLike[str]) -> Path:
    """Make the best model of a training run the weights that a bundle is published with.

    Convolutions are rounded to half precision; biases and batch norm, a hundredth of the numbers, are not. The task
    becomes a ``release``, "<bundle> <version>", and ``weights_sha256`` in the bundle's metadata.json the checksum of
    the file, which `load_network` compares.

    Args:
        bundle: its folder.
        ckpt_path: ``model.pt`` as `BestCheckpoint` writes it.

    Returns:
        ``models/model.pt`` of the bundle.

    Raises:
        InputError: the checkpoint does not say how it was trained, is too large, or has weights beyond half precision.

    >>> import tempfile
    >>> from monai_unet.networks import ValidUNet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "cells" / "configs").mkdir(parents=True)
    ...     _ = (Path(folder) / "cells" / "configs" / "metadata.json").write_text('{"version": "0.1.0"}')
    ...     weights = ValidUNet(2, 1, 2, features=(8, 16)).state_dict()
    ...     torch.save({"model": weights, "task": {"trained": {"seed": 0}}}, f"{folder}/model.pt")
    ...     load_task(release(f"{folder}/cells", f"{folder}/model.pt"))["release"]
    'cells 0.1.0'
    """
    bundle, ckpt_path = Path(bundle), Path(ckpt_path)
    metadata = _metadata(bundle)
    state, task = load_network(ckpt_path).state_dict(), load_task(ckpt_path)
    if "trained" not in task:
        problem = "it does not say how it was trained"
        raise InputError(ckpt_path, problem, "Name a model.pt that this version of the package has written")
    halved = {name: value.half() if value.ndim > 1 else value for name, value in state.items()}
    wrong = [name for name, value in halved.items() if not value.isfinite().all()]
    if wrong:
        raise InputError(ckpt_path, f"{wrong[0]} has values beyond half precision", "Train again")
    path = bundle / "models" / "model.pt"
    task["release"] = f"{bundle.resolve().name} {metadata['version']}"
    with replacing(path) as partial:
        torch.save({"model": halved, "task": task}, partial)
        if (size := partial.stat().st_size) > LARGEST:
            problem = f"its weights take {size:,} bytes, and {LARGEST:,} is the most"
            raise InputError(ckpt_path, problem, "Train with fewer --features")
    record_checksum(bundle)
    return path


def record_checksum(bundle: str | os.PathLike[str]) -> None:
    """Make ``weights_sha256`` in a bundle's metadata.json that of its ``models/model.pt``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, text in (("models/model.pt", ""), ("configs/metadata.json", "{}")):
    ...         (Path(folder) / name).parent.mkdir()
    ...         _ = (Path(folder) / name).write_text(text)
    ...     record_checksum(folder)
    ...     _metadata(Path(folder))["weights_sha256"][:8]
    'e3b0c442'
    """
    metadata, weights = _metadata(Path(bundle)), Path(bundle) / "models" / "model.pt"
    metadata["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    with replacing(Path(bundle) / METADATA) as partial:
        partial.write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _metadata(bundle: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((bundle / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(bundle / METADATA, f"it cannot be read ({error})", "Name the folder of a bundle") from error
    return found
