"""Each kind of task from raw files through new, train, evaluate and predict; a single step, so the scores are poor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from bundle_driver import EVALUATE, driver
from PIL import Image
from tasks import histology, nuclei, three_classes, two_channels
from volume_tasks import nuclei_stacks, organs_ct, sparse_volumes, two_sequences

from monai_unet.bundles import decide
from monai_unet.bundles.new import new_bundle
from monai_unet.networks import load_task

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    # warnings of torch and MONAI: TorchScript inside ignite, eval() of configs, merged configs, optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

#: the folder that is predicted
SOURCES = {
    nuclei: "images",
    two_channels: "imagesTs",
    three_classes: "images",
    histology: "images",
    organs_ct: "imagesTs",
    two_sequences: "imagesTs",
    sparse_volumes: "imagesTs",
    nuclei_stacks: "images",
}
FAST = (three_classes, organs_ct, nuclei_stacks)
TASKS = [pytest.param(make, marks=[] if make in FAST else pytest.mark.slow, id=make.__name__) for make in SOURCES]


@pytest.mark.parametrize("make", TASKS)
def test_from_raw_files_to_predictions(make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decide, "measure_cost", lambda *_: decide.Cost(0.5, 0.1, 1, 2**30, "cpu"))
    monkeypatch.setattr(decide, "step_seconds", lambda *_: (0.5, 2**30))
    data = make(tmp_path / "data", 4)
    bundle, plan = new_bundle("task", data, tmp_path)
    run = driver(bundle)[1]
    tile = [4, 8, 8] if make is nuclei_stacks else [8, 8, 4] if plan.dims == 3 else 64
    short = {"features": [2, 4, 4], "tile_size": tile, "max_epochs": 1, "steps_per_epoch": 1, "val_interval": 1}
    run("train", **short, device="cpu")
    run(EVALUATE, device="cpu", averaging="none", pictures=False)
    overall = json.loads((bundle / "eval" / "scores.json").read_text())["overall"]
    assert 0 <= overall[plan.metric] <= 1
    task = load_task(bundle / "models" / "model.pt")
    assert task["class_names"] == plan.class_names
    flips = np.broadcast_to(plan.settings["flip_prob"].value, plan.dims)
    stacks = plan.dims == 3 and not plan.volumes
    expected = "all" if plan.dims == 2 else None if stacks else np.flatnonzero(flips).tolist()
    assert task.get("mirrored") == expected

    source = data / SOURCES[make]
    given = {"keep_names": True} if plan.volumes else {"averaging": "none", "pictures": False}
    out = tmp_path / "predicted"
    run("inference", **given, device="cpu", input=str(source), output_dir=str(out))
    ending = "_seg.nii.gz" if plan.volumes else "_instances.tif" if plan.instances else "_label.tif"
    results = sorted(out.glob(f"*{ending}"))
    labels = data / source.name.replace("images", "masks" if make is histology else "labels")
    assert [result.name.split("_")[0].split(".")[0] for result in results] == [
        label.name.split(".")[0] for label in sorted(labels.iterdir())
    ]
    for result, label in zip(results, sorted(labels.iterdir()), strict=True):
        found, truth = read(result), read(label)
        assert found.shape == truth.shape
        if plan.volumes:
            assert np.array_equal(nib.load(result).affine, nib.load(label).affine)
        if not plan.instances:
            assert set(np.unique(found)) <= ({0, 255} if plan.masks else set(range(len(plan.class_names))))


def read(file: Path) -> np.ndarray:
    if file.name.endswith(".nii.gz"):
        return np.asarray(nib.load(file).dataobj)
    return tifffile.imread(file) if file.suffix == ".tif" else np.asarray(Image.open(file))
