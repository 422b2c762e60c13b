"""The bundles in a real MONAI Label server: `make test-label`."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
import tifffile
import torch
from bright_network import save_bright_network
from bundle_driver import driver
from monai.bundle import ConfigParser
from PIL import Image
from test_label_contract import CELLS, EM, HIPPOCAMPUS, LABELS, on_the_command_line, picture

from monai_unet.datasets import prepare
from monai_unet.inferers import OverlapTileInferer
from monai_unet.networks import ValidUNet, load_network
from monai_unet.symmetries import symmetry_variance

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("MONAI_UNET_LABEL_ENV", ROOT / ".label" / "environment"))
pytestmark = [
    pytest.mark.label,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (ENVIRONMENT / "ready").is_file(), reason="no environment of MONAI Label: make test-label"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@dataclass
class Served:
    name: str
    bundle: Path
    studies: Path
    out: Path
    url: str
    process: subprocess.Popen[bytes]

    def get(self, path: str, **query: Any) -> Any:
        return self._answer(requests.get(f"{self.url}{path}", params=query, timeout=300))

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self._answer(requests.post(f"{self.url}{path}", params=query, json=body or {}, timeout=600))

    def infer(self, image: str, **parameters: Any) -> requests.Response:
        query = {"image": image, **({} if parameters else {"output": "image"})}
        form = {"params": json.dumps(parameters)}
        answer = requests.post(f"{self.url}/infer/{self.name}", params=query, data=form, timeout=300)
        assert answer.status_code == 200, answer.text
        return answer

    def mask(self, image: str) -> np.ndarray:
        return read(self.infer(image).content)

    def expected(self, image: str) -> np.ndarray:
        """What the command line writes for the same image and weights, in the coding of MONAI Label."""
        (file,) = (path for path in self.studies.iterdir() if path.name.split(".")[0] == image)
        shutil.rmtree(self.out, ignore_errors=True)
        on_the_command_line(self.bundle, file, self.out)
        if self.name == HIPPOCAMPUS:
            return np.asarray(nib.load(next(self.out.rglob("*_seg.nii.gz"))).dataobj)
        kind, factor = ("label", 255) if self.name == EM else ("instances", 1)
        return tifffile.imread(self.out / f"{image}_{kind}.tif") // factor

    @staticmethod
    def _answer(response: requests.Response) -> Any:
        assert response.status_code == 200, response.text
        return response.json()


def read(content: bytes) -> np.ndarray:
    if content.startswith((b"II", b"MM")):
        return tifffile.imread(io.BytesIO(content))
    if content.startswith(b"\x89PNG"):
        return np.asarray(Image.open(io.BytesIO(content)))
    return np.asarray(nib.Nifti1Image.from_bytes(_unzipped(content)).dataobj)


def _unzipped(content: bytes) -> bytes:
    import gzip

    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def copy_of(name: str, folder: Path) -> Path:
    shutil.copytree(ROOT / "bundles" / name / "configs", folder / name / "configs")
    (folder / name / "models").mkdir()
    three = name == HIPPOCAMPUS
    weights = folder / name / "models" / "model.pt"
    save_bright_network(weights, 3 if three else 2, 1, 3 if three else 2, "batch" if three else None)
    return folder / name


def images(name: str, folder: Path) -> Path:
    """Odd sizes, and every format that the bundle takes."""
    folder.mkdir()
    if name == HIPPOCAMPUS:
        turned = np.array([[0, -1.2, 0, 31], [0.8, 0, 0, -12], [0, 0, 1.5, 7], [0, 0, 0, 1]])
        for number, affine in enumerate((np.eye(4), turned, np.diag([1.0, 1, 2, 1]))):
            volume = picture((23, 31, 18), number).astype(np.int16)
            nib.save(nib.Nifti1Image(volume, affine), folder / f"v{number}.nii.gz")
        return folder
    Image.fromarray(picture((97, 131), 0)).save(folder / "eight.png")
    tifffile.imwrite(folder / "sixteen.tif", picture((64, 201), 1).astype(np.uint16) * 200)
    tifffile.imwrite(folder / "long.tiff", picture((130, 77), 2), compression="zlib")
    Image.fromarray(picture((75, 90), 3)).save(folder / "photo.jpg", quality=95)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(bundle: Path, studies: str, folder: Path, weights: str = "") -> Served:
    port = free_port()
    command = ["make", "--directory", str(ROOT), "label", f"PYTHON={sys.executable}", f"PORT={port}"]
    command += [f"BUNDLE={bundle}", f"STUDIES={studies}", f"WEIGHTS={weights}"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MONAI_UNET_LABEL_ENV": str(ENVIRONMENT),
        "HOME": str(folder),  # MONAI Label keeps what it fetches there
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    served = Served(bundle.name, bundle, Path(studies), folder / "out", f"http://127.0.0.1:{port}", process)
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            requests.get(f"{served.url}/info/", timeout=60)
            return served
        except requests.ConnectionError:
            time.sleep(0.5)
    stop(served)
    raise AssertionError((folder / "server.log").read_text())


def stop(served: Served) -> bool:
    """Whether Ctrl-C ends it cleanly, with no process left."""
    started = []
    if served.process.poll() is None:
        started = psutil.Process(served.process.pid).children(recursive=True)
        os.killpg(served.process.pid, signal.SIGINT)
    code = served.process.wait(60)
    _, left = psutil.wait_procs(started, timeout=5)
    for process in left:
        process.kill()
    shutil.rmtree(ROOT / ".label" / f"app-{served.url.rsplit(':', 1)[1]}", ignore_errors=True)
    return not left and code in (0, -signal.SIGINT)  # what make runs ends with 0, make itself by the signal


@pytest.fixture(scope="module", params=LABELS)
def served(request, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    server = start(copy_of(request.param, folder), str(images(request.param, folder / "studies")), folder)
    try:
        yield server
    finally:
        assert stop(server), "Ctrl-C ends it cleanly"


def test_info_lists_labels_strategies_and_the_training(served):
    info = served.get("/info/")
    model = info["models"][served.name]
    assert model["labels"] == LABELS[served.name]
    assert (model["type"], model["dimension"]) == ("segmentation", 3 if served.name == HIPPOCAMPUS else 2)
    assert set(info["strategies"]) == {"uncertainty", "random", "first"}
    assert info["trainers"][served.name]["config"]["steps_per_epoch"] == 100
    assert info["datastore"]["total"] == (3 if served.name == HIPPOCAMPUS else 4), "every format is indexed"


def test_masks_are_those_of_the_command_line(served):
    for image in served.get("/datastore/", output="all")["objects"]:
        answer = served.infer(image)
        mask, expected = read(answer.content), served.expected(image)
        assert mask.shape == expected.shape, image
        assert np.array_equal(mask, expected), image
        assert len(np.unique(mask)) > 1
        assert ".jpg" not in answer.headers["content-disposition"]
        if served.name == HIPPOCAMPUS:
            affine = nib.Nifti1Image.from_bytes(_unzipped(answer.content)).affine
            assert np.allclose(affine, nib.load(served.studies / f"{image}.nii.gz").affine, atol=1e-5)


def test_the_answer_says_how_doubtful_the_mask_is(served):
    image = next(iter(served.get("/datastore/", output="all")["objects"]))
    parameters = served.post(f"/infer/{served.name}", image=image, output="json")
    served.expected(image)
    with next(served.out.rglob("summary.csv")).open() as file:
        (row,) = csv.DictReader(file)
    assert parameters["doubt"] == pytest.approx(float(row["doubt"]), rel=1e-3)
    assert (parameters["look"], row["look"]) == (None, ""), "there is no threshold"


def test_new_weights_bring_their_own_rules(served):
    """As a training that ends while the server runs."""
    weights = served.bundle / "models" / "model.pt"
    kept, image = weights.read_bytes(), next(iter(served.get("/datastore/", output="all")["objects"]))
    content = torch.load(weights)
    try:
        for threshold, look in ((0.0, True), (1.0, False)):
            task = {"doubt": {"temperature": 1.0, "threshold": threshold}}
            torch.save({"model": content.get("model", content), "task": task}, weights)
            assert served.post(f"/infer/{served.name}", image=image, output="json")["look"] == look
    finally:
        weights.write_bytes(kept)


def prepared(served: Served, image: str) -> torch.Tensor:
    parser = ConfigParser()
    parser.read_config(served.bundle / "configs" / "inference.yaml")
    parser["bundle_root"] = str(served.bundle)
    (file,) = (path for path in served.studies.iterdir() if path.name.split(".")[0] == image)
    return parser.get_parsed_content("preprocessing")({"image": file})["image"][None]


def uncertainty(served: Served, image: str, network: ValidUNet) -> float:
    """Over what the bundle's training shows its network: of a picture all 8, of a volume left and right."""
    symmetries = (0,) if served.name == HIPPOCAMPUS else "all"
    return float(symmetry_variance(prepared(served, image), network, OverlapTileInferer(), symmetries).mean())


