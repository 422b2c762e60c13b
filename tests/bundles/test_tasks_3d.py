"""3-D tasks, from raw files to a bundle that trains, evaluates and predicts: what is planned, and its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from bundle_driver import EVALUATE, driver
from monai.bundle import verify_net_in_out
from test_options import check
from volume_tasks import ORGANS, nuclei_stacks, organs_ct, sparse_volumes, two_sequences

from monai_unet.bundles import decide
from monai_unet.bundles.new import new_bundle
from monai_unet.bundles.plan import Plan
from monai_unet.inferers import OverlapTileInferer
from monai_unet.metrics import seg_measure
from monai_unet.networks import ValidUNet, load_task
from monai_unet.transforms import LabelInstances

pytestmark = [
    pytest.mark.usefixtures("elsewhere", "unmeasured"),
    # warnings of torch and MONAI: TorchScript inside ignite, eval() of configs, merged configs, optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

#: what a test can afford; all else is as planned
SHORT = {"features": [8, 16, 32], "val_interval": 1, "device": "cpu"}


@pytest.fixture
def unmeasured(monkeypatch) -> None:
    """Steps are measured elsewhere; here one takes half a second."""
    monkeypatch.setattr(decide, "measure_cost", lambda *_: decide.Cost(0.5, 0.1, 1, 2**30, "cpu"))
    monkeypatch.setattr(decide, "step_seconds", lambda *_: (0.5, 2**30))


def values(plan: Plan) -> dict[str, Any]:
    return {name: setting.value for name, setting in plan.settings.items()}


def test_ct_of_thick_slices_is_planned_by_hounsfield_units_and_axes(tmp_path):
    folder, plan = new_bundle("organs", organs_ct(tmp_path / "data", cases=6), tmp_path)
    found = values(plan)
    assert (plan.kind, plan.modality, plan.class_names) == ("classes", "CT", ["background", *ORGANS])
    assert found["spacing"] == [0.7, 0.7, 5.0], "right, anterior, superior, however the files store them"
    # slices are 7.1 and, after a pooling, 3.6 times as thick as pixels are wide; then 1.8 times
    assert found["kernel_size"] == [[3, 3, 1], [3, 3, 1], [3, 3, 3]]
    assert found["strides"] == [[2, 2, 1], [2, 2, 1]]
    assert "20 × 20 × 2 voxels of context" in plan.settings["features"].why
    check("train", bundle=folder)
    check("inference", "evaluate", bundle=folder)
    low, high = found["window"]
    assert -100 < low < -20, "of the gallbladder, the darkest organ: air, at -1000, is outside"
    assert 305 < high < 335, "of the kidneys, at 300 ± 10"
    assert found["flip_prob"] == [0, 0, 0]
    assert "'left_kidney' would be on the other side" in plan.settings["flip_prob"].why
    assert found["foreground_prob"] == 0.33, "the gallbladder is rare"
    segments = json.loads((folder / "configs" / "metadata.json").read_text())["segments"]
    assert [segment["label"] for segment in segments] == list(ORGANS)
    assert [segment["type"][2] for segment in segments] == ["Liver", "Spleen", "Kidney", "Kidney", "Gallbladder"]
    assert [segment.get("modifier", ["", "", None])[2] for segment in segments] == [None, None, "Left", "Right", None]


@pytest.mark.parametrize(
    "name",
    [
        "left_kidney",
        "Right-Hippocampus",
        "kidney-right",
        "LeftKidney",
        "lh.V1",
        "Parotid_Lt",
        "Lung (L)",
        "LungR",
        "ctx-rh-1",
    ],
)
def test_names_of_one_side(name):
    assert decide.is_sided(name)


@pytest.mark.parametrize("name", ["rectum", "liver", "anterior", "Lymph node", "LRP", "cleft", "T1_lesion", "bright"])
def test_names_of_both_sides(name):
    assert not decide.is_sided(name)


def test_classes_without_names_may_be_sides(tmp_path):
    data = two_sequences(tmp_path / "data", cases=4, joined=True)
    document = json.loads((data / "dataset.json").read_text())
    del document["labels"]
    (data / "dataset.json").write_text(json.dumps(document))
    _, plan = new_bundle("unnamed", data, tmp_path)
    assert plan.class_names == ["background", "class 1", "class 2"]
    assert values(plan)["flip_prob"] == [0, 0, 0]
    assert plan.settings["flip_prob"].why == "never: 'class 1' might be on the other side"


def test_the_planned_anisotropic_network_sees_the_same_in_tiles_as_in_one(tmp_path):
    bundle, plan = new_bundle("organs", organs_ct(tmp_path / "data", cases=4), tmp_path)
    shape = {name: values(plan)[name] for name in ("kernel_size", "strides")}
    torch.manual_seed(0)
    network = ValidUNet(3, 1, 6, features=(4, 8, 8), norm="batch", **shape).eval()
    image = torch.randn(1, 1, 31, 26, 9)
    with torch.no_grad():
        whole, tiled = (OverlapTileInferer(tile_size=tile)(image, network) for tile in (None, (12, 16, 4)))
    assert torch.allclose(whole, tiled, atol=1e-5)

    torch.save(network.state_dict(), tmp_path / "model.pt")
    files = {"meta_file": "metadata.json", "config_file": "inference.yaml"}
    files = {name: str(bundle / "configs" / file) for name, file in files.items()}
    verify_net_in_out("network_def", n=1, device="cpu", ckpt_path=str(tmp_path / "model.pt"), **files)


def test_two_sequences_are_two_channels_in_files_of_their_own_or_in_one(tmp_path):
    plans = {}
    for name, joined in (("apart", False), ("joined", True)):
        data = two_sequences(tmp_path / name / "data", cases=4, joined=joined)
        _, plans[name] = new_bundle("lesions", data, tmp_path / name)
    apart, joined = plans.values()
    assert values(apart) == values(joined)
    assert (apart.modality, list(apart.channel_names), values(apart)["in_channels"]) == ("MR", ["T1", "T2"], 2)
    assert apart.class_names == ["background", "T1_lesion", "T2_lesion"]
    assert "window" not in apart.settings, "MR has no units"
    assert values(apart)["flip_prob"] == [0.5, 0, 0], "left and right alone"


def test_weights_of_classes_are_those_of_the_labelled_voxels(tmp_path):
    data = sparse_volumes(tmp_path / "data", cases=6)
    _, plan = new_bundle("sparse", data, tmp_path)
    labels = [np.asarray(nib.load(path).dataobj) for path in sorted((data / "labelsTr").iterdir())]
    counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)
    assert plan.class_names == ["background", "shell", "core"]
    assert plan.label_values == [0, 1, 2, 255]
    by_hand = np.sqrt(counts[:3].max() / counts[:3])
    assert values(plan)["class_weights"] == pytest.approx(by_hand.tolist(), rel=5e-3)


def test_stacks_of_nuclei_are_planned_by_voxels_in_micrometres_and_by_their_objects(tmp_path):
    data = nuclei_stacks(tmp_path / "data", cases=4)
    _, plan = new_bundle("nuclei", data, tmp_path)
    found = values(plan)
    assert (plan.kind, plan.dims, plan.volumes) == ("instances", 3, False)
    assert found["pixel_size_um"] == [1.2, 0.4, 0.4]
    assert found["kernel_size"] == [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "planes 3 and then 1.5 times as far apart"
    assert found["strides"] == [[1, 2, 2], [2, 2, 2]]
    sizes = [np.bincount(tifffile.imread(path).ravel())[1:].min() for path in sorted((data / "labels").iterdir())]
    assert found["min_size"] == min(sizes) // 2
    # in steps of 0.4 µm: the nuclei are 15 wide and five planes high, 5 by the number of voxels
    assert (found["ridge"], found["grow"], found["neck"]) == (3, 1, 3)
    assert "steps of 0.4 µm of background between touching objects, which are 12.3 wide" in plan.settings["ridge"].why
    assert found["rotate_range"] == [pytest.approx(np.pi), 0, 0], "about the axis of the planes"


def test_necks_part_nuclei_of_stacks_by_their_true_widths(tmp_path):
    """All nuclei in one foreground: as many voxels across the planes as within them are no measure."""
    labels = [tifffile.imread(path) for path in (nuclei_stacks(tmp_path / "data", cases=3) / "labels").iterdir()]

    def score(**rules: Any) -> float:
        label = LabelInstances(min_size=280, grow=1, **rules)
        return float(np.mean([seg_measure(ids, label((ids[None] > 0).astype(np.uint8))[0]) for ids in labels]))

    assert max(score(neck=neck) for neck in range(6)) < 0.9
    assert score(neck=4, spacing=(3, 1, 1)) > 0.95


def trained(bundle: Path, plan: Plan, folder: Path, **short: Any) -> tuple[Any, dict[str, Any]]:
    """The bundle's ``run``, after a short training of a narrow network, and the scores of an evaluation."""
    _, run, _ = driver(bundle)
    run("train", **SHORT, **short)
    task = load_task(bundle / "models" / "model.pt")
    assert {name: task[name] for name in ("kernel_size", "strides") if name in values(plan)} == {
        name: value for name, value in values(plan).items() if name in ("kernel_size", "strides")
    }
    run(EVALUATE, output_dir=str(folder / "eval"), device="cpu")
    return run, json.loads((folder / "eval" / "scores.json").read_text())


