"""The flag "look at it", from `python -m monai_unet.bundles doubt` to what a prediction writes and says."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from bright_network import save_bright_network
from bundle_driver import driver
from PIL import Image

from monai_unet.bundles.__main__ import main
from monai_unet.bundles.doubt import set_doubt, threshold_of
from monai_unet.doubt import NO_FLAG
from monai_unet.errors import InputError
from monai_unet.networks import load_network, load_task

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*NvImgCodec"
)
CELLS = Path(__file__).parents[2] / "bundles" / "cell_segmentation"


def cells(path: Path, dim: int) -> None:
    """Two cells, one of them as dim as asked: what `save_bright_network` is less sure of."""
    image = np.full((48, 40), 20, np.uint8)
    image[5:20, 5:20], image[25:40, 15:30] = 250, dim
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images; the second cell of the first two is dim, and is none in the label."""
    folder, items = tmp_path_factory.mktemp("data"), []
    for number in range(12):
        bad = number < 2
        cells(folder / f"{number:02d}.png", 105 + number if bad else 240 + number)
        label = np.zeros((48, 40), np.uint16)
        label[5:20, 5:20] = 1
        if not bad:
            label[25:40, 15:30] = 2
        tifffile.imwrite(folder / f"{number:02d}_label.tif", label)
        items.append({"image": f"{folder}/{number:02d}.png", "label": f"{folder}/{number:02d}_label.tif"})
    (folder / "dataset.json").write_text(json.dumps({"name": "dim", "validation": items, "few": items[:9]}))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With weights as they are published: a release, and its checksum in metadata.json."""
    folder = tmp_path_factory.mktemp("bundle") / "cell_segmentation"
    shutil.copytree(CELLS / "configs", folder / "configs")
    weights = folder / "models" / "model.pt"
    weights.parent.mkdir()
    save_bright_network(weights)
    task = {"kind": "instances", "release": "cells 0.1.0", "min_size": 20, "neck": 0, "grow": 0}
    torch.save({"model": torch.load(weights), "task": task}, weights)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    metadata["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def predict(bundle: Path, image: Path, out: Path, **given: str) -> dict[str, str]:
    options: dict[str, Any] = {"averaging": "none", "device": "cpu", **given}
    driver(bundle)[1]("inference", input=str(image), output_dir=str(out), **options)
    with (out / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row.pop("mask_written")
    return row


def test_from_the_validation_set_to_the_flag(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dim, bright = data / "00.png", data / "11.png"
    before = predict(bundle, dim, tmp_path / "before")
    assert (float(before["doubt"]) > 0.02, before["look"]) == (True, "")
    assert capsys.readouterr().out.count(NO_FLAG) == 1
    weights = load_network(bundle / "models" / "model.pt").state_dict()

    command = ["doubt", str(bundle), "--dataset_dir", str(data), "--averaging", "none"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 of 12 images flagged" in said
    assert "mean seg 1.000 of the flagged ones, 1.000 of the others" in said
    assert "mean ap50 0.500 of the flagged ones, 1.000 of the others" in said
    path = bundle / "models" / "model.pt"
    rule = load_task(path)["doubt"]
    assert (rule["share"], rule["images"], rule["split"], rule["averaging"]) == (0.15, 12, "validation", "none")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    after = load_network(path, sha256=metadata["weights_sha256"]).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in after.items())

    row = predict(bundle, dim, tmp_path / "dim")
    assert row["look"] == "1"
    assert float(row["doubt"]) > rule["threshold"]
    assert f"00.png  doubt {float(row['doubt']):.2f}: look at it" in capsys.readouterr().out
    with (tmp_path / "dim" / "measures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [one["look"] for one in rows] == ["0", "1"], "the dim cell"
    features = json.loads((tmp_path / "dim" / "00.geojson").read_text())["features"]
    measurements = [feature["properties"]["measurements"] for feature in features]
    assert [one["look"] for one in measurements] == [0, 1]
    assert [one["doubt"] for one in measurements] == pytest.approx([float(one["doubt"]) for one in rows], rel=1e-4)
    assert predict(bundle, bright, tmp_path / "bright")["look"] == "0"
    said = capsys.readouterr().out
    assert "look at it" not in said
    assert NO_FLAG not in said


def test_a_map_of_the_uncertainty_on_request(bundle: Path, data: Path, tmp_path: Path) -> None:
    rows = [
        predict(bundle, data / "00.png", tmp_path / f"{n}", averaging="all", uncertainty=n) for n in ("true", "false")
    ]
    assert rows[0] == rows[1]
    found = tifffile.imread(tmp_path / "true" / "00_uncertainty.tif")
    assert (found.shape, found.dtype) == ((48, 40), np.float32)
    assert 0 <= found.min() <= found.max() < 1e-6, "this network does not care which way up an image is"
    masks = [tifffile.imread(tmp_path / n / "00_instances.tif") for n in ("true", "false")]
    assert np.array_equal(*masks)
    assert not (tmp_path / "false" / "00_uncertainty.tif").exists()


def test_what_cannot_set_a_threshold(bundle: Path, data: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(InputError, match='the list "few" has 9 images, and a threshold needs 10. Label more images'):
        set_doubt(bundle, data, "few", averaging="none")
    save_bright_network(tmp_path / "bare.pt")
    with pytest.raises(InputError, match="bare.pt: it has no task to write to. Name a model.pt that a bundle"):
        set_doubt(bundle, data, ckpt_path=tmp_path / "bare.pt")
    assert main(["doubt", str(bundle), "--dataset_dir", str(data), "--share", "0"]) == 1
    assert "--share: it is 0.0. Use a number above 0 and up to 0.5." in capsys.readouterr().err


@pytest.mark.parametrize(("share", "above"), [(0.15, 3), (0.001, 1), (0.5, 10)])
def test_a_threshold_has_its_share_above_it(share: float, above: int) -> None:
    numbers = np.random.default_rng(0).random(20).tolist()
    assert sum(number > threshold_of(numbers, share) for number in numbers) == above