def test_the_next_sample_is_the_one_the_network_is_least_sure_of(served):
    """Weights by hand treat all directions alike, so other ones are served for this."""
    weights = served.bundle / "models" / "model.pt"
    by_hand = weights.read_bytes()
    three = served.name == HIPPOCAMPUS
    torch.manual_seed(0)
    other = ValidUNet(3 if three else 2, 1, 3 if three else 2, (4, 8), norm="batch" if three else None)
    other.eval()
    image = next(iter(served.get("/datastore/", output="all")["objects"]))
    with torch.no_grad():  # about half of it is foreground
        logits = OverlapTileInferer()(prepared(served, image), other)[0]
        other.head.bias[1] -= (logits[1] - logits[0]).median()
    torch.save(other.state_dict(), weights)
    try:
        idle(served)
        served.post("/scoring/uncertainty", run_sync=True)
        time.sleep(1)  # the server watches the record that the scoring has written
        records = served.get("/datastore/", output="all")["objects"]
        scores = {name: record["image"]["info"]["uncertainty"] for name, record in records.items()}
        assert all(score > 0 for score in scores.values())
        assert scores == pytest.approx({name: uncertainty(served, name, other) for name in scores}, rel=1e-3)
        ranked = sorted(scores, key=lambda name: -scores[name])
        assert [served.post("/activelearning/uncertainty")["id"] for _ in range(2)] == ranked[:2]
        assert served.post("/activelearning/first")["id"] == sorted(scores)[0]
        assert served.post("/activelearning/random")["id"] in scores
        for name in scores:  # the weights by hand would not tell whether it averages
            assert np.mean((served.mask(name) > 0) == (served.expected(name) > 0)) > 0.999, name
    finally:
        weights.write_bytes(by_hand)