def predicted(run: Any, source: Path, folder: Path) -> dict[str, nib.Nifti1Image]:
    """The masks of all studies of a folder, by the studies' names."""
    run("inference", input=str(source), output_dir=str(folder), device="cpu", keep_names=True)
    masks = {path.name.split("_")[0]: nib.load(path) for path in sorted(folder.glob("*.nii.gz"))}
    for name, mask in masks.items():
        (image, *_) = source.glob(f"{name}*")
        assert mask.shape == nib.load(image).shape[:3]
        assert np.array_equal(mask.affine, nib.load(image).affine)
    return masks


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


@pytest.mark.slow
def test_lesions_of_two_sequences_are_told_apart_in_either_layout(tmp_path):
    data = two_sequences(tmp_path / "data")
    bundle, plan = new_bundle("lesions", data, tmp_path)
    run, scores = trained(
        bundle, plan, tmp_path, tile_size=[20, 20, 16], max_epochs=4, steps_per_epoch=40, learning_rate=0.005
    )
    assert scores["overall"]["dice"] > 0.85, "fat, bright in both, would be mistaken for a lesion in either alone"
    apart = predicted(run, data / "imagesTs", tmp_path / "apart")
    joined = predicted(run, two_sequences(tmp_path / "4d", joined=True) / "imagesTs", tmp_path / "joined")
    assert list(apart) == list(joined) == ["case-6", "case-7"]
    for name, mask in apart.items():
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(joined[name].dataobj))


