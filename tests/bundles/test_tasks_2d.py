"""2-D tasks, from raw files to a bundle that trains, predicts and is served: what is planned, and its scores."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import test_label_contract
import test_model_zoo
import tifffile
import torch
import zarr
from bundle_driver import EVALUATE, driver
from monai.bundle import ConfigParser
from PIL import Image
from scipy import ndimage
from tasks import histology, nuclei, three_classes, two_channels, two_kinds

from monai_unet.bundles import decide, new, page
from monai_unet.bundles.__main__ import main
from monai_unet.bundles.doubt import examine
from monai_unet.bundles.new import new_bundle
from monai_unet.bundles.options import options
from monai_unet.bundles.plan import Plan
from monai_unet.data import MicroscopyReader
from monai_unet.errors import InputError
from monai_unet.metrics import seg_measure
from monai_unet.networks import ValidUNet, load_network, load_task
from monai_unet.tracking.model import Segmentation, save_model

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    # warnings of torch and MONAI: TorchScript inside ignite, eval() of configs, optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

#: what a test can afford; all else is as planned
SHORT = {"features": [8, 16, 32], "tile_size": 100, "max_epochs": 2, "steps_per_epoch": 80, "val_interval": 1}
SHORT |= {"learning_rate": 0.003}
CPU = {"device": "cpu", "averaging": "none"}


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Callable[..., tuple[Path, Path, Plan]]:
    """Data, bundle and plan of a task; steps are measured elsewhere, here one takes half a second."""
    made: dict[str, tuple[Path, Path, Plan]] = {}

    def plan(make: Callable[[Path], Path], **given: Any) -> tuple[Path, Path, Plan]:
        name = "_".join([make.__name__, *given])
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(decide, "measure_cost", lambda *_: decide.Cost(0.5, 0.1, 1, 2**30, "cpu"))
                patch.setattr(decide, "step_seconds", lambda *_: (0.5, 2**30))
                data = make(tmp_path_factory.mktemp("data"))
                made[name] = (data, *new_bundle(name, data, tmp_path_factory.mktemp("bundles"), minutes=10, **given))
        return made[name]

    return plan


@pytest.fixture(scope="module")
def trained(planned, store, tmp_path_factory) -> Callable[..., tuple[Path, Path, dict[str, float]]]:
    """Data and bundle of a task, and the scores of its evaluation after a short training."""
    scores: dict[Path, dict[str, float]] = {}

    def train(make: Callable[[Path], Path], **given: Any) -> tuple[Path, Path, dict[str, float]]:
        data, folder, _ = planned(make, **given)
        if folder not in scores:
            run = driver(folder)[1]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MLFLOW_TRACKING_URI", store)
                patch.chdir(tmp_path_factory.mktemp("cwd"))
                run("train", **SHORT, device="cpu")
                run(EVALUATE, **CPU)
            scores[folder] = json.loads((folder / "eval" / "scores.json").read_text())["overall"]
        return data, folder, scores[folder]

    return train


def values(plan: Plan) -> dict[str, Any]:
    return {name: setting.value for name, setting in plan.settings.items()}


def test_nuclei_are_planned_in_pixels_of_their_own_size(planned):
    """Six images of 0.5 µm and two of 0.25 µm, whose nuclei have four times as many pixels."""
    data, _, plan = planned(nuclei)
    ids = tifffile.imread(data / "labels" / "well0.tif")
    smallest = np.bincount(ids.ravel())[1:].min()
    assert 150 < smallest < 165
    found = values(plan)
    assert (plan.kind, plan.channel_names, plan.class_names) == ("instances", ["image"], ["background", "object"])
    assert found["pixel_size_um"] == [0.5, 0.5]
    assert found["rescale"] is True
    assert found["min_size"] == pytest.approx(smallest / 2, abs=5)
    assert "half of the smallest of 128 labelled objects" in plan.settings["min_size"].why
    assert (found["ridge"], found["grow"]) == (3, 3), "of 13 pixels in width"
    share = np.concatenate([tifffile.imread(file).ravel() > 0 for file in (data / "labels").iterdir()]).mean()
    assert found["class_weights"] == pytest.approx([1, np.sqrt((1 - share) / share)], rel=5e-3)
    assert (found["neck"], found["core"]) == (3, 0)
    assert len(found["features"]) == 4, "20 pixels of context are less than two nuclei are long, 44 are more"


def test_rescale_false_leaves_images_and_rules_as_they_are(planned):
    folder = planned(nuclei)[1]
    for base in (("inference",), ("inference", "evaluate")):
        parser = ConfigParser()
        parser.read_config([folder / "configs" / f"{name}.yaml" for name in base])
        steps = [*parser["image_transforms"], *parser["pred_transforms"]]
        sized = [step for step in steps if "pixel_size_um" in step]
        switches = [step.get("rescale", step.get("enabled")) for step in sized]
        assert switches == ["@rescale"] * 2, "of RescaleToPixelSized and LabelInstancesd"


def test_a_new_bundle_says_first_what_it_takes_labels_for(planned, tmp_path, monkeypatch, capsys):
    _, folder, plan = planned(nuclei)
    monkeypatch.setattr(new, "new_bundle", lambda *_: (folder, plan))
    assert main(["new", "bundle", "--dataset_dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("labels             instances   ids 1…16 with one piece each\n")
    assert "| labels | instances: ids 1…16 with one piece each |" in (folder / "docs" / "README.md").read_text()


def test_a_step_of_two_tiles_must_fit_into_the_memory(planned):
    assert planned(nuclei)[2].settings["batch_size"].value == 2
    with pytest.raises(InputError, match="it is 0.1 GiB, and the smallest step here takes 0.13"):  # one tile: 0.07
        planned(nuclei, memory=0.1)


def test_channels_have_the_names_that_the_data_set_gives_them(planned):
    _, folder, plan = planned(two_channels)
    found = values(plan)
    assert (plan.kind, plan.channel_names, plan.class_names) == (
        "instances",
        ["brightfield", "DAPI"],
        ["background", "nucleus"],
    )
    assert (found["in_channels"], plan.split) == (2, "test")
    assert "pixel_size_um" not in found, "the files state none"
    item = json.loads((folder / "data" / "dataset.json").read_text())["training"][0]["image"]
    assert [Path(file).name for file in item] == ["x0_0000.tif", "x0_0001.tif"]


def test_classes_weigh_by_the_root_of_their_rarity(planned):
    data, _, plan = planned(three_classes)
    counts = sum(np.bincount(np.asarray(Image.open(file)).ravel(), minlength=256) for file in data.glob("labels/*"))
    assert counts[255] == 4 * 128 * 30
    found = values(plan)
    assert (plan.kind, plan.class_names) == (
        "classes",
        ["background", "lipid droplet", "mitochondrion", "granule"],
    )
    assert found["class_weights"] == pytest.approx(np.sqrt(counts[:4].max() / counts[:4]), rel=0.01)
    assert not found.keys() & {"w0", "sigma_border", "ridge", "min_size", "pixel_size_um"}


def test_class_weights_are_undone_for_classes_alone(planned, tmp_path, store, monkeypatch):
    """By the loss and by the head with which training starts; the head of other weights stays as it is."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    short = {**SHORT, "device": "cpu", "output_dir": str(tmp_path)}
    _, folder, plan = planned(three_classes)
    parser = driver(folder)[0]("train", **short).parser
    logarithms = np.log(values(plan)["class_weights"])
    assert max(logarithms) > 0.5
    assert parser.get_parsed_content("loss").added == pytest.approx(logarithms)
    assert parser.get_parsed_content("network_def").head.bias.tolist() == pytest.approx(-logarithms)

    other = ValidUNet(2, 1, 4, SHORT["features"], norm="batch")
    torch.nn.init.constant_(other.head.bias, 7)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    parser = driver(folder)[0]("train", **short, init_weights=str(tmp_path / "other.pt")).parser
    assert parser.get_parsed_content("network_def").head.bias.tolist() == [7] * 4

    parser = driver(planned(nuclei)[1])[0]("train", **short).parser
    assert parser.get_parsed_content("loss").added == []
    assert not parser.get_parsed_content("network_def").head.bias.any()


