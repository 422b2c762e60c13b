"""DICOM SEG out: every voxel where its source has it, whatever the headers lack; read back by independent tools."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dicom_cases as cases
import numpy as np
import pydicom
import pytest
from dicom_cases import COLUMNS, ROWS, SLICES, enhanced, uid, world, write_series
from scipy.spatial import cKDTree

from monai_unet.data.dicom.reader import read_volume
from monai_unet.data.dicom.segmentation import segments_of, write_seg
from monai_unet.data.dicom.series import Series, read_series

CATEGORY = ["123037004", "SCT", "Anatomical Structure"]
SEGMENTS = [
    {
        "label": "Anterior hippocampus",
        "category": CATEGORY,
        "type": ["5366008", "SCT", "Hippocampus"],
        "modifier": ["255549009", "SCT", "Anterior"],
        "color": [255, 0, 0],
    },
    {"label": "Liver", "category": CATEGORY, "type": ["10200004", "SCT", "Liver"], "color": [0, 0, 255]},
]
ALGORITHM = {"name": "phantom", "version": "1.2", "family": ["123110", "DCM", "Artificial Intelligence"]}


def read(folder: Path) -> tuple[np.ndarray, Series]:
    """Array and series."""
    series = read_series([folder])
    return read_volume(series)[0], series


def classes(codes: np.ndarray) -> np.ndarray:
    """A label 0, 1 or 2 for each voxel's code, without any symmetry."""
    return (codes.astype(np.int64) * 7919 % 8191 % 3).astype(np.uint8)


def frames(dataset: Any) -> list[tuple[int, np.ndarray, Any]]:
    """Segment number, pixels (rows, columns) and functional groups of every frame, by pydicom alone."""
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    groups = dataset.PerFrameFunctionalGroupsSequence
    return [
        (int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber), frame, group)
        for frame, group in zip(pixels, groups, strict=True)
    ]


def assert_classes_in_place(dataset: Any, slices: int = SLICES, **geometry: Any) -> None:
    """Every voxel of every frame is where the phantom has a voxel whose code gives this label; none is missing."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, dtype=float)
    index = np.indices((slices, ROWS, COLUMNS)).reshape(3, -1).T
    places = world(index, **geometry)
    labels = classes((index @ [ROWS * COLUMNS, COLUMNS, 1]).reshape(-1))
    found: dict[int, list[np.ndarray]] = {1: [], 2: []}
    for number, frame, group in frames(dataset):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        r, c = np.nonzero(frame)
        lps = position + np.outer(c * spacing[1], row) + np.outer(r * spacing[0], column)
        found[number].append(lps * [-1, -1, 1])
    for number in (1, 2):
        there, expected = np.concatenate(found[number]), places[labels == number]
        distance, partner = cKDTree(expected).query(there)
        assert distance.max() < 0.01
        assert sorted(partner) == list(range(len(expected)))


def written(folder: Path, mask: np.ndarray | None = None) -> Any:
    """The SEG of the phantom's classes, or of a mask, as pydicom reads it."""
    array, series = read(folder)
    target = folder.parent / "out" / "seg.dcm"
    write_seg(target, classes(array) if mask is None else mask, series, SEGMENTS, ALGORITHM)
    return pydicom.dcmread(target)


def test_patient_codes_colours_and_references(tmp_path: Path) -> None:
    write_series(tmp_path / "a", lambda d, k: setattr(d, "StudyDate", "20200229"))
    dataset = written(tmp_path / "a")
    assert (dataset.PatientName, dataset.PatientID, dataset.StudyDate) == ("Geheim^Paula", "4711", "20200229")
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == (uid("study"), uid("frame of reference"))
    assert (dataset.SegmentationType, dataset.Modality) == ("BINARY", "SEG")
    one, two = dataset.SegmentSequence
    assert [(s.SegmentNumber, s.SegmentLabel, s.SegmentAlgorithmType) for s in (one, two)] == [
        (1, "Anterior hippocampus", "AUTOMATIC"),
        (2, "Liver", "AUTOMATIC"),
    ]
    kind = one.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("5366008", "SCT", "Hippocampus")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "255549009"
    assert "SegmentedPropertyTypeModifierCodeSequence" not in two.SegmentedPropertyTypeCodeSequence[0]
    # red is L* 53.2, a* 80.1, b* 67.2: scaled as PS3.3 C.10.7.1.1 says
    expected = [53.24 / 100 * 65535, (80.09 + 128) / 255 * 65535, (67.20 + 128) / 255 * 65535]
    np.testing.assert_allclose(one.RecommendedDisplayCIELabValue, expected, atol=15)
    algorithm = one.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("phantom", "1.2")
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == uid("series")
    referenced = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referenced == {uid(f"slice {k}") for k in range(SLICES)}
    for _, _, group in frames(dataset):
        z = group.PlanePositionSequence[0].ImagePositionPatient[2]
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert source == uid(f"slice {round((z - cases.ORIGIN[2]) / cases.STEP)}")


