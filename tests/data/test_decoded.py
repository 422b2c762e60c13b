"""A file is decoded once for its check and its loading; what is loaded is never stale, and nothing is kept for good."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import tifffile
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, LoadImaged
from PIL import Image

from monai_unet.data import CheckedVolumeReader, MicroscopyReader, check_images, check_volume_pairs, decoded

pytestmark = pytest.mark.filterwarnings("ignore:.*NvImgCodec")  # LoadImage tries every reader of MONAI, found or not


class Pair(NamedTuple):
    """An image full of ones and a label full of twos: their check, their loading, and the files decoded so far."""

    item: dict[str, str]
    check: Callable[[], Any]
    load: Compose
    decodes: list[str]

    def values(self) -> list[float]:
        loaded = self.load(self.item)
        return [float(loaded[key].max()) for key in ("image", "label")]


def write(path: str, value: int) -> None:
    if path.endswith(".png"):
        Image.new("L", (64, 64), value).save(path)
    else:
        nib.save(nib.Nifti1Image(np.full((16, 16, 16), value, np.float32), np.eye(4)), path)


@pytest.fixture(params=[".png", ".nii"])
def pair(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    decoded._kept.clear()  # of what other tests have checked and not loaded
    item = {key: str(tmp_path / f"{key}{request.param}") for key in ("image", "label")}
    write(item["image"], 1)
    write(item["label"], 2)
    decodes, read_bytes = [], Path.read_bytes  # the decoders take their bytes from there

    def counted(path: Path) -> bytes:
        decodes.append(path.stem)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    if request.param == ".png":
        steps = load(MicroscopyReader(), MicroscopyReader(label=True))
        return Pair(item, lambda: check_images([item], label_keys=["label"]), steps, decodes)
    steps = load(CheckedVolumeReader(), CheckedVolumeReader())
    return Pair(item, lambda: check_volume_pairs([item], [0, 1, 2]), steps, decodes)


def load(*readers: Any) -> Compose:
    pairs = zip(("image", "label"), readers, strict=True)
    return Compose([LoadImaged(key, reader, allow_missing_keys=True) for key, reader in pairs])


def test_check_and_loading_decode_a_file_once(pair: Pair) -> None:
    pair.check()
    pair.check()
    assert pair.values() == [1, 2]
    assert pair.decodes == ["image", "label"]
    assert not decoded._kept
    assert pair.values() == [1, 2]
    assert pair.decodes == ["image", "label"] * 2, "loaded again, it is decoded again"


def test_a_changed_file_is_decoded_anew(pair: Pair) -> None:
    pair.check()
    before = Path(pair.item["label"]).stat()
    write(pair.item["label"], 0)
    os.utime(pair.item["label"], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert pair.values() == [1, 0]
    assert pair.decodes == ["image", "label", "label"]
    assert not decoded._kept


def test_files_that_are_not_loaded_are_forgotten_when_another_one_is(pair: Pair) -> None:
    pair.check()
    assert len(decoded._kept) == 2
    other = pair.item["image"].replace("image", "other")
    write(other, 1)
    pair.load.allow_missing_keys = True
    pair.load({"image": other})
    assert not decoded._kept


@pytest.mark.parametrize(("free", "decodes"), [(20_000, 3), (10_000, 4), (None, 4)])
def test_little_memory_keeps_little(
    pair: Pair, free: int | None, decodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each array takes 16 KiB, of an eighth of the free memory."""
    monkeypatch.setattr(decoded, "available_bytes", lambda device: free and free * 8)
    pair.check()
    assert pair.values() == [1, 2]
    assert len(pair.decodes) == decodes


def test_workers_decode_for_themselves_and_leave_nothing_behind(pair: Pair) -> None:
    pair.check()
    loader = DataLoader(Dataset([pair.item], pair.load), num_workers=1, multiprocessing_context="fork")
    ((image, label),) = [(batch["image"], batch["label"]) for batch in loader]
    assert (image.max(), label.max()) == (1, 2)
    assert not decoded._kept


def test_what_another_file_holds_is_not_kept(tmp_path: Path) -> None:
    """The version of the file that was checked does not show that the other one has changed."""
    sitk = pytest.importorskip("SimpleITK")
    item = {key: str(tmp_path / f"{key}.nhdr") for key in ("image", "label")}
    for path in item.values():
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 4, 4), np.uint8)), path)
    check_volume_pairs([item], [1])
    (tmp_path / "label.raw").write_bytes(bytes(64))
    assert load(CheckedVolumeReader(), CheckedVolumeReader())(item)["label"].max() == 0

    plane = '<TiffData FirstZ="{}" IFD="0" PlaneCount="1"><UUID FileName="{}.ome.tif">{}</UUID></TiffData>'
    size = 'DimensionOrder="XYZCT" Type="uint8" SizeX="6" SizeY="5" SizeZ="2" SizeC="1" SizeT="1"'
    pixels = f'<Pixels ID="Pixels:0" {size}>{plane.format(0, *"aa")}{plane.format(1, *"bb")}</Pixels>'
    for name in "ab":
        ome = f'<OME UUID="{name}"><Image ID="Image:0">{pixels}</Image></OME>'
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", np.ones((5, 6), np.uint8), description=ome, metadata=None)
    stack = {"image": str(tmp_path / "a.ome.tif")}
    check_images([stack])
    tifffile.imwrite(tmp_path / "b.ome.tif", np.zeros((5, 6), np.uint8), description=ome, metadata=None)
    assert LoadImaged("image", MicroscopyReader())(stack)["image"][0, :, 0, 0].tolist() == [1, 0]
