"""The checks that MONAI's Model Zoo runs on a bundle, by MONAI's own functions where it has them.

`bundle_driver` checks the properties of every config that is built.
"""

from __future__ import annotations

import importlib.metadata
import json
from itertools import product
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from monai.bundle.config_parser import ConfigParser
from monai.bundle.scripts import _get_fake_spatial_shape

from monai_unet.networks import ValidUNet

pytestmark = [
    # of torch, whose TorchScript is deprecated, and of MONAI
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BUNDLES = Path(__file__).parents[2] / "bundles"
NAMES = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json"))
RECIPES = list(product(NAMES, ("train", "compact")))
FILES = {"meta_file": "metadata.json", "config_file": "inference.yaml"}

TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"],
    "properties": {
        **{name: {"type": "string"} for name in ("type", "format", "modality", "dtype")},
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
}
TEXTS = ["schema", "version", "monai_version", "pytorch_version", "numpy_version"]
TEXTS += ["task", "description", "authors", "copyright"]
#: the rules of MONAI's bundle specification; the file that "schema" names has to be downloaded
SPECIFICATION = {
    "type": "object",
    "required": [*TEXTS, "changelog", "required_packages_version", "network_data_format"],
    "properties": {
        **{name: {"type": "string"} for name in [*TEXTS, "data_source", "data_type", "intended_use"]},
        **{name: {"type": "string"} for name in ("image_classes", "label_classes", "pred_classes")},
        "changelog": {"type": "object"},
        "required_packages_version": {"type": "object"},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {name: {"type": "object", "additionalProperties": TENSOR} for name in ("inputs", "outputs")},
        },
    },
}


def metadata(name: str) -> dict:
    return json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())


def networks_of(name: str, folder: Path, recipe: str) -> tuple[ValidUNet, dict[str, str]]:
    """A narrow network of the recipe's depth, and the arguments with which MONAI's checks load its weights."""
    features = ConfigParser.load_config_file(BUNDLES / name / "configs" / f"{recipe}.yaml")["features"]
    formats = metadata(name)["network_data_format"]
    channels = [formats[side][key]["num_channels"] for side, key in (("inputs", "image"), ("outputs", "pred"))]
    network = ValidUNet(len(formats["inputs"]["image"]["spatial_shape"]), *channels, [2] * len(features)).eval()
    torch.save(network.state_dict(), folder / "model.pt")
    files = {key: str(BUNDLES / name / "configs" / file) for key, file in FILES.items()}
    return network, {**files, "ckpt_path": str(folder / "model.pt")}


@pytest.mark.parametrize("name", NAMES)
def test_verify_metadata(name, tmp_path):
    pytest.importorskip("jsonschema", reason="MONAI's verify_metadata needs it")
    (tmp_path / "schema.json").write_text(json.dumps(SPECIFICATION))  # an existing file is not downloaded
    verify_metadata(meta_file=str(BUNDLES / name / "configs" / "metadata.json"), filepath=tmp_path / "schema.json")
    assert "/meta_schema_" in metadata(name)["schema"]


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_verify_net_in_out(name, recipe, tmp_path):
    """With sizes that the network takes, from its smallest one at the paper's depth."""
    network, arguments = networks_of(name, tmp_path, recipe)
    for n in (1, 2):
        verify_net_in_out("network_def", n=n, device="cpu", **arguments)
    if recipe == "train":
        formats = metadata(name)["network_data_format"]
        for n in (1, 2, 7):
            (size, *_), (out, *_) = (
                _get_fake_spatial_shape(formats[side][key]["spatial_shape"], n=n)
                for side, key in (("inputs", "image"), ("outputs", "pred"))
            )
            assert size == network.input_size(1) + (n - 1) * network.multiple, "no size is left out"
            assert out == network.output_size(size)


@pytest.mark.parametrize("name", NAMES)
def test_ckpt_export(name, tmp_path):
    network, arguments = networks_of(name, tmp_path, "compact")
    arguments["ckpt_file"] = arguments["ckpt_path"]
    ckpt_export("network_def", tmp_path / "model.ts", **arguments)
    image = torch.rand(1, network.in_channels, *[network.input_size(1)] * network.spatial_dims)
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_metadata_say_of_channels_and_values(name):
    for side in metadata(name)["network_data_format"].values():
        for tensor in side.values():
            assert list(tensor["channel_def"]) == [str(n) for n in range(tensor["num_channels"])]
            low, high = tensor["value_range"]
            assert low < high


@pytest.mark.parametrize("name", NAMES)
def test_the_required_versions_are_those_that_these_tests_run_with(name):
    """And are installed by constraints.txt, so that they exist and fit together."""
    data = metadata(name)
    versions = {key: data[f"{key}_version"] for key in ("monai", "numpy")} | data["required_packages_version"]
    versions["torch"] = data["pytorch_version"]
    installed = {package: importlib.metadata.version(package).partition("+")[0] for package in versions}
    assert versions == installed
    pinned = (BUNDLES.parent / "constraints.txt").read_text().splitlines()
    lines = {line.partition(" ")[0].lower() for line in pinned}
    assert {f"{package}=={version}" for package, version in versions.items() if package != "monai_unet"} <= lines


@pytest.mark.parametrize("name", NAMES)
def test_the_files_and_the_change_log_of_a_bundle(name):
    assert metadata(name)["version"] in metadata(name)["changelog"]
    files = {str(path.relative_to(BUNDLES / name)) for path in (BUNDLES / name).rglob("*") if path.is_file()}
    configs = {f"configs/{stem}.yaml" for stem in ("train", "evaluate", "inference", "multi_gpu_train")}
    assert files >= configs | {"LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"}