def test_names_that_contradict_positions(tmp_path: Path) -> None:
    write_series(tmp_path / "a", slices=[3, 0, 5, 1, 4, 2], name="{:d}.dcm")
    for k, path in enumerate(sorted((tmp_path / "a").iterdir())):
        path.rename(tmp_path / "a" / f"{chr(122 - k)}.dcm")
    assert_classes_in_place(written(tmp_path / "a"))


@pytest.mark.parametrize("order", [range(SLICES), [3, 1, 0, 2, 5, 4]])
def test_multi_frame_source(tmp_path: Path, order: Any) -> None:
    (tmp_path / "a").mkdir()
    source = enhanced(order)
    source.ContentDate, source.ContentTime = "20200101", "120000"
    source.save_as(tmp_path / "a" / "multi.dcm", enforce_file_format=True)
    array, _ = read(tmp_path / "a")
    codes = (array + 5) / np.arange(1, SLICES + 1)  # each frame has a slope of its own
    dataset = written(tmp_path / "a", classes(codes.round()))
    assert_classes_in_place(dataset)
    for _, _, group in frames(dataset):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        k = round((group.PlanePositionSequence[0].ImagePositionPatient[2] - cases.ORIGIN[2]) / cases.STEP)
        assert list(order)[image.ReferencedFrameNumber - 1] == k


def test_an_empty_segment_and_an_empty_mask(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    mask = np.zeros((COLUMNS, ROWS, SLICES), np.uint8)
    mask[3, 2, 4] = 2
    dataset = written(tmp_path / "a", mask)
    assert len(dataset.SegmentSequence) == 2
    ((number, frame, group),) = frames(dataset)
    assert (number, frame.sum(), frame[2, 3]) == (2, 1, 1)
    assert group.PlanePositionSequence[0].ImagePositionPatient[2] == pytest.approx(cases.ORIGIN[2] + 4 * cases.STEP)
    empty = written(tmp_path / "a", np.zeros_like(mask))
    assert len(empty.SegmentSequence) == 2
    assert {n for n, _, _ in frames(empty)} == {1, 2}
    assert not any(frame.any() for _, frame, _ in frames(empty))


def _bare(dataset: Any, k: int) -> None:
    """As real series are: attributes missing or invalid, rounding noise, a wrong spacing."""
    for keyword in ("FrameOfReferenceUID", "SliceThickness", "PatientID"):
        delattr(dataset, keyword)
    dataset.PatientSex, dataset.StudyDate, dataset.PatientBirthDate = "UNKNOWN", "ANONYM", "1.1.1970"
    dataset.StudyTime, dataset.SpacingBetweenSlices = "noon", 99.0
    dataset.ImageOrientationPatient = [1, 0.00001 * (k % 2), 0, 0, 1, 0]


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_headers_that_lack_or_misstate(tmp_path: Path) -> None:
    write_series(tmp_path / "a", _bare)
    dataset = written(tmp_path / "a")
    assert_classes_in_place(dataset)
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == cases.STEP
    assert (dataset.PatientSex, dataset.StudyDate, dataset.PatientID) == ("", "", "")
    assert dataset.FrameOfReferenceUID == written(tmp_path / "a").FrameOfReferenceUID


def test_errors(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    array, series = read(tmp_path / "a")
    mask = classes(array)
    with pytest.raises(ValueError, match=r"the mask has shape \(16, 20, 6\), its source \(20, 16, 6\): bring it back"):
        write_seg(tmp_path / "x.dcm", mask.transpose(1, 0, 2), series, SEGMENTS, ALGORITHM)
    with pytest.raises(ValueError, match="the mask has value 2, but there are 1 segments"):
        write_seg(tmp_path / "x.dcm", mask, series, SEGMENTS[:1], ALGORITHM)
    assert not (tmp_path / "x.dcm").exists()


def test_a_killed_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "a")

    def killed(self: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pydicom.Dataset, "save_as", killed)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "a")
    assert list((tmp_path / "out").iterdir()) == []


def test_libraries_log_no_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path / "a", lambda d, k: setattr(d, "PatientName", "Geheim"))  # one part: highdicom warns of it
    logging.getLogger("highdicom").setLevel(logging.DEBUG)
    try:
        with caplog.at_level(logging.DEBUG):
            dataset = written(tmp_path / "a")
        assert logging.getLogger("highdicom").level == logging.DEBUG
    finally:
        logging.getLogger("highdicom").setLevel(logging.NOTSET)
    assert dataset.PatientName == "Geheim"
    assert "Geheim" not in caplog.text


# -- other tools -----------------------------------------------------------------------------------------------------


