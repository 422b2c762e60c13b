"""Volumes in a DICOM report: of a SEG whose voxels are those of its series, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_cases import write_series
from highdicom.sr import srread
from pydicom.sr.codedict import codes
from test_dicom_seg import ALGORITHM, SEGMENTS

from monai_unet.data.dicom.report import write_report
from monai_unet.data.dicom.segmentation import write_seg
from monai_unet.data.dicom.series import Series, read_series
from monai_unet.errors import InputError

CURE = "Save it as a binary SEG on the slices of its series, or predict the study again with --overwrite true"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Series:
    folder = tmp_path_factory.mktemp("series")
    write_series(folder)
    return read_series([folder])


def written(path: Path, series: Series) -> Any:
    """A SEG of 10 × 10 × 2 voxels of the first segment."""
    mask = np.zeros(series.shape, np.uint8)
    mask[:10, :10, 1:3] = 1
    write_seg(path, mask, series, SEGMENTS, ALGORITHM)
    return pydicom.dcmread(path)


def measures(seg: Any) -> Any:
    return seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def double(seg: Any) -> None:
    seg.Rows, seg.Columns = 2 * seg.Rows, 2 * seg.Columns


def shift(seg: Any) -> None:
    position = seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    position.ImagePositionPatient = [*position.ImagePositionPatient[:2], -36.25]


def turn(seg: Any) -> None:
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


EDITS: dict[str, Callable[[Any], Any]] = {
    "the SEG is of an unknown kind, and a report counts": lambda seg: setattr(seg, "SegmentationType", "DOE"),
    "the SEG does not refer to the series of this study": lambda seg: setattr(
        seg.ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.2.3"
    ),
    "the place of the SEG is unknown: PixelSpacing is (0, 0), not above 0 mm": lambda seg: setattr(
        measures(seg), "PixelSpacing", [0, 0]
    ),
    "Rows x Columns of the SEG is 32, 40, of its series 16, 20": double,
    "PixelSpacing of the SEG is 0.4, 0.35, of its series 0.8, 0.7": lambda seg: setattr(
        measures(seg), "PixelSpacing", [0.4, 0.35]
    ),
    "SpacingBetweenSlices of the SEG is 1.25, of its series 2.5": lambda seg: setattr(
        measures(seg), "SpacingBetweenSlices", 1.25
    ),
    "ImageOrientationPatient of the SEG is 0, 1, 0, 1, 0, 0, of its series 1, 0, 0, 0, 1, 0": turn,
    "ImagePositionPatient of the SEG is -12.5, 31.25, -36.25, of its series -12.5, 31.25, -3": shift,
}


def test_the_volume_of_a_binary_seg_on_its_slices(tmp_path: Path, source: Series) -> None:
    written(tmp_path / "seg.dcm", source)
    write_report(tmp_path / "report.dcm", tmp_path / "seg.dcm", source, voxel_ml=0.5)
    groups = srread(tmp_path / "report.dcm").content.get_volumetric_roi_measurement_groups()
    assert [group.get_measurements(codes.SCT.Volume)[0].value for group in groups] == [100, 0]


@pytest.mark.parametrize("problem", EDITS)
def test_another_seg_is_refused(tmp_path: Path, source: Series, problem: str) -> None:
    seg = written(tmp_path / "seg.dcm", source)
    EDITS[problem](seg)
    seg.save_as(tmp_path / "seg.dcm")
    assert_refused(tmp_path, source, problem)


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_a_seg_that_is_not_binary_is_refused(tmp_path: Path, source: Series, kind: str) -> None:
    seg = written(tmp_path / "seg.dcm", source)
    mask = np.zeros((len(source.planes), *source.planes[0].size), np.uint8)
    mask[1:3, :10, :10] = 1
    values = {"fractional_type": "PROBABILITY"} if kind == "FRACTIONAL" else {}
    segments = [hd.seg.SegmentDescription.from_dataset(segment) for segment in seg.SegmentSequence[:1]]
    hd.seg.Segmentation(
        source.source_images,
        mask.astype(np.float32) if values else mask,
        kind,
        segments,
        hd.UID(),
        900,
        hd.UID(),
        1,
        "an editor",
        "an editor",
        "1",
        "none",
        **values,
    ).save_as(tmp_path / "seg.dcm")
    assert_refused(tmp_path, source, f"the SEG is {kind}, and a report counts the voxels of a BINARY one")


def assert_refused(folder: Path, series: Series, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        write_report(folder / "report.dcm", folder / "seg.dcm", series, voxel_ml=0.5)
    assert caught.value.path == str(folder / "seg.dcm")
    assert caught.value.problem.startswith(problem)
    assert caught.value.cure == CURE
    assert [path.name for path in folder.iterdir()] == ["seg.dcm"]
