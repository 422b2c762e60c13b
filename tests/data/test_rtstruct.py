"""RTSTRUCT out: filling the contours, pixel centre by pixel centre, gives the mask back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_cases import COLUMNS, OBLIQUE, ROWS, SLICES, enhanced, uid, world, write_series
from test_dicom_seg import ALGORITHM, SEGMENTS, complaints, read

from monai_unet.data.dicom.rtstruct import write_rtstruct


def filled(structures: Any, number: int, slices: int = SLICES, **geometry: Any) -> np.ndarray:
    """Slow oracle, (columns, rows, slices): whether a ray from the voxel's centre crosses an odd number of edges."""
    places = world(np.indices((slices, ROWS, COLUMNS)).reshape(3, -1).T, **geometry) * [-1, -1, 1]
    places = places.reshape(slices, ROWS, COLUMNS, 3)
    right, down = places[0, 0, 1] - places[0, 0, 0], places[0, 1, 0] - places[0, 0, 0]
    result = np.zeros((COLUMNS, ROWS, slices), bool)
    for contour in structures.ROIContourSequence[number - 1].get("ContourSequence", []):
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        normal = np.cross(right, down) / np.linalg.norm(np.cross(right, down))
        distance = (points - places[:, 0, :1]) @ normal  # (slices, points)
        k = int(np.abs(distance[:, 0]).argmin())
        assert np.abs(distance[k]).max() < 0.01
        x = (points - places[k, 0, 0]) @ right / (right @ right)
        y = (points - places[k, 0, 0]) @ down / (down @ down)
        for column, row in np.ndindex(COLUMNS, ROWS):
            crossings = 0
            for x1, y1, x2, y2 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
                if (y1 > row) != (y2 > row) and column < x1 + (row - y1) / (y2 - y1) * (x2 - x1):
                    crossings += 1
            result[column, row, k] ^= bool(crossings % 2)
    return result


def structures(folder: Path, mask: np.ndarray) -> Any:
    path = folder.parent / "rtstruct.dcm"
    write_rtstruct(path, mask, read(folder)[1], SEGMENTS, ALGORITHM)
    assert complaints(path) == ""
    return pydicom.dcmread(path)


def _mask() -> np.ndarray:
    """A ring with an island in its hole, a second ring's worth of holes, a lone pixel, corners that touch."""
    mask = np.zeros((COLUMNS, ROWS, SLICES), np.uint8)
    mask[2:11, 3:12, 1] = 1
    mask[4:9, 5:10, 1] = 0
    mask[6, 7, 1] = 1
    mask[3, 4, 1] = 0
    mask[0, 0, 2] = mask[1, 1, 2] = mask[COLUMNS - 1, ROWS - 1, 5] = 1
    mask[12:15, 2:5, 1] = 2
    return mask


@pytest.mark.parametrize("geometry", [{}, {"orientation": OBLIQUE, "step": 0.6}])
def test_contours_fill_to_the_mask(tmp_path: Path, geometry: dict[str, Any]) -> None:
    write_series(tmp_path / "a", **geometry)
    mask = _mask()
    found = structures(tmp_path / "a", mask)
    for number in (1, 2):
        np.testing.assert_array_equal(filled(found, number, **geometry), mask == number)


def test_names_colours_and_references(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    found = structures(tmp_path / "a", _mask())
    assert (found.PatientName, found.Modality, found.ApprovalStatus) == ("Geheim^Paula", "RTSTRUCT", "UNAPPROVED")
    names = [(roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm) for roi in found.StructureSetROISequence]
    assert names == [(1, "Anterior hippocampus", "AUTOMATIC"), (2, "Liver", "AUTOMATIC")]
    assert [list(roi.ROIDisplayColor) for roi in found.ROIContourSequence] == [[255, 0, 0], [0, 0, 255]]
    (frame,) = found.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    referenced = {image.ReferencedSOPInstanceUID for image in series.ContourImageSequence}
    assert (frame.FrameOfReferenceUID, series.SeriesInstanceUID) == (uid("frame of reference"), uid("series"))
    assert referenced == {uid(f"slice {k}") for k in range(SLICES)}
    images = [c.ContourImageSequence[0].ReferencedSOPInstanceUID for c in found.ROIContourSequence[1].ContourSequence]
    assert images == [uid("slice 1")]


def test_multi_frame_source(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    order = [3, 1, 0, 2, 5, 4]
    enhanced(order).save_as(tmp_path / "a" / "multi.dcm", enforce_file_format=True)
    found = structures(tmp_path / "a", _mask())
    np.testing.assert_array_equal(filled(found, 1), _mask() == 1)
    numbers = [c.ContourImageSequence[0].ReferencedFrameNumber for c in found.ROIContourSequence[1].ContourSequence]
    assert [order[n - 1] for n in numbers] == [1]


def test_empty_mask(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    found = structures(tmp_path / "a", np.zeros((COLUMNS, ROWS, SLICES), np.uint8))
    assert len(found.StructureSetROISequence) == 2
    assert all("ContourSequence" not in roi or not roi.ContourSequence for roi in found.ROIContourSequence)


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    with pytest.raises(ValueError, match=r"the mask has shape \(20, 16, 5\), its source \(20, 16, 6\)"):
        write_rtstruct(tmp_path / "x.dcm", _mask()[..., :5], read(tmp_path / "a")[1], SEGMENTS, ALGORITHM)
    assert not (tmp_path / "x.dcm").exists()
