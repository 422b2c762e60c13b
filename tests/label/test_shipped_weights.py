"""The hippocampus bundle with its own weights, before a real Orthanc with a case that they were not trained on.

Needs the Decathlon's data in MONAI_UNET_DATA, Debian's `orthanc`, `orthanc-dicomweb`, and, for the picture, `chromium`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser import Browser
from orthanc import MARKS, Archive, save
from PIL import Image
from test_label_contract import HIPPOCAMPUS
from test_server import ROOT, Served, start, stop

from monai_unet.datasets import datalist, prepare
from monai_unet.datasets.dicom_series import dicom_series

pytestmark = [
    *MARKS,
    pytest.mark.skipif(not os.environ.get("MONAI_UNET_DATA"), reason="no real data: MONAI_UNET_DATA"),
]


@pytest.fixture(scope="module")
def label(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    """UID of the first case of the list test, stored in the archive, and its labels (column, row, slice)."""
    folder = tmp_path_factory.mktemp("case")
    item = datalist(prepare("msd_hippocampus", output=folder / "prepared").parent, "test")[0]
    image, mask = (nib.load(item[key]) for key in ("image", "label"))
    volume = np.asarray(image.dataobj, float)
    volume = (volume - volume.min()) / np.ptp(volume) * 4000
    for number, data in enumerate(dicom_series(volume.astype(np.uint16), image.affine, "hippocampus")):
        (folder / f"{number}.dcm").write_bytes(data)
    return archive.store(folder), np.asarray(mask.dataobj)


@pytest.fixture(scope="module")
def served(
    archive: Archive,
    label: tuple[str, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(HIPPOCAMPUS)
    bundle = shutil.copytree(ROOT / "bundles" / HIPPOCAMPUS, folder / HIPPOCAMPUS)
    server = start(bundle, archive.web, folder)
    try:
        yield server
    finally:
        assert stop(server)


def test_a_case_is_segmented_as_well_as_the_bundle_promises(served: Served, label: tuple[str, np.ndarray]) -> None:
    uid, expected = label
    found = served.mask(uid)
    for part in (1, 2):
        a, b = found == part, expected == part
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8


@pytest.mark.skipif(not shutil.which("chromium"), reason="apt-get install chromium")
def test_ohif_shows_the_series_and_the_segmentation(
    served: Served,
    archive: Archive,
    label: tuple[str, np.ndarray],
    tmp_path: Path,
) -> None:
    """The viewer that MONAI Label ships, in a browser without a screen. MONAI_UNET_PICTURES: where the picture goes."""
    save(served, label[0], served.infer(label[0]).content)
    (seg,) = archive.segmentations()
    picture = Path(os.environ.get("MONAI_UNET_PICTURES", tmp_path)) / "ohif.png"

    def text(words: str, tag: str = "*") -> str:
        has = f"e => e.children.length == 0 && e.textContent.trim() == {words!r}"
        return f"[...document.querySelectorAll({tag!r})].find({has})"

    with Browser(tmp_path / "profile") as browser:
        browser.open(f"{served.url}/ohif/viewer?StudyInstanceUIDs={seg.StudyInstanceUID}")
        browser.click(text("Confirm and Hide"))
        browser.wait_for("!!document.querySelector('canvas')")
        browser.click(text("SEG"), times=2)
        browser.click(text("Yes"))
        browser.wait_for(f"!({text('Yes')})")
        time.sleep(10)  # nothing on the page tells that it has been drawn
        browser.scroll(820, 430, label[1].shape[2] // 2)  # to the middle slice
        time.sleep(3)
        browser.picture(picture)
    shown = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    middle = shown[200:800, 300:1000]
    gray = (np.ptp(middle, axis=-1) < 8) & (middle.max(-1) > 60)
    orange = (middle[..., 0] - middle[..., 2] > 60) & (middle[..., 1] < middle[..., 0])  # the anterior part's colour
    assert gray.mean() > 0.02, "the series"
    assert orange.sum() > 100, "its segmentation"
