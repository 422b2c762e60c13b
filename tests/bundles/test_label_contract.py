"""What MONAI Label 0.8.5 reads from a bundle and does with it, without a server: the real one is in tests/label.

`Server` does what its `BundleInferTask`, `Restored` and `Writer` do, `train` what its `BundleTrainTask` does.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from bright_network import save_bright_network
from monai.bundle import ConfigParser
from monai.transforms import LoadImaged, Resize, SaveImaged
from PIL import Image
from scipy import ndimage

from monai_unet.data import InputError
from monai_unet.networks import ValidUNet

pytestmark = [
    # warnings of torch and MONAI: TorchScript inside ignite, eval() of configs, optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BUNDLES = Path(__file__).parents[2] / "bundles"
EM, CELLS, HIPPOCAMPUS = "em_membrane_segmentation", "cell_segmentation", "hippocampus_segmentation"
LABELS = {EM: {"cell": 1}, CELLS: {"cell": 1}, HIPPOCAMPUS: {"anterior": 1, "posterior": 2}}


def config(name: str, file: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(BUNDLES / name / "configs" / f"{file}.yaml")
    return parser


def metadata(name: str) -> dict[str, Any]:
    return json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """A bundle with hand-made weights in models/, as MONAI Label's app has it."""

    def make(name: str, channels: int = 1) -> Path:
        folder = tmp_path / name
        shutil.copytree(BUNDLES / name / "configs", folder / "configs")
        (folder / "models").mkdir()
        three = name == HIPPOCAMPUS
        norm = "batch" if three else None
        save_bright_network(folder / "models" / "model.pt", 3 if three else 2, channels, 3 if three else 2, norm)
        return folder

    return make


class Server:
    """MONAI Label's way from an image file to the array that a client sees, with the axes of the image's own array."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parser = folder, ConfigParser()
        self.parser.read_config(folder / "configs" / "inference.yaml")
        self.parser.config["bundle_root"] = str(folder)
        self.network = self.parser.get_parsed_content("network_def")
        outputs = metadata(folder.name)["network_data_format"]["outputs"]["pred"]["channel_def"]
        self.labels = {label: int(k) for k, label in outputs.items() if label != "background"}

    def __call__(self, image: Path) -> tuple[np.ndarray, np.ndarray]:
        """The mask and its affine, as written to the client's file."""
        self.parser.config["device"] = "cpu"
        data: dict[str, Any] = {
            "image": str(image),
            "image_path": str(image),
            "device": "cpu",
            "result_extension": None,
        }
        for step in self.steps("preprocessing", "pre_transforms"):
            if isinstance(step, LoadImaged):
                step._loader.image_only = False
            data = step(data)
        network = copy.deepcopy(self.network)
        checkpoint = torch.load(self.folder / "models" / "model.pt")
        network.load_state_dict(checkpoint.get("model", checkpoint), strict=False)
        with torch.no_grad():
            data["pred"] = self.parser.get_parsed_content("inferer")(data["image"][None], network.eval())[0]
        for step in self.steps("postprocessing", "post_transforms"):
            if not isinstance(step, SaveImaged):
                data = step(data)
        pred, meta = data["pred"], data["image"].meta if "image" in data else data.get("image_meta_dict", {})
        size = pred.shape[1:]
        wanted = tuple(meta.get("spatial_shape", size))[-len(size) :]  # Restored
        if size != wanted:
            pred = Resize(wanted, mode="nearest")(pred)
        pred = pred if pred.ndim <= 3 else pred[0] if len(pred) == 1 else pred
        self.extension = data.get("result_extension") or image.suffix
        # the writer passes the transposed array to ITK, whose last axis is x: 2-D comes out as rows and columns
        written = pred.numpy().transpose()
        return (written if written.ndim == 2 else written.transpose()), np.asarray(
            meta.get("original_affine", np.eye(3))
        )

    def steps(self, *keys: str) -> list[Any]:
        steps: list[Any] = []
        for key in keys:  # no break: the later key wins
            if self.parser.get(key):
                content = self.parser.get_parsed_content(key)
                steps = list(getattr(content, "transforms", content))
        return steps


def on_the_command_line(folder: Path, image: Path, out: Path) -> None:
    monai.bundle.run(
        meta_file=str(folder / "configs" / "metadata.json"),
        config_file=str(folder / "configs" / "inference.yaml"),
        logging_file=False,
        bundle_root=str(folder),
        input=str(image),
        output_dir=str(out),
        device="cpu",
    )