@pytest.fixture
def broken(served) -> Iterator[str]:
    """An image that cannot be read, first in the alphabet."""
    file = served.studies / ("a_broken.nii.gz" if served.name == HIPPOCAMPUS else "a_broken.png")
    file.write_bytes(b"no image")
    for _ in range(60):
        if "a_broken" in served.get("/datastore/", output="all")["objects"]:
            break
        time.sleep(0.5)  # until the server has seen it
    yield "a_broken"
    file.unlink()
    while "a_broken" in served.get("/datastore/", output="all")["objects"]:
        time.sleep(0.5)


def idle(served: Served) -> None:
    """Wait for the scoring that the server does by itself, at the start and after each training."""
    while requests.get(f"{served.url}/scoring/", params={"check_if_running": True}, timeout=60).status_code == 200:
        time.sleep(0.5)


def test_a_bad_image_stops_no_scoring(served, broken):
    idle(served)
    weights = served.bundle / "models" / "model.pt"
    os.utime(weights, (time.time() + 100,) * 2)  # all images are to be scored again
    total = len(served.get("/datastore/", output="all")["objects"])
    result = served.post("/scoring/uncertainty", run_sync=True)
    assert (result["executed"], list(result["failed"])) == (total - 1, [broken])
    assert "a_broken" in result["failed"][broken]


