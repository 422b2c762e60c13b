"""Volumes out as a DICOM Structured Report (PS3.16 TID 1500), for archives and viewers that show measurements.

Needs the extra ``dicom``: ``pip install "monai_unet[dicom]"``.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np

import monai_unet
from monai_unet.data.dicom.geometry import ROUNDING, planes_of
from monai_unet.data.dicom.series import Series
from monai_unet.data.dicom.silence import silence_dicom_libraries
from monai_unet.errors import InputError
from monai_unet.files import replacing

__all__ = ["write_report"]


def write_report(
    path: str | os.PathLike[str], seg_path: str | os.PathLike[str], series: Series, voxel_ml: float
) -> None:
    """Write the volume of each segment of a SEG as a Comprehensive 3D SR, in cm³, whole or not at all.

    Voxels are counted in the SEG as it is on disk, which may have been corrected since its prediction, but must be
    binary and on the slices of its source. The report is neither complete nor verified: nobody has reviewed it.

    Args:
        path: of the report.
        seg_path: of the SEG, as `write_seg` writes it.
        series: the source of the SEG.
        voxel_ml: of one voxel, in millilitres.

    Raises:
        InputError: the SEG is none, is not binary, refers to another series, or has another grid than the series.

    >>> import tempfile
    >>> import numpy as np
    >>> from pydicom import dcmread
    >>> from pydicom.data import get_testdata_file
    >>> from monai_unet.data.dicom.segmentation import write_seg
    >>> from monai_unet.data.dicom.series import read_series
    >>> series = read_series([get_testdata_file("CT_small.dcm")])
    >>> mask = np.zeros(series.shape, np.uint8)
    >>> mask[:10, :20] = 1
    >>> kinds = {"category": ["123037004", "SCT", "Anatomical Structure"], "type": ["272673000", "SCT", "Bone"]}
    >>> algorithm = {"name": "mine", "version": "1", "family": ["123110", "DCM", "Artificial Intelligence"]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     segments = [{"label": "Bone", "color": [255, 255, 0], **kinds}]
    ...     write_seg(f"{folder}/seg.dcm", mask, series, segments, algorithm)
    ...     write_report(f"{folder}/report.dcm", f"{folder}/seg.dcm", series, voxel_ml=0.5)
    ...     report = dcmread(f"{folder}/report.dcm")
    >>> report.Modality, report.CompletionFlag, report.VerificationFlag
    ('SR', 'PARTIAL', 'UNVERIFIED')
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    with silence_dicom_libraries:
        try:
            seg = hd.seg.segread(seg_path)
        except Exception as error:  # highdicom raises exceptions of many kinds
            cure = "Predict the study again with --overwrite true"
            raise InputError(seg_path, f"not a DICOM SEG, which a report refers to ({error})", cure) from error
        _check(seg_path, seg, series)
        voxels = Counter[int]()
        frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
        shared = seg.SharedFunctionalGroupsSequence[0]
        for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
            of = group if "SegmentIdentificationSequence" in group else shared
            voxels[of.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(frame.sum())
        device = hd.sr.DeviceObserverIdentifyingAttributes(hd.UID(), "monai_unet", "monai_unet")
        report = hd.sr.Comprehensive3DSR(
            evidence=[*series.source_images, seg],
            content=hd.sr.MeasurementReport(
                observation_context=hd.sr.ObservationContext(hd.sr.ObserverContext(codes.DCM.Device, device)),
                procedure_reported=hd.sr.CodedConcept("363679005", "SCT", "Imaging"),
                imaging_measurements=[
                    _volume(segment, seg, series, voxels[segment.SegmentNumber] * voxel_ml)
                    for segment in seg.SegmentSequence
                ],
            ),
            series_instance_uid=hd.UID(),
            series_number=902,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="monai_unet",
            software_versions=monai_unet.__version__,
            series_description="Volumes, not reviewed",
            is_complete=False,
            is_verified=False,
        )
        with replacing(path) as partial:
            report.save_as(partial)


def _check(path: str | os.PathLike[str], seg: Any, series: Series) -> None:
    """Raise unless each voxel is 0 or 1, and each frame is on a slice of the series: no other voxel has its volume."""
    cure = "Save it as a binary SEG on the slices of its series, or predict the study again with --overwrite true"
    if (kind := seg.SegmentationType) != "BINARY":
        known = kind if kind in ("FRACTIONAL", "LABELMAP") else "of an unknown kind"  # damaged, it might be a name
        raise InputError(path, f"the SEG is {known}, and a report counts the voxels of a BINARY one", cure)
    referenced = {item.get("SeriesInstanceUID") for item in seg.get("ReferencedSeriesSequence") or []}
    if series.headers[0].SeriesInstanceUID not in referenced:
        raise InputError(path, "the SEG does not refer to the series of this study", cure)
    try:
        planes = planes_of(str(path), seg)
    except InputError as error:
        raise InputError(path, f"the place of the SEG is unknown: {error.problem}", cure) from error
    first = series.planes[0]
    measures = seg.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence") or [{}]
    step = float(measures[0].get("SpacingBetweenSlices") or series.spacing)
    for plane in planes:
        nearest = min((p.position for p in series.planes), key=lambda position: np.abs(position - plane.position).max())
        for label, found, due, tolerance in (
            ("Rows x Columns", plane.size, first.size, 0.0),
            ("PixelSpacing", plane.spacing, first.spacing, 1e-4),
            ("SpacingBetweenSlices", [step], [series.spacing], 0.01 * series.spacing),
            ("ImageOrientationPatient", plane.orientation, series.orientation, ROUNDING),
            ("ImagePositionPatient", plane.position, nearest, 0.01),
        ):
            if not np.allclose(found, due, rtol=0, atol=tolerance):
                listed, expected = (", ".join(f"{value:.6g}" for value in values) for values in (found, due))
                raise InputError(path, f"{label} of the SEG is {listed}, of its series {expected}", cure)


def _volume(segment: Any, seg: Any, series: Series, ml: float) -> Any:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    (kind,) = segment.SegmentedPropertyTypeCodeSequence
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(segment.TrackingUID, segment.TrackingID),
        referenced_segment=sr.ReferencedSegment(
            seg.SOPClassUID,
            seg.SOPInstanceUID,
            segment.SegmentNumber,
            source_series=sr.SourceSeriesForSegmentation(series.headers[0].SeriesInstanceUID),
        ),
        finding_type=sr.CodedConcept.from_code(kind),
        algorithm_id=sr.AlgorithmIdentification(
            segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName,
            segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion,
        ),
        measurements=[sr.Measurement(codes.SCT.Volume, round(ml, 6), codes.UCUM.CubicCentimeter)],
    )
