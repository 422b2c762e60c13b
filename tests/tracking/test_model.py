"""The best network as an MLflow model: it gives the results of inference.yaml."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
import tifffile
import torch
import yaml
from bundle_driver import driver
from mlflow import MlflowClient
from mlflow.models import validate_serving_input
from PIL import Image
from serving import free_port, wait_for

from monai_unet.datasets import prepare
from monai_unet.networks import ValidUNet
from monai_unet.tracking.model import Segmentation, save_model
from monai_unet.transforms import LabelInstancesd

pytestmark = [
    # of torch, MONAI and MLflow
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BUNDLES = Path(__file__).parents[2] / "bundles"
EM = BUNDLES / "em_membrane_segmentation"
_, run_em, _ = driver(EM)
CELLS, HIPPOCAMPUS = BUNDLES / "cell_segmentation", BUNDLES / "hippocampus_segmentation"
PATIENT = "Mustermann"


def checkpoint(folder: Path, *shape) -> Path:
    """Random weights that find both classes in noise."""
    torch.manual_seed(0)
    network = ValidUNet(*shape).eval()
    with torch.no_grad():
        logits = network(torch.randn(1, network.in_channels, *[network.input_size(40)] * network.spatial_dims))
        network.head.bias[0] += (logits[:, 1] - logits[:, 0]).median()
    path = folder / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("em")
    path = checkpoint(folder, 2, 1, 2, (8, 8, 8))
    save_model(folder / "mlflow", path, EM / "configs" / "inference.yaml", {"tile_size": 100, "amp": True})
    return folder


def inference(image: Path, weights: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    run_em("inference", input=str(image), ckpt_path=str(weights), output_dir=str(out), tile_size=100)
    return tuple(tifffile.imread(out / f"{image.stem}_{kind}.tif") for kind in ("label", "probability"))


def test_it_gives_the_results_of_inference_yaml(model, tmp_path):
    image = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 91)).astype(np.uint8)).save(image)
    label, probability = inference(image, model / "model.pt", tmp_path / "out")
    assert 0.05 < (label > 0).mean() < 0.95, "both classes"
    loaded = mlflow.pyfunc.load_model(os.fspath(model / "mlflow"))
    pixels = np.asarray(Image.open(image))
    labels = loaded.predict(pixels)
    assert labels.dtype == np.uint8
    assert np.array_equal(255 * labels, label)
    probabilities = loaded.predict(pixels, params={"output": "probabilities"})
    assert probabilities.shape == (2, *pixels.shape)
    np.testing.assert_allclose(probabilities[1], probability, atol=1e-6)


@pytest.mark.parametrize(
    ("bundle", "shape"), [(EM, (2, 1, 2, (2, 3))), (CELLS, (2, 3, 2, (2, 3))), (HIPPOCAMPUS, (3, 1, 3, (2, 3)))]
)
def test_the_signature_and_the_input_example_fit(bundle, shape, tmp_path):
    path, model = checkpoint(tmp_path, *shape), tmp_path / "mlflow"
    save_model(model, path, bundle / "configs" / "inference.yaml", {"in_channels": shape[1]})
    loaded = mlflow.pyfunc.load_model(os.fspath(model))
    (output,) = loaded.metadata.signature.outputs.inputs
    labels = loaded.predict(loaded.input_example)
    assert (labels.dtype, (-1,) * labels.ndim) == (output.type, output.shape)
    served = (model / "serving_input_example.json").read_text()
    assert np.array_equal(loaded.predict(np.array(json.loads(served)["inputs"])), labels)
    assert validate_serving_input(os.fspath(model), served) is not None


def test_another_thread_may_import_modules_at_the_same_time(model, monkeypatch):
    """The journal's does, in a short training: it sends the first lines while the model is being written."""

    class Name(str):
        def startswith(self, *args):
            monkeypatch.setitem(sys.modules, f"imported_after_{len(sys.modules)}", sys)
            return False

    monkeypatch.setitem(sys.modules, Name("a_module"), sys)
    Segmentation(model / "mlflow" / "data" / "bundle")


def test_every_shape_of_the_same_image_gives_the_same(model):
    network = Segmentation(model / "mlflow" / "data" / "bundle")
    image = np.random.default_rng(0).integers(0, 255, (37, 61)).astype(np.uint8)
    one = network.predict(image)
    assert one.shape == (37, 61)
    assert 0 < one.mean() < 1
    assert np.array_equal(network.predict(image[None].astype(float)), one)
    assert np.array_equal(network.predict(image.tolist()), one), "nested lists, as JSON gives them"
    other = image[::-1]
    both = network.predict(np.stack([image, other])[:, None])
    assert np.array_equal(both, [one, network.predict(other)])
    assert network.predict(np.stack([image, other])[:, None], {"output": "probabilities"}).shape == (2, 2, 37, 61)


@pytest.mark.parametrize(
    ("data", "params", "message"),
    [
        (
            np.zeros((3, 9, 9)),
            None,
            r"shape is \(3, 9, 9\); the network takes 2 spatial axes, with 1 channel before",
        ),
        (np.zeros(9), None, r"the shape is \(9,\); the network takes 2 spatial axes"),
        (np.full((9, 9), np.nan), None, "the image contains NaN or Inf; pass finite values"),
        (np.zeros((9, 9)), {"output": "mask"}, 'output is \'mask\'; it must be "labels" or "probabilities"'),
    ],
)
def test_invalid_input_is_refused(data, params, message, model):
    with pytest.raises(ValueError, match=message):
        Segmentation(model / "mlflow" / "data" / "bundle").predict(data, params)