def picture(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """0 to 255, smooth and without symmetry: a transposed or mirrored mask differs."""
    noise = np.random.default_rng(seed).normal(size=shape)
    for axis in range(len(shape)):
        noise = np.cumsum(noise, axis)
    return np.uint8(255 * (noise - noise.min()) / np.ptp(noise))


# --- what it reads ---


@pytest.mark.parametrize("name", LABELS)
def test_labels_dimension_and_task_come_from_the_metadata(name):
    formats = metadata(name)["network_data_format"]
    assert next(iter(formats["inputs"])) == "image"
    assert next(iter(formats["outputs"])) == "pred"
    channels = formats["outputs"]["pred"]["channel_def"]
    assert {label: int(k) for k, label in channels.items() if label != "background"} == LABELS[name]
    assert channels["0"] == "background", "a client cannot paint 0"
    assert len(formats["inputs"]["image"]["spatial_shape"]) == (3 if name == HIPPOCAMPUS else 2)
    assert not any(word in name for word in ("detection", "deepedit", "deepgrow", "classification")), "another task"


@pytest.mark.parametrize("name", LABELS)
def test_every_block_that_it_reads_or_overrides_is_in_one_file(name):
    inference, train = config(name, "inference"), config(name, "train")
    for key in ("network_def", "preprocessing", "inferer", "postprocessing", "device"):
        assert key in inference, key
    for key in ("bundle_root", "device", "network", "run", "train#trainer#max_epochs"):
        assert key in train, key
    for key in ("train#dataset#data", "validate#dataset#data"):
        assert key in train, key
    assert all("_target_" in handler for handler in train["train#handlers"]), "it looks into each for a loader"
    assert "displayable_configs" not in train, "a request without them would be an error"


def test_what_the_server_needs_after_the_masks_is_the_same_for_both_microscopy_bundles():
    a, b = config(EM, "inference"), config(CELLS, "inference")
    for key in ("post_transforms", "label_server"):
        assert a[key] == b[key]
    assert a["save_transforms"][-1] == b["save_transforms"][-1]


# --- inference ---


def png(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def jpeg(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path.with_suffix(".jpg"), quality=95)
    return path.with_suffix(".jpg")


def tiff16(path: Path, array: np.ndarray) -> Path:
    tifffile.imwrite(path.with_suffix(".tif"), array.astype(np.uint16) * 211)
    return path.with_suffix(".tif")


def tiff8(path: Path, array: np.ndarray) -> Path:
    tifffile.imwrite(path.with_suffix(".tif"), array, compression="zlib")
    return path.with_suffix(".tif")


@pytest.mark.parametrize("write", [png, tiff8, tiff16, jpeg])
@pytest.mark.parametrize("name", [EM, CELLS])
def test_a_microscopy_mask_is_upright_and_that_of_the_command_line(name, write, bundle, tmp_path):
    folder = bundle(name)
    image = write(tmp_path / "image", picture((97, 131)))
    server = Server(folder)
    mask, _ = server(image)
    on_the_command_line(folder, image, tmp_path / "out")
    if name == EM:
        assert mask.dtype == np.uint8
        assert np.array_equal(255 * mask, tifffile.imread(tmp_path / "out" / "image_label.tif"))
        assert set(np.unique(mask)) == {0, 1}
    else:
        assert mask.dtype == np.uint16, "room for more than 255 cells"
        assert np.array_equal(mask, tifffile.imread(tmp_path / "out" / "image_instances.tif"))
        assert mask.max() > 0
    assert mask.shape == (97, 131)
    assert server.extension == {".jpg": ".png"}.get(image.suffix, image.suffix), "JPEG would blur the mask"


def test_colour_images_are_served_where_the_bundle_takes_them(bundle, tmp_path):
    folder = bundle(CELLS, channels=3)
    file = folder / "configs" / "inference.yaml"
    file.write_text(file.read_text().replace("in_channels: $@task.get('in_channels', 1)", "in_channels: 3"))
    image = png(tmp_path / "image", np.stack([picture((70, 83), seed) for seed in range(3)], axis=-1))
    mask, _ = Server(folder)(image)
    on_the_command_line(folder, image, tmp_path / "out")
    assert mask.max() > 0
    assert np.array_equal(mask, tifffile.imread(tmp_path / "out" / "image_instances.tif"))


TURNED = np.array([[0, -1.2, 0.0, 31.0], [0.8, 0, 0.0, -12.0], [0, 0, 1.5, 7.0], [0, 0, 0, 1.0]])  # y, -x; anisotropic


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 1, 1]), TURNED], ids=["plain", "turned"])
def test_a_volume_s_mask_lies_on_its_own_grid_and_is_that_of_the_command_line(affine, bundle, tmp_path):
    folder = bundle(HIPPOCAMPUS)
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(picture((23, 31, 18)).astype(np.int16), affine), image)
    mask, told = Server(folder)(image)
    on_the_command_line(folder, image, tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*_seg.nii.gz")
    expected = nib.load(file)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, np.asarray(expected.dataobj))
    assert set(np.unique(mask)) == {0, 1, 2}
    assert np.allclose(told, affine)
    assert np.allclose(expected.affine, affine)


# --- weights ---


@pytest.mark.parametrize("name", LABELS)
def test_weights_are_served_at_their_own_width(name, bundle):
    assert Server(bundle(name)).network.features == (4, 8), "train.yaml has the paper's"


