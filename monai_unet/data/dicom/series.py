"""A DICOM series: its files in order, checked to be one volume before a pixel is decoded.

A `Series` goes from the reader of its pixels to the writers of results, so that each file is opened twice in all: for
its header and for its pixels. Needs the extra ``dicom``: ``pip install "monai_unet[dicom]"``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from monai_unet.data.dicom.files import Source, check_strays, choose, read_headers, without_screens
from monai_unet.data.dicom.geometry import Floats, Plane, check_declared, planes_of, stack
from monai_unet.data.dicom.silence import EXPORT_AGAIN, reading
from monai_unet.data.dicom.tilt import bend, straight_shape, straighten
from monai_unet.errors import InputError
from monai_unet.options import require

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Series", "read_series"]

Mask: TypeAlias = npt.NDArray[np.uint8]

#: Changes of the character set (ISO 2022); pydicom leaves those of GB 2312 in the text.
ESCAPE = re.compile(r"\x1b[ -/]+[0-~]")
#: Attributes without which a result cannot refer to its source.
REFERENCES = ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID")
#: What a de-identified header keeps: UIDs, modality and geometry.
KEPT = (
    *REFERENCES,
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImageType",
    "ImagePositionPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DimensionIndexSequence",
    "DimensionOrganizationSequence",
)
#: Patient and study attributes that highdicom requires; the standard lets them be empty (type 2).
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


@dataclass(frozen=True)
class Series:
    """The images of one complete volume, straight and evenly spaced, or resampled to be so.

    Attributes:
        sources: one file per slice, or one multi-frame file.
        headers: of each source, without pixels.
        planes: of each frame of each source.
        order: of each slice of the volume, the index of its plane; slices run along rows × columns.
        spacing: mm between neighbouring slices.
        orientation: the cosines of rows and columns, which are those of each plane but for rounding.
        offsets: if the volume is resampled, those of the slices, as `stack` gives them.

    >>> from pydicom.data import get_testdata_file
    >>> series = read_series([get_testdata_file("CT_small.dcm")])
    >>> series.shape, series.spacing, series.headers[0].Modality
    ((128, 128, 1), 5.0, 'CT')
    """

    sources: list[Source]
    headers: list[Dataset]
    planes: list[Plane]
    order: list[int]
    spacing: float
    orientation: Floats
    offsets: Floats | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        rows, columns = self.planes[0].size
        if self.offsets is None:
            return columns, rows, len(self.order)
        return straight_shape(self.offsets, (columns, rows), self._pixel, self.spacing)

    @property
    def _pixel(self) -> tuple[float, float]:
        """Millimetres between columns, between rows."""
        rows, columns = self.planes[0].spacing.tolist()
        return columns, rows

    @property
    def affine(self) -> Floats:
        """(4, 4), from (column, row, slice) to RAS millimetres (PS3.3 C.7.6.2.1.1, whose axes are LPS)."""
        first = self.planes[self.order[0]]
        row, column = self.orientation.reshape(2, 3)
        steps = (row * first.spacing[1], column * first.spacing[0], np.cross(row, column) * self.spacing)
        corner = first.position
        if self.offsets is not None:
            corner = corner + self.offsets[:, :2].min(0) @ [row, column]
        return np.diag([-1, -1, 1, 1]) @ np.vstack([np.transpose([*steps, corner]), [0, 0, 0, 1]])

    def volume(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Sort frames (planes, rows, columns) into slices (columns, rows, slices), and resample them if need be."""
        slices = frames[self.order]
        if self.offsets is None:
            return np.ascontiguousarray(slices.transpose(2, 1, 0))
        return np.ascontiguousarray(straighten(slices, self.offsets, self._pixel, self.spacing))

    def frames(self, mask: Mask) -> Mask:
        """Sort the slices of a mask (columns, rows, slices) into frames (planes, rows, columns).

        Raises:
            ValueError: the mask has another shape.
        """
        if mask.shape != self.shape:
            cure = "bring it back to the source's grid"
            raise ValueError(f"the mask has shape {mask.shape}, its source {self.shape}: {cure}")
        slices = mask.transpose(2, 1, 0)
        if self.offsets is not None:
            rows, columns = self.planes[0].size
            slices = bend(mask, self.offsets, (columns, rows), self._pixel, self.spacing)
        return slices[np.argsort(self.order)]

    def deidentified(self) -> Series:
        """The series with headers of which nothing is left but what says where the images are, and UIDs."""
        from pydicom import Dataset

        headers = []
        for header in self.headers:
            bare = Dataset({header[keyword].tag: header[keyword] for keyword in KEPT if keyword in header})
            bare.PatientIdentityRemoved, bare.DeidentificationMethod = "YES", "monai_unet: patient and study left empty"
            bare.file_meta = header.file_meta
            headers.append(bare)
        return replace(self, headers=headers)

    @cached_property
    def source_images(self) -> list[Dataset]:
        """The headers as results refer to them, with the geometry that was found.

        Each gets the true spacing between slices, which headers often misstate, one orientation, and empty values
        where attributes are missing or wrong and the standard lets them be empty. Text is in UTF-8, whatever character
        set the source declares: highdicom refuses many that pydicom reads.

        Raises:
            InputError: an attribute is missing without which a result cannot refer to its source.
        """
        import highdicom as hd
        from pydicom import Dataset
        from pydicom.uid import generate_uid

        first = self.planes[0]
        measures = hd.PixelMeasuresSequence(first.spacing.tolist(), first.thickness or self.spacing, self.spacing)
        orientation = hd.PlaneOrientationSequence("PATIENT", self.orientation.tolist())
        _to_utf8(self.headers[0])  # to which patient and study are copied
        for source, header in zip(self.sources, self.headers, strict=True):
            for keyword in REFERENCES:
                if not header.get(keyword):
                    raise InputError(str(source), f"no {keyword}: a result could not refer to it", EXPORT_AGAIN)
            for keyword in TYPE_2:
                _complete(header, keyword)
            if not header.get("FrameOfReferenceUID"):  # the same for all results on this series
                header.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(header.SeriesInstanceUID)])
            header.update(measures[0])
            header.update(orientation[0])
            if "PerFrameFunctionalGroupsSequence" in header:
                shared = Dataset()
                shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = measures, orientation
                header.SharedFunctionalGroupsSequence = [shared]
        return self.headers


