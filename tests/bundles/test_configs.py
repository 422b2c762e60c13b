"""What the configs of a bundle, and those of different bundles, have in common.

MONAI Label reads one file and merges nothing, so train.yaml and inference.yaml repeat what they share, and
inference_large.yaml, which runs alone too, a little of it; these tests keep them equal. evaluate.yaml extends
inference.yaml. The configs' properties are checked by `bundle_driver` at each build.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

BUNDLES = Path(__file__).parents[2] / "bundles"
EM, CELLS, HIPPOCAMPUS = "em_membrane_segmentation", "cell_segmentation", "hippocampus_segmentation"
EXTENSIONS = [(name, "evaluate") for name in (EM, CELLS, HIPPOCAMPUS)]
#: keys that each file has its own value for
OWN = {"imports", "dataset_dir", "output_dir", "network_def", "network", "initialize", "run"}

pytestmark = pytest.mark.filterwarnings("ignore:Can't merge entry:UserWarning")


def read(name: str, *files: str) -> dict[str, Any]:
    return ConfigParser.load_config_files([BUNDLES / name / "configs" / f"{file}.yaml" for file in files])


def without(step: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key != name}


@pytest.mark.parametrize("name", [EM, CELLS, HIPPOCAMPUS])
def test_training_and_inference_give_a_key_the_same_value(name):
    train, inference = read(name, "train"), read(name, "inference")
    shared = train.keys() & inference.keys() - OWN
    assert {"in_channels", "tile_size", "amp", "device"} <= shared
    assert {key: train[key] for key in shared} == {key: inference[key] for key in shared}


@pytest.mark.parametrize("name", [EM, CELLS])
def test_large_images_are_predicted_as_others_are(name):
    inference, large = read(name, "inference"), read(name, "inference_large")
    own = OWN - {"network_def", "network"} | {"input", "tile_size", "averaging", "inferer"}
    shared = inference.keys() & large.keys() - own
    assert {"network_def", "in_channels", "amp", "ckpt_path"} <= shared
    assert {key: inference[key] for key in shared} == {key: large[key] for key in shared}
    assert inference["inferer"] == {key: large["inferer"][key] for key in inference["inferer"]}


def test_the_rules_for_instances_and_the_spacing_are_among_these_keys():
    rules = {"min_size", "fill_holes", "grow", "neck"}
    for name, keys, files in (
        (CELLS, rules, ("train", "inference", "inference_large")),
        (HIPPOCAMPUS, {"spacing"}, ("train", "inference")),
    ):
        assert all(keys <= read(name, file).keys() for file in files)


@pytest.mark.parametrize("name", [EM, CELLS])
def test_images_labels_and_predictions_are_handled_as_in_training(name):
    train, inference, evaluate = read(name, "train"), read(name, "inference"), read(name, "evaluate")
    cached = [step for step in train["train"]["deterministic_transforms"] if "take_page" not in str(step)]
    images, labels, predictions = (
        inference["image_transforms"],
        evaluate["label_transforms"],
        inference["pred_transforms"],
    )
    assert cached[: len(images) + len(labels)] == images + labels
    assert train["validate"]["postprocessing"]["transforms"] == predictions + evaluate.get("score_transforms", [])


def test_volumes_are_handled_as_in_training():
    """Except that the label is resampled with the image in training, and scored on its own grid in evaluation."""
    train, inference = read(HIPPOCAMPUS, "train"), read(HIPPOCAMPUS, "inference")
    evaluate = read(HIPPOCAMPUS, "evaluate")
    image, label, orientation, spacing, normalisation = train["train"]["deterministic_transforms"]
    assert [without(step, "reader") for step in inference["image_transforms"]] == [
        without(image, "reader"),
        {**orientation, "keys": "image"},
        {**spacing, "keys": "image", "mode": spacing["mode"][0]},
        normalisation,
    ]
    assert evaluate["label_transforms"] == [label]
    softmax, inverse, *scored = evaluate["postprocessing"]["transforms"]
    assert [softmax, {**inverse, "keys": "pred"}] == inference["postprocessing"]["transforms"][:2]
    assert [softmax, *scored] == train["validate"]["postprocessing"]["transforms"]


@pytest.mark.parametrize("name", [EM, CELLS, HIPPOCAMPUS])
def test_evaluation_scores_what_validation_scores(name):
    train, evaluate = read(name, "train"), read(name, "evaluate")
    scores = {**evaluate["key_metric"], **evaluate["additional_metrics"]}
    validation = {**train["validate"]["key_metric"], **train["validate"].get("additional_metrics", {})}
    assert train["scored"] == evaluate["scored"]
    assert {key: scores[key] for key in validation} == validation


@pytest.mark.parametrize("file", ["train", "inference", "evaluate", "inference_large"])
def test_the_microscopy_bundles_have_their_keys_in_one_order(file):
    em, cells = list(read(EM, file)), list(read(CELLS, file))
    assert [key for key in cells if key in em] == [key for key in em if key in cells]


@pytest.mark.parametrize("base", ["train", "inference"])
@pytest.mark.parametrize(("name", "file"), EXTENSIONS)
def test_an_extension_keeps_what_the_other_file_imports(name, file, base):
    merged = read(name, base, file)["imports"]
    assert set(merged) >= {*read(name, base)["imports"], *read(name, file)["imports"]}


@pytest.mark.parametrize(("name", "file"), EXTENSIONS)
def test_an_extension_alone_ends_with_the_command_that_works(name, file):
    folder = BUNDLES / name / "configs"
    workflow = ConfigWorkflow(
        str(folder / f"{file}.yaml"), str(folder / "metadata.json"), logging_file=False, workflow_type=None
    )
    with pytest.raises(SystemExit) as end:
        workflow.initialize()
    assert end.value.code == (
        f"{file}.yaml extends inference.yaml; run both, in this order: "
        f"--config_file \"['configs/inference.yaml', 'configs/{file}.yaml']\""
    )