def test_masks_of_colour_images(planned):
    _, _, plan = planned(histology)
    assert (plan.kind, plan.channel_names, plan.class_names) == (
        "classes",
        ["red", "green", "blue"],
        ["background", "foreground"],
    )
    assert plan.colour
    assert plan.masks
    _, _, joined = planned(histology, label_components=True)
    assert (joined.kind, joined.values) == ("instances", [0, 255])
    rules = [values(joined)[name] for name in ("neck", "core")]
    assert rules == [0, 0.75], "two discs in touch are one piece, with a waist: necks cannot part them"


def test_objects_of_two_classes(planned):
    """A weight for each class; sizes, widths and gaps are those of all objects."""
    data, folder, plan = planned(two_kinds)
    found = values(plan)
    assert (plan.kind, plan.class_names) == ("instances", ["background", "dim", "round"])
    labels = [
        np.stack([np.asarray(Image.open(file)) for file in sorted(data.glob(f"labels_{c}/*"))])
        for c in ("dim", "round")
    ]
    shares = np.array([(ids > 0).mean() for ids in labels])
    assert found["class_weights"] == pytest.approx([1, *np.sqrt((1 - shares.sum()) / shares)], rel=5e-3)
    sizes = np.concatenate([np.bincount(ids.ravel())[1:] for page in labels for ids in page])
    assert found["min_size"] == sizes[sizes > 0].min() // 2
    files = json.loads((folder / "data" / "dataset.json").read_text())["training"][0]["label"]
    assert [Path(file).parent.name for file in files] == ["labels_dim", "labels_round"]


