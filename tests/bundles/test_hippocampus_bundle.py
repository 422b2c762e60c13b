"""The 3-D bundle, trained and evaluated as `python -m monai.bundle run` does it, on synthetic organs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_driver import EVALUATE, cause, driver

from monai_unet.data import InputError
from monai_unet.datasets import prepare
from monai_unet.networks import ValidUNet, load_network, load_task

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    # warnings of torch and MONAI: TorchScript inside ignite, eval() of configs, optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_segmentation"
build, run, configs = driver(BUNDLE)
TINY = {
    "features": [2, 3],
    "tile_size": [12, 14, 10],
    "max_epochs": 1,
    "steps_per_epoch": 3,
    "val_interval": 1,
    "device": "cpu",
}
PLAIN = {"elastic_sigma": 0, "rotate_range": 0, "scale_range": 0, "flip_prob": 0, "gray_scale": 0, "gray_shift": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = prepare("organ_phantom", output=tmp_path_factory.mktemp("phantom")).parent
    document = json.loads((folder / "dataset.json").read_text())
    for split in ("training", "validation", "test"):
        document[split] = document[split][:2]
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_training_leaves_the_best_checkpoint_and_a_run(trained, store):
    from mlflow import MlflowClient

    network = load_network(trained / "model.pt")
    assert (network.spatial_dims, network.features, network.out_channels) == (3, (2, 3), 3)
    assert hasattr(network.encoder[0], "norm1")
    assert load_task(trained / "model.pt")["mirrored"] == [0]  # left and right
    assert (trained / "pictures" / "epoch_0001.png").stat().st_size > 10_000
    client = MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string="name = 'hippocampus_segmentation'")
    (record,) = client.search_runs([experiment.experiment_id], filter_string="params.momentum = '0.99'")
    assert {"Loss", "dice", "dice_anterior", "dice_posterior"} <= set(record.data.metrics)
    assert {"spacing", "norm", "class_weights", "elastic_sigma", "scale_range"} <= set(record.data.params)


@pytest.mark.parametrize(("flip_prob", "mirrored"), [(0.5, [0, 1, 2]), (0, []), ([0, 0.5, 0], [1])])
def test_a_checkpoint_says_along_which_axes_training_mirrored(data, tmp_path, flip_prob, mirrored):
    workflow = build("train", dataset_dir=str(data), output_dir=str(tmp_path), **TINY, flip_prob=flip_prob)
    assert workflow.parser.get_parsed_content("task")["mirrored"] == mirrored


def test_a_tile_without_augmentation_is_the_middle_of_its_volume(data, tmp_path):
    """Image and target agree: the target is the label of the image's centre, and the weight follows the class."""
    weights = [0.25, 1.0, 3.0]
    workflow = build(
        "train",
        dataset_dir=str(data),
        output_dir=str(tmp_path),
        class_weights=weights,
        random_center=False,
        **TINY,
        **PLAIN,
    )
    item = workflow.parser.get_parsed_content("train#dataset")[0]
    whole = workflow.parser.get_parsed_content("validate#preprocessing")(
        json.loads((data / "dataset.json").read_text())["training"][0]
    )
    np.testing.assert_allclose(whole["image"].pixdim, 1, atol=1e-6)
    assert nib.aff2axcodes(whole["image"].affine.numpy()) == ("R", "A", "S")
    assert float(whole["image"].mean()) == pytest.approx(0, abs=1e-5)
    size = whole["image"].shape[1:]
    tile, margin = (12, 14, 10), 8
    middle = tuple(slice(n // 2 - t // 2, n // 2 - t // 2 + t) for n, t in zip(size, tile, strict=True))
    assert item["image"].shape == (1, *(t + 2 * margin for t in tile))
    inner = item["image"][0, margin:-margin, margin:-margin, margin:-margin]
    np.testing.assert_allclose(inner, whole["image"][0][middle], atol=1e-5)
    assert torch.equal(item["classes"][0], torch.as_tensor(whole["label"][0][middle]))
    assert set(item["classes"].unique().tolist()) == {0, 1, 2}
    assert torch.equal(item["weight"], torch.tensor(weights)[item["classes"].long()])


def test_evaluation_gives_scores_per_volume_per_part_and_overall(trained, data, tmp_path, capsys):
    both = {"dataset_dir": str(data), "ckpt_path": str(trained / "model.pt"), "device": "cpu"}
    run(EVALUATE, output_dir=str(tmp_path / "eval"), tile_size=28, **both)
    record = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert [row["image"] for row in record["images"]] == ["organ-10.nii.gz", "organ-11.nii.gz"]
    names = {f"{m}{p}" for m in ("dice", "hd95_mm", "assd_mm") for p in ("", "_anterior", "_posterior")}
    assert set(record["overall"]) == names
    for row in record["images"]:
        assert row["dice"] == pytest.approx((row["dice_anterior"] + row["dice_posterior"]) / 2)
    assert record["overall"]["dice"] == pytest.approx(np.mean([row["dice"] for row in record["images"]]))
    with (tmp_path / "eval" / "scores.csv").open() as file:
        assert set(next(csv.DictReader(file))) == {"image", *names}
    assert f"{record['overall']['dice']:.6f}" in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "eval" / "pictures" / "organ-10.nii.png").stat().st_size > 10_000

    run(EVALUATE, output_dir=str(tmp_path / "other"), tile_size=[8, 12, 16], **both)
    other = json.loads((tmp_path / "other" / "scores.json").read_text())
    assert other["images"] == record["images"], "the tile size makes no difference"


def by_hand(path: Path, anterior: float, posterior: float) -> str:
    """A checkpoint that predicts anterior and posterior above these brightnesses; convolutions pass their centre on."""
    network = ValidUNet(3, 1, 3, (4, 8), dropout=0.0)
    state = {name: torch.zeros_like(weight) for name, weight in network.state_dict().items()}
    convolutions = [name for name, weight in state.items() if weight.ndim == 5 and weight.shape[-1] == 3]
    for name in (*convolutions[:2], *convolutions[-2:]):  # down on level 1, and up on it through the skip
        weight = state[name]
        weight[0, weight.shape[1] // 2 if name == convolutions[-2] else 0, 1, 1, 1] = 1.0
    state["head.weight"][:, 0] = 20 * torch.arange(3.0)[:, None, None, None]
    state["head.bias"][:] = -20 * torch.tensor([0.0, anterior, anterior + posterior])
    torch.save(state, path)
    return str(path)


def evaluated(folder: Path, axes: str, spacing: tuple[float, ...], brightness: tuple[int, ...]) -> dict[str, float]:
    """Scores of two boxes of the given brightness in a volume of this orientation and spacing."""
    label = np.zeros((30, 40, 24), np.uint8)
    label[8:20, 6:19, 7:17], label[8:20, 19:34, 7:17] = 1, 2
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (world, sign) in enumerate(nib.orientations.axcodes2ornt(axes)):
        affine[int(world), axis] = sign * spacing[axis]
    image = np.array(brightness, np.int16)[label]
    label[image == 0] = 0
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    item = {"image": str(folder / "image.nii.gz"), "label": str(folder / "label.nii.gz")}
    (folder / "dataset.json").write_text(json.dumps({"test": [item]}))
    _, anterior, posterior = (np.array(brightness) - image.mean()) / image.std()
    upper = (max(anterior, 0) + posterior) / 2  # half way, as the ReLUs leave the background at 0
    checkpoint = by_hand(folder / "model.pt", anterior / 2 if anterior > 0 else upper, upper)
    run(EVALUATE, dataset_dir=str(folder), ckpt_path=checkpoint, output_dir=str(folder / "eval"), device="cpu")
    return json.loads((folder / "eval" / "scores.json").read_text())["overall"]


def test_the_labels_as_images_score_full_marks_in_any_orientation(tmp_path):
    overall = evaluated(tmp_path, "PIR", (1.0, 1.0, 1.0), (0, 100, 200))
    assert [value for name, value in overall.items() if name.startswith("dice")] == [1.0] * 3
    assert [value for name, value in overall.items() if not name.startswith("dice")] == [0.0] * 6


def test_other_voxels_are_resampled_for_the_network_and_scored_on_their_own_grid(tmp_path):
    """A bright box on voxels of 0.7 × 0.8 × 1.9 mm: predicted at 1 mm, back within a fraction of a voxel."""
    overall = evaluated(tmp_path, "LPS", (0.7, 0.8, 1.9), (0, 0, 100))
    assert overall["dice_posterior"] > 0.95
    assert overall["assd_mm_posterior"] < 0.2
    assert overall["hd95_mm_posterior"] == pytest.approx(0.7), "a voxel, in mm"
    assert overall["dice_anterior"] == 1, "in neither mask"
    assert np.isnan(overall["assd_mm_anterior"])


def test_bad_pairs_stop_training_before_its_first_step(data, tmp_path):
    document = json.loads((data / "dataset.json").read_text())
    label = nib.load(document["validation"][1]["label"])
    values = np.asarray(label.dataobj).copy()
    values[0, 0, 0] = 3
    nib.save(nib.Nifti1Image(values, label.affine), tmp_path / "three.nii.gz")
    document["validation"][1]["label"] = str(tmp_path / "three.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises((InputError, RuntimeError, SystemExit)) as error:
        run("train", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"), **TINY)
    assert cause(error).path == str(tmp_path / "three.nii.gz")
    assert "3" in cause(error).problem


def test_the_default_is_the_paper():
    """Çiçek et al. 2016: 132 × 132 × 116 → 44 × 44 × 28, batch norm, 4 voxels on a grid of 32, 70,000 steps of one."""
    (parser,) = configs("train")
    network = parser.get_parsed_content("network_def")
    assert [network.output_size(n) for n in (132, 132, 116)] == parser["tile_size"] == [44, 44, 28]
    assert parser.get_parsed_content("input_size") == [132, 132, 116]
    assert (network.depth, network.features[-1], parser["norm"]) == (3, 512, "batch")
    assert parser["elastic_sigma"] == 4
    assert 132 / (parser["elastic_grid"] - 1) == pytest.approx(32, abs=1.1)
    assert (parser["batch_size"], parser["max_epochs"] * parser["steps_per_epoch"]) == (1, 70_000)


def test_labels_of_the_metadata_are_those_of_the_card_and_the_network():
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    output = metadata["network_data_format"]["outputs"]["pred"]
    from monai_unet.datasets import cards

    for card in ("msd_hippocampus", "organ_phantom"):
        assert {str(value): name for value, name in cards()[card]["labels"].items()} == output["channel_def"]
    (train,) = configs("train")
    assert train["network_def::out_channels"] == output["num_channels"] == 3
    assert train["validate::handlers"][0]["classes"] == list(output["channel_def"].values())[1:]
    assert metadata["version"] in metadata["changelog"]
    assert len(output["spatial_shape"]) == 3
