"""A real Orthanc, an archive with DICOMweb on the loopback only: Debian's `orthanc` and `orthanc-dicomweb`."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from test_server import Served, free_port, pytestmark

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
#: of the modules that need it
MARKS = [
    *pytestmark,
    pytest.mark.skipif(
        not (shutil.which("Orthanc") and PLUGIN.exists()), reason="apt-get install orthanc orthanc-dicomweb"
    ),
]


class Archive:
    """Orthanc, and what the tests ask of it."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": port,
            "HttpBindAddresses": ["127.0.0.1"],
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.url = f"http://127.0.0.1:{port}"
        self.web = f"{self.url}/dicom-web"
        with (folder / "orthanc.log").open("wb") as log:
            self.process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        for _ in range(240):
            try:
                requests.get(f"{self.url}/system", timeout=10)
                return
            except requests.ConnectionError:
                time.sleep(0.5)
        raise AssertionError((folder / "orthanc.log").read_text())

    def store(self, series: Path) -> str:
        """Upload a folder of slices; its SeriesInstanceUID."""
        for file in series.glob("*.dcm"):
            requests.post(f"{self.url}/instances", data=file.read_bytes(), timeout=60).raise_for_status()
        return str(pydicom.dcmread(next(series.glob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID)

    def segmentations(self) -> list[pydicom.Dataset]:
        found = []
        for instance in requests.get(f"{self.url}/instances", timeout=60).json():
            content = requests.get(f"{self.url}/instances/{instance}/file", timeout=60).content
            dataset = pydicom.dcmread(io.BytesIO(content))
            if dataset.Modality == "SEG":
                found.append(dataset)
        return sorted(found, key=lambda dataset: (dataset.InstanceCreationDate, dataset.InstanceCreationTime))


def save(served: Served, uid: str, label: Any) -> None:
    """As 3D Slicer submits a label."""
    files = {"label": ("label.nii.gz", label)}
    form = {"params": json.dumps({"label_info": [{"name": "anterior"}, {"name": "posterior"}]})}
    answer = requests.put(f"{served.url}/datastore/label", params={"image": uid}, files=files, data=form, timeout=300)
    assert answer.status_code == 200, answer.text
