"""The cell bundle, from instances to instances and outlines, as `python -m monai.bundle run` runs it."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import tifffile
import torch
import zarr
from bright_network import save_bright_network
from bundle_driver import EVALUATE, cause, driver
from PIL import Image

from monai_unet.data import InputError
from monai_unet.datasets import prepare
from monai_unet.metrics import merges_and_splits, seg_measure
from monai_unet.networks import ValidUNet, load_network
from monai_unet.transforms import LabelInstances, SeparateInstances

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    # warnings of torch and MONAI: TorchScript inside ignite, eval() of configs, optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BUNDLE = Path(__file__).parents[2] / "bundles" / "cell_segmentation"
build, run, configs = driver(BUNDLE)
TINY = {
    "features": [4, 8],
    "tile_size": 100,
    "max_epochs": 1,
    "steps_per_epoch": 3,
    "val_interval": 1,
    "validation_items": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Phantom frames; in each list the first is partly labelled, and the second has no mask of areas to ignore."""
    folder = prepare("cell_phantom", output=tmp_path_factory.mktemp("phantom")).parent
    document = json.loads((folder / "dataset.json").read_text())
    document["training"] = document["training"][:4]
    document["test"] = document["test"][:2]
    for split in ("training", "test"):
        first, second = document[split][:2]
        first["type"], second["type"] = "dark", "dim"
        half = np.zeros((256, 256), np.uint8)
        half[:, 128:] = 255
        label = tifffile.imread(first["label"])
        label[np.isin(label, np.unique(label[:, 128:]))] = 0
        first.update(label=str(folder / f"{split}-partial.tif"), ignore=str(folder / "half.png"))
        tifffile.imwrite(first["label"], label)
        Image.fromarray(half).save(first["ignore"])
        del second["ignore"]
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory) -> Path:
    """A checkpoint that takes bright pixels for cells."""
    path = tmp_path_factory.mktemp("by_hand") / "model.pt"
    save_bright_network(path)
    return path


@pytest.mark.parametrize(("options", "mirrored"), [({}, "all"), ({"rotate_range": 0}, [0, 1]), ({"flip_prob": 0}, [])])
def test_images_are_averaged_over_what_training_showed(data, by_hand, tmp_path, options, mirrored):
    trained = build("train", dataset_dir=str(data), output_dir=str(tmp_path), **TINY, **options).parser
    assert trained.get_parsed_content("task")["mirrored"] == mirrored
    torch.save({"model": torch.load(by_hand), "task": {"mirrored": mirrored}}, tmp_path / "model.pt")
    given = {"input": str(data), "output_dir": str(tmp_path), "ckpt_path": str(tmp_path / "model.pt")}
    assert build("inference", **given).parser.get_parsed_content("inferer").averaging == (mirrored or "none")
    assert build("inference", **given, averaging="all").parser.get_parsed_content("inferer").averaging == "all"


def test_training_leaves_the_best_checkpoint_and_a_run(trained, data, store):
    from mlflow import MlflowClient

    assert load_network(trained / "model.pt").features == (4, 8)
    assert (trained / "pictures" / "epoch_0001.png").stat().st_size > 10_000
    client = MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string="name = 'cell_segmentation'")
    runs = client.search_runs([experiment.experiment_id], filter_string="params.momentum = '0.99'")
    assert {"seg", "merged_cells", "split_cells", "Loss"} <= set(runs[0].data.metrics)
    assert {"w0", "sigma_border", "min_size", "grow"} <= set(runs[0].data.params)