def test_samples_show_every_channel_on_a_scale_of_its_own() -> None:
    image = np.zeros((2, 20, 20))
    image[0, :5], image[1, 15:] = 1000, 1
    shown = page._sample(image, np.zeros((20, 20), int))
    assert [shown[row, 0].tolist() for row in (0, 10, 19)] == [[255, 0, 255], [0, 0, 0], [0, 255, 0]]


def test_targets_and_scores_of_two_classes(planned):
    """The ridge runs between objects of any class, a pixel has the class of its object, a perfect result scores 1."""
    data, folder, _ = planned(two_kinds)
    parser = driver(folder)[0]("train", **SHORT, device="cpu").parser
    item = parser.get_parsed_content("validate#dataset")[0]
    dim, round_ = (np.asarray(Image.open(data / f"labels_{c}" / "field6.png")) for c in ("dim", "round"))
    label, classes, weight = (np.asarray(item[key][0]) for key in ("label", "classes", "weight"))
    assert np.array_equal(label, np.where(dim, 2 * dim.astype(int) - 1, 2 * round_.astype(int)))
    both = (dim > 0) + 2 * (round_ > 0)
    assert set(np.unique(classes)) == {0, 1, 2}
    assert np.array_equal(classes, np.where(classes > 0, both, 0))
    assert 0 < ((classes == 0) & (both > 0)).sum() < 0.1 * (both > 0).sum(), "the ridge"
    least = parser.get_parsed_content("class_weights")
    assert [weight[classes == c].min() for c in range(3)] == pytest.approx(least, abs=0.2)
    metric = parser.get_parsed_content("validate#key_metric#seg").metric_fn
    item["pred"] = item["label"]
    steps = parser.get_parsed_content("validate#postprocessing").transforms[-1:]
    for step in steps:
        item = step(item)
    metric(item["pred"][None], item["reference"][None])
    assert metric.aggregate() == 1
    assert metric.get_buffer().shape == (1, 2)


