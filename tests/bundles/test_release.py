"""Weights that a bundle is published with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from monai_unet.bundles.__main__ import main
from monai_unet.bundles.release import LARGEST, release
from monai_unet.errors import InputError
from monai_unet.networks import ValidUNet, load_network, load_task

BUNDLES = Path(__file__).parents[2] / "bundles"
TASK = {"kind": "instances", "trained": {"seed": 0}}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "cells" / "configs").mkdir(parents=True)
    (tmp_path / "cells" / "configs" / "metadata.json").write_text('{"version": "0.2.0", "name": "Zellen, größer"}')
    return tmp_path / "cells"


def trained(folder: Path, task: dict = TASK, features: tuple[int, ...] = (3, 4)) -> tuple[ValidUNet, Path]:
    torch.manual_seed(0)
    network = ValidUNet(2, 1, 2, features=features, norm="batch").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e6)  # beyond half precision
            module.weight.data.fill_(1e3)
    torch.save({"model": network.state_dict(), "task": task}, folder / "best.pt")
    return network, folder / "best.pt"


def test_a_release_is_half_as_large_and_has_a_checksum(bundle: Path, tmp_path: Path, capsys) -> None:
    network, path = trained(tmp_path, features=(16, 32, 64))
    assert main(["release", str(bundle), "--ckpt_path", str(path)]) == 0
    released = bundle / "models" / "model.pt"
    assert str(released) in capsys.readouterr().out
    assert released.stat().st_size < 0.6 * path.stat().st_size
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["weights_sha256"] == hashlib.sha256(released.read_bytes()).hexdigest()
    assert (metadata["version"], metadata["name"]) == ("0.2.0", "Zellen, größer")
    assert load_task(released) == {**TASK, "release": "cells 0.2.0"}
    again = load_network(released, sha256=metadata["weights_sha256"])
    image = torch.rand(1, 1, network.input_size(8), network.input_size(8))
    before, after = network(image), again(image)
    assert before.dtype == after.dtype == torch.float32
    assert 0 < (before - after).abs().max() < 2e-3 * before.abs().max()
    with pytest.raises(InputError, match=r"model.pt: the file is not cells 0.2.0 as published"):
        load_network(released, sha256="0" * 64)


def test_weights_that_are_not_released(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    network, path = trained(tmp_path, {"kind": "instances"})
    with pytest.raises(InputError, match=r"best.pt: it does not say how it was trained. Name a model.pt that this"):
        release(bundle, path)
    network.encoder[0].conv1.weight.data[0, 0, 0, 0] = 1e6
    torch.save({"model": network.state_dict(), "task": TASK}, path)
    with pytest.raises(InputError, match=r"encoder.0.conv1.weight has values beyond half precision. Train again"):
        release(bundle, path)
    monkeypatch.setattr("monai_unet.bundles.release.LARGEST", 1000)
    _, path = trained(tmp_path)
    with pytest.raises(InputError, match=r"its weights take [\d,]+ bytes, and 1,000 is the most. Train with fewer"):
        release(bundle, path)
    assert not (bundle / "models" / "model.pt").exists()
    assert "weights_sha256" not in (bundle / "configs" / "metadata.json").read_text()
    with pytest.raises(InputError, match=r"metadata.json: it cannot be read \(.*\). Name the folder of a bundle"):
        release(tmp_path, path)


@pytest.mark.parametrize("path", sorted(BUNDLES.glob("*/models/model.pt")), ids=lambda path: path.parts[-3])
def test_shipped_weights_are_those_of_their_bundle(path: Path) -> None:
    metadata = json.loads((path.parents[1] / "configs" / "metadata.json").read_text(encoding="utf-8"))
    if "release" not in load_task(path):
        pytest.skip("trained here")
    assert path.stat().st_size <= LARGEST
    load_network(path, sha256=metadata["weights_sha256"])
    task = load_task(path)
    assert task["release"] == f"{path.parts[-3]} {metadata['version']}"
    assert {"data", "code", "trained", "kind", "channel_names", "class_names"} <= set(task)
    assert task["spatial_dims"] == 2 or "mirrored" in task, "volumes are averaged over it"