def test_a_client_sees_the_reason_of_an_error(served, broken):
    """Before any image has a label."""
    weights = served.bundle / "models" / "model.pt"
    image = max(served.get("/datastore/", output="all")["objects"])
    hidden = weights.with_name("hidden")
    unknown = {"files": {"label": ("nobody.tif", b"")}, "params": {"image": "nobody"}}

    def error(method: str, path: str, status: int, **request: Any) -> str:
        answer = requests.request(method, f"{served.url}{path}", timeout=300, **request)
        assert answer.status_code == status, answer.text
        return str(answer.json()["detail"])

    infer = f"/infer/{served.name}"
    assert "a_broken" in error("POST", infer, 422, params={"image": broken})
    assert "there is no image 'nobody'" in error("POST", infer, 404, params={"image": "nobody"})
    assert "There is no model 'nothing'" in error("POST", "/infer/nothing", 404, params={"image": broken})
    assert "no such strategy 'nothing'" in error("POST", "/activelearning/nothing", 404, json={})
    assert "Image nobody not found" in error("PUT", "/datastore/label", 404, **unknown)
    train = {"params": {"run_sync": True}, "json": {"max_epochs": 1}}
    assert "no image has a label. Submit a label first" in error("POST", f"/train/{served.name}", 422, **train)
    served.infer(image)
    weights.rename(hidden)
    try:
        assert "model.pt is gone: put it back" in error("POST", infer, 500, params={"image": image})
    finally:
        hidden.rename(weights)
    served.infer(image)


def test_a_label_is_stored_and_comes_back(served):
    for image, record in list(served.get("/datastore/", output="all")["objects"].items()):
        suffix = ".png" if record["image"]["ext"] == ".jpg" else record["image"]["ext"]
        label = served.infer(image).content
        files = {"label": (f"label{suffix}", label)}
        saved = requests.put(f"{served.url}/datastore/label", params={"image": image}, files=files, timeout=60)
        assert saved.json() == {"image": image, "label": image}
        back = requests.get(f"{served.url}/datastore/label", params={"label": image, "tag": "final"}, timeout=60)
        assert back.content == label
    assert served.get("/info/")["datastore"]["completed"] == len(served.get("/datastore/", output="train"))


