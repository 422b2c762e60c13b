"""The EM bundle, from prepared data to masks, as `python -m monai.bundle run` runs it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from bright_network import save_bright_network
from bundle_driver import EVALUATE, cause, driver
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_unet.datasets import prepare
from monai_unet.networks import ValidUNet, load_network

pytestmark = [
    # warnings of torch and MONAI: TorchScript inside ignite, eval() of configs, optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BUNDLE = Path(__file__).parents[2] / "bundles" / "em_membrane_segmentation"
build, run, configs = driver(BUNDLE)
TINY = {
    "features": [2, 3, 4],
    "tile_size": 100,
    "max_epochs": 1,
    "steps_per_epoch": 3,
    "val_interval": 1,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def own_store(empty_store, elsewhere, tmp_path, monkeypatch) -> str:
    """A store for each test, which contains only its own runs."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare("em_phantom", output=tmp_path_factory.mktemp("phantom")).parent


def the_run(uri: str):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'em_membrane_segmentation'")
    (found,) = client.search_runs([experiment.experiment_id])
    return client, found


def test_training_leaves_a_checkpoint_pictures_and_a_run(trained, data, store):
    network = load_network(trained / "model.pt")
    assert network.features == (2, 3, 4)
    assert Image.open(trained / "pictures" / "epoch_0001.png").size[0] > 1000
    client, found = the_run(store)
    identity = json.loads((data / "dataset.json").read_text())["checksum"]
    assert found.info.status == "FINISHED"
    assert found.data.params["dataset"] == f"em_phantom sha256:{identity}"
    assert found.data.params["features"] == "[2, 3, 4]"
    assert {"learning_rate", "seed", "elastic_sigma", "w0", "torch", "monai_unet"} <= set(found.data.params)
    assert [m.step for m in client.get_metric_history(found.info.run_id, "Loss")] == [1, 2, 3]
    assert [m.step for m in client.get_metric_history(found.info.run_id, "lr_group_0")] == [1, 2, 3]
    assert [m.step for m in client.get_metric_history(found.info.run_id, "rand_error")] == [3]
    files = [file.path for folder in ("", "pictures") for file in client.list_artifacts(found.info.run_id, folder)]
    assert {"config.yaml", "environment.txt", "parameters.json", "pictures/epoch_0001.png"} <= set(files)
    config = yaml.safe_load(Path(client.download_artifacts(found.info.run_id, "config.yaml")).read_text())
    assert (config["steps_per_epoch"], config["momentum"]) == (3, 0.99), "the override, and the rest of the file"


def test_the_label_stays_as_it_was_read_and_the_target_is_its_classes(data, tmp_path):
    workflow = build("train", dataset_dir=str(data), output_dir=str(tmp_path), **TINY)
    read = json.loads((data / "dataset.json").read_text())["training"][0]
    item = workflow.parser.get_parsed_content("validate#preprocessing")(read)
    label = np.asarray(Image.open(read["label"]))
    assert np.array_equal(item["label"][0], label)
    assert np.array_equal(item["classes"][0], label == 255)
    tile = workflow.parser.get_parsed_content("train#dataset")[0]
    assert set(tile) == {"image", "classes", "weight"}
    _, target = workflow.parser.get_parsed_content("train#trainer").prepare_batch({k: v[None] for k, v in tile.items()})
    assert torch.equal(target[0], torch.cat([tile["classes"], tile["weight"]]))