def _to_utf8(header: Dataset) -> None:
    """Decode all text, and leave out what cannot be read."""
    for tag in list(header.keys()):
        try:
            element = header[tag]  # decodes it, but for names
            if element.VR == "PN" and element.VM == 1:
                element.value = ESCAPE.sub("", str(element.value))
            elif element.VR == "SQ" and not element.keyword.endswith("FunctionalGroupsSequence"):
                for item in element.value:
                    _to_utf8(item)
        except Exception:
            del header[tag]
    header.SpecificCharacterSet = "ISO_IR 192"


def _complete(header: Dataset, keyword: str) -> None:
    """Empty an attribute that is missing, or has a value that highdicom does not accept."""
    from pydicom.valuerep import DA, TM

    try:
        value = header.get(keyword)
        {"StudyDate": DA, "PatientBirthDate": DA, "StudyTime": TM}.get(keyword, str)(value)
        allowed = keyword != "PatientSex" or value in ("M", "F", "O")
    except (TypeError, ValueError):
        allowed = False
    if not allowed or value is None:
        setattr(header, keyword, "")


def read_series(
    paths: Sequence[str | os.PathLike[str]],
    series: str | None = None,
    check_count: bool = True,
    resample_tilt: bool = False,
) -> Series:
    """Collect the images of one series and check that they are one volume; see `stack` for the rules.

    Files that are not images are skipped and counted in the log.

    Args:
        paths: a folder (nested or not), a zip, a multi-frame file, or the files of the series or their paths in a zip.
        series: which to read if there are several: its SeriesDescription ("t1*"), SeriesNumber or UID.
        check_count: whether fewer slices than a header declares are an error.
        resample_tilt: whether slices of a tilted gantry or with an uneven spacing are resampled to a straight grid.

    Raises:
        InputError: no such volume; a file among the slices is damaged or not DICOM.
        ImportError: pydicom or highdicom is not installed.

    >>> from pydicom.data import get_testdata_file
    >>> read_series([get_testdata_file("MR_small.dcm")]).affine.round(1).tolist()[1:3]
    [[0.0, -0.3, 0.0, 91.2], [0.0, 0.0, 0.8, 6.6]]
    """
    require("highdicom", "dicom")
    path = str(paths[0] if len(paths) == 1 else Path(paths[0]).parent)
    with reading(path):
        images, strays = read_headers(path, [str(p) for p in paths])
        headers = without_screens(choose(path, images, series))
        planes: list[Plane] = []
        for source, header in headers.items():
            with reading(source):
                planes += planes_of(str(source), header)
        if len(planes) > len(headers) > 1:
            raise InputError(path, f"{len(headers)} multi-frame files in one series", "Give one of the files")
        check_strays(planes, strays)
        geometry = stack(path, planes, resample_tilt)
        if check_count:
            check_declared(path, len(planes), list(headers.values()))
    return Series(list(headers), list(headers.values()), planes, *geometry)
