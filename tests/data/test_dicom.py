"""DICOM series in: a volume that loads has each voxel at its world position; anything else is refused with a reason."""

from __future__ import annotations

import itertools
import logging
import shutil
import struct
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dicom_cases as cases
import numpy as np
import pydicom
import pytest
from dicom_cases import COLUMNS, ROWS, SLICES, enhanced, real, uid, world, write_series
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, LoadImaged
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from monai_unet.data.dicom.reader import DicomSeriesReader
from monai_unet.data.dicom.series import read_series
from monai_unet.errors import InputError


def load(*paths: Path, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    reader = DicomSeriesReader(**options)
    return reader.get_data(reader.read(tuple(map(str, paths))))


def assert_in_place(array: np.ndarray, meta: dict[str, Any], slices: int = SLICES, **geometry: Any) -> None:
    """Each voxel's value names its slice, row and column; the affine must send it where the standard says."""
    assert array.shape == tuple(meta["spatial_shape"]) == (COLUMNS, ROWS, slices)
    assert (array == array.round()).all()
    slice_row, column = np.divmod(array.astype(int), COLUMNS)
    expected = world(np.stack([*np.divmod(slice_row, ROWS), column], axis=-1), **geometry)
    found = np.moveaxis(np.indices(array.shape), 0, -1) @ meta["affine"][:3, :3].T + meta["affine"][:3, 3]
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)
    assert len(np.unique(array)) == array.size


def _set(**values: Any) -> cases.Edit:
    """An edit of every slice; a callable value gets the slice's number."""

    def edit(dataset: Any, k: int) -> None:
        for key, value in values.items():
            setattr(dataset, key, value(k) if callable(value) else value)

    return edit


def _padded_frames(edit: cases.Edit) -> Any:
    """An enhanced file whose frames hold the edited pixels of the slices."""
    dataset = enhanced()
    slices = [cases.slice_dataset(k) for k in range(SLICES)]
    for k, one in enumerate(slices):
        edit(one, k)
    edit(dataset, 0)
    cases.pixels(dataset, np.stack([np.frombuffer(s.PixelData, np.int16).reshape(ROWS, COLUMNS) for s in slices]))
    dataset.BitsStored, dataset.HighBit = slices[0].BitsStored, slices[0].HighBit
    for item in dataset.PerFrameFunctionalGroupsSequence:
        item.PixelValueTransformationSequence[0].RescaleSlope = 2
    return dataset


def _only(which: int, **values: Any) -> cases.Edit:
    return lambda dataset, k: _set(**values)(dataset, k) if k == which else None


def _drop(which: int, keyword: str) -> cases.Edit:
    return lambda dataset, k: delattr(dataset, keyword) if k == which else None


def _at(offset: Callable[[int], Any]) -> cases.Edit:
    return lambda dataset, k: setattr(dataset, "ImagePositionPatient", [float(v) for v in cases.ORIGIN + offset(k)])


def _cut(folder: Path, which: int, keep: float) -> None:
    path = write_series(folder)[which]
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def _two(folder: Path, edit: cases.Edit) -> None:
    """The series twice in one folder, the second time edited."""
    write_series(folder)
    write_series(folder, edit, name="second{:04d}.dcm")


def _one(folder: Path, dataset: Any, name: str = "multi.dcm") -> None:
    folder.mkdir()
    dataset.save_as(folder / name, enforce_file_format=True)


def _coded(dataset: Any, syntax: Any) -> None:
    """RLE by pydicom, JPEG 2000 and JPEG-LS by imagecodecs."""
    if syntax == RLELossless:
        return dataset.compress(syntax)
    imagecodecs = pytest.importorskip("imagecodecs")
    values = dataset.pixel_array
    if syntax == JPEG2000Lossless:
        frame = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="j2k", resolutions=2)
    else:
        frame = imagecodecs.jpegls_encode(values)
    dataset.PixelData = pydicom.encaps.encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return None


def _twelve_bits(junk: int) -> cases.Edit:
    """12 bits stored in two's complement; ``junk`` is in the four bits above, where scanners once put overlays."""

    def edit(dataset: Any, k: int) -> None:
        cases.pixels(dataset, (cases.stored(k) - 1000).astype(np.int16) | np.int16(junk), bits=12)
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 1000

    return edit


def _upper_bits(dataset: Any, k: int) -> None:
    """12 bits stored in bits 4 to 15, and junk below."""
    cases.pixels(dataset, cases.stored(k) << 4 | 5, bits=12)
    dataset.HighBit = 15


def _siemens(images: int) -> cases.Edit:
    """A private header of Siemens' as it is in every image, here with the one element that tells a mosaic."""

    def edit(dataset: Any, k: int) -> None:
        value = str(images).encode() if images else b""
        tag = struct.pack("<64si4siii", b"NumberOfImagesInMosaic", 1, b"US", 6, 6, 77)
        items = [value, b"", b"", b"", b"", b""]
        data = b"".join(struct.pack("<4i", 77, len(v), 77, 0) + v + bytes(-len(v) % 4) for v in items)
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", b"SV10\4\3\2\1" + struct.pack("<2I", 1, 77) + tag + data)

    return edit