def test_two_classes_of_objects_from_folders_to_tables(planned, store, tmp_path, monkeypatch):
    data, folder, _ = planned(two_kinds)
    run = driver(folder)[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    small = {"features": [8, 16], "tile_size": 60, "max_epochs": 1, "steps_per_epoch": 60, "learning_rate": 0.01}
    run("train", **small, device="cpu", output_dir=str(tmp_path / "model"))
    ckpt = str(tmp_path / "model" / "model.pt")
    assert load_task(ckpt)["class_names"] == ["background", "dim", "round"]
    run(EVALUATE, **CPU, ckpt_path=ckpt, output_dir=str(tmp_path / "eval"))
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())["overall"]
    names = {f"{score}{part}" for score in ("seg", "ap50") for part in ("", "_dim", "_round")}
    assert scores.keys() == names | {"merged_cells", "split_cells"}
    assert scores["seg"] == pytest.approx((scores["seg_dim"] + scores["seg_round"]) / 2)
    assert scores["ap50_round"] > 0.3, scores
    run("inference", **CPU, ckpt_path=ckpt, input=str(data / "images" / "field7.png"), output_dir=str(tmp_path / "out"))
    rows = _rows(tmp_path / "out")
    features = json.loads((tmp_path / "out" / "field7.geojson").read_text())["features"]
    ids = tifffile.imread(tmp_path / "out" / "field7_instances.tif")
    assert [int(row["label"]) for row in rows] == np.unique(ids[ids > 0]).tolist()
    named = [(f["properties"]["name"], f["properties"]["classification"]["name"]) for f in features]
    assert [(row["label"], row["class"]) for row in rows] == named
    assert {row["class"] for row in rows if int(row["label"]) % 2} <= {"dim"}
    assert {row["class"] for row in rows if int(row["label"]) % 2 == 0} == {"round"}

    doubted = {"core": 0.97, "ckpt_path": ckpt, "input": str(data / "images" / "field7.png"), **CPU}
    run("inference", **doubted, output_dir=str(tmp_path / "doubted"))
    split = tifffile.imread(tmp_path / "doubted" / "field7_instances.tif")
    assert len(np.unique(split)) > len(np.unique(ids)), "parted where the network doubts"
    assert {row["class"] for row in _rows(tmp_path / "doubted")} == {row["class"] for row in rows}


@pytest.mark.parametrize("make", [nuclei, two_channels, three_classes, histology, two_kinds])
def test_the_bundle_passes_the_checks_of_the_model_zoo_and_lists_its_options(make, planned, tmp_path, monkeypatch):
    _, folder, plan = planned(make)
    monkeypatch.setattr(test_model_zoo, "BUNDLES", folder.parent)
    test_model_zoo.test_verify_metadata(folder.name, tmp_path)
    test_model_zoo.test_verify_net_in_out(folder.name, "train", tmp_path)
    test_model_zoo.test_what_the_metadata_say_of_channels_and_values(folder.name)
    listed = {option.name for file in folder.glob("configs/[ti]*.yaml") for option in options(file)}
    assert listed >= plan.settings.keys()
    text = "\n".join(file.read_text() for file in folder.glob("configs/*.yaml"))
    assert "{{" not in text
    assert "\n\n\n" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_pieces_of_a_mask_are_instances(planned):
    data, folder, _ = planned(histology, label_components=True)
    workflow = driver(folder)[0]("train", **SHORT, device="cpu")
    item = workflow.parser.get_parsed_content("validate#dataset")[0]
    mask = np.asarray(Image.open(data / "masks" / "core6.png"))
    pieces, count = ndimage.label(mask)
    assert np.array_equal(item["label"][0], pieces)
    assert count > 2
    assert np.array_equal(item["classes"][0], mask > 0), "no ridge: separate pieces are not in touch"


def test_gray_images_start_from_the_weights_of_colours(planned, tmp_path, caplog):
    """The head is new, for other classes; the first convolution is summed, and all else as it was."""
    colour = ValidUNet(2, 3, 2, features=SHORT["features"], norm="batch")
    torch.save({"model": colour.state_dict(), "task": {"kind": "classes"}}, tmp_path / "model.pt")
    build = driver(planned(three_classes)[1])[0]
    with caplog.at_level("INFO"):
        workflow = build("train", **SHORT, device="cpu", init_weights=str(tmp_path / "model.pt"))
    network = workflow.parser.get_parsed_content("network")
    first, theirs = network.encoder[0].conv1.weight, colour.encoder[0].conv1.weight
    assert torch.allclose(first, theirs.sum(1, keepdim=True))
    assert torch.equal(network.encoder[2].conv2.weight, colour.encoder[2].conv2.weight)
    assert network.head.weight.shape[0] == 4
    assert "summed over its 3 channels; the head is new, for 4 classes instead of 2" in caplog.text