def complaints(path: Path) -> str:
    """The errors that dciodvfy finds."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    result = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    return "\n".join(line for line in result.stderr.splitlines() if line.startswith("Error"))


def _cases(folder: Path) -> dict[str, tuple[Path, np.ndarray]]:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (COLUMNS, ROWS, SLICES)).astype(np.uint8)
    write_series(folder / "oblique", orientation=cases.OBLIQUE, step=0.6)
    write_series(folder / "empty")
    write_series(folder / "bare", _bare)
    (folder / "multi").mkdir()
    source = enhanced([3, 1, 0, 2, 5, 4])
    source.ContentDate, source.ContentTime = "20200101", "120000"
    source.save_as(folder / "multi" / "multi.dcm", enforce_file_format=True)
    sparse = np.zeros_like(mask)
    sparse[2:5, 3:9, 1:3] = 1
    return {
        "oblique": (folder / "oblique", mask),
        "bare": (folder / "bare", sparse),
        "empty": (folder / "empty", np.zeros_like(mask)),
        "multi": (folder / "multi", mask),
    }


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", ["oblique", "bare", "empty", "multi"])
def test_dciodvfy_finds_no_error_and_dcmqi_reads_the_same_mask(tmp_path: Path, name: str) -> None:
    folder, mask = _cases(tmp_path)[name]
    series = read_series([folder])
    path = tmp_path / "seg.dcm"
    write_seg(path, mask, series, SEGMENTS, ALGORITHM)
    assert complaints(path) == ""
    convert = shutil.which("segimage2itkimage") or shutil.which("segimage2itkimage", path=Path(sys.executable).parent)
    if convert is None:
        pytest.skip("segimage2itkimage is not installed: pip install dcmqi")
    sitk = pytest.importorskip("SimpleITK")
    options = ["--inputDICOM", str(path), "--outputDirectory", str(tmp_path), "--outputType", "nrrd"]
    subprocess.run([convert, *options], check=True, capture_output=True)
    for number in np.unique(mask[mask > 0]):
        image = sitk.ReadImage(tmp_path / f"{number}.nrrd")
        there = np.argwhere(sitk.GetArrayFromImage(image).T)
        lps = np.array([image.TransformIndexToPhysicalPoint(index.tolist()) for index in there])
        due = np.argwhere(mask == number) @ series.affine[:3, :3].T + series.affine[:3, 3]
        distance, partner = cKDTree(due).query(lps * [-1, -1, 1])
        assert distance.max() < 0.01
        assert sorted(partner) == list(range(len(due)))


METADATA = {
    "segments": SEGMENTS,
    "network_data_format": {"outputs": {"pred": {"channel_def": {"0": "background", "1": "anterior", "2": "liver"}}}},
}


@pytest.mark.parametrize("task", [{}, {"class_names": ["background", "anterior", "liver"]}])
def test_a_bundles_segments_are_those_of_its_own_classes(task: dict[str, Any]) -> None:
    assert segments_of(task, METADATA) == SEGMENTS


@pytest.mark.parametrize(
    ("names", "metadata"),
    [
        (["liver", "tumour"], METADATA),
        (["liver", "anterior"], METADATA),
        (["liver"], METADATA),
        ([f"organ {number}" for number in range(12)], {}),
    ],
)
def test_segments_of_other_classes_have_their_names(names: list[str], metadata: dict[str, Any], tmp_path: Path) -> None:
    segments = segments_of({"class_names": ["background", *names]}, metadata)
    assert len({tuple(segment["color"]) for segment in segments}) == len(names)
    write_series(tmp_path / "a")
    codes, series = read(tmp_path / "a")
    write_seg(tmp_path / "seg.dcm", (codes > 5).astype(np.uint8), series, segments, ALGORITHM)
    assert [s.SegmentLabel for s in pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence] == names


@pytest.mark.parametrize(
    ("name", "category", "code"),
    [
        ("liver", "Anatomical Structure", ["10200004", "SCT", "Liver"]),
        ("adrenal_gland", "Anatomical Structure", ["23451007", "SCT", "Adrenal gland"]),
        ("Necrosis", "Morphologically Abnormal Structure", ["6574001", "SCT", "Necrosis"]),
        ("my very own structure", "Tissue", ["my very own stru", "99MONAI_UNET", "my very own structure"]),
    ],
)
def test_segments_have_codes_that_dicom_lists(name: str, category: str, code: list[str]) -> None:
    (segment,) = segments_of({"class_names": ["background", name]}, {})
    assert (segment["category"][2], segment["type"]) == (category, code)


@pytest.mark.parametrize("name", ["left_kidney", "kidney left", "Left-Kidney", "KidneyLeft"])
def test_a_side_is_the_modifier_of_its_organ(name: str) -> None:
    (segment,) = segments_of({"class_names": ["background", name]}, {})
    assert (segment["label"], segment["type"]) == (name, ["64033007", "SCT", "Kidney"])
    assert segment["modifier"] == ["7771000", "SCT", "Left"]