def test_an_epoch_replaces_the_weights_writes_a_run_and_is_used(served):
    """After the test above: every image has a label."""
    from mlflow import MlflowClient

    weights = served.bundle / "models" / "model.pt"
    before, image = load_network(weights).state_dict(), next(iter(served.get("/datastore/", output="all")["objects"]))
    request = {"max_epochs": 1, "device": "cpu", "multi_gpu": False, "steps_per_epoch": 2, "learning_rate": 0.003}
    request["tile_size"] = 36 if served.name == HIPPOCAMPUS else 100
    served.post(f"/train/{served.name}", request, run_sync=True)
    after = load_network(weights).state_dict()
    assert before.keys() == after.keys(), "the width of the weights that were served, not the paper's"
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert np.array_equal(served.mask(image), served.expected(image))
    client = MlflowClient(f"sqlite:///{served.bundle.parent}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string=f"name = '{served.name}'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["features"] == "[4, 8]"
    statistics = [name for name in before if "running" in name]
    if statistics:
        assert run.data.params["fix_norm_after"] == "0"
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert len(client.get_metric_history(run.info.run_id, "Loss")) == 2


def test_other_weights_are_an_error_and_no_answer(served):
    weights = served.bundle / "models" / "model.pt"
    kept, image = weights.read_bytes(), next(iter(served.get("/datastore/", output="all")["objects"]))
    torch.save(ValidUNet(2, 1, 2, (5, 6)).state_dict(), weights)
    try:
        answer = requests.post(f"{served.url}/infer/{served.name}", params={"image": image}, timeout=300)
        assert answer.status_code == (422 if served.name == HIPPOCAMPUS else 500)  # other dimensions, or another width
    finally:
        weights.write_bytes(kept)
    served.infer(image)


# --- as one who has just cloned the repository ---

DEMO = {  # a synthetic data set, and the tiles of a short training on it
    EM: ("em_phantom", 64),
    CELLS: ("cell_phantom", 64),
    HIPPOCAMPUS: ("organ_phantom", 20),
}
SHORT = {"features": [8, 16], "max_epochs": 1, "steps_per_epoch": 100, "val_interval": 1, "learning_rate": 0.01}


@pytest.mark.parametrize("name", LABELS)
def test_what_the_bundle_s_own_recipe_has_trained_is_served_and_right(name, tmp_path, elsewhere):
    card, tile_size = DEMO[name]
    data = prepare(card, output=tmp_path / "data")
    _, train, _ = driver(ROOT / "bundles" / name)
    folders = {"dataset_dir": str(data.parent), "output_dir": str(tmp_path)}
    train(["train", "compact"], **folders, **SHORT, tile_size=tile_size, device="cpu")
    image, label = (data.parent / json.loads(data.read_text())["test"][0][key] for key in ("image", "label"))
    bundle, studies = copy_of(name, tmp_path), tmp_path / "studies"
    (bundle / "models" / "model.pt").unlink()
    studies.mkdir()
    shutil.copy(image, studies)
    server = start(bundle, str(studies), tmp_path, weights=str(tmp_path / "model.pt"))
    try:
        (sample,) = server.get("/datastore/", output="all")["objects"]
        assert server.get("/info/")["models"][name]["labels"] == LABELS[name]
        mask, truth = server.mask(sample), read(label.read_bytes())
        assert np.array_equal(mask, server.expected(sample))
        if name != HIPPOCAMPUS:
            mask, truth = mask > 0, truth > 0
        assert np.mean([(mask == k)[truth == k].mean() for k in np.unique(truth)]) > 0.7, "most of each class is found"
    finally:
        assert stop(server)


# --- microscopy clients ---


@pytest.fixture
def microscopy(served) -> Served:
    if served.name == HIPPOCAMPUS:
        pytest.skip("for images")
    return served


def rings_for_qupath(served: Served, image: str, region: tuple[int, int, int, int] = (0, 0, 0, 0)) -> list[np.ndarray]:
    """As RunInference.updateAnnotations of QuPath's plugin reads the answer."""
    body = {"location": region[:2], "size": region[2:], "min_poly_area": 30, "params": {"max_workers": 1}}
    answer = requests.post(
        f"{served.url}/infer/wsi/{served.name}", params={"image": image, "output": "asap"}, json=body, timeout=300
    )
    assert answer.status_code == 200, answer.text
    rings = []
    for element in ElementTree.fromstring(answer.content).iter("Annotation"):
        assert element.attrib["Name"] == "cell"
        int(element.attrib["Color"].replace("#", ""), 16)
        rings.append(np.array([(float(p.attrib["X"]), float(p.attrib["Y"])) for p in element.iter("Coordinate")]))
    return rings


def test_qupath_gets_outlines_and_its_corrections_come_back_as_a_mask(microscopy):
    for image in ("eight", "sixteen"):  # a PNG, and a TIFF, which QuPath sends to the endpoint of whole slides
        mask = microscopy.mask(image)
        rings = rings_for_qupath(microscopy, image)
        assert rings
        low, high = np.min([ring.min(0) for ring in rings], 0), np.max([ring.max(0) for ring in rings], 0)
        rows, columns = np.nonzero(mask)
        assert low.tolist() == [columns.min(), rows.min()]
        assert high.tolist() == [columns.max() + 1, rows.max() + 1]
    left = rings_for_qupath(microscopy, "sixteen", (0, 0, 100, 64))
    assert all((ring.min(0) + ring.max(0))[0] / 2 < 100 for ring in left)
    square = [(10, 20), (30, 20), (30, 40), (10, 40)]
    coordinates = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(square))
    xml = f'<A><Annotation Name="cell"><Coordinates>{coordinates}</Coordinates></Annotation></A>'
    files = {"label": ("eight.xml", xml.encode())}
    saved = requests.put(f"{microscopy.url}/datastore/label", params={"image": "eight"}, files=files, timeout=60)
    assert saved.status_code == 200, saved.text
    pairs = [pair["label"] for pair in microscopy.get("/datastore/", output="train") if "eight" in pair["image"]]
    (label,) = (tifffile.imread(pair) for pair in pairs)
    assert label.shape == (97, 131)
    assert np.array_equal(np.argwhere(label)[[0, -1]], [[20, 10], [39, 29]])
    assert label.sum() == 400


