"""Masks out as DICOM Segmentation (PS3.3 A.51): coded segments that refer to every source image.

Needs the extra ``dicom``: ``pip install "monai_unet[dicom]"``.
"""

from __future__ import annotations

import colorsys
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import monai_unet
from monai_unet.data.dicom.series import Mask, Series
from monai_unet.data.dicom.silence import silence_dicom_libraries
from monai_unet.files import replacing

__all__ = ["segments_of", "words_of", "write_seg"]

#: categories of segments (PS3.16 CID 7150)
ANATOMY = ["123037004", "SCT", "Anatomical Structure"]
ABNORMAL = ["49755003", "SCT", "Morphologically Abnormal Structure"]
TISSUE = ["85756007", "SCT", "Tissue"]
#: modifiers of the type (PS3.16 CID 244)
SIDES = {"Left": "7771000", "Right": "24028007"}


def segments_of(task: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Describe the classes of a checkpoint as segments: a bundle's own where they are its classes, else by their names.

    Args:
        task: of the checkpoint, as `monai_unet.networks.load_task` gives it; without ``class_names`` the bundle's own.
        metadata: of the bundle, ``metadata.json``: its ``segments``, and its classes in ``network_data_format``.
            Empty to describe the classes by their names in any case.

    Returns:
        Segments from number 1 on, as `write_seg` takes them.

    >>> (segment,) = segments_of({"class_names": ["background", "liver"]}, {"segments": [{"label": "Hippocampus"}]})
    >>> segment["label"], segment["type"]
    ('liver', ['10200004', 'SCT', 'Liver'])
    """
    names = [str(name) for name in task.get("class_names", [])[1:]]
    outputs = metadata.get("network_data_format", {}).get("outputs", {})
    classes = outputs.get("pred", {}).get("channel_def", {})
    own = [str(classes[key]) for key in sorted(classes, key=int) if int(key)]
    if not names or (names == own and "segments" in metadata):
        return list(metadata.get("segments", []))
    return [_segment(name, number) for number, name in enumerate(names)]


def words_of(name: str) -> list[str]:
    """The words of a class's name, however it joins them.

    >>> words_of("left_kidney"), words_of("Left-Kidney"), words_of("LungL (T1)")
    (['left', 'kidney'], ['Left', 'Kidney'], ['Lung', 'L', 'T', '1'])
    """
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)


def _segment(name: str, number: int) -> Mapping[str, Any]:
    """A segment with SNOMED's code where DICOM lists the name: as written, its first word last, or without a side."""
    from pydicom.sr.codedict import codes

    hue = 0.1 + number * 0.618  # far from those before it
    segment = {"label": name[:64], "color": [round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, 0.75, 0.9)]}
    words = [word.capitalize() for word in words_of(name)]
    side = next((word for word in words if word in SIDES), None)
    unsided = "".join(word for word in words if word != side)
    for keyword in ("".join(words), "".join(words[1:] + words[:1]), unsided):
        for listed, category in ((codes.cid7192, ANATOMY), (codes.cid7159, ABNORMAL)):
            if (code := getattr(listed, keyword, None)) is not None:
                modifier = {"modifier": [SIDES[side], "SCT", side]} if side and keyword == unsided else {}
                return {**segment, "category": category, "type": [code.value, "SCT", code.meaning], **modifier}
    return {**segment, "category": TISSUE, "type": [name[:16], "99MONAI_UNET", name[:64]]}


def write_seg(
    path: str | os.PathLike[str],
    mask: Mask,
    series: Series,
    segments: Sequence[Mapping[str, Any]],
    algorithm: Mapping[str, Any],
) -> None:
    """Write a mask as a binary DICOM SEG, whole or not at all; patient and study are those of the source images.

    A frame is left out if its segment has no voxel in it; an empty mask keeps all frames.

    Args:
        path: of the file.
        mask: (columns, rows, slices), the grid of `read_volume`; 0 is background, any other value a segment's number.
        series: the source of the mask.
        segments: of each segment, from number 1 on, ``label``, ``category``, ``type`` and optionally ``modifier`` as
            [code, scheme, meaning] (PS3.3 C.8.20.2), and ``color`` as [red, green, blue] from 0 to 255.
        algorithm: ``name``, ``version`` and ``family`` as [code, scheme, meaning] (PS3.16 CID 7162).

    Raises:
        ValueError: the mask has another shape than its source, or a value without a segment.

    >>> import tempfile
    >>> from pydicom import dcmread
    >>> from pydicom.data import get_testdata_file
    >>> from monai_unet.data.dicom.reader import read_volume
    >>> from monai_unet.data.dicom.series import read_series
    >>> series = read_series([get_testdata_file("CT_small.dcm")])
    >>> bone = (read_volume(series)[0] > 300).astype("uint8")  # Hounsfield units
    >>> structure, kind = ["123037004", "SCT", "Anatomical Structure"], ["272673000", "SCT", "Bone"]
    >>> segment = {"label": "Bone", "category": structure, "type": kind, "color": [255, 255, 0]}
    >>> algorithm = {"name": "threshold", "version": "1", "family": ["123110", "DCM", "Artificial Intelligence"]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_seg(f"{folder}/bone_seg.dcm", bone, series, [segment], algorithm)
    ...     dcmread(f"{folder}/bone_seg.dcm").SegmentSequence[0].SegmentLabel
    'Bone'
    """
    import highdicom as hd

    with silence_dicom_libraries:
        frames = series.frames(mask)
        if (highest := int(mask.max(initial=0))) > len(segments):
            raise ValueError(f"the mask has value {highest}, but there are {len(segments)} segments")
        segmentation = hd.seg.Segmentation(
            source_images=series.source_images,
            pixel_array=frames,
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