def test_a_stack_trains_page_by_page(data, tmp_path):
    """The challenge's own files, train-volume.tif and train-labels.tif, are one item each; and they are evaluated."""
    document = json.loads((data / "dataset.json").read_text())
    item = {}
    for key, name in (("image", "train-volume.tif"), ("label", "train-labels.tif")):
        pages = [np.asarray(Image.open(slice_[key])) for slice_ in document["training"][:5]]
        tifffile.imwrite(tmp_path / name, np.stack(pages), photometric="minisblack")
        item[key] = name
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [item], "test": [item]}))
    workflow = build("train", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"), **TINY)
    alone = build("train", dataset_dir=str(data), output_dir=str(tmp_path / "out"), **TINY)
    load, load_alone = (flow.parser.get_parsed_content("validate#preprocessing") for flow in (workflow, alone))
    pages = workflow.parser["datalist"] = workflow.parser.get_parsed_content("datalist")
    assert [page["page"] for page in pages] == list(range(5))
    for page, single in zip(pages, document["training"], strict=False):
        one, other = load(page), load_alone(single)
        assert all(torch.equal(one[key], other[key]) for key in ("image", "label", "classes", "weight"))
    assert (len(workflow.train_dataset), len(workflow.val_dataset)) == (3, 2)
    workflow.run()
    out = tmp_path / "eval"
    run(EVALUATE, dataset_dir=str(tmp_path), ckpt_path=str(tmp_path / "out" / "model.pt"), output_dir=str(out))
    assert set(json.loads((out / "scores.json").read_text())["overall"]) == {
        "warping_error",
        "rand_error",
        "pixel_error",
    }


def test_each_training_is_a_separate_run(data, tmp_path, own_store):
    from mlflow import MlflowClient

    client = MlflowClient(own_store)
    for _ in range(2):
        run("train", dataset_dir=str(data), output_dir=str(tmp_path / "out"), **TINY)
    (experiment,) = client.search_experiments(filter_string="name = 'em_membrane_segmentation'")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_the_same_seed_trains_the_same_network(data, tmp_path):
    for name in "ab":
        run("train", dataset_dir=str(data), output_dir=str(tmp_path / name), seed=3, **TINY)
    a, b = (load_network(tmp_path / name / "model.pt").state_dict() for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_compact_recipe_is_one_file_away(data, tmp_path):
    override = {**TINY, "features": [2, 3]}
    workflow = run(["train", "compact"], dataset_dir=str(data), output_dir=str(tmp_path), amp="true", **override)
    assert isinstance(workflow.parser.get_parsed_content("optimizer"), torch.optim.Adam)
    assert load_network(tmp_path / "model.pt").features == (2, 3)


def test_evaluation_writes_the_errors_per_slice_and_overall(trained, data, tmp_path, own_store, capsys):
    run(EVALUATE, dataset_dir=str(data), ckpt_path=str(trained / "model.pt"), output_dir=str(tmp_path / "eval"))
    record = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert [row["image"] for row in record["images"]] == [f"train-volume-{i}.png" for i in (12, 13, 14)]
    assert set(record["overall"]) == {"warping_error", "rand_error", "pixel_error"}
    with (tmp_path / "eval" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["pixel_error"]) == record["overall"]["pixel_error"]
    printed = capsys.readouterr().out
    assert f"{record['overall']['rand_error']:.6f}" in printed.splitlines()[-1]
    client, found = the_run(own_store)
    assert found.data.metrics["pixel_error"] == pytest.approx(record["overall"]["pixel_error"])
    assert len(client.get_metric_history(found.info.run_id, "rand_error_per_image")) == 3
    assert len(list((tmp_path / "eval" / "pictures").glob("*.png"))) == 3


def test_labels_from_monai_label_are_evaluated_as_well(trained, data, tmp_path):
    """It writes 0 / 1 where the challenge has 0 / 255."""
    shutil.copytree(data, tmp_path / "ones")
    for file in (tmp_path / "ones").rglob("train-labels-*.png"):
        Image.fromarray(np.asarray(Image.open(file)) // 255).save(file)
    scores = []
    for folder in (data, tmp_path / "ones"):
        run(EVALUATE, dataset_dir=str(folder), ckpt_path=str(trained / "model.pt"), output_dir=str(tmp_path / "eval"))
        scores.append(json.loads((tmp_path / "eval" / "scores.json").read_text())["overall"])
    assert scores[0] == scores[1]


def test_prediction_of_files_stacks_and_folders(trained, data, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    slices = [np.asarray(Image.open(data / "slices" / f"train-volume-{i}.png")) for i in (12, 13, 14)]
    Image.fromarray(slices[0][:90, :131]).save(folder / "one.png")
    tifffile.imwrite(folder / "stack.tif", np.stack(slices), photometric="minisblack")
    run("inference", input=str(folder), ckpt_path=str(trained / "model.pt"), output_dir=str(tmp_path / "out"))
    out = tmp_path / "out"
    shapes = {"one": (90, 131), "stack": (3, 256, 256)}
    for name, shape in shapes.items():
        probability, label = (tifffile.imread(out / f"{name}_{kind}.tif") for kind in ("probability", "label"))
        assert probability.shape == label.shape == shape
        assert (probability.dtype, label.dtype) == (np.float32, np.uint8)
        decided = np.abs(probability - 0.5) > 1e-6  # closer than this, rounding decides
        assert np.array_equal(label[decided], 255 * (probability[decided] > 0.5))
        assert (out / "pictures" / f"{name}.png").stat().st_size > 10_000
    run("inference", input=str(folder / "one.png"), ckpt_path=str(trained / "model.pt"), output_dir=str(tmp_path / "2"))
    again = tifffile.imread(tmp_path / "2" / "one_probability.tif")
    assert np.array_equal(again, tifffile.imread(out / "one_probability.tif"))


def test_evaluation_and_inference_agree(trained, data, tmp_path):
    """The probability that is scored is the probability that is written."""
    from monai_unet.metrics import pixel_error

    checkpoint = str(trained / "model.pt")
    run(EVALUATE, dataset_dir=str(data), ckpt_path=checkpoint, output_dir=str(tmp_path / "eval"))
    run("inference", input=str(data / "slices/train-volume-13.png"), ckpt_path=checkpoint, output_dir=str(tmp_path))
    label = np.asarray(Image.open(data / "slices" / "train-labels-13.png"))
    scored = json.loads((tmp_path / "eval" / "scores.json").read_text())["images"][1]["pixel_error"]
    assert pixel_error(label, tifffile.imread(tmp_path / "train-volume-13_probability.tif")) == pytest.approx(scored)


# --- bad input: reported by name before any step, with nothing written ---


def _colour(folder: Path) -> Path:
    file = folder / "colour.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(file)
    return file


def _truncated(folder: Path) -> Path:
    file = folder / "cut.tif"
    tifffile.imwrite(file, np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8))
    file.write_bytes(file.read_bytes()[: 3 * 64 * 64])
    return file


def _empty(folder: Path) -> Path:
    file = folder / "empty.tif"
    file.touch()
    return file


def _nan(folder: Path) -> Path:
    file = folder / "nan.tif"
    tifffile.imwrite(file, np.full((64, 64), np.nan, np.float32))
    return file


BAD = {
    _colour: "3 channels, the network takes 1",
    _truncated: "truncated|cut|incomplete|beyond",
    _empty: "empty|0 bytes",
    _nan: "NaN",
}


@pytest.mark.parametrize(("make", "message"), BAD.items(), ids=[make.__name__ for make in BAD])
def test_a_bad_image_stops_only_itself(make, message, trained, tmp_path, capsys):
    good = tmp_path / "images" / "a_good.png"
    good.parent.mkdir()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(good)
    bad = make(good.parent)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        run("inference", input=str(good.parent), ckpt_path=str(trained / "model.pt"), output_dir=str(out))
    assert end.value.code == 1
    assert re.search(f"FAILED  {re.escape(str(bad))}: .*({message})", capsys.readouterr().out)
    assert sorted(p.name for p in out.rglob("*.tif")) == ["a_good_label.tif", "a_good_probability.tif"]
    head, *rows = (out / "summary.csv").read_text().splitlines()
    assert "cell_share" in head.split(",")
    assert [row.partition(",")[0] for row in rows] == ["a_good.png"]


def _other_shape(label: Path) -> None:
    Image.fromarray(np.zeros((64, 60), np.uint8)).save(label)


def _other_values(label: Path) -> None:
    Image.fromarray(np.full((256, 256), 7, np.uint8)).save(label)


@pytest.mark.parametrize(
    ("spoil", "message"), [(_other_shape, "labels of another shape"), (_other_values, "labels that are not 0/255: 7")]
)
def test_bad_labels_stop_training_before_its_first_step(spoil, message, data, tmp_path):
    datalist = json.loads((data / "dataset.json").read_text())
    label = tmp_path / "label.png"
    spoil(label)
    datalist["training"][3]["label"] = str(label)
    (tmp_path / "dataset.json").write_text(json.dumps(datalist))
    out = tmp_path / "out"
    with pytest.raises(RuntimeError) as error:
        run("train", dataset_dir=str(tmp_path), output_dir=str(out), **TINY)
    assert cause(error).path == str(label)
    assert message in str(cause(error))
    assert not out.exists()


def test_a_missing_or_foreign_checkpoint_is_an_error(data, tmp_path):
    image = str(data / "slices" / "train-volume-12.png")
    foreign = tmp_path / "foreign.pt"
    torch.save({"weight": torch.zeros(3)}, foreign)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"half a file")
    colour = tmp_path / "colour.pt"
    torch.save(ValidUNet(2, 3, 2, (2, 3)).state_dict(), colour)
    for checkpoint, message in (
        (tmp_path / "none.pt", "there is no checkpoint. Train first"),
        (broken, "the checkpoint cannot be read"),
        (foreign, "these weights are not those of a ValidUNet"),
        (colour, "the network has in_channels = 3, and 1 is needed"),
    ):
        with pytest.raises(RuntimeError) as error:
            run("inference", input=image, ckpt_path=str(checkpoint), output_dir=str(tmp_path / "out"))
        assert cause(error).path == str(checkpoint)
        assert message in str(cause(error))


def test_no_datalist_and_no_such_list(trained, data, tmp_path):
    with pytest.raises(RuntimeError) as error:
        run("train", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"), **TINY)
    assert "there is no such datalist. Run python -m monai_unet.datasets prepare" in str(cause(error))
    with pytest.raises(RuntimeError) as error:
        run(EVALUATE, dataset_dir=str(data), split="tests", ckpt_path=str(trained / "model.pt"))
    assert "it has no list 'tests', only training, test" in str(cause(error))


def test_on_the_command_line_an_input_error_is_one_line(tmp_path):
    image = tmp_path / "none.png"
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(BUNDLE)]
    command += ["--config_file", str(BUNDLE / "configs" / "inference.yaml"), "--input", str(image)]
    save_bright_network(weights := tmp_path / "model.pt")
    command += ["--ckpt_path", str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {image}: ")
    assert "Traceback" not in done.stderr


# --- the configs themselves ---


def test_the_default_is_the_paper():
    (parser,) = configs("train")
    paper = {
        "features": [64, 128, 256, 512, 1024],
        "dropout": 0.5,
        "tile_size": 388,
        "momentum": 0.99,
        "batch_size": 1,
        "w0": 10,
        "sigma_border": 5,
        "elastic_grid": 3,
        "elastic_sigma": 10,
    }
    assert {key: parser[key] for key in paper} == paper
    assert parser["optimizer"]["_target_"] == "torch.optim.SGD"


def test_the_bundle_runs_from_its_own_folder(trained, data, tmp_path, monkeypatch):
    """Copied away from the repository, with its weights in models/, as MONAI Label finds it."""
    shutil.copytree(BUNDLE / "configs", tmp_path / "bundle" / "configs")
    (tmp_path / "bundle" / "models").mkdir()
    shutil.copy(trained / "model.pt", tmp_path / "bundle" / "models" / "model.pt")
    monkeypatch.chdir(tmp_path / "bundle")
    workflow = ConfigWorkflow(
        config_file="configs/inference.yaml",
        meta_file="configs/metadata.json",
        logging_file=False,
        workflow_type="infer",
        input=str(data / "slices" / "train-volume-12.png"),
    )
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "bundle" / "predictions" / "train-volume-12_label.tif").is_file()


def test_a_label_edited_since_is_refused_on_resuming(data, tmp_path):
    """Of prepared data, too, whose dataset.json still has the checksum of its card."""
    shutil.copytree(data, own := tmp_path / "data")
    (own / "dataset.json").write_text((data / "dataset.json").read_text().replace(str(data), str(own)))
    options = {**TINY, "steps_per_epoch": 1, "dataset_dir": str(own), "output_dir": str(tmp_path / "model")}
    run("train", **options)
    label = json.loads((own / "dataset.json").read_text())["training"][0]["label"]
    Image.eval(Image.open(label), lambda value: 255 - value).save(label)
    with pytest.raises(RuntimeError) as error:
        run("train", **options, resume="true")
    assert "have changed since it was written (dataset: em_phantom sha256:" in str(cause(error))
