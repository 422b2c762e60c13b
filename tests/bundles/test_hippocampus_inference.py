"""Inference of the hippocampus bundle with a hand-made network: NIfTI, DICOM series, and what MONAI Label takes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_driver import driver
from monai.bundle import ConfigWorkflow

from monai_unet.networks import ValidUNet

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

pytestmark = [
    # warnings of torch and MONAI: TorchScript inside ignite, eval() of configs, optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_segmentation"
_, run, configs = driver(BUNDLE)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A narrow network that separates bright (class 1) from dark (0), and never predicts 2."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    network = ValidUNet(3, 1, 3, features=(2, 3), norm=None)
    state = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    down = [f"encoder.0.conv{i}.weight" for i in (1, 2)]
    up = [f"decoder.0.conv{i}.weight" for i in (1, 2)]
    for name in (*down, *up):  # along level 1 and through its skip, which stands behind the two channels from below
        state[name][0, 2 if name == up[0] else 0, 1, 1, 1] = 1.0
    state["head.weight"][1, 0] = 10.0
    state["head.bias"][:] = torch.tensor([0.0, -5.0, -100.0])
    path = tmp_path / "model.pt"
    torch.save(state, path)
    return path


def predict(source: Path, checkpoint: Path, **override) -> ConfigWorkflow:
    out = str(checkpoint.parent / "out")
    return run("inference", input=str(source), output_dir=out, ckpt_path=str(checkpoint), device="cpu", **override)


def test_bright_voxels_of_a_nifti_file(tmp_path: Path, checkpoint: Path) -> None:
    bright = np.random.default_rng(0).random((19, 23, 17)) > 0.7
    affine = np.array([[0, 0, 1.0, 5], [-1.0, 0, 0, 7], [0, 1.0, 0, -3], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.where(bright, 900, 100).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "image.nii")
    predict(tmp_path / "image.nii", checkpoint)
    (path,) = (tmp_path / "out").glob("*_seg*")
    mask = nib.load(path)
    assert path.name.endswith("_seg.nii")
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, affine)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), bright)


def test_predictions_are_averaged_over_what_training_mirrored(tmp_path: Path, checkpoint: Path) -> None:
    """A network that sees the voxel to the left: with its mirrored self, the one to the right too."""
    state = torch.load(checkpoint)
    weight = state["encoder.0.conv1.weight"]
    weight[0, 0, 0, 1, 1], weight[0, 0, 1, 1, 1] = weight[0, 0, 1, 1, 1].clone(), 0
    bright = np.random.default_rng(0).random((19, 23, 17)) > 0.7
    nib.save(nib.Nifti1Image(np.where(bright, 900, 100).astype(np.int16), np.eye(4)), tmp_path / "image.nii")
    left, right = np.roll(bright, 1, axis=0)[1:-1], np.roll(bright, -1, axis=0)[1:-1]
    for mirrored, given, expected in (
        (None, {}, left),
        ([], {}, left),
        ([0], {}, left | right),
        ([0], {"averaging": "none"}, left),
        (None, {"averaging": [0]}, left | right),
    ):
        task = {} if mirrored is None else {"mirrored": mirrored}
        torch.save({"model": state, "task": task}, checkpoint)
        predict(tmp_path / "image.nii", checkpoint, overwrite=True, **given)
        (path,) = (tmp_path / "out").glob("*_seg*")
        np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj)[1:-1], expected)


def test_real_mr_series(tmp_path: Path, checkpoint: Path) -> None:
    """The three series of three studies, in one run: a SEG each, bright voxels in place."""
    if "MONAI_UNET_DATA" not in os.environ:
        pytest.skip("MONAI_UNET_DATA is not set: the real series are not here")
    root = Path(os.environ["MONAI_UNET_DATA"]) / "dicom" / "hippocampus_mr"
    predict(root, checkpoint)
    found = [pydicom.dcmread(path) for path in (tmp_path / "out").glob("*_seg.dcm")]
    sources = {}
    for path in root.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        sources.setdefault(dataset.SeriesInstanceUID, {})[dataset.SOPInstanceUID] = dataset.pixel_array
    assert len(found) == len(sources) == 3
    for seg in found:
        (series,) = seg.ReferencedSeriesSequence
        slices = sources[series.SeriesInstanceUID]
        assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} == set(slices)
        values = np.stack(list(slices.values()))
        border = values.mean() + 0.5 * values.std()  # 10 (v − mean) / std > 5
        seen = set()
        for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
            assert group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1
            source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            clear = np.abs(slices[source] - border) > 1e-3 * values.std()
            np.testing.assert_array_equal(frame[clear] > 0, slices[source][clear] > border)
            seen.add(source)
        assert all((pixels <= border + 1).all() for uid, pixels in slices.items() if uid not in seen)


def test_segments_are_the_classes() -> None:
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    classes = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert len(metadata["segments"]) == len(classes) - 1
    for number, segment in enumerate(metadata["segments"], start=1):
        assert classes[str(number)] in segment["label"].lower()
    assert metadata["algorithm"]["version"] == metadata["version"]


def test_what_monai_label_receives(tmp_path: Path, checkpoint: Path) -> None:
    """It reads only these blocks, and takes a uint8 mask of one channel on the image's own grid."""
    path = tmp_path / "image.nii.gz"
    image = nib.Nifti1Image(np.random.default_rng(0).random((9, 8, 7), np.float32), np.diag([-2.0, 1, 1, 1]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    (config,) = configs("inference")
    config.update({"ckpt_path": str(checkpoint), "device": torch.device("cpu")})
    blocks = ("network_def", "preprocessing", "inferer", "postprocessing")
    network, before, inferer, after = (config.get_parsed_content(key) for key in blocks)
    item = before({"image": str(path)})
    with torch.no_grad():
        item["pred"] = inferer(item["image"][None], network)[0]
    pred = after(item)["pred"]
    assert (pred.dtype, tuple(pred.shape)) == (torch.uint8, (1, 9, 8, 7))
    np.testing.assert_allclose(pred.affine.numpy(), image.affine, atol=1e-6)
