"""A run reveals no path and no file name."""

from __future__ import annotations

import hashlib
import json

import pytest

from monai_unet.data.dicom.reader import DICOM_SUFFIXES
from monai_unet.data.large.reader import TIFFS
from monai_unet.data.microscopy.reader import OUT_OF_SCOPE, SUFFIXES
from monai_unet.data.volumes.reader import META, NIFTI, NRRD
from monai_unet.redaction import file_names, redact_config, redact_parameter, redact_text

PATIENT = "Mustermann"


def test_redact_config(tmp_path):
    existing = tmp_path / PATIENT / "list.json"
    existing.parent.mkdir()
    existing.touch()
    config = {
        "bundle_root": ".",
        "dataset_dir": f"data/{PATIENT}",
        "input": PATIENT,
        "output_dir": "$@bundle_root + '/models'",
        "ckpt_path": f"/home/{PATIENT}/model.pt",
        "datalist": f"$datasets.datalist('{existing.parent}', 'training')",
        "network_def": {"_target_": "monai_unet.networks.ValidUNet", "features": [64, 128]},
        "handlers": [{"_target_": "a.b", "folder": "$@output_dir + '/pictures'"}, "@tracking"],
        "loss": "mean",
        "_meta_": {"data_source": "https://host/data.zip"},
        "train": {"dataset": {"data": [{"image": f"/data/{PATIENT}/1.png", "label": "2.png"}] * 3}},
        "extra": f"{PATIENT}.nii.gz",
        "words": f"$print('/{300 * 'b'}')",
        "mask": [f"C:\\{PATIENT}\\mask.png"],
    }
    redacted = redact_config(config)
    assert PATIENT not in json.dumps(redacted)
    unchanged = ("words", "bundle_root", "output_dir", "network_def", "handlers", "loss", "_meta_")
    assert {key: redacted[key] for key in unchanged} == {key: config[key] for key in unchanged}
    assert redacted["datalist"] == "$datasets.datalist('<path>', 'training')"
    assert redacted["train"]["dataset"]["data"] == "<3 items>"
    assert (redacted["dataset_dir"], redacted["input"]) == ("<dataset_dir>", "<input>")


def test_redact_parameter(tmp_path):
    file = tmp_path / f"{PATIENT}.pt"
    file.write_bytes(b"weights")
    assert redact_parameter(str(file)) == "sha256:" + hashlib.sha256(b"weights").hexdigest()
    assert redact_parameter(f"/data/{PATIENT}/model.pt") == "<path>"
    assert redact_parameter("em_phantom sha256:0123") == "em_phantom sha256:0123"
    assert redact_parameter([64, 128]) == "[64, 128]"
    assert redact_parameter([f"/data/{PATIENT}/1.png", f"{PATIENT}.nii.gz"]) == "['<path>', '<file>']"
    assert redact_parameter("/" + 300 * "b") == "<path>", "longer than a file's name may be"
    assert redact_parameter("balanced") == "balanced"


def test_redact_text():
    names = file_names([{"image": f"/data/{PATIENT} Max.nii.gz", "label": [f"/a/{PATIENT}_2.png"], "fold": 0}])
    assert names == {f"{PATIENT} Max.nii.gz", f"{PATIENT} Max", f"{PATIENT}_2.png", f"{PATIENT}_2"}
    assert file_names(None) == set()
    text = f"item '{PATIENT} Max' in ../{PATIENT}/{PATIENT}_2.png: step 3 of (4, 5) is NaN"
    assert redact_text(text, names) == "item '<name>' in <path>: step 3 of (4, 5) is NaN"
    text = f"'a' in /x/y: no such file: '/data/Max {PATIENT} Max/im age.png', it isn't and/or can't be"
    assert redact_text(text) == "'a' in <path>: no such file: '<path>', it isn't <path> can't be"


READ = {*SUFFIXES, *OUT_OF_SCOPE, *TIFFS, *DICOM_SUFFIXES, *NIFTI, *NRRD, *META}
OTHERS = {".vsi", ".czi", ".lif", ".nd2", ".btf", ".mgz", ".img", ".hdr", ".h5", ".npy", ".zip", ".tar.gz", ".ome.zarr"}


@pytest.mark.parametrize("suffix", sorted(READ | OTHERS))
def test_a_file_is_redacted_whatever_its_kind(suffix):
    """All kinds that the readers accept, and further kinds of image files and archives."""
    for name in (f"{PATIENT}{suffix}", f"{PATIENT}{suffix.upper()}"):
        assert redact_text(f"cannot read {name}: 9 bytes") == "cannot read <file>: 9 bytes"
        assert redact_config({"extra": name}) == {"extra": "<path>"}
        assert PATIENT in file_names([{"image": f"/data/{name}"}])


@pytest.mark.parametrize("text", ["torch.nn.Conv2d", "module 'torch.cuda' has no attribute", "0.25 of 1.5 e.g. 3.x"])
def test_names_of_code_and_numbers_are_kept(text):
    assert redact_text(text) == text