@pytest.mark.parametrize("name", LABELS)
def test_weights_of_another_network_are_an_error_before_any_answer(name, bundle):
    folder = bundle(name)
    dims = 2 if name == HIPPOCAMPUS else 3
    torch.save(ValidUNet(dims, 1, 2, (2, 3)).state_dict(), folder / "models" / "model.pt")
    with pytest.raises((InputError, RuntimeError)) as error:
        Server(folder)
    assert f"it was trained on {dims}-D images, and the bundle takes {5 - dims}-D images" in str(_bottom(error.value))


def _bottom(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _bottom(error.__cause__)


@pytest.mark.parametrize(
    ("features", "norm", "message"),
    [((5, 6), None, "size mismatch"), ((4, 8), "batch", "these weights are not those of the network: .* differ")],
)
def test_weights_replaced_by_others_are_an_error_although_it_loads_them_loosely(
    features, norm, message, bundle, tmp_path
):
    folder = bundle(EM)
    server, image = Server(folder), png(tmp_path / "image", picture((20, 24)))
    server(image)
    torch.save(ValidUNet(2, 1, 2, features, norm=norm).state_dict(), folder / "models" / "model.pt")
    with pytest.raises(RuntimeError, match=message):
        server(image)


# --- training ---


def train(folder: Path, items: list[dict[str, str]], validation: list[dict[str, str]], **more: Any) -> None:
    """Do what a `/train/` request does, with values that make it quick."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "train.yaml")
    model = str(folder / "models" / "model.pt")
    loader = {"_target_": "CheckpointLoader", "load_path": model, "load_dict": {"model": "$@network"}, "strict": False}
    tiny = {"features": [4, 8], "tile_size": 36 if folder.name == HIPPOCAMPUS else 100, "steps_per_epoch": 2}
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(folder / "configs" / "metadata.json"),
        config_file=str(folder / "configs" / "train.yaml"),
        **{
            "bundle_root": str(folder),
            "train#trainer#max_epochs": 1,
            "train#dataset#data": items,
            "validate#dataset#data": validation,
            "device": "cpu",
            "train#handlers": [loader, *parser["train#handlers"]],
            **tiny,
            **more,
        },
    )


@pytest.fixture
def store(tmp_path, monkeypatch) -> str:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    return uri


def annotated(name: str, folder: Path, count: int = 2) -> list[dict[str, str]]:
    """Images with labels as MONAI Label stores them, which come from a client's mask."""
    items = []
    for number in range(count):
        image = picture((24, 26, 22) if name == HIPPOCAMPUS else (90, 101), number)
        label = np.uint8(image > 128) + np.uint8(image > 180) * (name == HIPPOCAMPUS)
        if name == CELLS:
            label = ndimage.label(label)[0].astype(np.uint8)
        paths = [folder / f"{kind}{number}" for kind in ("image", "label")]
        for path, array in zip(paths, (image, label), strict=True):
            if name == HIPPOCAMPUS:
                nib.save(nib.Nifti1Image(array, np.eye(4)), path.with_suffix(".nii.gz"))
            else:
                tifffile.imwrite(path.with_suffix(".tif"), array)
        suffix = ".nii.gz" if name == HIPPOCAMPUS else ".tif"
        items.append(dict(zip(("image", "label"), (f"{path}{suffix}" for path in paths), strict=True)))
    return items


@pytest.mark.parametrize("name", LABELS)
def test_one_epoch_on_its_labels_replaces_the_weights_and_is_a_run(name, bundle, tmp_path, store):
    """With an empty validation list, which it passes below five labels, and with weights to continue from."""
    from mlflow import MlflowClient

    folder, items = bundle(name), annotated(name, tmp_path)
    before = torch.load(folder / "models" / "model.pt")
    train(folder, items, [], learning_rate=0.0)
    after = torch.load(folder / "models" / "model.pt")["model"]
    weights = [key for key in before if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.equal(before[key], after[key]) for key in weights), "it continued from the existing weights"
    train(folder, items[:1], items[1:], learning_rate=0.01)
    moved = torch.load(folder / "models" / "model.pt")["model"]
    assert any(not torch.equal(before[key], moved[key]) for key in weights)
    assert [path.name for path in (folder / "models").glob("*.pt")] == ["model.pt"], "the shortest name is served"
    client = MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string=f"name = '{name}'")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    assert runs[0].data.params["dataset"] == runs[1].data.params["dataset"]
    assert runs[0].data.params["dataset"].startswith("2 items sha256:")


def test_labels_of_other_values_stop_its_training(bundle, tmp_path, store):
    folder, items = bundle(EM), annotated(EM, tmp_path)
    tifffile.imwrite(items[1]["label"], np.full((90, 101), 7, np.uint8))
    with pytest.raises((InputError, RuntimeError)) as error:
        train(folder, items, [])
    assert "labels that are not 0/255: 7" in str(_bottom(error.value))