@pytest.mark.slow
def test_small_nuclei_of_two_pixel_sizes(trained, tmp_path):
    data, folder, scores = trained(nuclei)
    assert scores["seg"] > 0.7
    task = load_task(folder / "models" / "model.pt")
    assert (task["pixel_size_um"], task["kind"]) == ([0.5, 0.5], "instances")
    run = driver(folder)[1]
    run("inference", **CPU, input=str(data / "images"), output_dir=str(tmp_path))
    assert len(list(tmp_path.glob("*_instances.tif"))) == len(list(tmp_path.glob("*.geojson"))) == 8
    for name, size, pixel in (("well6", 128, 0.5), ("well7", 256, 0.25)):
        ids, label = (
            tifffile.imread(file) for file in (tmp_path / f"{name}.ome_instances.tif", data / "labels" / f"{name}.tif")
        )
        assert ids.shape == (size, size), "the image's own grid"
        assert seg_measure(label, ids) > 0.7
        meta = MicroscopyReader().get_data([tmp_path / f"{name}.ome_instances.tif"])[1]
        assert meta["pixel_size_um"] == pytest.approx([pixel, pixel], rel=1e-3)
    run(
        "inference",
        **CPU,
        input=str(data / "images" / "well7.ome.tif"),
        output_dir=str(tmp_path / "own"),
        rescale="false",
    )
    own = tifffile.imread(tmp_path / "own" / "well7.ome_instances.tif")
    assert own.shape == ids.shape
    assert not np.array_equal(own, ids), "the network sees nuclei of twice the size"
    _served_and_registered(folder, data / "images" / "well6.ome.tif", tmp_path / "well6.ome_instances.tif", tmp_path)