def _siemens_number(images: bytes) -> cases.Edit:
    def edit(dataset: Any, k: int) -> None:
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "UN", images)

    return edit


def _damaged_private(dataset: Any, k: int) -> None:
    dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"SV10 cut off")


def _stray(k: int) -> Any:
    """A copy of slice k that belongs to no series."""
    dataset = cases.slice_dataset(k)
    dataset.SOPInstanceUID = uid("stray")
    del dataset.SeriesInstanceUID
    return dataset


def _screen() -> Any:
    """A dose report as some scanners file it: a coloured picture in the series of the slices."""
    dataset = cases.file_dataset(SecondaryCaptureImageStorage, "dose")
    dataset.ImageType, dataset.Modality = ["DERIVED", "SECONDARY"], "CT"
    cases.pixels(dataset, np.zeros((9, 7), np.uint16))
    return dataset


def _bare_dataset(path: Path, series: str) -> None:
    write_series(path.parent)
    dataset = cases.slice_dataset(SLICES)
    dataset.SeriesInstanceUID = series
    dataset.save_as(path)
    path.write_bytes(path.read_bytes()[132:])


def _with_other_files(folder: Path) -> None:
    """A series in one folder with a SEG, a DICOMDIR, a text and hidden files, none of which is a slice."""
    write_series(folder)
    seg = cases.file_dataset(SegmentationStorage, "seg")
    seg.SeriesInstanceUID, seg.Modality = uid("seg"), "SEG"
    seg.save_as(folder / "seg.dcm", enforce_file_format=True)
    for n in ("88.59", "11.1", "481.3"):
        other = cases.file_dataset(f"1.2.840.10008.5.1.4.1.1.{n}", n)
        other.Modality = "KO"
        other.save_as(folder / f"{n}.dcm", enforce_file_format=True)
    directory = cases.file_dataset("1.2.840.10008.1.3.10", "dir")
    del directory.SOPClassUID
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    for name in ("README.txt", "LOCKFILE", ".DS_Store"):
        (folder / name).write_bytes(b"")


