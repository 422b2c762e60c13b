"""Masks out as RT Structure Set (PS3.3 A.19): closed planar contours, for planning systems.

By pydicom, and not by rt-utils 1.2.7 of 2022, which takes the spacing between rows for that between columns.
Needs the extra ``dicom``: ``pip install "monai_unet[dicom]"``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import monai_unet
from monai_unet.data.dicom.geometry import planes_of
from monai_unet.data.dicom.quiet import quiet
from monai_unet.data.dicom.segmentation import planes_of_mask, source_headers
from monai_unet.data.microscopy.outlines import instance_polygons
from monai_unet.files import replacing

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["write_rtstruct"]


def write_rtstruct(
    path: str | os.PathLike[str],
    mask: npt.NDArray[np.uint8],
    sources: Sequence[str],
    segments: Sequence[Mapping[str, Any]],
    algorithm: Mapping[str, Any],
) -> None:
    """Write a mask as RTSTRUCT, whole or not at all; arguments and errors as in `dicom_seg.write_seg`.

    One region of interest per segment, an empty one without contours. Contours run along the pixels' edges, so that
    the pixels whose centres they enclose are the mask's. Holes are joined to the outer contour by a keyhole of no
    width (C.8.8.6.3).
    """
    from highdicom import UID
    from highdicom.base import SOPClass
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

    with quiet():
        headers, order = source_headers(sources)
        frames = planes_of_mask(mask, headers, order)
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
            patient_id=first.PatientID,
            patient_name=first.PatientName,
            patient_birth_date=first.PatientBirthDate,
            patient_sex=first.PatientSex,
            accession_number=first.AccessionNumber,
            study_id=first.StudyID,
            study_date=first.StudyDate,
            study_time=first.StudyTime,
            referring_physician_name=first.get("ReferringPhysicianName"),
            specific_character_set=first.get("SpecificCharacterSet"),
        )
        result.copy_patient_and_study_information(first)
        images = [_reference(header) for header in headers]
        series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
        study = _item(
            ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",  # retired, but the study has no other class
            ReferencedSOPInstanceUID=first.StudyInstanceUID,
            RTReferencedSeriesSequence=[series],
        )
        frame_of_reference = _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
        now = datetime.now()
        regions = list(enumerate(segments, start=1))
        result.update(
            _item(
                OperatorsName=None,
                StructureSetLabel="NOT REVIEWED",
                StructureSetDate=now.strftime("%Y%m%d"),
                StructureSetTime=now.strftime("%H%M%S"),
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
                        **({"ContourSequence": contours} if (contours := _contours(frames == number, headers)) else {}),
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


def _contours(frames: npt.NDArray[np.bool_], headers: Sequence[Dataset]) -> list[Dataset]:
    """The contours of one region, frame by frame (frames, rows, columns), in mm of the patient's coordinates (LPS)."""
    contours = []
    places = [plane for header in headers for plane in planes_of("", header)]
    for number, (frame, place) in enumerate(zip(frames, places, strict=True), start=1):
        if not frame.any():
            continue
        image = _reference(headers[min(number, len(headers)) - 1], number if len(headers) == 1 < len(frames) else None)
        for outer, *holes in instance_polygons(frame)[1]:
            # through each hole's corner and back to the first corner
            corners = np.array(outer + [corner for hole in holes for corner in (*hole, outer[0])], dtype=float)
            column, row = (corners[:-1] - 0.5).T  # polygons count from the corner of the first pixel
            points = (
                place.position
                + np.outer(column * place.spacing[1], place.orientation[:3])
                + np.outer(row * place.spacing[0], place.orientation[3:])
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