def test_cvat_s_own_plugin_draws_the_outlines(microscopy, tmp_path):
    """The detector that MONAI Label ships for CVAT, with the request that CVAT's Nuclio sends."""
    script = """
import base64, io, json, os, sys
from argparse import Namespace
import logging
sys.path.insert(0, os.path.join(sys.prefix, "monailabel", "plugins", "cvat"))
import detector
context = Namespace(logger=logging.getLogger(), user_data=Namespace(), Response=lambda **answer: answer)
detector.init_context(context)
body = {"image": base64.b64encode(open(sys.argv[1], "rb").read())}
print("RESULT", detector.handler(context, Namespace(body=body))["body"])
"""
    image = tmp_path / "cvat.png"
    Image.fromarray(picture((97, 131), 0)).save(image)
    environment = {**os.environ, "MONAI_LABEL_SERVER": microscopy.url, "MONAI_LABEL_MODEL": microscopy.name}
    done = subprocess.run(
        [ENVIRONMENT / "bin" / "python", "-c", script, image],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    shapes = json.loads(line.removeprefix("RESULT "))
    assert shapes
    assert {(shape["label"], shape["type"]) for shape in shapes} == {("cell", "polygon")}
    for shape in shapes:
        x, y = np.array(shape["points"]).reshape(-1, 2).T
        assert 0 <= x.min() < x.max() <= 131
        assert 0 <= y.min() < y.max() <= 97


def test_geojson_names_every_instance(microscopy):
    collection = microscopy.infer("sixteen", output="geojson").json()
    assert collection["type"] == "FeatureCollection"
    if microscopy.name == CELLS:
        assert len(collection["features"]) == microscopy.mask("sixteen").max()


# --- the stock app, and what cannot be served ---


def test_the_stock_app_serves_every_bundle_unmodified(tmp_path):
    """Without our app: the masks, and an error where the weights do not match."""
    app = tmp_path / "app"
    shutil.copytree(ENVIRONMENT / "monailabel" / "sample-apps" / "monaibundle", app)
    expected = {}
    for name in LABELS:
        bundle = copy_of(name, tmp_path)
        shutil.copytree(bundle, app / "model" / name)
        file = sorted(images(name, tmp_path / f"studies_{name}").iterdir())[-1]
        served = Served(name, bundle, file.parent, tmp_path / "out", "", None)  # type: ignore[arg-type]
        expected[name] = (file, served.expected(file.name.split(".")[0]))
    script = """
import json, sys, torch
from monailabel.interfaces.utils.app import app_instance
app_dir, requests = sys.argv[1], json.loads(sys.argv[2])
app = app_instance(app_dir, app_dir + "/empty", {"models": ",".join(requests), "zoo_source": "local", "sam2": "false"})
for name, image in requests.items():
    print("RESULT", app.infer({"model": name, "image": image, "device": "cpu"})["file"])
    path = f"{app_dir}/model/{name}/models/model.pt"
    state = torch.load(path)
    torch.save({"other." + key: value for key, value in state.items()}, path)
    try:
        app.infer({"model": name, "image": image, "device": "cpu"})
    except RuntimeError as error:
        print("ERROR", error)
"""
    paths = json.dumps({name: str(file) for name, (file, _) in expected.items()})
    done = subprocess.run(
        [ENVIRONMENT / "bin" / "python", "-c", script, str(app), paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    files = [Path(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    for file, (_, mask) in zip(files, expected.values(), strict=True):
        assert np.array_equal(read(file.read_bytes()), mask)
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 3
    assert all("these weights are not those of the network" in error for error in errors)


def test_weights_that_do_not_match_end_the_start_with_the_reason(tmp_path):
    bundle = copy_of(EM, tmp_path)
    torch.save(ValidUNet(3, 1, 2, (2, 3)).state_dict(), bundle / "models" / "model.pt")
    with pytest.raises(AssertionError) as log:
        start(bundle, str(images(EM, tmp_path / "studies")), tmp_path)
    assert (
        "InputError" in str(log.value).split("the network has spatial_dims = 3, and 2 is needed")[-2].splitlines()[-1]
    )