@pytest.mark.slow
def test_three_labelled_slices_of_each_volume_are_enough(tmp_path):
    data = sparse_volumes(tmp_path / "data")
    bundle, plan = new_bundle("sparse", data, tmp_path)
    run, scores = trained(
        bundle, plan, tmp_path, tile_size=[20, 20, 16], max_epochs=4, steps_per_epoch=40, learning_rate=0.005
    )
    masks = predicted(run, data / "imagesTs", tmp_path / "out")
    for (name, mask), row in zip(masks.items(), scores["images"], strict=True):
        label, truth = (
            np.asarray(nib.load(data / folder / f"{name}.nii.gz").dataobj) for folder in ("labelsTs", "truth")
        )
        found, labelled = np.asarray(mask.dataobj), label != 255
        for number, part in enumerate(("shell", "core"), start=1):
            counted = dice((found == number) & labelled, label == number)
            assert row[f"dice_{part}"] == pytest.approx(counted), "the labelled voxels, and no others"
            assert dice(found == number, truth == number) > 0.85, "also where nothing is labelled"


@pytest.mark.slow
def test_nuclei_in_touch_are_told_apart_in_stacks(tmp_path):
    """The network leaves bridges between them; they are parted at necks, across the planes as within them."""
    data = nuclei_stacks(tmp_path / "data")
    bundle, plan = new_bundle("nuclei", data, tmp_path)
    short = {"max_epochs": 6, "steps_per_epoch": 40, "learning_rate": 0.005}
    run, scores = trained(bundle, plan, tmp_path, tile_size=[8, 28, 28], **short)
    assert scores["overall"]["seg"] > 0.75
    assert scores["overall"]["merged_cells"] <= 1
    run("inference", input=str(data / "images"), output_dir=str(tmp_path / "out"), device="cpu", pictures=False)
    for label in sorted((data / "labels").iterdir()):
        ids = tifffile.imread(tmp_path / "out" / f"{label.stem}_instances.tif")
        assert seg_measure(tifffile.imread(label), ids) > 0.6