def test_hyperparameters_of_the_training_take_precedence_over_the_file(tmp_path):
    path = checkpoint(tmp_path, 2, 3, 2, (2, 3))
    training = {"in_channels": 3, "min_size": "$1 + 1", "averaging": "none", "device": "nowhere", "network_def": {}}
    save_model(tmp_path / "model", path, CELLS / "configs" / "inference.yaml", training)
    folder = tmp_path / "model" / "data" / "bundle"
    assert yaml.safe_load((folder / "training.yaml").read_text()) == {"in_channels": 3, "averaging": "none"}
    network = Segmentation(folder)
    image = np.random.default_rng(0).normal(size=(3, 40, 50))
    assert network.predict(image).shape == (40, 50)
    assert np.issubdtype(network.predict(image).dtype, np.integer)
    with pytest.raises(ValueError, match="with 3 channels before them"):
        network.predict(image[0])


def test_what_the_file_takes_from_the_checkpoint_the_training_does_not_override(tmp_path):
    path = checkpoint(tmp_path, 2, 1, 2, (2, 3))
    torch.save({"model": torch.load(path), "task": {"min_size": 7, "grow": 0}}, path)
    training = {"min_size": 1000, "grow": 5, "neck": 3, "averaging": "none"}
    save_model(tmp_path / "mlflow", path, CELLS / "configs" / "inference.yaml", training)
    folder = tmp_path / "mlflow" / "data" / "bundle"
    assert yaml.safe_load((folder / "training.yaml").read_text()) == {"neck": 3, "averaging": "none"}
    labelling = next(step for step in Segmentation(folder).to_labels.transforms if isinstance(step, LabelInstancesd))
    assert (labelling.label.min_size, labelling.label.grow, labelling.label.neck) == (7, 0, 3)


def test_nothing_is_pickled_but_weights(model):
    files = {path.name for path in (model / "mlflow").rglob("*") if path.is_file()}
    assert "python_model.pkl" not in files
    assert {"MLmodel", "model.pt", "inference.yaml", "requirements.txt"} <= files
    required = (model / "mlflow" / "requirements.txt").read_text()
    assert f"torch=={torch.__version__.split('+')[0]}" in required.splitlines()


def test_a_training_registers_its_best_network_and_names_nobody(empty_store, tmp_path, monkeypatch):
    """The EM bundle from a folder, with files and into a folder named after a patient."""
    place = tmp_path / "store"
    place.mkdir()
    uri = f"sqlite:///{shutil.copy(empty_store, place)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    data = tmp_path / PATIENT
    data.mkdir()
    lists = {"training": []}
    for number in range(3):
        pair = {key: str(data / f"{PATIENT}_{number}_{key}.png") for key in ("image", "label")}
        pixels = np.random.default_rng(number).integers(0, 2, (80, 90)).astype(np.uint8) * 255
        for path in pair.values():
            Image.fromarray(pixels).save(path)
        lists["training"].append(pair)
    (data / "dataset.json").write_text(json.dumps(lists))

    run_em(
        "train",
        tracking="mlflow",
        run_name="membranes",
        dataset_dir=str(data),
        output_dir=str(tmp_path / PATIENT / "out"),
        validation_items=1,
        features=[2, 3],
        tile_size=60,
        max_epochs=1,
        steps_per_epoch=2,
        val_interval=1,
        device="cpu",
        amp=False,
    )

    client = MlflowClient(uri)
    experiments = {experiment.name: experiment.experiment_id for experiment in client.search_experiments()}
    (run,) = client.search_runs(list(experiments.values()))
    assert run.info.experiment_id == experiments["em_membrane_segmentation"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "membranes")
    assert not list(data.rglob("mlruns.db")), "MONAI's store"
    (version,) = client.search_model_versions("name = 'em_membrane_segmentation'")
    assert version.run_id == run.info.run_id
    assert version.tags["metric"] == "rand_error"
    assert float(version.tags["rand_error"]) == pytest.approx(run.data.metrics["rand_error"])
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.pyfunc.load_model("models:/em_membrane_segmentation/1")
    finally:
        mlflow.set_tracking_uri(None)
    assert loaded.predict(np.zeros((50, 40), np.float32)).shape == (50, 40)
    assert list((place / "mlruns").rglob("epoch_0001.png"))
    assert not list((data / "out" / "mlflow").iterdir())
    for file in place.rglob("*"):
        assert PATIENT not in os.fspath(file.relative_to(tmp_path))
        if file.is_file():
            content = file.read_bytes().lower()
            assert PATIENT.lower().encode() not in content, file


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_mlflow_models_serve_gives_the_results_of_inference_yaml(model, tmp_path):
    if root := os.environ.get("MONAI_UNET_DATA"):
        page = tifffile.imread(Path(root) / "isbi2012" / "ISBI-2012-challenge" / "train-volume.tif", key=27)
    else:
        page = np.asarray(Image.open(prepare("em_phantom", output=tmp_path).parent / "slices" / "train-volume-12.png"))
    image = tmp_path / "slice.png"
    Image.fromarray(page).save(image)
    label, _ = inference(image, model / "model.pt", tmp_path / "out")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "models", "serve", "--model-uri", str(model / "mlflow")]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = "1000"
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server)
        body = json.dumps({"inputs": np.asarray(Image.open(image)).tolist()}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=1000) as answer:
            predictions = np.array(json.load(answer)["predictions"])
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    assert np.array_equal(255 * predictions, label)
