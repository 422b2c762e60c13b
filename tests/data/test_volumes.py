"""NIfTI, NRRD and MetaImage: either a volume loads with the right world positions, or the error explains why not."""

from __future__ import annotations

import gzip
import itertools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_cases import memory_below
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from monai.data import NibabelReader
from monai.transforms import LoadImaged

from monai_unet.data.volumes import CheckedVolumeReader, check_volume_pairs, write_volume
from monai_unet.errors import InputError

SHAPE = (7, 6, 5)
SPACING = np.array([0.8, 0.7, 2.5])
ORIGIN = np.array([-12.5, 31.25, -40.0])
DATA = np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
FORMATS = ("a.nii", "a.nii.gz", "raw.nrrd", "gzip.nrrd", "raw.mha", "zlib.mha")


def oblique() -> np.ndarray:
    turned = np.linalg.qr(np.array([[3.0, 1, -1], [0.4, 2, 0.7], [-0.2, 0.9, 1.5]]))[0]
    return turned * np.sign(np.linalg.det(turned))


def affine_of(rotation: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * SPACING, ORIGIN
    return affine


def write(path: Path, rotation: np.ndarray | None = None, data: np.ndarray = DATA) -> Path:
    """Write the volume whose index (i, j, k) is at rotation @ (spacing * index) + origin, RAS mm."""
    rotation = np.eye(3) if rotation is None else rotation
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.Nifti1Image(data, affine_of(rotation))
        image.header.set_xyzt_units("mm")
        image.set_qform(image.affine, code=1)
        image.set_sform(image.affine, code=1)
        nib.save(image, path)
        return path
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(data.T)
    flip = np.diag([-1.0, -1, 1])  # ITK counts in LPS
    image.SetSpacing(SPACING.tolist())
    image.SetOrigin((flip @ ORIGIN).tolist())
    image.SetDirection((flip @ rotation).ravel().tolist())
    sitk.WriteImage(image, path, path.stem in ("gzip", "zlib"))
    return path


def load(path: Path, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    reader = CheckedVolumeReader(**options)
    return reader.get_data(reader.read(str(path)))


def _axis_aligned() -> list[np.ndarray]:
    """The 24 rotations by right angles."""
    signed = [np.diag(s) @ np.eye(3)[list(p)] for p in itertools.permutations(range(3))
              for s in itertools.product((1, -1), repeat=3)]  # fmt: skip
    return [m for m in signed if np.linalg.det(m) > 0]


@pytest.mark.parametrize("name", FORMATS)
def test_world_coordinates(tmp_path: Path, name: str) -> None:
    for rotation in [*_axis_aligned(), oblique()]:
        array, meta = load(write(tmp_path / name, rotation))
        np.testing.assert_array_equal(array, DATA)
        np.testing.assert_allclose(meta["affine"], affine_of(rotation), rtol=0, atol=1e-3 / max(SHAPE))
    assert (meta["space"], meta["original_channel_dim"]) == ("RAS", "no_channel")
    assert tuple(meta["spatial_shape"]) == array.shape == SHAPE
    assert array.dtype == np.int16


@pytest.mark.parametrize("space", ["left-anterior-superior", "RAS", "right-anterior-superior"])
def test_other_spaces_of_nrrd(tmp_path: Path, space: str) -> None:
    path = write(tmp_path / "raw.nrrd", oblique())
    path.write_bytes(path.read_bytes().replace(b"left-posterior-superior", space.encode()))
    signs = np.diag([1, -1, 1, 1] if space.startswith("left") else [-1, -1, 1, 1]).astype(float)
    _, meta = load(path)  # the numbers stay those of LPS
    np.testing.assert_allclose(
        meta["affine"], np.diag([-1, -1, 1, 1]) @ signs @ np.diag([-1, -1, 1, 1]) @ affine_of(oblique())
    )


def test_other_names_in_metaimage(tmp_path: Path) -> None:
    path = write(tmp_path / "raw.mha", oblique())
    path.write_bytes(path.read_bytes().replace(b"Offset", b"Position").replace(b"TransformMatrix", b"Orientation"))
    np.testing.assert_allclose(load(path)[1]["affine"], affine_of(oblique()), atol=1e-6)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("name", ["raw.nrrd", "gzip.nrrd"])
def test_voxels_of_nrrd_stay_as_they_are(tmp_path: Path, name: str, newline: bytes) -> None:
    """Line ends among the voxels' bytes are voxels."""
    for seed in range(60):
        data = np.random.default_rng(seed).choice(256 if name == "gzip.nrrd" else [10, 13], (16, 16, 16))
        path = write(tmp_path / name, data=data.astype(np.uint8))
        header, voxels = path.read_bytes().split(b"\n\n", 1)
        path.write_bytes(newline.join([*header.split(b"\n"), b"", voxels]))
        np.testing.assert_array_equal(load(path)[0], data)


@pytest.mark.parametrize("name", ["b.nhdr", "b.mhd"])
def test_voxels_in_a_file_of_their_own(tmp_path: Path, name: str) -> None:
    array, meta = load(write(tmp_path / name, oblique()))
    np.testing.assert_array_equal(array, DATA)
    np.testing.assert_allclose(meta["affine"], affine_of(oblique()), atol=1e-6)
    (tmp_path / "b.raw").write_bytes((tmp_path / "b.raw").read_bytes() + b"x")
    with pytest.raises(InputError, match="421 bytes of voxels where the header says 420: followed by other data"):
        load(tmp_path / name)
    (tmp_path / "b.raw").unlink()
    with pytest.raises(InputError, match=r"should be in one file b.raw, which does not exist"):
        load(tmp_path / name)


def test_a_template_space_in_the_sform_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A qform of the scanner and an sform of a template differ legally, voxel sizes included."""
    image, template = nib.Nifti1Image(DATA, None), np.diag([2.0, 2, 2, 1])
    image.set_qform(affine_of(oblique()), 1)
    image.set_sform(template, 4)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(load(tmp_path / "a.nii")[1]["affine"], template)
    assert "sform and qform are of different spaces" in caplog.text


def test_a_small_shear_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sheared = affine_of(np.eye(3))
    sheared[0, 1] += 5e-4
    nib.save(nib.Nifti1Image(DATA, sheared), tmp_path / "a.nii")
    load(tmp_path / "a.nii")
    assert "axes 0.041 degrees off right angles: taken as straight" in caplog.text


def test_content_beyond_the_free_memory_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_unet.data.volumes.nifti.available_bytes", lambda device: 1 << 26)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(1 << 28)))
    with memory_below(1 << 27), pytest.raises(InputError, match="MiB that unpack to more than half of the free memory"):
        load(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("big_endian", [False, True])
def test_nifti_equals_nibabel_reader(tmp_path: Path, big_endian: bool) -> None:
    image = nib.Nifti1Image(DATA, affine_of(oblique()), nib.Nifti1Header(endianness=">") if big_endian else None)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    array, meta = load(tmp_path / "a.nii.gz")
    oracle = NibabelReader()
    expected, expected_meta = oracle.get_data(oracle.read(str(tmp_path / "a.nii.gz")))
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(meta["affine"], expected_meta["affine"])
    np.testing.assert_array_equal(array, DATA * 0.5 - 3)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI registers all its readers, and one warns
def test_load_imaged(tmp_path: Path) -> None:
    transform = LoadImaged("image", reader=CheckedVolumeReader(), ensure_channel_first=True)
    assert transform({"image": write(tmp_path / "a.nii")})["image"].shape == (1, *SHAPE)
    path = write(tmp_path / "b.nii", data=np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(InputError, match="210 of 210 voxels are NaN or Inf"):
        transform({"image": path})


# -- refused ---------------------------------------------------------------------------------------------------------


def _nifti(edit: Callable[[nib.Nifti1Image], Any]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = write(folder / "a.nii")
        image = nib.load(path)
        image.header["vox_offset"] = 352  # nibabel forgets it on loading
        edit(image)
        path.write_bytes(image.header.binaryblock + path.read_bytes()[348:])
        return path

    return build


def _header(**values: Any) -> Callable[[nib.Nifti1Image], None]:
    def edit(image: nib.Nifti1Image) -> None:
        for key, value in values.items():
            image.header[key] = value

    return edit


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = write(folder / name)
        path.write_bytes(change(path.read_bytes()))
        return path

    return build


def _flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def _values(value: Any, name: str = "a.nii") -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        data = DATA.astype(np.float32)
        data[1, 2, 3] = value
        return write(folder / name, data=data)

    return build


def _shear(image: nib.Nifti1Image) -> None:
    affine = image.affine.copy()
    affine[0, 2] += 0.5
    image.header.set_qform(None, code=0)
    image.header.set_sform(affine, code=1)


def _other_qform(image: nib.Nifti1Image) -> None:
    affine = image.affine.copy()
    affine[0, 3] += 0.2
    image.header.set_qform(affine, code=1)


def _write_itk(path: Path, shape: tuple[int, ...], **options: Any) -> Path:
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(shape, np.uint8), **options), path)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "NaN": (_values(np.nan), "1 of 210 voxels are NaN or Inf"),
    "Inf": (_values(np.inf), "1 of 210 voxels are NaN or Inf"),
    "NaN in NRRD": (_values(np.nan, "raw.nrrd"), "1 of 210 voxels are NaN or Inf"),
    "NaN in MetaImage": (_values(-np.inf, "zlib.mha"), "1 of 210 voxels are NaN or Inf"),
    "slope Inf": (_nifti(_header(scl_slope=np.inf)), "scl_slope is Inf"),
    "zero voxel size": (_nifti(_header(pixdim=[1, 0, 0.7, 2.5, 0, 0, 0, 0])), r"voxel size 0 x 0.7 x 2.5 mm"),
    "NaN voxel size": (_nifti(_header(pixdim=[1, 0.8, np.nan, 2.5, 0, 0, 0, 0])), r"voxel size 0.8 x nan x 2.5 mm"),
    "negative voxel size": (_nifti(_header(pixdim=[1, 0.8, -0.7, 2.5, 0, 0, 0, 0])), "voxel size 0.8 x -0.7"),
    "zero affine": (_nifti(_header(srow_x=0, srow_y=0, srow_z=0)), "voxel size 0 x 0 x 0 mm in the affine"),
    "NaN affine": (_nifti(_header(srow_x=[0.8, 0, 0, np.nan])), "the affine holds NaN or Inf"),
    "singular affine": (
        _nifti(_header(srow_y=[0, 0, 0, 0], srow_x=[0.8, 0.7, 0, 0])), "sheared or singular affine: .* 0 degrees"
    ),
    "shear": (_nifti(_shear), r"sheared or singular affine: its axes meet at 78.69 degrees"),
    "sform and qform": (_nifti(_other_qform), r"sform and qform disagree by up to 0.2 mm. Delete the wrong one"),
    "pixdim and sform": (
        _nifti(_header(qform_code=0, pixdim=[1, 1, 1, 1, 0, 0, 0, 0])),
        r"pixdim says voxels of 1 x 1 x 1 mm, the affine 0.8 x 0.7 x 2.5 mm",
    ),
    "no orientation": (_nifti(_header(qform_code=0, sform_code=0)), "neither sform nor qform is set"),
    "metres": (_nifti(lambda image: image.header.set_xyzt_units("meter")), "lengths in meter, not mm"),
    "4-D": (lambda f: write(f / "a.nii", data=np.zeros((*SHAPE, 2))), r"4-D, shape \(7, 6, 5, 2\): 3-D is req"),
    "2-D": (lambda f: write(f / "a.nii", data=np.zeros((7, 6), np.int16)), r"2-D, shape \(7, 6\): 3-D is req"),
    "RGB": (
        lambda f: write(f / "a.nii", data=np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "not one number"
    ),
    "2-D MetaImage": (lambda f: _write_itk(f / "a.mha", (4, 5)), "2-D with 1 numbers per voxel: 3-D with one"),
    "colour NRRD": (lambda f: _write_itk(f / "a.nrrd", (3, 4, 5, 3), isVector=True), "3-D with 3 numbers per voxel"),
    "truncated .nii": (_bytes("a.nii", lambda c: c[:-9]), r"763 bytes where the header says 772: truncated"),
    "truncated header": (_bytes("a.nii", lambda c: c[:200]), r"not readable"),
    "trailing .nii": (_bytes("a.nii", lambda c: c + b"more"), "776 bytes where the header says 772: followed by"),
    "truncated .nii.gz": (_bytes("a.nii.gz", lambda c: c[:-20]), "truncated or damaged: Compressed file ended"),
    "no trailer": (_bytes("a.nii.gz", lambda c: c[:-4]), "truncated or damaged: Compressed file ended"),
    "CRC of .nii.gz": (_bytes("a.nii.gz", lambda c: _flip(c, len(c) - 6)), "truncated or damaged: CRC check failed"),
    "trailing .nii.gz": (_bytes("a.nii.gz", lambda c: c + b"more"), "truncated or damaged: Not a gzipped file"),
    "truncated NRRD": (_bytes("raw.nrrd", lambda c: c[:-9]), "not readable|truncated"),
    "trailing NRRD": (_bytes("raw.nrrd", lambda c: c + b"more"), "424 bytes of voxels where .* 420: followed"),
    "CRC of gzip NRRD": (_bytes("gzip.nrrd", lambda c: _flip(c, len(c) - 6)), "damaged: Error -3 .* incorrect data"),
    "trailing gzip NRRD": (_bytes("gzip.nrrd", lambda c: c + b"more"), "other data follow"),
    "NRRD without space": (
        _bytes("raw.nrrd", lambda c: c.replace(b"space: left-posterior-superior\n", b"")), "space is missing, which"
    ),
    "NRRD with a damaged space": (
        _bytes("raw.nrrd", lambda c: c.replace(b"left-posterior-superior", b"Geheim")), "space is another one, which is"
    ),
    "NRRD in time, too": (
        _bytes("raw.nrrd", lambda c: c.replace(b"superior", b"superior-time")), "left-posterior-superior-time, which is"
    ),
    "NRRD with a damaged encoding": (
        _bytes("raw.nrrd", lambda c: c.replace(b"encoding: raw", b"encoding: Geheim")), "encoding is another one, which"
    ),
    "NRRD of a known encoding": (
        _bytes("raw.nrrd", lambda c: c.replace(b"encoding: raw", b"encoding: bzip2")), "encoding is bzip2, which is not"
    ),
    "NRRD with a name in its origin": (
        _bytes("raw.nrrd", lambda c: c.replace(b"space origin: (", b"space origin: (Geheim")), r"not readable \(\w+\)"
    ),
    "NRRD in micrometres": (
        _bytes("raw.nrrd", lambda c: c.replace(b"space:", b'space units: "um" "um" "um"\nspace:', 1)),
        "space units are um, not mm",
    ),
    "NRRD with damaged units": (
        _bytes("raw.nrrd", lambda c: c.replace(b"space:", b'space units: "Geheim" "mm" "mm"\nspace:', 1)),
        "space units are another one, mm, not mm",
    ),
    "gzip NRRD that unpacks to more than it says": (
        _bytes("gzip.nrrd", lambda c: c.split(b"\n\n", 1)[0] + b"\n\n" + gzip.compress(bytes(1 << 27))),
        "421 bytes of voxels where the header says 420",
    ),
    "NRRD without directions": (
        _bytes("raw.nrrd", lambda c: c.replace(b"space directions", b"# directions")), "no space directions: the"
    ),
    "truncated MetaImage": (_bytes("raw.mha", lambda c: c[:-9]), "not readable|truncated"),
    "checksum of MetaImage": (_bytes("zlib.mha", lambda c: _flip(c, len(c) - 2)), "damaged: Error -3"),
    "trailing MetaImage": (_bytes("raw.mha", lambda c: c + b"more"), "424 bytes of voxels where the header says 420"),
    "MetaImage without offset": (_bytes("raw.mha", lambda c: c.replace(b"Offset", b"Offsat")), "no Offset: the geom"),
    "MetaImage that loses its matrix": (
        _bytes("raw.mha", lambda c: c.replace(b"Data = False\nT", b"Data ~ False\nT").replace(b"x = -1 ", b"x = 1 ")),
        "another geometry than the header states",
    ),
    "MetaImage that SimpleITK cannot unpack": (
        _bytes("zlib.mha", lambda c: c.replace(b"CompressedDataSize", b"CompressedDatnSize")),
        "the voxels read are not those in the file",
    ),
    "zero spacing in MetaImage": (
        _bytes("raw.mha", lambda c: c.replace(b"ing = 0.80000000000000004", b"ing = 0")), "not readable|voxel size"
    ),
    "empty file": (_bytes("a.nii.gz", lambda c: b""), "not readable"),
    "another format": (lambda f: write(f / "a.nii").rename(f / "a.img"), "not named as NIfTI, NRRD or MetaImage"),
    "missing": (lambda f: f / "none.nii", "not readable .FileNotFoundError"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    build, message = REFUSED[name]
    path = build(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert caught.value.path == str(path)


def test_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    array, _ = load(write(tmp_path / "a.nii", data=DATA[..., None, None]))
    np.testing.assert_array_equal(array, DATA)


def test_one_volume_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of 2 files, but one volume is required"):
        CheckedVolumeReader().get_data((str(tmp_path / "a.nii"), str(tmp_path / "b.nii")))


def _labels(folder: Path, name: str = "label.nii.gz", change: Any = None, **options: Any) -> dict[str, str]:
    data = (DATA % 3).astype(np.float32)
    if change is not None:
        data[1, 1, 1] = change
    return {"image": str(write(folder / "image.nii")), "label": str(write(folder / name, data=data, **options))}


def test_pairs(tmp_path: Path) -> None:
    good = _labels(tmp_path)
    check_volume_pairs([good], [0, 1, 2])
    mixed = {"image": good["image"], "label": str(write(tmp_path / "gzip.nrrd", data=(DATA % 3).astype(np.uint8)))}
    check_volume_pairs([mixed], [0, 1, 2])

    def refuse(item: dict[str, str], message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            check_volume_pairs([good, item], [0, 1, 2])
        assert item["image"] in str(caught.value)
        assert item["label"] in str(caught.value)

    refuse(
        _labels(tmp_path, "fraction.nii", 0.5), r"fraction.nii: 1 fractional label values, such as 0.5 \(paired with"
    )
    refuse(_labels(tmp_path, "strange.nii", 7), r"label values \[7\] besides \[0, 1, 2\]")
    refuse(
        _labels(tmp_path, "turned.nii", rotation=oblique()), r"turned.nii: the affine puts corners up to [\d.]+ mm from"
    )
    small = str(write(tmp_path / "small.nii", data=np.zeros((7, 6, 4), np.uint8)))
    refuse({**good, "label": small}, r"small.nii: shape \(7, 6, 4\), but its image .* has \(7, 6, 5\)")
    broken = _bytes("broken.nii", lambda c: c[:-1])(tmp_path)
    refuse({**good, "image": str(broken)}, r"broken.nii: 771 bytes .* \(paired with .*label.nii.gz\)")


def test_real_hippocampus() -> None:
    if "MONAI_UNET_DATA" not in os.environ:
        pytest.skip("MONAI_UNET_DATA is not set: the real files are not here")
    root = Path(os.environ["MONAI_UNET_DATA"]) / "msd" / "Task04_Hippocampus"
    names = sorted(p.name for p in (root / "labelsTr").glob("hippo*.nii.gz"))[:10]
    items = [{"image": root / "imagesTr" / name, "label": root / "labelsTr" / name} for name in names]
    check_volume_pairs(items, [0, 1, 2])
    oracle = NibabelReader()
    expected, meta = oracle.get_data(oracle.read(str(items[0]["image"])))
    array, found = load(items[0]["image"])
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(found["affine"], meta["affine"])
    with pytest.raises(InputError, match=r"label values \[2\] besides \[0, 1\]"):
        check_volume_pairs(items, [0, 1])


# -- damage ----------------------------------------------------------------------------------------------------------

places = st.floats(0, 1, exclude_max=True)
damages = st.tuples(st.none() | places, st.lists(st.tuples(places, st.integers(1, 255)), max_size=3)).filter(
    lambda d: d[0] is not None or d[1]
)
# The only record of the geometry in these text headers: another number there is another valid file.
NUMBERS = (b"space directions:", b"space origin:", b"space:", b"TransformMatrix =", b"Offset =", b"ElementSpacing =")


def _free(content: bytes, place: int) -> bool:
    line = content.rfind(b"\n", 0, place) + 1
    key = next((n for n in NUMBERS if content[line:].startswith(n)), None)
    return key is None or place < line + len(key) or content[place : place + 1] == b"\n"


def _fuzz(folder: Path, name: str, examples: int) -> None:
    path = write(folder / name, oblique())
    original = path.read_bytes()
    text = not name.endswith((".nii", ".nii.gz"))
    expected, meta = load(path)

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(kind=damages)
    def check(kind: tuple[float | None, list[tuple[float, int]]]) -> None:
        cut, flips = kind
        changed = bytearray(original if cut is None else original[: int(cut * len(original))])
        for place, mask in flips:
            at = int(place * len(changed))
            if changed and (not text or _free(original, at)):
                changed[at] ^= mask
        path.write_bytes(changed)
        try:
            array, found = load(path)
        except InputError:
            return
        assert array.shape == expected.shape
        corners = np.array(list(itertools.product(*((0, n - 1) for n in array.shape), [1])))
        np.testing.assert_allclose(corners @ found["affine"].T, corners @ meta["affine"].T, rtol=0, atol=0.03)
        if name in ("a.nii.gz", "gzip.nrrd", "zlib.mha") and array.dtype == expected.dtype:
            checksummed = bytes(changed) == original or text
            if checksummed and b"MSB = T" not in changed and b"big" not in changed:
                np.testing.assert_array_equal(array, expected)

    check()


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    _fuzz(tmp_path, name, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_at_length(tmp_path: Path, name: str) -> None:
    _fuzz(tmp_path, name, 1000)


def test_missing_simpleitk_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "raw.mha")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    for use in (load, lambda path: write_volume(path, DATA.astype(np.uint8), path)):
        with pytest.raises(ImportError, match=r"SimpleITK is missing: pip install \"monai_unet\[volumes\]"):
            use(path)


def test_lack_of_memory_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    def fail_in_itk(*_: Any) -> None:
        raise RuntimeError("Exception thrown in SimpleITK: Failed to allocate memory for image.")

    nifti, meta = write(tmp_path / "a.nii"), write(tmp_path / "raw.mha")
    monkeypatch.setattr(nib.Nifti1Image, "from_bytes", fail)
    monkeypatch.setattr(sys.modules["SimpleITK"].ImageFileReader, "Execute", fail_in_itk)
    for path in (nifti, meta):
        with pytest.raises(MemoryError):
            load(path)
