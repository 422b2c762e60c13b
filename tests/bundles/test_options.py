"""Options of a bundle's run: misspelt ones and values of another kind are refused, and all are listed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_unet.bundles.__main__ import main
from monai_unet.bundles.options import options
from monai_unet.data import InputError

BUNDLES = Path(__file__).parents[2] / "bundles"
CELLS = BUNDLES / "cell_segmentation"

pytestmark = pytest.mark.filterwarnings("ignore:Can't merge entry:UserWarning")


def check(*configs: str | Path, bundle: Path = CELLS, run_id: str = "run", **override: Any) -> None:
    """The check as `initialize` makes it; nothing else of the run."""
    files = [
        str(bundle / "configs" / f"{config}.yaml") if isinstance(config, str) else str(config) for config in configs
    ]
    override = {"initialize": ["$check_options()"], **override}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type=None, run_id=run_id, **override)
    try:
        workflow.initialize()
    except RuntimeError as error:  # MONAI wraps what an expression raises
        raise error.__cause__ or error from None


@pytest.mark.parametrize(
    ("config", "name", "meant"),
    [
        ("train", "max_epoch", "max_epochs"),
        ("train", "feature", "features"),
        ("train", "ouput_dir", "output_dir"),
        ("inference", "averagin", "averaging"),
        ("inference", "overwrit", None),
        ("inference", "max_epochs", None),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_known_one(config, name, meant):
    with pytest.raises(InputError) as refused:
        check(config, **{name: "none"})
    assert f"no option {name}" in str(refused.value)
    assert "python -m monai_unet.bundles options" in str(refused.value)
    if meant:
        assert f"; did you mean {meant}? " in str(refused.value)


def test_a_misspelt_option_in_a_file_of_ones_own_is_refused(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("max_epoch: 5\n")
    with pytest.raises(InputError, match="no option max_epoch; did you mean max_epochs"):
        check("train", own)


def test_a_key_that_another_part_refers_to_passes(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("rate: 0.01\nlearning_rate: '@rate'\nlater: [$print(1)]\n")
    check("train", own, run_id="later")


def test_what_monai_and_monai_label_set_passes():
    check(
        "train",
        "compact",
        **{"train#trainer#max_epochs": 2, "train#dataset#data": [], "validate#dataset#data": [], "device": "cpu"},
        **{"train#handlers": [], "experiment_name": "cells", "tracking_uri": "sqlite:///a.db", "run_name": "one"},
    )


@pytest.mark.parametrize("bundle", ["cell_segmentation", "em_membrane_segmentation", "hippocampus_segmentation"])
@pytest.mark.parametrize("configs", [["train"], ["train", "compact"], ["inference"], ["inference", "evaluate"]])
def test_every_config_passes_with_its_own_values(bundle, configs):
    check(*configs, bundle=BUNDLES / bundle)


def test_averaging_is_a_word_or_axes(tmp_path):
    volumes = BUNDLES / "hippocampus_segmentation"
    for value in ([0], "none", "mirror"):
        check("inference", bundle=volumes, averaging=value)
    (option,) = (option for option in options(volumes / "configs" / "inference.yaml") if option.name == "averaging")
    assert option.default == "none"
    own = shutil.copytree(volumes / "configs", tmp_path / "configs") / "inference.yaml"
    own.write_text(own.read_text().replace("$@task.get('mirrored', 'none')", "[0]"))
    check("inference", bundle=tmp_path, averaging="none")


def test_the_config_of_large_images_passes():
    check("inference_large", averaging="all", memory=2)


@pytest.mark.parametrize(
    ("option", "value", "cure"),
    [
        ("max_epochs", "one", "a whole number of at least 1"),
        ("max_epochs", 2.5, "a whole number of at least 1"),
        ("steps_per_epoch", 0, "a whole number of at least 1"),
        ("batch_size", [1, 2], "a whole number of at least 1"),
        ("learning_rate", "fast", "a number of at least 0"),
        ("learning_rate", -1, "a number of at least 0"),
        ("learning_rate", float("nan"), "a number of at least 0"),
        ("features", 16, "a list of whole numbers"),
        ("features", [16.5, 32], "a list of whole numbers"),
        ("tile_size", "big", "or a list with one for each axis"),
        ("dropout", True, "a number from 0 to 1"),
        ("core", 70, "a number from 0 to 1"),
        ("flip_prob", [0.5, 1.5], "a number from 0 to 1, or a list with one for each axis"),
        ("device", "gpu", "Use cpu"),
        ("output_dir", 20240501, "./NAME"),
        ("norm", "null", "it is 'null', read as a word. Write '$None', with the single quotes"),
    ],
)
def test_a_value_of_another_kind_is_refused(option, value, cure):
    with pytest.raises(InputError) as refused:
        check("train", **{option: value})
    assert str(refused.value).startswith(f"--{option}: ")
    assert cure in str(refused.value)


def test_expressions_and_all_kinds_of_a_value_pass():
    check("train", tile_size=[196, 388], class_weights=[1, 2], flip_prob=[0.5, 0], max_epochs="$3 + 4", norm="$None")


@pytest.mark.parametrize("path", sorted(BUNDLES.glob("*/configs/[tie]*.yaml")), ids=lambda path: path.stem)
def test_every_option_is_listed_with_its_default_and_a_meaning(path):
    found = {option.name: option for option in options(path)}
    for name, value in ConfigParser.load_config_file(path).items():
        if isinstance(value, (int, float, str)) and not str(value).startswith(("$", "@")):
            assert yaml.safe_load(found[name].default) == value or found[name].default == value
    assert [option.name for option in found.values() if not option.meaning] == []
    assert {"output_dir", "device", "amp", "tile_size"} <= found.keys()


def test_the_command_lists_them(capsys):
    assert main(["options", str(CELLS)]) == 0
    text = capsys.readouterr().out
    assert "--max_epochs             60" in text
    assert "optimisation, §3" in text
    assert main(["options", str(CELLS), "evaluate.yaml"]) == 0
    assert "--averaging              all" in capsys.readouterr().out
    assert main(["options", str(CELLS), "training"]) == 1
    assert "training.yaml: there is no such config, only compact, evaluate" in capsys.readouterr().err