def test_unlabelled_areas_have_no_weight_and_touching_cells_a_ridge(data, tmp_path):
    """The label stays as it was read; what is learnt has keys of its own."""
    workflow = build("train", dataset_dir=str(data), output_dir=str(tmp_path), **TINY)
    partial, whole = (workflow.parser.get_parsed_content("validate#preprocessing")(item) for item in _training(data))
    assert (partial["weight"][:, :, 128:] == 0).all()
    assert (partial["weight"][:, :, :128] > 0).all()
    assert (whole["weight"] > 0).all()
    assert whole["weight"].max() > 5, "the border term between touching cells"
    assert (whole["ignore"] == 0).all()
    for item, read in zip((partial, whole), _training(data), strict=True):
        assert np.array_equal(item["label"][0], tifffile.imread(read["label"]))
    ids, separated = whole["label"][0].numpy(), whole["instances"][0].numpy()
    assert np.array_equal(np.unique(ids), np.unique(separated))
    assert np.array_equal(whole["classes"][0], separated > 0)
    for axis in (0, 1):
        one, two = (np.diff(array, axis=axis) for array in (ids, separated))
        assert ((np.take(ids, range(255), axis) > 0) & (np.take(ids, range(1, 256), axis) > 0) & (one != 0)).any()
        apart = np.take(separated, range(255), axis) * np.take(separated, range(1, 256), axis) == 0
        assert (apart | (two == 0)).all()
    tile = workflow.parser.get_parsed_content("train#dataset")[0]
    assert {key: tuple(value.shape) for key, value in tile.items()} == {
        "image": (1, 116, 116),
        "classes": (1, 100, 100),
        "weight": (1, 100, 100),
    }
    assert set(tile["classes"].unique().tolist()) <= {0.0, 1.0}


def _training(data: Path) -> list[dict[str, str]]:
    return json.loads((data / "dataset.json").read_text())["training"][:2]


def test_evaluation_gives_seg_merged_and_split_cells_per_frame_and_overall(trained, data, tmp_path, capsys):
    checkpoint = str(trained / "model.pt")
    run(EVALUATE, dataset_dir=str(data), ckpt_path=checkpoint, output_dir=str(tmp_path / "eval"), averaging="none")
    record = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert [row["image"] for row in record["images"]] == ["t010.png", "t011.png"]
    assert set(record["overall"]) == {"seg", "ap50", "merged_cells", "split_cells"}
    assert {kind: found["images"] for kind, found in record["types"].items()} == {"dark": 1, "dim": 1}
    assert record["overall"]["merged_cells"] == sum(row["merged_cells"] for row in record["images"])
    with (tmp_path / "eval" / "scores.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["t010.png", "t011.png", "overall"]
    assert f"{record['overall']['seg']:.6f}" in capsys.readouterr().out.splitlines()[-1]


def test_the_labels_as_images_are_segmented_to_the_last_cell(by_hand, data, tmp_path):
    """Cells drawn as bright discs: SEG is near 1 in evaluation; inference writes these instances and outlines."""
    rows, columns = np.mgrid[:200, :180]
    label = np.zeros((200, 180), np.uint16)
    for number, (row, column) in enumerate([(40, 40), (40, 100), (120, 60), (150, 120), (100, 140)], start=1):
        label[np.hypot(rows - row, columns - column) < 20] = 7 * number
    label[30:50, 60:81] = 7  # touches the second disc but for one column
    image = np.where(label > 0, 200, 50).astype(np.uint8)
    image[:, 80] = 50
    tifffile.imwrite(tmp_path / "label.tif", label)
    tifffile.imwrite(
        tmp_path / "cells.tif", image, imagej=True, resolution=(1 / 0.19, 1 / 0.19), metadata={"unit": "um"}
    )
    item = {"image": str(tmp_path / "cells.tif"), "label": str(tmp_path / "label.tif")}
    (tmp_path / "dataset.json").write_text(json.dumps({"test": [item]}))
    both = {"ckpt_path": str(by_hand), "averaging": "none", "device": "cpu", "grow": 2, "neck": 5}
    run(EVALUATE, dataset_dir=str(tmp_path), output_dir=str(tmp_path / "eval"), **both)
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())["overall"]
    assert scores["seg"] > 0.99
    assert (scores["merged_cells"], scores["split_cells"]) == (0, 0)

    out = tmp_path / "out"
    workflow = run("inference", input=item["image"], output_dir=str(out), **both)
    with tifffile.TiffFile(out / "cells_instances.tif") as tif:
        ids = tif.asarray()
        x_resolution = tif.pages[0].tags["XResolution"].value
    assert ids.dtype == np.uint16
    assert x_resolution[1] / x_resolution[0] == pytest.approx(0.19, rel=1e-4)
    assert np.unique(ids).tolist() == [0, 1, 2, 3, 4, 5]
    assert seg_measure(label, ids) == pytest.approx(scores["seg"])
    assert (ids[33:47, 80] > 0).all(), "the ridge is given back: touching cells touch again"
    probability = tifffile.imread(out / "cells_probability.tif")
    assert (probability.dtype, probability.shape) == (np.float32, (200, 180))
    assert np.array_equal(probability > 0.5, image > 100)
    features = json.loads((out / "cells.geojson").read_text())["features"]
    assert [feature["properties"]["name"] for feature in features] == ["1", "2", "3", "4", "5"]
    for feature in features:
        x, y = np.array(feature["geometry"]["coordinates"][0]).T
        where = np.argwhere(ids == int(feature["properties"]["name"]))
        assert (y.min(), x.min(), y.max() - 1, x.max() - 1) == (*where.min(0), *where.max(0))
    assert (out / "pictures" / "cells.png").stat().st_size > 10_000
    pred = workflow.parser.get_parsed_content("evaluator").state.output[0]["pred"]
    assert pred.dtype == torch.uint16
    assert np.array_equal(np.asarray(pred).squeeze(), ids)


