"""The hippocampus bundle in a real MONAI Label server before a real Orthanc, over DICOMweb on the loopback only.

Needs Debian's `orthanc` and `orthanc-dicomweb`. Synthetic series; the weights are those of tests/bright_network.py.
"""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from orthanc import MARKS, save
from test_label_contract import HIPPOCAMPUS, on_the_command_line
from test_server import Served, copy_of, start, stop

from monai_unet.datasets import prepare

pytestmark = MARKS


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> list[Path]:
    """Two series of the phantom, and one of equal voxels, in which nothing is found."""
    folder = tmp_path_factory.mktemp("phantom")
    document = json.loads(prepare("organ_phantom", output=folder).read_text())
    found = [Path(item["dicom"]) for item in document["test"][:2]]
    found = [path if path.is_absolute() else folder / path for path in found]
    return [*found, uniform(found[0], folder / "empty")]


def uniform(series: Path, folder: Path) -> Path:
    """A series of its own with the geometry of another one, and with equal voxels."""
    folder.mkdir()
    change = {name: pydicom.uid.generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    for file in series.glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.update({pydicom.tag.Tag(name): pydicom.DataElement(name, "UI", uid) for name, uid in change.items()})
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        dataset.PixelData = np.full_like(dataset.pixel_array, 100).tobytes()
        dataset.save_as(folder / file.name)
    return folder


@pytest.fixture(scope="module")
def uids(archive, series) -> list[str]:
    return [archive.store(folder) for folder in series]


@pytest.fixture(scope="module")
def served(archive, uids, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(HIPPOCAMPUS)
    server = start(copy_of(HIPPOCAMPUS, folder), archive.web, folder)
    try:
        yield server
    finally:
        assert stop(server)


def dicom_seg(served: Served, uid: str) -> pydicom.Dataset:
    """As OHIF's panel asks for it."""
    form = {"params": json.dumps({"label_info": [{"name": "anterior"}, {"name": "posterior"}]})}
    query = {"image": uid, "output": "dicom_seg"}
    answer = requests.post(f"{served.url}/infer/{HIPPOCAMPUS}", params=query, data=form, timeout=300)
    assert answer.status_code == 200, answer.text
    return pydicom.dcmread(io.BytesIO(answer.content))


def voxels(seg: pydicom.Dataset) -> dict[str, dict[str, int]]:
    """Per segment: how many voxels on each source image."""
    names = {int(segment.SegmentNumber): str(segment.SegmentLabel) for segment in seg.SegmentSequence}
    counts: dict[str, dict[str, int]] = {name: {} for name in names.values()}
    planes = np.atleast_3d(seg.pixel_array).reshape(-1, seg.Rows, seg.Columns)
    for plane, frame in zip(planes, seg.PerFrameFunctionalGroupsSequence, strict=True):
        name = names[int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        source = str(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        if plane.any():
            counts[name][source] = int(plane.sum())
    return counts


def test_the_series_are_listed_and_their_masks_are_those_of_the_command_line(served, archive, series, uids, tmp_path):
    assert served.get("/info/")["datastore"]["total"] == 3
    for folder, uid in zip(series[:2], uids[:2], strict=True):
        seg = dicom_seg(served, uid)
        on_the_command_line(served.bundle, folder, tmp_path / uid)
        (file,) = (tmp_path / uid).rglob("*_seg.dcm")
        expected = voxels(pydicom.dcmread(file))
        assert voxels(seg) == expected
        assert all(expected.values()), "both parts are there"
        handed_out = nib.load(next(served.bundle.parent.glob(f".cache/monailabel/dicom/*/{uid}.nii.gz")))
        mask = nib.Nifti1Image.from_bytes(served_volume(served, uid))
        assert mask.shape == handed_out.shape
        assert np.allclose(mask.affine, handed_out.affine, atol=1e-4)
        assert str(seg.ReferencedSeriesSequence[0].SeriesInstanceUID) == uid
        assert [str(s.SegmentedPropertyTypeCodeSequence[0].CodeValue) for s in seg.SegmentSequence] == ["5366008"] * 2


def test_an_empty_mask_is_an_answer(served, uids):
    assert voxels(dicom_seg(served, uids[2])) == {"Anterior hippocampus": {}, "Posterior hippocampus": {}}


def test_labels_are_stored_as_dicom_seg_the_empty_one_and_one_part_alone_included(served, archive, uids, tmp_path):
    image = nib.Nifti1Image.from_bytes(served_volume(served, uids[0]))
    whole = np.asarray(image.dataobj)
    for mask in (whole, whole * (whole == 2), np.zeros_like(whole)):
        file = tmp_path / "label.nii.gz"
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), image.affine), file)
        save(served, uids[0], file.read_bytes())
    stored = [voxels(seg) for seg in archive.segmentations()]
    assert len(stored) == 3
    part = {name: sum(count.values()) for name, count in stored[0].items()}
    assert part == {"Anterior hippocampus": (whole == 1).sum(), "Posterior hippocampus": (whole == 2).sum()}
    assert stored[1] == {"Anterior hippocampus": {}, "Posterior hippocampus": stored[0]["Posterior hippocampus"]}
    assert stored[2] == {"Anterior hippocampus": {}, "Posterior hippocampus": {}}


def served_volume(served: Served, uid: str) -> bytes:
    import gzip

    return gzip.decompress(served.infer(uid).content)


def test_a_training_from_the_archive_s_labels_replaces_the_weights(served, uids, tmp_path):
    """The labels of the test above; the latest one of a series counts."""
    weights = served.bundle / "models" / "model.pt"
    before = weights.read_bytes()
    image = nib.Nifti1Image.from_bytes(served_volume(served, uids[0]))
    file = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.uint8), image.affine), file)
    save(served, uids[0], file.read_bytes())
    request = {"max_epochs": 1, "device": "cpu", "steps_per_epoch": 2, "tile_size": 36}
    served.post(f"/train/{HIPPOCAMPUS}", request, run_sync=True)
    assert weights.read_bytes() != before


def test_a_new_series_and_a_new_label_are_seen_at_once(served, archive, series, uids, tmp_path):
    """And not after two hours, MONAI Label's default."""
    before = served.get("/info/")["datastore"]
    uid = archive.store(uniform(series[0], tmp_path / "new"))
    time.sleep(1.5)  # serve.py has lists expire after a second
    assert served.get("/info/")["datastore"]["total"] == before["total"] + 1
    save(served, uid, served.infer(uid).content)
    time.sleep(1.5)
    assert served.get("/info/")["datastore"]["completed"] == before["completed"] + 1
    for _ in range(3):
        assert served.post("/activelearning/random")["id"] != uid, "offered again"
        time.sleep(1.5)  # MONAI Label weighs by whole seconds since an image was offered, and fails where all are 0


def test_an_unknown_series_is_named(served, uids):
    answer = requests.post(f"{served.url}/infer/{HIPPOCAMPUS}", params={"image": "1.2.3"}, timeout=60)
    assert answer.status_code == 404
    assert "there is no image '1.2.3'" in answer.json()["detail"]


def test_no_other_machine_reads_the_archive(archive):
    """Debian 12's Orthanc ignores HttpBindAddresses: it listens at every address, and refuses all but the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: a datagram's socket only looks up its own address
        except OSError:
            pytest.skip("this machine has no address but the loopback's")
        address = probe.getsockname()[0]
    try:
        answer = requests.get(archive.url.replace("127.0.0.1", address) + "/system", timeout=10)
    except requests.ConnectionError:
        return  # a newer one, which minds HttpBindAddresses
    assert answer.status_code in (401, 403)
