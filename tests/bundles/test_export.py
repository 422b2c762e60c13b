"""Exported networks give the bundle's probabilities, for images of any size, without this package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.transforms import ScaleIntensityRange

from monai_unet.bundles import export as module
from monai_unet.bundles.__main__ import main
from monai_unet.bundles.bioimageio import description
from monai_unet.bundles.export import WholeImage, export
from monai_unet.errors import InputError
from monai_unet.networks import ValidUNet

BUNDLES = Path(__file__).parents[2] / "bundles"
WITH_WEIGHTS = sorted(path.parents[1].name for path in BUNDLES.glob("*/models/model.pt"))
SIZES = {
    2: [(1, 1), (5, 31), (64, 64), (203, 190), (257, 301)],
    3: [(1, 1, 1), (5, 9, 14), (36, 52, 36), (45, 46, 47), (64, 40, 51)],
}
#: multiples of the network's step, so that the tiles of bioimageio.core lie at multiples of it, too; the last is tiled
TILED = {
    2: [(48, 64), (80, 208), (208, 208), (256, 240), (400, 416)],
    3: [(8, 4, 12), (36, 52, 36), (44, 44, 44), (48, 44, 60), (80, 84, 88)],
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A bundle of cells with a tiny network."""
    bundle = tmp_path / "cells"
    shutil.copytree(BUNDLES / "cell_segmentation" / "configs", bundle / "configs")
    shutil.copyfile(BUNDLES / "cell_segmentation" / "LICENSE", bundle / "LICENSE")
    (bundle / "models").mkdir()
    torch.manual_seed(0)
    network = ValidUNet(2, 1, 2, features=(4, 8), norm="batch")
    task = {"kind": "instances", "class_names": ["background", "cell"], "min_size": 61}
    torch.save({"model": network.state_dict(), "task": task}, bundle / "models" / "model.pt")
    return bundle