@pytest.mark.parametrize("config", ["inference", "inference_large"])
@pytest.mark.parametrize(("options", "count"), [({}, 2), ({"core": 0}, 1), ({"core": 0.55}, 1)])
def test_cells_joined_by_doubtful_pixels_are_split(by_hand, tmp_path, config, options, count):
    """A bridge whose probability is 0.6: its normalised gray is 0.54."""
    image = np.full((90, 120), 5000.0)
    image[20:70, 10:50] = image[20:70, 65:105] = 20000
    for _ in range(20):
        image[40:45, 50:65] = image.mean() + (0.5 + np.log(0.6 / 0.4) / 10) * image.std()
    tifffile.imwrite(tmp_path / "cells.tif", image.astype(np.uint16))
    out = tmp_path / "out"
    given = {"ckpt_path": str(by_hand), "averaging": "none", "device": "cpu", **options}
    files = {"config_file": str(BUNDLE / "configs" / f"{config}.yaml")}
    files |= {"meta_file": str(BUNDLE / "configs" / "metadata.json"), "bundle_root": str(BUNDLE)}
    monai.bundle.run(input=str(tmp_path / "cells.tif"), output_dir=str(out), **files, **given)
    if config == "inference":
        assert tifffile.imread(out / "cells_probability.tif")[42, 57] == pytest.approx(0.6, abs=0.02)
        ids = tifffile.imread(out / "cells_instances.tif")
    else:
        ids = zarr.open_group(out / "cells_prediction.ome.zarr", mode="r")["labels/instances/0"][:]
    assert len(np.unique(ids)) - 1 == count
    assert (ids[42, 10:105] > 0).all(), "the bridge is shared out, not lost"


def test_cells_are_measured_in_micrometres(by_hand, tmp_path):
    """As they are in the file, not as the network sees them; the bundle's rules give the ids."""
    pytest.importorskip("skimage")
    image = np.full((60, 70), 50, np.uint8)
    image[10:30, 10:40], image[40:60, 40:60] = 200, 210
    tifffile.imwrite(tmp_path / "a.tif", image, resolution=(20000, 20000), resolutionunit=3)  # 0.5 µm
    rules = {"min_size": 0, "fill_holes": False, "grow": 0, "neck": 0, "averaging": "none", "device": "cpu"}
    run("inference", input=str(tmp_path / "a.tif"), ckpt_path=str(by_hand), output_dir=str(tmp_path / "out"), **rules)
    with (tmp_path / "out" / "measures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["area_um2"], row["mean_1"]) for row in rows] == [
        ("1", "150", "200"),
        ("2", "100", "210"),
    ]
    features = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    assert [feature["properties"]["measurements"]["area_um2"] for feature in features] == [150, 100]
    with (tmp_path / "out" / "summary.csv").open() as file:
        (summary,) = csv.DictReader(file)
    assert (summary["objects"], summary["touching_border"], summary["objects_area_um2"]) == ("2", "1", "250")


