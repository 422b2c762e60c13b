"""Masks out as RT Structure Set (PS3.3 A.19): closed planar contours, for planning systems.

Written with pydicom, since rt-utils 1.2.7 of 2022 swaps the spacings of rows and columns.
Needs the extra ``dicom``: ``pip install "monai_unet[dicom]"``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import monai_unet
from monai_unet.data.dicom.series import Mask, Series
from monai_unet.data.dicom.silence import silence_dicom_libraries
from monai_unet.data.microscopy.outlines import instance_polygons
from monai_unet.files import replacing

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["write_rtstruct"]


def write_rtstruct(
    path: str | os.PathLike[str],
    mask: Mask,
    series: Series,
    segments: Sequence[Mapping[str, Any]],
    algorithm: Mapping[str, Any],
) -> None:
    """Write a mask as RTSTRUCT, whole or not at all; arguments and errors are those of `write_seg`.

    Each segment becomes a region of interest, without contours if it is empty. Contours follow the edges of pixels, so
    that the pixel centres inside them are those of the mask. A hole is joined to its outer contour by a keyhole of zero
    width (C.8.8.6.3).

    >>> import tempfile
    >>> from pydicom import dcmread
    >>> from pydicom.data import get_testdata_file
    >>> from monai_unet.data.dicom.series import read_series
    >>> series = read_series([get_testdata_file("CT_small.dcm")])
    >>> mask = np.zeros(series.shape, np.uint8)
    >>> mask[40:60, 50:70] = 1
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/rtstruct.dcm"
    ...     write_rtstruct(path, mask, series, [{"label": "Box", "color": [255, 0, 0]}], {"name": "me", "version": 1})
    ...     contour = dcmread(path).ROIContourSequence[0].ContourSequence[0]
    >>> contour.NumberOfContourPoints, contour.ContourGeometricType
    ('4', 'CLOSED_PLANAR')
    """
    from highdicom import UID
    from highdicom.base import SOPClass
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

    with silence_dicom_libraries:
        frames = series.frames(mask)
        headers = series.source_images
        first = headers[0]
        result = SOPClass(
            study_instance_uid=first.StudyInstanceUID,
            series_instance_uid=UID(),
            series_number=901,
            sop_instance_uid=UID(),
            sop_class_uid=RTStructureSetStorage,
            instance_number=1,
            modality="RTSTRUCT",
            manufacturer="monai_unet",
            manufacturer_model_name=str(algorithm["name"])[:64],
            software_versions=monai_unet.__version__,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set=first.get("SpecificCharacterSet"),
        )
        result.copy_patient_and_study_information(first)
        images = [_reference(header) for header in headers]
        source = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
        study = _item(
            ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",  # retired, but the study has no other class
            ReferencedSOPInstanceUID=first.StudyInstanceUID,
            RTReferencedSeriesSequence=[source],
        )
        frame_of_reference = _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
        regions = list(enumerate(segments, start=1))
        result.update(
            _item(
                OperatorsName=None,
                StructureSetLabel="NOT REVIEWED",
                StructureSetDate=result.InstanceCreationDate,
                StructureSetTime=result.InstanceCreationTime,
                ApprovalStatus="UNAPPROVED",
                FrameOfReferenceUID=first.FrameOfReferenceUID,
                PositionReferenceIndicator=None,
                ReferencedFrameOfReferenceSequence=[frame_of_reference],
                StructureSetROISequence=[
                    _item(
                        ROINumber=number,
                        ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
                        ROIName=segment["label"],
                        ROIGenerationAlgorithm="AUTOMATIC",
                        ROIGenerationDescription=f"{algorithm['name']} {algorithm['version']}"[:64],
                    )
                    for number, segment in regions
                ],
                ROIContourSequence=[
                    _item(
                        ReferencedROINumber=number,
                        ROIDisplayColor=segment["color"],
                        **({"ContourSequence": contours} if (contours := _contours(frames == number, series)) else {}),
                    )
                    for number, segment in regions
                ],
                RTROIObservationsSequence=[
                    _item(
                        ObservationNumber=number,
                        ReferencedROINumber=number,
                        RTROIInterpretedType="ORGAN",
                        ROIInterpreter=None,
                    )
                    for number, _ in regions
                ],
            )
        )
        with replacing(path) as partial:
            result.save_as(partial)


def _contours(frames: npt.NDArray[np.bool_], series: Series) -> list[Dataset]:
    """Trace one region, frame by frame (frames, rows, columns), in LPS millimetres of the patient."""
    contours = []
    headers, planes = series.headers, series.planes
    for number, (frame, plane) in enumerate(zip(frames, planes, strict=True), start=1):
        if not frame.any():
            continue
        image = _reference(headers[min(number, len(headers)) - 1], number if len(headers) < len(planes) else None)
        for outer, *holes in instance_polygons(frame)[1]:
            # through a corner of each hole and back to the first corner
            corners = np.array(outer + [corner for hole in holes for corner in (*hole, outer[0])], dtype=float)
            column, row = (corners[:-1] - 0.5).T  # polygons count from the corner of the first pixel
            points = (
                plane.position
                + np.outer(column * plane.spacing[1], series.orientation[:3])
                + np.outer(row * plane.spacing[0], series.orientation[3:])
            )
            contours.append(
                _item(
                    ContourImageSequence=[image],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(points),
                    ContourData=[f"{value:.10g}" for value in points.ravel()],
                )
            )
    return contours


def _reference(header: Dataset, frame: int | None = None) -> Dataset:
    reference = _item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    return reference


def _item(**values: Any) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