def reference(bundle: Path, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The normalised image (C, *spatial) and the bundle's probabilities (K, *spatial), by its own inference.yaml."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.yaml")
    parser.read_meta(bundle / "configs" / "metadata.json")
    parser["bundle_root"] = str(bundle)
    normalize = parser.get_parsed_content(f"image_transforms#{len(parser['image_transforms']) - 1}")
    normal = torch.as_tensor(normalize({"image": image})["image"])
    with torch.no_grad():
        logits = parser.get_parsed_content("inferer")(normal[None], parser.get_parsed_content("network_def"))
    return normal.numpy(), logits[0].softmax(0).numpy()


def images(channels: int, sizes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Smooth 16-bit images with noise and some hot pixels."""
    random = np.random.default_rng(7)
    waves = [sum(np.sin(grid / 5 + random.uniform(0, 9)) for grid in np.indices(size)) for size in sizes]
    drawn = [900 + 200 * wave + random.normal(0, 40, (channels, *wave.shape)) for wave in waves]
    for image in drawn:
        image[random.random(image.shape) > 0.9996] = 60_000
    return [image.clip(0, 65535).astype(np.uint16).astype(np.float32) for image in drawn]


def predict(folder: Path, image: np.ndarray) -> np.ndarray:
    """The probabilities (K, *spatial) of an image, by the folder's file of weights."""
    if (folder / "weights.pt").is_file():
        with torch.no_grad():
            return torch.jit.load(folder / "weights.pt")(torch.from_numpy(image[None]))[0].numpy()
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(folder / "weights.onnx").run(None, {"image": image[None]})[0][0]


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_an_image_of_any_size_gives_the_probabilities_of_the_bundle(format: str, cells: Path, tmp_path: Path, capsys):
    assert main(["export", str(cells), "--format", format, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    for image in images(1, SIZES[2]):
        np.testing.assert_allclose(predict(tmp_path / "out", image), reference(cells, image)[1], atol=1e-4)
    image, probability = (np.load(tmp_path / "out" / f"test_{name}.npy") for name in ("input", "output"))
    np.testing.assert_allclose(predict(tmp_path / "out", image[0]), probability[0], atol=1e-4)
    assert "LabelInstances(min_size=61)(mask)" in (tmp_path / "out" / "README.md").read_text()


def test_the_rule_of_doubtful_pixels_is_told_with_what_it_takes(cells: Path, tmp_path: Path):
    path = cells / "models" / "model.pt"
    content = torch.load(path, weights_only=True)
    content["task"] |= {"neck": 0, "core": 0.7}
    bundle = tmp_path / "bundle"
    shutil.copytree(cells, bundle)
    torch.save(content, bundle / "models" / "model.pt")
    text = (export(bundle, "torchscript", tmp_path / "out") / "README.md").read_text()
    assert "neck=0, core=0.7)(mask * probability)" in text
    assert "`probability` is 1 − that of the background" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("none", "one pass"),
        ([], "one pass"),
        ([1], "averaged over mirrorings"),
        ("mirror", "averaged over mirrorings"),
        ("all", "averaged over rotations and mirrorings"),
    ],
)
def test_what_is_averaged_over_is_told(given: Any, words: str, cells: Path, tmp_path: Path):
    bundle = shutil.copytree(cells, tmp_path / "bundle")
    config = bundle / "configs" / "inference.yaml"
    config.write_text(re.sub(r"^averaging: .+", f"averaging: {given}", config.read_text(), flags=re.MULTILINE))
    text = (export(bundle, "torchscript", tmp_path / "out") / "README.md").read_text()
    assert f"({words})" in text


def test_a_package_describes_sizes_halo_and_preparation(cells: Path, tmp_path: Path):
    folder = export(cells, "bioimageio", tmp_path / "package")
    document = yaml.safe_load((folder / "rdf.yaml").read_text())
    (taken,), (given,) = document["inputs"], document["outputs"]
    assert [axis.get("size") for axis in taken["axes"][2:]] == 2 * [{"min": 18, "step": 2}]
    assert [axis["halo"] for axis in given["axes"][2:]] == [8, 8]
    named = [entry["source"] for key in ("covers", "attachments") for entry in document[key]]
    named += [document["documentation"]["source"], *(entry["source"] for entry in document["weights"].values())]
    named += [tensor["test_tensor"]["source"] for tensor in (taken, given)]
    assert sorted([*named, "rdf.yaml"]) == sorted(path.name for path in folder.iterdir())
    assert {entry["doi"] for entry in document["cite"]} >= {
        "10.48550/arXiv.1505.04597",
        "10.1093/bioinformatics/btu080",
    }

    # what a program does that goes by the description
    clip, scaled = taken["preprocessing"]
    axes = {"axes": ["y", "x"]}
    assert clip == {"id": "clip", "kwargs": {**axes, "min_percentile": 0.1, "max_percentile": 99.9}}
    assert scaled == {"id": "zero_mean_unit_variance", "kwargs": axes}
    normal, expected = reference(cells, images(1, [(41, 60)])[0])
    padded = np.pad(normal, ((0, 0), (8, 9), (8, 8)), mode="reflect")
    with torch.no_grad():
        logits = torch.jit.load(folder / "weights.pt")(torch.from_numpy(padded[None]))
    np.testing.assert_allclose(logits.softmax(1)[0, :, 8:49, 8:68], expected, atol=1e-4)
    assert logits[:, :, :8].abs().max() == 0


def test_a_fixed_scale_is_kept(cells: Path):
    scale = (-160.0, 240.0, -1.5, 2.5)
    exported = module._read(cells)._replace(scale=scale)
    image = torch.linspace(-1000, 1000, 90).reshape(1, 1, 9, 10)
    expected = ScaleIntensityRange(*scale, clip=True)(image)
    torch.testing.assert_close(WholeImage(exported.network, "none", scale).normalized(image), expected)
    clip, linear = description(exported)["inputs"][0]["preprocessing"]
    by_the_terms = image.clamp(**clip["kwargs"]) * linear["kwargs"]["gain"] + linear["kwargs"]["offset"]
    torch.testing.assert_close(by_the_terms, expected)


def test_faults_are_explained_and_leave_nothing(cells: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit):
        main(["export", "cells", "--format", "gif"])
    assert "invalid choice: 'gif'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="format is 'gif'; it must be bioimageio, onnx or torchscript"):
        export(cells, "gif")
    with pytest.raises(InputError, match=r"configs: it has no configs/inference.yaml. Name the folder of a bundle"):
        export(cells / "configs", "onnx")
    with pytest.raises(InputError, match="no bundle of this name comes with the package. Choose one of cell"):
        export("cell", "onnx")
    with pytest.raises(InputError, match=r"models: it exists. Name a new folder"):
        export(cells, "onnx", cells / "models")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", "cells", "--format", "onnx"]) == 1
    assert capsys.readouterr().err == 'error: onnx is missing: pip install "monai_unet[export]"\n'
    weights = (cells / "models" / "model.pt").rename(tmp_path / "kept.pt")
    assert main(["export", "cells", "--format", "onnx"]) == 1
    expected = "model.pt: the bundle has no weights. Train it first, or choose a bundle with weights.\n"
    assert capsys.readouterr().err.endswith(expected)
    weights.rename(cells / "models" / "model.pt")
    config = cells / "configs" / "inference.yaml"
    text = config.read_text()
    config.write_text(text.replace("monai_unet.transforms.NormalizePagesd, keys", "ScaleIntensityd, keys"))
    with pytest.raises(
        InputError, match=r"image_transforms ends with ScaleIntensityd. Let it end with NormalizePagesd,"
    ):
        export(cells, "onnx")
    config.write_text(text)
    assert sorted(tmp_path.rglob("*")) == before


ALONE = """
import sys, numpy as np, torch
network = torch.jit.load(sys.argv[1] + "/weights.pt")
with torch.no_grad():
    for path in sys.argv[2:]:
        np.save(path, network(torch.from_numpy(np.load(path)[None]))[0].numpy())
assert not any(name.startswith("monai") for name in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", ["torchscript", "onnx"])
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_the_masks_of_shipped_weights(name: str, format: str, tmp_path: Path):
    folder = export(name, format, tmp_path / "out")
    test = np.load(folder / "test_input.npy")
    drawn = [test[0], *images(test.shape[1], SIZES[test.ndim - 2])]
    if format == "onnx":
        results = [predict(folder, image) for image in drawn]
    else:
        paths = [tmp_path / f"{number}.npy" for number in range(len(drawn))]
        for path, image in zip(paths, drawn, strict=True):
            np.save(path, image)
        subprocess.run([sys.executable, "-W", "ignore", "-I", "-c", ALONE, folder, *paths], check=True)
        results = [np.load(path) for path in paths]
    for image, result in zip(drawn, results, strict=True):
        assert_same(result, reference(BUNDLES / name, image)[1])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_bioimageio_core_accepts_the_package_and_gives_the_masks_tile_by_tile(name: str, tmp_path: Path):
    core: Any = pytest.importorskip("bioimageio.core", reason="`make test-export` installs it beside an older pydantic")
    folder = export(name, "bioimageio", tmp_path / "package")
    summary = core.test_model(folder / "rdf.yaml")
    assert summary.status == "passed", summary.format()
    model = core.load_model_description(folder / "rdf.yaml")
    (taken,), (given,) = model.inputs, model.outputs
    space, halos = taken.axes[2:], [axis.halo for axis in given.axes[2:]]
    dims = [str(axis.id) for axis in taken.axes]
    test = np.load(folder / "test_input.npy")
    for image in [test[0], *images(test.shape[1], TILED[len(space)])]:
        normal, expected = reference(BUNDLES / name, image)
        sample = core.Sample(members={"image": core.Tensor(normal[None], dims=dims)}, stat={}, id=None)
        sizes = list(zip(normal.shape[1:], space, halos, strict=True))
        with core.create_prediction_pipeline(model) as pipeline:
            if all(n >= 4 * halo for n, _, halo in sizes):  # two tiles along each axis
                block = {axis.id: -(-n // (2 * axis.size.step)) * axis.size.step + 2 * halo for n, axis, halo in sizes}
                result = pipeline.predict_sample_with_fixed_blocking(
                    sample, {"image": {"batch": 1, "channel": len(normal), **block}}, skip_preprocessing=True
                )
            else:
                result = pipeline.predict_sample_without_blocking(sample, skip_preprocessing=True)
        assert_same(result.members["probability"].to_numpy()[0], expected)


def assert_same(probability: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(probability, expected, atol=2e-3)
    first, second = np.sort(expected, axis=0)[[-1, -2]]
    clear = first - second > 4e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(probability.argmax(0)[clear], expected.argmax(0)[clear])