def test_colour_images_and_folders(by_hand, tmp_path):
    checkpoint, folder = tmp_path / "colour.pt", tmp_path / "images"
    torch.save(ValidUNet(2, 3, 2, (2, 3)).state_dict(), checkpoint)
    folder.mkdir()
    for name in "ab":
        picture = np.random.default_rng(0).integers(0, 255, (61, 70, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{name}.png")
    both = {"input": str(folder), "ckpt_path": str(checkpoint), "averaging": "none", "device": "cpu"}
    run("inference", in_channels=3, amp="true", output_dir=str(tmp_path / "out"), **both)
    kinds = ("_instances.tif", "_probability.tif", ".geojson")
    masks = {p.name for p in (tmp_path / "out").iterdir() if p.suffix in (".tif", ".geojson")}
    assert masks == {n + k for n in "ab" for k in kinds}
    with pytest.raises(SystemExit) as error:
        run("inference", output_dir=str(tmp_path / "gray"), **both | {"ckpt_path": str(by_hand)})
    assert "3 channels, the network takes 1. Convert it to grayscale" in str(cause(error))


@pytest.mark.slow  # for the outlines
def test_seventy_thousand_cells_have_ids_of_their_own(by_hand, tmp_path):
    """More than uint16 can count; single bright pixels, two apart."""
    image = np.full((540, 540), 50, np.uint8)
    image[::2, ::2] = 200
    Image.fromarray(image).save(tmp_path / "dust.png")
    options = {"min_size": 0, "fill_holes": False, "grow": 0, "neck": 0, "averaging": "none", "device": "cpu"}
    run(
        "inference",
        input=str(tmp_path / "dust.png"),
        ckpt_path=str(by_hand),
        output_dir=str(tmp_path / "out"),
        handlers=[],
        **options,
    )
    ids = tifffile.imread(tmp_path / "out" / "dust_instances.tif")
    assert (ids.dtype, ids.max()) == (np.uint32, 270 * 270)
    assert np.array_equal(ids > 0, image > 100)
    features = json.loads((tmp_path / "out" / "dust.geojson").read_text())["features"]
    assert len(features) == 270 * 270


def test_a_stack_is_refused(by_hand, tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 40, 40), np.uint8))
    with pytest.raises((InputError, RuntimeError, SystemExit)) as error:
        run("inference", input=str(tmp_path / "stack.tif"), ckpt_path=str(by_hand), output_dir=str(tmp_path / "out"))
    assert "a stack of 5 pages, but only single images are accepted here" in str(cause(error))


def test_bad_masks_stop_training_before_its_first_step(data, tmp_path):
    document = json.loads((data / "dataset.json").read_text())
    mask = tmp_path / "mask.png"
    Image.fromarray(np.full((256, 256), 3, np.uint8)).save(mask)
    document["training"][2]["ignore"] = str(mask)
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises((InputError, RuntimeError, SystemExit)) as error:
        run("train", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"), **TINY)
    assert cause(error).path == str(mask)
    assert "labels that are not 0/255: 3" in str(cause(error))


def test_the_default_is_the_paper():
    (parser,) = configs("train")
    paper = {"features": [64, 128, 256, 512, 1024], "dropout": 0.5, "tile_size": 388, "momentum": 0.99}
    paper |= {"batch_size": 1, "w0": 10, "sigma_border": 5, "elastic_grid": 3, "elastic_sigma": 10}
    assert {key: parser[key] for key in paper} == paper


@pytest.mark.skipif("MONAI_UNET_DATA" not in os.environ, reason="needs MONAI_UNET_DATA: the gold cells")
@pytest.mark.parametrize(
    ("card", "neck", "cells", "too_wide"), [("dic_c2dh_hela", 12, 69, 15), ("phc_c2dh_u373", 4, 65, 5)]
)
def test_gold_cells_come_back_through_ridge_and_rules(card, neck, cells, too_wide, tmp_path):
    """The numbers of docs/results.md, on the training frames."""
    (train,) = configs("train")
    given = {key: train[key] for key in ("min_size", "fill_holes", "grow")} | {"neck": neck}
    items = json.loads(prepare(card, output=tmp_path).read_text())["training"]
    gold = [tifffile.imread(item["label"]) for item in items]
    separated = [SeparateInstances(width=train["ridge"])(ids[None]) for ids in gold]
    found = [LabelInstances(**given)(mask)[0] for mask in separated]
    counts = [len(np.unique(ids)) - 1 for ids in gold]
    assert [ids.max() for ids in found] == counts
    assert sum(counts) == cells
    assert merges_and_splits(gold, found) == (0, 0)
    assert min(map(seg_measure, gold, found)) >= 0.96
    parted = [LabelInstances(**{**given, "neck": too_wide})(mask)[0] for mask in separated]
    assert merges_and_splits(gold, parted).split > 0, "a wider neck would split one"
