"""What the configs of a bundle, and those of different bundles, have in common.

MONAI Label reads one file and merges nothing, so train.yaml and inference.yaml repeat what they share, and
inference_large.yaml, which runs alone too, a little of it; they come from the same templates. evaluate.yaml extends
inference.yaml. The configs' properties are checked by `bundle_driver` at each build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_unet.bundles.plan import shipped_plans
from monai_unet.bundles.write import bundle_files

BUNDLES = Path(__file__).parents[2] / "bundles"
EM, CELLS, HIPPOCAMPUS = "em_membrane_segmentation", "cell_segmentation", "hippocampus_segmentation"
EXTENSIONS = [(name, "evaluate") for name in (EM, CELLS, HIPPOCAMPUS)]
pytestmark = pytest.mark.filterwarnings("ignore:Can't merge entry:UserWarning")


def read(name: str, *files: str) -> dict[str, Any]:
    return ConfigParser.load_config_files([BUNDLES / name / "configs" / f"{file}.yaml" for file in files])


@pytest.mark.parametrize("name", sorted(shipped_plans()))
def test_the_shipped_bundles_are_what_the_templates_make_of_their_cards(name):
    """`python -m monai_unet.bundles new` writes the same files for these data sets."""
    for path, text in bundle_files(shipped_plans()[name]).items():
        if not path.startswith("docs/"):  # a shipped bundle has a model card of its own
            # the checksum of weights is added when they are released
            found = re.sub(r',\n  "weights_sha256": "\w+"', "", (BUNDLES / name / path).read_text())
            assert found == text, path


@pytest.mark.parametrize("name", [EM, CELLS, HIPPOCAMPUS])
def test_what_a_checkpoint_does_not_say_is_as_in_training(name):
    """A state dict without a task is predicted with the values of train.yaml."""
    train = read(name, "train")
    for file in ("inference", *(() if name == HIPPOCAMPUS else ("inference_large",))):
        given = {key: value for key, value in read(name, file).items() if str(value).startswith("$@task.get(")}
        assert "in_channels" in given
        if file == "inference":
            unsaid = "none" if name == HIPPOCAMPUS else "all"
            assert given.pop("averaging") == f"$@task.get('mirrored', {unsaid!r})"
        for key, value in given.items():
            assert value == f"$@task.get({key!r}, {train[key]!r})"
            assert train["task"][key] == f"@{key}"


@pytest.mark.parametrize("name", [EM, CELLS, HIPPOCAMPUS])
def test_evaluation_scores_what_validation_scores(name):
    train, evaluate = read(name, "train"), read(name, "evaluate")
    scores = {**evaluate["key_metric"], **evaluate["additional_metrics"]}
    validation = {**train["validate"]["key_metric"], **train["validate"].get("additional_metrics", {})}
    assert train["scored"] == evaluate["scored"]
    assert {key: scores[key] for key in validation} == validation


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
