"""Channels in files of their own: joined by nnU-Net's names, in order, on one grid; what is missing is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from monai.transforms import LoadImaged

from monai_unet.data import CheckedVolumeReader, InputError, MicroscopyReader, check_images, list_images
from monai_unet.data.studies.find import find_studies
from monai_unet.data.studies.study import StudyReader
from monai_unet.data.volumes import check_volume_pairs, write_volume

pytestmark = pytest.mark.filterwarnings("ignore:.*NvImgCodec")

T1 = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
T2 = -T1


@pytest.fixture(autouse=True)
def _own_pseudonyms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))


def tif(path: Path, value: int, channels: int = 1) -> Path:
    tifffile.imwrite(path, np.full((channels, 6, 5), value, np.uint8), metadata={"axes": "CYX"}, ome=True)
    return path


def nifti(path: Path, array: np.ndarray, affine: Any = (1, 1, 2, 1)) -> str:
    nib.save(nib.Nifti1Image(array, np.diag(affine)), path)
    return str(path)


# --- microscopy ------------------------------------------------------------------------------------------------------


def test_a_folder_of_channels_is_a_list_of_images(tmp_path: Path) -> None:
    for number, name in enumerate(["b_0001", "b_0000", "a_0000", "a_0001", "c", "t_0007"]):
        tif(tmp_path / f"{name}.tif", number)
    items = list_images(tmp_path, channels=2)
    assert [Path(item["image"]).name for item in items] == ["a.tif", "b.tif", "c.tif", "t_0007.tif"]
    assert check_images(items[:2], channels=2) == items[:2]
    image = LoadImaged("image", reader=MicroscopyReader(channels=2))(items[1])["image"]
    assert image[:, 0, 0].tolist() == [1, 0]
    assert image.meta["filename_or_obj"] == str(tmp_path / "b.tif")  # after which results are named
    assert list_images(tmp_path / "b_0001.tif", channels=2) == [items[1]]
    assert len(list_images(tmp_path)) == 6


def test_numbered_images_of_several_channels_stay_images(tmp_path: Path) -> None:
    files = [tif(tmp_path / f"frame_000{number}.tif", number, channels=3) for number in range(3)]
    assert list_images(tmp_path, channels=3) == [{"image": str(file)} for file in files]


def test_each_missing_channel_is_named(tmp_path: Path) -> None:
    for name in ("a_0000", "b_0001", "c_0000", "c_0001"):
        tif(tmp_path / f"{name}.tif", 1)
    message = (
        r"2 problems:\n.*a.tif: channel 2 of 2 is missing: there is no file that ends in _0001.tif. Put it beside the "
        r"others.\n.*b.tif: channel 1 of 2 is missing: there is no file that ends in _0000.tif"
    )
    with pytest.raises(InputError, match=message):
        list_images(tmp_path, channels=2)


def test_an_image_beside_its_own_channels_stays_what_it_is(tmp_path: Path) -> None:
    for name in ("a", "a_0000", "a_0001"):
        tif(tmp_path / f"{name}.tif", 1)
    assert len(list_images(tmp_path, channels=2)) == 3


# --- volumes ---------------------------------------------------------------------------------------------------------


def test_files_and_components_are_channels(tmp_path: Path) -> None:
    one, two = nifti(tmp_path / "x_0000.nii.gz", T1), nifti(tmp_path / "x_0001.nii", T2)
    both = nifti(tmp_path / "both.nii.gz", np.stack([T1, T2], axis=-1))
    vectors = nifti(tmp_path / "vectors.nii.gz", np.stack([T1, T2], axis=-1)[:, :, :, None])
    load = LoadImaged("image", reader=CheckedVolumeReader(channels=2), ensure_channel_first=True)
    for image in ([one, two], both, vectors):
        volume = load({"image": image})["image"]
        assert np.array_equal(volume, np.stack([T1, T2]))
        assert volume.affine.diagonal().tolist() == [1, 1, 2, 1]
        assert volume.meta["spatial_shape"].tolist() == [5, 4, 3]
    single = CheckedVolumeReader(channels=None).get_data([one])[0]
    assert np.array_equal(single, T1[None])


def test_channels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    one = nifti(tmp_path / "x_0000.nii.gz", T1)
    cases = {
        "shape": (
            T2[:4],
            (1, 1, 2, 1),
            r"x_0001.nii.gz: shape \(4, 4, 3\), but .*x_0000.nii.gz has \(5, 4, 3\). Resample",
        ),
        "grid": (
            T2,
            (1, 1, 2.01, 1),
            r"x_0001.nii.gz: corners 0.02 mm from those of .*x_0000.nii.gz. Resample the chan",
        ),
        "number": (
            np.stack([T2, T2], -1),
            (1, 1, 2, 1),
            "x_0000.nii.gz: 3 channels, the network takes 2. Give volumes",
        ),
    }
    for array, affine, message in cases.values():
        two = nifti(tmp_path / "x_0001.nii.gz", array, affine)
        with pytest.raises(InputError, match=message):
            CheckedVolumeReader(channels=2).get_data([one, two])
    with pytest.raises(InputError, match="5-D, shape .* 3-D is required"):
        CheckedVolumeReader(channels=2).get_data([nifti(tmp_path / "5d.nii", np.zeros((5, 4, 3, 2, 2), np.int16))])


def test_pairs_of_several_channels_and_parts_without_labels(tmp_path: Path) -> None:
    image = [nifti(tmp_path / f"x_000{number}.nii", T1) for number in range(2)]
    label = nifti(tmp_path / "label.nii", np.where(T1 % 2, 255, 1).astype(np.uint8))
    ignore = nifti(tmp_path / "ignore.nii", np.where(T1 % 2, 255, 0).astype(np.uint8))
    item = {"image": image, "label": label, "ignore": ignore}
    check_volume_pairs([item], label_values=(0, 1, 255), channels=2)
    nifti(tmp_path / "ignore.nii", np.full((5, 4, 3), 7, np.uint8))
    nifti(tmp_path / "label.nii", np.full((5, 4, 2), 1, np.uint8))
    with pytest.raises(InputError) as caught:
        check_volume_pairs([item, {**item, "image": "none.nii"}], label_values=(0, 1, 255), channels=2)
    first, *lines, _ = str(caught.value).splitlines()
    assert first == "datalist: 4 problems:"
    assert lines[0].startswith(f"{label}: shape (5, 4, 2), but its image {image[0]} has (5, 4, 3). ")
    assert lines[1].startswith(f"{ignore}: label values [7] besides [0, 1, 255] (paired with {image[0]}). ")
    assert lines[2].startswith("none.nii: not readable (FileNotFoundError: ")
    assert lines[3].startswith(f"{ignore}: label values [7] besides [0, 1, 255] (paired with none.nii). ")


def test_studies_of_two_channels(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, array in {"x_0001": T2, "x_0000": T1, "y_0001": T2, "z": np.stack([T1, T2], -1)}.items():
        nifti(tmp_path / "in" / f"{name}.nii.gz", array)
    x, y, z = find_studies(tmp_path / "in", keep_names=True, channels=2)
    assert x.name.startswith("x_")
    assert not x.name.startswith("x_0")
    assert [Path(file).name for file in x.files] == ["x_0000.nii.gz", "x_0001.nii.gz"]
    assert str(y.error).endswith(
        "channel 1 of 2 is missing: there is no file that ends in _0000.nii.gz. Put it beside the others."
    )
    reader = StudyReader(channels=2)
    for study in (x, z):
        assert np.array_equal(reader.get_data(study.files)[0], np.stack([T1, T2]))
        write_volume(tmp_path / "mask.nii.gz", np.ones(T1.shape, np.uint8), study.files[0])
        assert nib.load(tmp_path / "mask.nii.gz").shape == T1.shape
    (alone,) = find_studies(tmp_path / "in" / "x_0000.nii.gz", channels=2)
    assert alone.files == x.files
    assert x.name.endswith(alone.name)  # the pseudonym is that of the channels' content
    assert len(find_studies(tmp_path / "in")) == 4


def test_a_dicom_series_has_one_channel() -> None:
    pytest.importorskip("pydicom")
    with pytest.raises(
        InputError, match="a DICOM series has one channel, the network takes 2. Convert the series of a"
    ):
        StudyReader(channels=2).get_data(("IM1.dcm", "IM2.dcm"))
