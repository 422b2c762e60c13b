"""Volumes out: the source's header to the bit, in the source's format."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_unet.data.volumes.reader import CheckedVolumeReader
from monai_unet.data.volumes.writer import write_volume

SHAPE = (5, 4, 3)
AFFINE = np.array([[0.1, -1.3, 0.02, 5.5], [0.7, 0.25, -0.3, -20.125], [0.06, 0.1, 2.1, 1 / 3], [0, 0, 0, 1]])
MASK = np.arange(60, dtype=np.uint8).reshape(SHAPE) % 3
GEOMETRY = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
            "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip


def _source(path: Path, kind: type = nib.Nifti1Image, forms: str = "sq", endian: str = "<", shape=SHAPE) -> None:
    header = kind.header_class(endianness=endian)
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    straight = np.linalg.qr(AFFINE[:3, :3])[0] * [0.7, 1.3, 2.1]
    affine = np.block([[straight, AFFINE[:3, 3:]], [np.zeros(3), 1]])
    header.set_sform(affine, 2 if "s" in forms else 0)
    header.set_qform(affine, 1 if "q" in forms else 0)
    header.set_xyzt_units("mm", "sec")
    header["descrip"], header["db_name" if kind is nib.Nifti1Image else "aux_file"] = b"Geheim^Paula", b"Geheim"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Geheim"))
    header.set_slope_inter(2.5, -100)
    image = kind(np.zeros(shape, np.int16), None, header)
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("forms", ["sq", "s", "q"])
@pytest.mark.parametrize("endian", "<>")
def test_nifti_keeps_the_geometry_to_the_bit(tmp_path: Path, kind: type, forms: str, endian: str) -> None:
    _source(tmp_path / "source.nii.gz", kind, forms, endian)
    write_volume(tmp_path / "out" / "mask.nii.gz", MASK, tmp_path / "source.nii.gz")
    before, after = nib.load(tmp_path / "source.nii.gz"), nib.load(tmp_path / "out" / "mask.nii.gz")
    assert type(after) is type(before)
    for name in GEOMETRY[:-1]:
        assert before.header[name].tobytes() == after.header[name].tobytes(), name
    assert before.header["pixdim"][:4].tobytes() == after.header["pixdim"][:4].tobytes()
    assert after.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), MASK)
    assert b"Geheim" not in gzip.decompress((tmp_path / "out" / "mask.nii.gz").read_bytes())


def test_nifti_plain_and_with_a_trailing_axis(tmp_path: Path) -> None:
    _source(tmp_path / "source.nii", shape=(*SHAPE, 1))
    write_volume(tmp_path / "mask.nii", MASK, tmp_path / "source.nii")
    assert nib.load(tmp_path / "mask.nii").shape == SHAPE
    array, _ = CheckedVolumeReader().get_data((str(tmp_path / "mask.nii"),))
    np.testing.assert_array_equal(array, MASK)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_whose_suffix_is_wrong_about_compression(tmp_path: Path, name: str) -> None:
    _source(tmp_path / "right.nii")
    content = (tmp_path / "right.nii").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("nii") else content)
    write_volume(tmp_path / "out" / name, MASK, tmp_path / name)
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "out" / name).dataobj), MASK)


@pytest.mark.parametrize(
    ("suffix", "result"), [(".nrrd", ".nrrd"), (".nhdr", ".nrrd"), (".mha", ".mha"), (".mhd", ".mha")]
)
def test_nrrd_and_metaimage(tmp_path: Path, suffix: str, result: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.zeros(SHAPE[::-1], np.float32))
    image.SetSpacing((0.7, 1.3, 2.1))
    image.SetOrigin((5.5, -20.125, 1 / 3))
    image.SetDirection(np.linalg.qr(AFFINE[:3, :3])[0].ravel().tolist())
    image.SetMetaData("patient", "Geheim")
    sitk.WriteImage(image, tmp_path / f"source{suffix}")
    write_volume(tmp_path / f"mask{result}", MASK, tmp_path / f"source{suffix}")
    after = sitk.ReadImage(tmp_path / f"mask{result}")
    assert after.GetSpacing() == pytest.approx(image.GetSpacing(), abs=1e-12)  # NRRD stores step vectors
    assert after.GetOrigin() == image.GetOrigin()
    assert after.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-12)
    assert after.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after).T, MASK)
    (_, one), (array, two) = (
        CheckedVolumeReader().get_data((str(tmp_path / name),)) for name in (f"source{suffix}", f"mask{result}")
    )
    np.testing.assert_array_equal(array, MASK)
    np.testing.assert_allclose(one["affine"], two["affine"], atol=1e-9)
    assert "Geheim" not in (tmp_path / f"mask{result}").read_bytes().decode("latin1")


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_mask_of_another_shape(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"source{suffix}"
    if suffix == ".nii.gz":
        _source(source)
    else:
        sitk = pytest.importorskip("SimpleITK")
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE[::-1], np.float32)), source)
    with pytest.raises(ValueError, match=r"the mask has shape \(4, 5, 3\), its source \(5, 4, 3\): bring it back"):
        write_volume(tmp_path / f"mask{suffix}", MASK.transpose(1, 0, 2), source)
    assert not (tmp_path / f"mask{suffix}").exists()
