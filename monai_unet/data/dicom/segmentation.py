"""Masks out as DICOM Segmentation (PS3.3 A.51), by highdicom: coded segments that reference every source image.

Needs the extra ``dicom``: ``pip install "monai_unet[dicom]"``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import monai_unet
from monai_unet.data.dicom.geometry import planes_of, stack
from monai_unet.data.dicom.quiet import quiet
from monai_unet.data.dicom.reader import read_dataset
from monai_unet.errors import InputError
from monai_unet.files import replacing

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["planes_of_mask", "source_headers", "write_seg"]

Mask = npt.NDArray[np.uint8]

#: Patient and study attributes that highdicom wants to find; the standard lets them be empty (type 2).
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "Modality",
)


def write_seg(
    path: str | os.PathLike[str],
    mask: Mask,
    sources: Sequence[str],
    segments: Sequence[Mapping[str, Any]],
    algorithm: Mapping[str, Any],
) -> None:
    """Write a mask as a binary DICOM SEG, whole or not at all. Patient and study are those of the source images.

    Frames without a voxel of their segment are left out; a mask without any keeps them all.

    Args:
        path: the file.
        mask: (columns, rows, slices), 0 background, each other value a segment's number: the grid that
            `DicomSeriesReader` gives.
        sources: ``source_files`` of the reader's metadata, one for each slice, or one multi-frame file.
        segments: per segment ``label``, ``category``, ``type`` and, where there is one, ``modifier`` as
            [code, scheme, meaning] (PS3.3 C.8.20.2), and ``color`` as [red, green, blue] of 0 to 255; the first is
            number 1.
        algorithm: ``name``, ``version`` and ``family`` as [code, scheme, meaning] (PS3.16 CID 7162).

    Raises:
        ValueError: the mask has another size than its source, or values without a segment.
        InputError: the sources cannot be read, or are several multi-frame files.
    """
    import highdicom as hd

    with quiet():
        headers, order = source_headers(sources)
        planes = planes_of_mask(mask, headers, order)
        if (highest := int(mask.max(initial=0))) > len(segments):
            raise ValueError(f"the mask has value {highest}, but there are {len(segments)} segments")
        segmentation = hd.seg.Segmentation(
            source_images=headers,
            pixel_array=planes,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_descriptions(segments, algorithm),
            series_description=str(algorithm["name"])[:64],
            content_description="Segmentation, not reviewed",
            series_instance_uid=hd.UID(),
            series_number=900,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="monai_unet",
            manufacturer_model_name=str(algorithm["name"])[:64],
            software_versions=monai_unet.__version__,
            device_serial_number="none",
        )
        with replacing(path) as partial:
            segmentation.save_as(partial)


def source_headers(sources: Sequence[str]) -> tuple[list[Dataset], list[int]]:
    """Headers of the source images, evened out, and the order of their frames along the mask's slices.

    What the reader found is written into each: the spacing between the slices, which headers often misstate, one
    orientation, what they lack and the standard lets be empty.

    Raises:
        InputError: a source cannot be read, or several are multi-frame files.
    """
    import highdicom as hd
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    headers = [read_dataset(source, stop_before_pixels=True) for source in sources]
    planes = [plane for source, header in zip(sources, headers, strict=True) for plane in planes_of(source, header)]
    if len(planes) > len(headers) > 1:
        raise InputError(sources[0], f"{len(headers)} multi-frame files in one series", "Give one of the files")
    order, spacing = stack(sources[0], planes)
    measures = hd.PixelMeasuresSequence(planes[0].spacing.tolist(), planes[0].thickness or spacing, spacing)
    orientation = hd.PlaneOrientationSequence("PATIENT", planes[0].orientation.tolist())
    for header in headers:
        for keyword in TYPE_2:
            _complete(header, keyword)
        if not header.get("FrameOfReferenceUID"):  # one that every result on this series shares
            header.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(header.SeriesInstanceUID)])
        header.update(measures[0])
        header.update(orientation[0])
        if "PerFrameFunctionalGroupsSequence" in header:
            shared = Dataset()
            shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = measures, orientation
            header.SharedFunctionalGroupsSequence = [shared]
    return headers, order


def planes_of_mask(mask: Mask, headers: Sequence[Dataset], order: Sequence[int]) -> Mask:
    """(columns, rows, slices) → (frames, rows, columns) in the order of the sources' frames.

    Raises:
        ValueError: the mask has another size.
    """
    expected = (int(headers[0].Columns), int(headers[0].Rows), len(order))
    if mask.shape != expected:
        raise ValueError(f"the mask has shape {mask.shape}, its source {expected}: bring it back to the source's grid")
    planes = np.empty(expected[::-1], np.uint8)
    planes[list(order)] = mask.transpose(2, 1, 0)
    return planes


def _complete(header: Dataset, keyword: str) -> None:
    """Empty where it is missing, or is a value that highdicom does not accept."""
    from pydicom.valuerep import DA, TM

    try:
        value = header.get(keyword)
        {"StudyDate": DA, "PatientBirthDate": DA, "StudyTime": TM}.get(keyword, str)(value)
        allowed = keyword != "PatientSex" or value in ("M", "F", "O")
    except (TypeError, ValueError):
        allowed = False
    if not allowed or value is None:
        setattr(header, keyword, "")


def _descriptions(segments: Sequence[Mapping[str, Any]], algorithm: Mapping[str, Any]) -> list[Any]:
    import highdicom as hd

    identification = hd.AlgorithmIdentificationSequence(
        name=algorithm["name"], family=hd.sr.CodedConcept(*algorithm["family"]), version=str(algorithm["version"])
    )
    descriptions = []
    for number, segment in enumerate(segments, start=1):
        kind = hd.sr.CodedConcept(*segment["type"])
        if "modifier" in segment:
            kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept(*segment["modifier"])]
        descriptions.append(
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=segment["label"],
                segmented_property_category=hd.sr.CodedConcept(*segment["category"]),
                segmented_property_type=kind,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=identification,
                tracking_uid=hd.UID(),
                tracking_id=segment["label"],
                display_color=hd.color.CIELabColor.from_rgb(*segment["color"]),
            )
        )
    return descriptions