def _damaged_companion(folder: Path) -> None:
    for path in folder.glob("IM*"):
        path.unlink()
    for path in folder.glob("[0-9s]*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.Modality = "GEHEIM"
        dataset.save_as(path)


def _spoilt(dataset: Any, k: int) -> None:
    _coded(dataset, JPEG2000Lossless)
    if k == 1:
        dataset.PixelData = pydicom.encaps.encapsulate([b"\x7f" * 200])


def _second(offset: float) -> cases.Edit:
    def edit(dataset: Any, k: int) -> None:
        _at(lambda k: [0, 0, offset + k * shift])(dataset, k)
        dataset.AcquisitionNumber = 2

    return edit


def _nested(folder: Path) -> None:
    for k, path in enumerate(write_series(folder)):
        (folder / f"part{k % 2}").mkdir(exist_ok=True)
        shutil.move(path, folder / f"part{k % 2}" / "deep.dcm" if k < 2 else folder / f"part{k % 2}")


def _add(name: str, content: bytes) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        write_series(folder)
        (folder / name).write_bytes(content)

    return build


def _series(edit: cases.Edit, **options: Any) -> Callable[[Path], None]:
    return lambda folder: write_series(folder, edit, **options) and None


def _lossy_frames(folder: Path, **values: Any) -> None:
    dataset = enhanced()
    for key, value in values.items():
        setattr(dataset, key, value)
    _one(folder, dataset)


TURNED = [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
shift = cases.STEP

# Folders as they come from hospitals: how each is built, and the text of its error (None: it loads).
CASES: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "plain": (write_series, None),
    "names unsorted": (_series(lambda d, k: None, slices=[3, 0, 5, 1, 4, 2], name="a{:d}.dcm"), None),
    "names reversed": (lambda f: [p.rename(f / f"{chr(122 - k)}.dcm") for k, p in enumerate(write_series(f))], None),
    "InstanceNumber contradicts": (_series(_set(InstanceNumber=lambda k: (k * 5) % 7)), None),
    "no InstanceNumber": (_series(_set(InstanceNumber=None)), None),
    "no suffix": (_series(lambda d, k: None, name="IM{:d}"), None),
    "nested": (_nested, None),
    "other files in the folder": (_with_other_files, None),
    "enhanced multi-frame": (lambda f: _one(f, enhanced()), None),
    "enhanced, frames shuffled": (lambda f: _one(f, enhanced([3, 1, 0, 2, 5, 4])), None),
    "RLE": (_series(lambda d, k: _coded(d, RLELossless)), None),
    "JPEG 2000": (_series(lambda d, k: _coded(d, JPEG2000Lossless)), None),
    "JPEG-LS": (_series(lambda d, k: _coded(d, JPEGLSLossless)), None),
    "12 bits stored, signed": (_series(_twelve_bits(0)), None),
    "no FrameOfReferenceUID": (_series(lambda d, k: delattr(d, "FrameOfReferenceUID")), None),
    "two acquisitions end to end": (_series(_set(AcquisitionNumber=lambda k: 1 + k // 3)), None),
    "SliceThickness differs from spacing": (_series(_set(SliceThickness=7.0)), None),
    "position noise of 5 um": (_series(_at(lambda k: [0, 0.005 * (k % 2), k * shift])), None),
    "declared count right": (_series(_set(ImagesInAcquisition=SLICES)), None),
    "trailing zeros after the pixels": (
        _series(lambda d, k: setattr(d, "PixelData", d.PixelData + bytes(8))), None
    ),
    "other bytes after the pixels": (
        _series(lambda d, k: setattr(d, "PixelData", d.PixelData + b"12345678")), "648 bytes of pixels where .* 640"
    ),
    "missing slice": (
        _series(lambda d, k: k != 2),
        r"1 slice\(s\) missing: 5 mm between .*IM0001.dcm and .*IM0003.dcm, 2.5 mm expected.* Fetch the missing slices",
    ),
    "two gaps": (_series(lambda d, k: k not in (1, 7), slices=range(9)), r"2 slice\(s\) missing"),
    "last slice missing, count declared": (
        _series(_set(ImagesInAcquisition=SLICES), slices=range(SLICES - 1)),
        r"5 slices found, but the header declares 6 \(ImagesInAcquisition\).* check_count=False",
    ),
    "last slice missing, PET count": (
        _series(_set(NumberOfSlices=SLICES), slices=range(SLICES - 1)), r"declares 6 \(NumberOfSlices\)"
    ),
    "non-uniform spacing": (
        _series(_at(lambda k: [0, 0, k * shift + 0.6 * (k > 3)])),
        r"uneven slice spacing: 2.5 to 3.1 mm; 3.1 mm between .*IM0003.dcm and .*IM0004.dcm",
    ),
    "spacing drifts": (_series(_at(lambda k: [0, 0, k * shift + 0.02 * k * k])), "uneven slice spacing"),
    "duplicate slice": (
        lambda f: shutil.copy(write_series(f)[3], f / "copy.dcm"),
        r"duplicate slices: .*IM0003.dcm and .*copy.dcm|duplicate slices: .*copy.dcm and .*IM0003.dcm",
    ),
    "two time points": (
        lambda f: _two(f, _set(AcquisitionNumber=2)),
        r"each of 6 positions holds 2 images: 2 acquisitions or time points in one series "
        r"\(AcquisitionNumber 1: 6 images, 2: 6 images\).* Give the files of one of them as a list",
    ),
    "two acquisitions interleaved": (
        lambda f: _two(f, _second(0.5 * shift)),
        r"several acquisitions of one region in one series \(AcquisitionNumber 1: 6 images, 2: 6 images\)",
    ),
    "two acquisitions apart": (
        lambda f: _two(f, _second(40)),
        r"missing: 27.5 mm between .*\(AcquisitionNumber 1: 6 images, 2: 6 images\)",
    ),
    "two series": (
        lambda f: _two(f, _set(SeriesInstanceUID=uid("other"), SeriesDescription="other")),
        r"2 series: [\d.]+ \(phantom, 6 files\); [\d.]+ \(other, 6 files\). Choose one with series=\"[\d.]+\"",
    ),
    "mixed orientation": (
        _series(_only(5, ImageOrientationPatient=TURNED)),
        r"differ in ImageOrientationPatient: \(1, 0, 0, 0, 1, 0\) \(5\), \(0, 1, 0, 0, 0, 1\) \(1\).*IM0005.dcm",
    ),
    "localizer with the same UID": (
        _series(_only(5, ImageOrientationPatient=TURNED, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        r"1 of 6 images are localizers \(.*IM0005.dcm\). Take the localizers out",
    ),
    "mixed sizes": (
        _series(lambda d, k: cases.pixels(d, cases.stored(k)[:, :-2].copy()) if k == 4 else None),
        r"differ in Rows x Columns: 16 x 20 \(5\), 16 x 18 \(1\)",
    ),
    "mixed PixelSpacing": (_series(_only(1, PixelSpacing=[0.8, 0.71])), r"differ in PixelSpacing: \(0.8, 0.7\) \(5\)"),
    "mixed frames of reference": (_series(_only(1, FrameOfReferenceUID=uid("x"))), "differ in FrameOfReferenceUID"),
    "gantry tilt": (
        _series(_at(lambda k: [0, k * shift * np.tan(np.radians(12)), k * shift])),
        r"sheared volume \(gantry tilt\): the slices are stacked 12 degrees off their normal.* dcm2niix",
    ),
    "small tilt of half a degree": (
        _series(_at(lambda k: [0, k * shift * np.tan(np.radians(0.5)), k * shift])), r"stacked 0.5 degrees off"
    ),
    "one slice shifted": (_series(_at(lambda k: [3 * (k == 2), 0, k * shift])), r"IM0002.dcm is 3 mm off the axis"),
    "no PixelSpacing": (_series(_drop(2, "PixelSpacing")), r"IM0002.dcm: no PixelSpacing: the geometry is unknown"),
    "PixelSpacing zero": (_series(_set(PixelSpacing=[0, 0.7])), r"PixelSpacing is \(0, 0.7\), not above 0 mm"),
    "PixelSpacing one number": (_series(_only(0, PixelSpacing=0.7)), r"PixelSpacing is \(0.7\), not 2 numbers"),
    "names in damaged UIDs": (
        _series(_only(1, StudyInstanceUID="1.2.Geheim")), r"differ in StudyInstanceUID: 1[\d.]+ \(5\), damaged UID"
    ),
    "a name for the colours": (_series(_set(PhotometricInterpretation="GEHEIM")), "is unknown, not grayscale"),
    "no position": (_series(_drop(1, "ImagePositionPatient")), r"IM0001.dcm: no ImagePositionPatient"),
    "no orientation": (_series(_drop(0, "ImageOrientationPatient")), r"IM0000.dcm: no ImageOrientationPatient"),
    "orientation not orthonormal": (
        _series(_set(ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0])), "not two unit vectors at right angles"
    ),
    "truncated file": (lambda f: _cut(f, 2, 0.7), r"IM0002.dcm: \d+ bytes of pixels where .* 640: cut"),
    "header cut": (lambda f: _cut(f, 2, 0.25), r"IM0002.dcm: "),
    "cut before the DICM mark": (lambda f: _cut(f, 2, 0.05), r"IM0002.dcm: not a DICOM file \(\d+ bytes"),
    "0-byte file": (_add("IM0006.dcm", b""), r"IM0006.dcm: empty file"),
    "0-byte file without suffix": (
        lambda f: (write_series(f, name="IM{:d}"), (f / "IM6").touch()), r"IM6: empty file"
    ),
    "non-image among the slices": (_add("IM0006.dcm", b"<html>not found</html>"), r"IM0006.dcm: not a DICOM file"),
    "image without pixels": (_series(_drop(3, "PixelData")), r"IM0003.dcm: the pixels do not decode"),
    "corrupt compressed pixels": (_series(_spoilt), r"IM0001.dcm: the pixels do not decode"),
    "colour": (_series(_set(SamplesPerPixel=3, PhotometricInterpretation="RGB")), "is RGB, not grayscale"),
    "rescale slope zero": (
        _series(_set(RescaleSlope=0, RescaleIntercept=5)), r"RescaleSlope 0.0, RescaleIntercept 5.0 give no values"
    ),
    "12 bits stored, an overlay above them": (_series(_twelve_bits(0x4000)), None),
    "12 bits stored in the upper bits": (_series(_upper_bits), None),
    "mosaic": (
        _series(_set(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])),
        r"IM0000.dcm: a Siemens mosaic: all slices of the volume as panels of one image. Convert it, .* dcm2niix",
    ),
    "mosaic by Siemens' header": (_series(_siemens(35)), r"IM0000.dcm: a Siemens mosaic"),
    "mosaic by Siemens' number": (_series(_siemens_number(b"\x23\0")), r"IM0000.dcm: a Siemens mosaic"),
    "Siemens' header without a mosaic": (_series(_siemens(0)), None),
    "damaged private header": (_series(_damaged_private), None),
    "a name for the modality": (_series(_set(Modality="GEHEIM")), None),
    "a name for the modality of a companion": (
        lambda f: (_with_other_files(f), _damaged_companion(f)), r"without images \['\?'\]"
    ),
    "nothing but padding": (_series(_set(PixelPaddingValue=0, PixelPaddingRangeLimit=60000)), "declares as padding"),
    "dose screen in the series": (lambda f: (write_series(f), _screen().save_as(f / "dose.dcm")), None),
    "bare dataset": (lambda f: _bare_dataset(f / "IM0006.dcm", uid("series")), "IM0006.dcm: .* the preamble and the"),
    "duplicate without SeriesInstanceUID": (
        lambda f: (write_series(f), _stray(0).save_as(f / "stray.dcm")), None
    ),
    "empty file that is no slice": (lambda f: (write_series(f, name="IM{:d}"), (f / "LOCKFILE").touch()), None),
    "last slice without SeriesInstanceUID": (_series(_drop(SLICES - 1, "SeriesInstanceUID")), "IM0005.dcm: no Series"),
    "MONOCHROME1 with several slopes": (
        _series(_set(PhotometricInterpretation="MONOCHROME1", RescaleSlope=lambda k: 1 + k, RescaleIntercept=0)),
        "no common inversion",
    ),
    "MONOCHROME1 in some slices": (
        _series(_only(2, PhotometricInterpretation="MONOCHROME1")), r"differ in PhotometricInterpretation"
    ),
    "MONOCHROME1 contradicted": (
        _series(_set(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="IDENTITY")),
        "MONOCHROME1 contradicts its PresentationLUTShape",
    ),
    "multi-frame with a gap": (
        lambda f: _one(f, enhanced([0, 1, 2, 4, 5])), r"missing: 5 mm between .* frame 3 and .* frame 4"
    ),
    "multi-frame, position repeated": (
        lambda f: _one(f, enhanced([0, 1, 2, 2, 3])), r"duplicate slices: .*frame 3 and .*frame 4"
    ),
    "multi-frame, fewer frames than declared": (
        lambda f: _lossy_frames(f, NumberOfFrames=8), r"NumberOfFrames is 8, but 6 frames are described"
    ),
    "multi-frame without functional groups": (
        lambda f: _lossy_frames(f, PerFrameFunctionalGroupsSequence=None), "6 frames without functional groups"
    ),
    "part of a concatenation": (lambda f: _lossy_frames(f, InConcatenationTotalNumber=3), "one of 3 parts"),
    "two multi-frame files in one series": (
        lambda f: (_one(f, enhanced()), enhanced().save_as(f / "b.dcm", enforce_file_format=True)),
        "2 multi-frame files",
    ),
    "no SeriesInstanceUID": (_series(_drop(0, "SeriesInstanceUID")), "no SeriesInstanceUID"),
    "single slice without thickness": (
        _series(_set(SliceThickness=None), slices=[0]), "single slice whose SliceThickness is None"
    ),
    "empty folder": (lambda f: f.mkdir(), r"no DICOM images \(0 other files"),
    "folder of other things": (lambda f: (f.mkdir(), (f / "a.txt").touch()), r"no DICOM images \(1 other files"),
    "no such folder": (lambda f: None, "no such file or folder"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", CASES)
def test_case(name: str, tmp_path: Path) -> None:
    build, message = CASES[name]
    build(tmp_path / "study")
    if message is not None:
        with pytest.raises(InputError, match=message) as caught:
            load(tmp_path / "study")
        assert str(tmp_path) in caught.value.path
        assert "geheim" not in str(caught.value).lower()
        return
    array, meta = load(tmp_path / "study")
    if name.startswith("enhanced"):  # its frames have slopes of their own: undo them by hand
        array = (array + 5) / np.arange(1, SLICES + 1)
    assert_in_place(array, meta)
    assert "geheim" not in str(meta).lower()


@pytest.mark.parametrize("frames", ["single", "enhanced"])
@pytest.mark.parametrize("bits", [16, 12])
def test_padding_gets_a_value_below_all_others(frames: str, bits: int, tmp_path: Path) -> None:
    """-2000, or -2010 to -1990, around signed values; the header has it unsigned, as of some scanners."""
    outside = np.arange(COLUMNS) < 5

    def edit(dataset: Any, k: int) -> None:
        values = np.where(outside, -2000 + 10 * (k % 3 - 1), cases.stored(k) % 2000).astype(np.int16)
        cases.pixels(dataset, values, bits)
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -5
        dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = 65536 - 2010, 65536 - 1990
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            dataset[keyword].VR = "US"

    if frames == "single":
        write_series(tmp_path / "study", edit)
    else:
        _one(tmp_path / "study", _padded_frames(edit))
    array, meta = load(tmp_path / "study")
    inside = array[~outside]
    assert (inside.min(), meta["padding"] < inside.min()) == (5, True)
    assert len(np.unique(array[outside])) == 1
    assert inside.min() - 0.01 * np.ptp(inside) < array[outside].max() < meta["padding"]


def test_values_that_are_no_padding_stay(tmp_path: Path) -> None:
    """63536 does not fit into 12 bits: its last 12 would be 2096, an ordinary value."""

    def edit(dataset: Any, k: int) -> None:
        cases.pixels(dataset, cases.stored(k) + np.uint16(2090), bits=12)
        dataset.PixelPaddingValue = 63536

    write_series(tmp_path / "study", edit)
    array, meta = load(tmp_path / "study")
    assert "padding" not in meta
    assert_in_place(array - 2090, meta)


# MONAI registers every reader of its own and one of them warns
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_input_error_reaches_the_user_of_load_imaged(tmp_path: Path) -> None:
    write_series(tmp_path / "good")
    write_series(tmp_path / "bad", lambda d, k: k != 2)
    transform = LoadImaged("image", reader=DicomSeriesReader(), ensure_channel_first=True)
    image = transform({"image": str(tmp_path / "good")})["image"]
    assert image.shape == (1, COLUMNS, ROWS, SLICES)
    assert_in_place(image[0].numpy(), {**image.meta, "affine": image.affine.numpy()})
    with pytest.raises(InputError, match="missing"):
        transform({"image": str(tmp_path / "bad")})


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_volumes_of_different_depth_share_a_batch(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", slices=range(4))
    data = [{"image": str(tmp_path / n)} for n in "ab"]
    crop = [LoadImaged("image", reader=DicomSeriesReader()), lambda item: {"image": item["image"][..., :4]}]
    batch = next(iter(DataLoader(Dataset(data, Compose(crop)), batch_size=2)))["image"]
    assert batch.meta["series_uid"] == [uid("series")] * 2


@pytest.mark.parametrize("inner", ["", "study/series/"])
def test_zip(tmp_path: Path, inner: str) -> None:
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in write_series(tmp_path / "plain"):
            opened.write(path, inner + path.name)
    array, meta = load(archive)
    assert_in_place(array, meta)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(InputError, match="BadZipFile"):
        load(archive)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(9):
            with archive.open(f"{k}.dcm", "w", force_zip64=True) as member:
                for _ in range(8):
                    member.write(bytes(1 << 24))
    with cases.memory_below(1 << 27), pytest.raises(InputError, match=r"unpack to 1.125 GiB, more than 100 times its"):
        load(tmp_path / "a.zip")


def test_list_of_files_and_choice_of_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    _two(tmp_path, _set(SeriesInstanceUID=uid("other")))
    assert_in_place(*load(*reversed(paths)))
    assert_in_place(*load(tmp_path, series=uid("series")))
    with pytest.raises(InputError, match=r"no series 1\.2; found: [\d.]+ \(phantom, 6 files\)"):
        load(tmp_path, series="1.2")


def test_undeclared_count_may_be_waived(tmp_path: Path) -> None:
    write_series(tmp_path, _set(ImagesInAcquisition=99))
    assert_in_place(*load(tmp_path, check_count=False))


def test_metadata(tmp_path: Path) -> None:
    write_series(tmp_path)
    _, meta = load(tmp_path)
    assert (meta["modality"], meta["series_uid"], meta["study_uid"]) == ("CT", uid("series"), uid("study"))
    assert (meta["original_channel_dim"], meta["space"]) == ("no_channel", "RAS")


def test_single_slice_takes_its_thickness(tmp_path: Path) -> None:
    write_series(tmp_path, slices=[0])
    array, meta = load(tmp_path)
    assert_in_place(array, meta, slices=1)
    assert meta["affine"][2, 2] == 3.0


def test_rescale_per_slice_by_hand(tmp_path: Path) -> None:
    write_series(tmp_path, _set(RescaleSlope=lambda k: 0.25 * (k + 1), RescaleIntercept=lambda k: -100.5 * k))
    array, _ = load(tmp_path)
    for k in range(SLICES):
        np.testing.assert_array_equal(array[:, :, k].T, cases.stored(k) * 0.25 * (k + 1) - 100.5 * k)


def test_monochrome1_is_inverted_within_the_stored_bits_by_hand(tmp_path: Path) -> None:
    def edit(dataset: Any, k: int) -> None:
        cases.pixels(dataset, cases.stored(k), bits=12)
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000

    write_series(tmp_path, edit)
    array, _ = load(tmp_path)
    np.testing.assert_array_equal(array[:, :, 3].T, 2.0 * (4095 - cases.stored(3)) - 1000)


def test_skipped_files_are_logged_without_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _with_other_files(tmp_path / "study")
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "study")
    assert "skipped 2 files that are not DICOM and 5 DICOM objects without images" in caplog.text
    assert "Geheim" not in caplog.text
    assert str(tmp_path) not in caplog.text


ROUNDED_TURN = [[u, v * c, v * s, -v, u * c, u * s] for (c, s), (u, v) in itertools.product(
    [(np.cos(a), np.sin(a)) for a in np.radians((20, 35.26))], [(np.cos(a), np.sin(a)) for a in np.radians((15, 45))]
)]  # fmt: skip


@pytest.mark.parametrize("turn", ROUNDED_TURN)
@pytest.mark.parametrize("slices", [3, 200])
def test_rounded_cosines_do_not_move_slices(tmp_path: Path, turn: list[float], slices: int) -> None:
    """Three decimals turn a plane by up to 0.09 degrees; the positions, which are exact, say where the slices are."""
    exact = np.array(turn).reshape(2, 3)
    positions = [2.5 * k * np.cross(*exact) for k in range(slices)]

    def edit(dataset: Any, k: int) -> None:
        dataset.ImageOrientationPatient = [f"{value:.3f}" for value in turn]
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in positions[k]]

    write_series(tmp_path, edit, slices=range(slices))
    _, meta = load(tmp_path)
    found = meta["affine"] @ np.array([[0, 0, k, 1] for k in range(slices)]).T
    np.testing.assert_allclose(found[:3].T * [-1, -1, 1], positions, atol=0.02)
    axes = meta["affine"][:3, :3] / np.linalg.norm(meta["affine"][:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    np.testing.assert_allclose((axes[:, :2].T * [-1, -1, 1]), exact, atol=2e-3)


@pytest.mark.parametrize("orientation", [*cases.ALIGNED, cases.OBLIQUE])
@pytest.mark.parametrize("step", [cases.STEP, 0.6])
def test_world_coordinates(tmp_path: Path, orientation: Any, step: float) -> None:
    write_series(tmp_path, slices=[2, 0, 1], orientation=orientation, step=step)
    assert_in_place(*load(tmp_path), slices=3, orientation=orientation, step=step)


def test_missing_extra_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImportError, match=r'pip install "monai_unet\[dicom\]"'):
        load(tmp_path)


def test_library_logs_quote_no_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = b"1.2.Geheim^Paula"
    for path in write_series(tmp_path, _set(StudyInstanceUID="1.2.345678901234")):
        path.write_bytes(path.read_bytes().replace(b"1.2.345678901234", name))
    pydicom.dcmread(path).PatientID  # noqa: B018
    with pytest.warns(UserWarning, match="Geheim"):
        pydicom.dcmread(path).StudyInstanceUID  # noqa: B018
    caplog.clear()
    load(tmp_path)
    assert "Geheim" not in caplog.text
    assert not logging.getLogger("pydicom").disabled


def test_threads_that_read_at_once_leave_logs_and_warnings_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first to begin is the first to end: restoring what the second found would leave both silent for good."""
    write_series(tmp_path)
    second_reads, first_is_done = threading.Event(), threading.Event()
    dcmread = pydicom.dcmread

    def waiting(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is second:
            second_reads.set()
            assert first_is_done.wait(60)
            logging.getLogger("pydicom").warning("Geheim")
            warnings.warn("Geheim", stacklevel=1)
        else:
            second.start()
            assert second_reads.wait(60)
            monkeypatch.setattr(pydicom, "dcmread", dcmread)
        return dcmread(*args, **kwargs)

    results = []
    second = threading.Thread(target=lambda: results.append(load(tmp_path)))
    monkeypatch.setattr(pydicom, "dcmread", waiting)
    log, filters = logging.getLogger("pydicom"), list(warnings.filters)
    before = (log.disabled, log.level)
    try:
        load(tmp_path)
        first_is_done.set()
        second.join()
        assert (log.disabled, log.level) == before
        assert warnings.filters == filters
    finally:
        log.disabled, log.level = before
        warnings.filters[:] = filters
    assert len(results) == 1
    assert "Geheim" not in caplog.text


@pytest.mark.parametrize("where", ["pydicom.dcmread", "highdicom.Image.get_frames"])
def test_a_lack_of_memory_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    write_series(tmp_path)
    monkeypatch.setattr(where, cases.out_of_memory)
    with pytest.raises(MemoryError):
        load(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_neighbour_is_not_read(tmp_path: Path, packed: bool) -> None:
    size = 1 << 27
    write_series(tmp_path / "study")
    with (tmp_path / "study" / "film.mp4").open("wb") as film:
        film.truncate(size)
    if packed:
        shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "study")
    with cases.memory_below(size / 2):
        assert_in_place(*load(tmp_path / "study.zip" if packed else tmp_path / "study"))


# -- real files ------------------------------------------------------------------------------------------------------

REAL: dict[str, tuple[int, int, int] | str] = {
    "chaos_ct_liver/Data_3D/DICOM_anon": (512, 512, 78),
    "hippocampus_mr/Study1/13_HCropVolume": (35, 51, 32),
    "hippocampus_mr/Study2/14_HCropVolume": (36, 48, 35),
    "hippocampus_mr/Study3/11_HCropVolume": (34, 50, 40),
    "hippocampus_mr/Study1": (35, 51, 32),
    "hippocampus_mr": r"3 series: .*Choose one with series=",
    "odd/dcmqi/23x38x3/image": (23, 38, 3),
    "odd/dcmqi/23x38x3/multiframe": (23, 38, 3),
    "odd/dcmqi/23x38x3/seg": r"no DICOM images \(0 other files, 1 DICOM objects without images \['SEG'\]\)",
    "odd/dcmqi/23x38x3": r"2 series: ",
    "odd/dcmqi/24x38x3/image": (24, 38, 3),
    "odd/dcmqi/24x38x3/multiframe": (24, 38, 3),
    "odd/dcmqi/ct-3slice": (512, 512, 3),
    "odd/dcmqi": r"5 series: ",
    "odd/dicom2nifti/gantrytilting/001": r"gantry tilt.* 14 degrees",
    "odd/dicom2nifti/sliceincrement/001": r"1 slice\(s\) missing: 10 mm .* 5 mm expected \(AcquisitionNumber 4: 2",
    "odd/dicom2nifti/sliceincrement/002": r"1 slice\(s\) missing: 1.4994 mm .*, 0.7497 mm expected",
    "odd/dicom2nifti/siemens_multiframe/anatomical/001": (256, 256, 8),
    "odd/cornerstone": r"duplicate slices: ",
    "odd/pydicom": r"no_meta.dcm: not a DICOM file",
    "odd/cornerstone/no-pixel-data.dcm": r"1 DICOM objects without images \['SR'\]",
    "odd/pydicom/CT_small.dcm": (128, 128, 1),
    "odd/pydicom/ExplVR_BigEnd.dcm": "PhotometricInterpretation is RGB",
    "odd/pydicom/JPEG2000.dcm": "no ImageOrientationPatient",
    "odd/pydicom/MR_small.dcm": (64, 64, 1),
    "odd/pydicom/MR_small_RLE.dcm": (64, 64, 1),
    "odd/pydicom/MR_small_jp2klossless.dcm": (64, 64, 1),
    "odd/pydicom/MR_small_jpeg_ls_lossless.dcm": (64, 64, 1),
    "odd/pydicom/MR_small_implicit.dcm": (64, 64, 1),
    "odd/pydicom/MR_small_padded.dcm": (64, 64, 1),
    "odd/pydicom/MR_small_bigendian.dcm": "big-endian transfer syntax",
    "odd/pydicom/MR_truncated.dcm": "8130 bytes of pixels where the header says 8192",
    "odd/pydicom/SC_rgb_small_odd.dcm": "PhotometricInterpretation is RGB",
    "odd/pydicom/badVR.dcm": r"without images \['RTDOSE'\]",
    "odd/pydicom/liver_1frame.dcm": r"without images \['SEG'\]",
    "odd/pydicom/rtstruct.dcm": "not a DICOM file",
    "odd/pydicom/test-SR.dcm": r"without images \['SR'\]",
}


@pytest.mark.parametrize("name", REAL)
def test_real(name: str) -> None:
    outcome = REAL[name]
    if isinstance(outcome, str):
        with pytest.raises(InputError, match=outcome):
            load(real(name))
        return
    array, meta = load(real(name))
    assert array.shape == outcome
    # every slice's own corner, read from its file, is where the affine says
    series = read_series([real(name)])
    if len(series.headers) == outcome[2]:
        for k, plane in enumerate(series.order):
            corner = np.array(series.headers[plane].ImagePositionPatient, dtype=float) * [-1, -1, 1]
            np.testing.assert_allclose((meta["affine"] @ [0, 0, k, 1])[:3], corner, atol=0.01)


def test_real_transfer_syntaxes_agree() -> None:
    arrays = [load(path)[0] for path in sorted(real("odd/cornerstone").glob("CTImage*"))]
    assert len(arrays) == 5
    for array in arrays[1:]:
        np.testing.assert_array_equal(array, arrays[0])
    small = [load(real(f"odd/pydicom/MR_small{n}.dcm"))[0] for n in ("", "_RLE", "_jp2klossless", "_jpeg_ls_lossless")]
    for array in small[1:]:
        np.testing.assert_array_equal(array, small[0])


def test_real_multiframe_equals_its_single_frames() -> None:
    for size in ("23x38x3", "24x38x3"):
        single, multi = (load(real(f"odd/dcmqi/{size}/{kind}")) for kind in ("image", "multiframe"))
        np.testing.assert_array_equal(single[0], multi[0])
        np.testing.assert_allclose(single[1]["affine"], multi[1]["affine"], atol=1e-6)


# -- damage ----------------------------------------------------------------------------------------------------------


def damage(content: bytes, cut: float | None, flips: list[tuple[float, int]]) -> bytes:
    changed = bytearray(content if cut is None else content[: int(cut * len(content))])
    for place, mask in flips:
        if changed:
            changed[int(place * len(changed))] ^= mask
    return bytes(changed)


places = st.floats(0, 1, exclude_max=True)
damages = st.tuples(st.none() | places, st.lists(st.tuples(places, st.integers(1, 255)), max_size=3)).filter(
    lambda d: d[0] is not None or d[1]
)


def _fuzz(tmp_path_factory: pytest.TempPathFactory, examples: int, syntax: Any) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    paths = write_series(folder, lambda d, k: _coded(d, syntax) if syntax else None, slices=range(3))
    originals = [path.read_bytes() for path in paths]
    expected, meta = load(folder)

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(which=st.integers(0, 2), kind=damages)
    def check(which: int, kind: tuple[float | None, list[tuple[float, int]]]) -> None:
        paths[which].write_bytes(damage(originals[which], *kind))
        try:
            array, found = load(folder)
        except InputError:
            return
        finally:
            paths[which].write_bytes(originals[which])
        assert array.shape == expected.shape
        corners = np.array(list(itertools.product(*((0, n - 1) for n in array.shape), [1])))
        np.testing.assert_allclose(corners @ found["affine"].T, corners @ meta["affine"].T, rtol=0, atol=0.03)
        others = [k for k in range(3) if k != which]
        np.testing.assert_array_equal(array[..., others], expected[..., others])
        if not kind[1]:  # a cut alone: only one behind the last pixel, in the closing tag, can go through
            np.testing.assert_array_equal(array, expected)

    check()


SYNTAXES = [None, RLELossless, JPEG2000Lossless]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, syntax: Any) -> None:
    _fuzz(tmp_path_factory, 60, syntax)


@pytest.mark.slow
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_files_at_length(tmp_path_factory: pytest.TempPathFactory, syntax: Any) -> None:
    _fuzz(tmp_path_factory, 1000, syntax)