def _served_and_registered(folder: Path, image: Path, result: Path, tmp_path: Path) -> None:
    """MONAI Label and the model in MLflow give what was predicted, without averaging."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    config = copy / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("averaging: $@task.get('mirrored', 'all')", "averaging: none"))
    expected = tifffile.imread(result)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_label_contract, "BUNDLES", tmp_path)
        mask, _ = test_label_contract.Server(copy)(image)
    assert np.array_equal(mask, expected)
    save_model(tmp_path / "mlflow", copy / "models" / "model.pt", config, {"tile_size": SHORT["tile_size"]})
    array = MicroscopyReader().get_data([image])[0]
    assert np.array_equal(Segmentation(tmp_path / "mlflow" / "data" / "bundle").predict(array), expected)


@pytest.mark.slow
def test_the_signal_is_in_the_dim_channel(trained, tmp_path):
    data, folder, scores = trained(two_channels)
    assert scores["seg"] > 0.7
    run = driver(folder)[1]
    run("inference", **CPU, input=str(data / "imagesTs"), output_dir=str(tmp_path / "out"))
    assert {file.name for file in (tmp_path / "out").glob("*.tif")} == {
        f"x{number}_{kind}.tif" for number in (8, 9) for kind in ("instances", "probability")
    }
    images = [tifffile.imread(data / "imagesTs" / f"x8_000{channel}.tif") for channel in (0, 1)]
    tifffile.imwrite(tmp_path / "large.ome.tif", np.stack(images), metadata={"axes": "CYX"}, photometric="minisblack")
    out = tmp_path / "large.ome.zarr"
    monai.bundle.run(
        config_file=str(folder / "configs" / "inference_large.yaml"),
        meta_file=str(folder / "configs" / "metadata.json"),
        bundle_root=str(folder),
        input=str(tmp_path / "large.ome.tif"),
        output=str(out),
        device="cpu",
    )
    group = zarr.open_group(out, mode="r")
    ids = tifffile.imread(tmp_path / "out" / "x8_instances.tif")
    assert np.array_equal(group["labels/instances/0"][:], ids), "tile by tile as in one pass"


@pytest.mark.slow
def test_two_classes_of_objects(trained, tmp_path):
    """Also larger than memory, served, registered, and with a flag of doubt."""
    data, folder, scores = trained(two_kinds)
    assert min(scores["seg_dim"], scores["seg_round"]) > 0.7
    image, out = data / "images" / "field6.png", tmp_path / "out"
    driver(folder)[1]("inference", **CPU, input=str(data / "images"), output_dir=str(out))
    _served_and_registered(folder, image, out / "field6_instances.tif", tmp_path)
    tifffile.imwrite(tmp_path / "field6.tif", np.asarray(Image.open(image)))
    large = {"meta_file": str(folder / "configs" / "metadata.json"), "bundle_root": str(folder), "device": "cpu"}
    large |= {"input": str(tmp_path / "field6.tif"), "output": str(tmp_path / "large.ome.zarr")}
    monai.bundle.run(config_file=str(folder / "configs" / "inference_large.yaml"), **large)
    ids = tifffile.imread(out / "field6_instances.tif")
    assert np.array_equal(zarr.open_group(large["output"], mode="r")["labels/instances/0"][:], ids)
    small, whole = (
        [row["class"] for row in _rows(file) if row["image"].startswith("field6")] for file in (tmp_path, out)
    )
    assert small == whole != []
    found = examine(folder, folder / "data", averaging="none", device="cpu")
    assert len(found.images) == len(found.doubts()) == 2
    assert 0.01 < found.doubts()[0].image < 0.5


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "measures.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_classes_of_partly_labelled_images(trained, tmp_path):
    data, folder, scores = trained(three_classes)
    assert scores.keys() == {"dice", "dice_lipid droplet", "dice_mitochondrion", "dice_granule"}
    assert scores["dice"] > 0.85
    run = driver(folder)[1]
    run("inference", **CPU, input=str(data / "images"), output_dir=str(tmp_path))
    found, label = (
        tifffile.imread(tmp_path / "slice7_label.tif"),
        np.asarray(Image.open(data / "labels" / "slice7.png")),
    )
    assert (found.dtype, set(np.unique(found))) == (np.uint8, {0, 1, 2, 3})
    assert (found == label)[label < 255].mean() > 0.95
    assert len(np.unique(found[:, :30])) > 1, "where nobody has labelled"


@pytest.mark.slow
def test_glands_of_colour_images(trained, tmp_path):
    data, folder, scores = trained(histology)
    assert scores.keys() == {"dice"}
    assert scores["dice"] > 0.9
    gray = tmp_path / "images" / "gray.png"
    gray.parent.mkdir()
    Image.open(data / "images" / "core7.png").convert("L").save(gray)
    shutil.copy(data / "images" / "core7.png", gray.parent)
    driver(folder)[1]("inference", **CPU, input=str(gray.parent), output_dir=str(tmp_path / "out"))
    found, mask = (
        tifffile.imread(tmp_path / "out" / "core7_label.tif"),
        np.asarray(Image.open(data / "masks" / "core7.png")),
    )
    assert set(np.unique(found)) == {0, 255}, "as the labels were"
    assert (found == mask).mean() > 0.95
    assert tifffile.imread(tmp_path / "out" / "gray_label.tif").shape == mask.shape, "gray is a colour"


@pytest.mark.slow
def test_fine_tuning_from_colours_to_gray(trained, planned, tmp_path):
    colours = trained(histology)[1] / "models" / "model.pt"
    run = driver(planned(three_classes)[1])[1]
    start = {"init_weights": str(colours), "output_dir": str(tmp_path), "learning_rate": 0}
    run("train", **{**SHORT, "max_epochs": 1, "steps_per_epoch": 2, **start}, device="cpu")
    network, theirs = (load_network(file) for file in (tmp_path / "model.pt", colours))
    assert (network.in_channels, network.out_channels) == (1, 4)
    assert torch.equal(network.encoder[1].conv1.weight, theirs.encoder[1].conv1.weight)


@pytest.mark.slow
def test_glands_as_instances(trained):
    _, _, scores = trained(histology, label_components=True)
    assert scores["seg"] > 0.8
