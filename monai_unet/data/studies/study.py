"""A study: one series or volume under a pseudonym, its reader, and its errors without names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt
from monai.config import PathLike

from monai_unet.data.dicom.files import list_all
from monai_unet.data.dicom.reader import DicomSeriesReader, read_volume
from monai_unet.data.dicom.series import Series, read_series
from monai_unet.data.volumes.itk import META, NRRD
from monai_unet.data.volumes.nifti import NIFTI
from monai_unet.data.volumes.reader import CheckedVolumeReader
from monai_unet.errors import InputError

__all__ = ["Study", "StudyReader", "volume_suffix"]


def volume_suffix(path: str) -> str:
    """Get the suffix of a NIfTI, NRRD or MetaImage file in lower case; an empty string for any other name.

    >>> volume_suffix("brain.NII.GZ"), volume_suffix("slice.dcm")
    ('.nii.gz', '')
    """
    return next((suffix for suffix in (*NIFTI, *NRRD, *META) if path.lower().endswith(suffix)), "")


#: Attribute → its values in the headers of a series.
Facts: TypeAlias = dict[str, set[str]]


@dataclass(frozen=True)
class Study:
    """One series or volume, or a folder or file in which one was expected.

    Attributes:
        name: of the results: the pseudonym; with ``keep_names``, after the path below the input.
        place: the folder or file.
        files: the argument of `StudyReader`: the files of the series in the order of their names, a volume or zip, or
            members of a zip.
        series: the files of each SeriesInstanceUID.
        error: why it cannot be read, if that is known before reading.
        keep_names: whether `explain` may name files.
        facts: of each SeriesInstanceUID, what tells it apart.
        instances: of each SeriesInstanceUID, the SOPInstanceUIDs.

    >>> study = Study("5f3a", "/data/Doe", ("/data/Doe/1.dcm", "/data/Doe/2.dcm"))
    >>> study.explain(InputError("/data/Doe/2.dcm", "empty file", "Fetch it again"))
    ('file 2 of 2: empty file', 'Fetch it again')
    """

    name: str
    place: str
    files: tuple[str, ...]
    series: dict[str, list[str]] = field(default_factory=dict)
    error: InputError | None = None
    keep_names: bool = False
    facts: dict[str, Facts] = field(default_factory=dict)
    instances: dict[str, set[str]] = field(default_factory=dict)

    def explain(self, error: BaseException) -> tuple[str, str]:
        """Problem and cure of an error, without names, paths and UIDs; files are "file 3 of 35", in order of names."""
        cause = error
        while not isinstance(cause, InputError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ImportError):
            return str(cause), "Install it"
        if isinstance(cause, MemoryError):
            return "out of memory", "Close other programs, or use a machine with more memory"
        if not isinstance(cause, InputError):
            problem = f"{type(cause).__name__}: {cause}" if self.keep_names else f"unexpected {type(cause).__name__}"
            return problem, "Run this study alone with --keep_names true to see the whole message, and report it"
        if self.keep_names:
            return (cause.problem if cause.path == self.place else f"{cause.path}: {cause.problem}"), cause.cure
        numbers = self._numbers()
        where = f"{numbers[cause.path]}: " if cause.path in numbers and cause.path != self.place else ""
        return where + self._anonymous(cause.problem, numbers), self._anonymous(cause.cure, numbers)

    def _numbers(self) -> dict[str, str]:
        """A name for each file, or each member of the zip, by their order."""
        try:
            sources = [str(source) for source in list_all(self.files)]
        except InputError:
            sources = list(self.files)
        return {source: f"file {number} of {len(sources)}" for number, source in enumerate(sources, start=1)}

    def _anonymous(self, text: str, numbers: dict[str, str]) -> str:
        names = {**dict.fromkeys(self.files, "the file"), **numbers}
        for path in sorted(names, key=len, reverse=True):
            text = text.replace(path, names[path])
        text = text.replace(self.place, "the study")
        # texts of libraries and values of damaged headers may contain names
        text = re.sub(r"\((\w+): .*\)", r"(\1)", text, flags=re.DOTALL)
        text = re.sub(r"(in one file ).*(, which does not exist)", r"\1of its own\2", text)
        text = re.sub(r"(\d series): \d+\..*", r"\1", text, flags=re.DOTALL)
        text = re.sub(r"(differ in \w+UID): .*; one of", r"\1; one of", text)
        return re.sub(r"\b\d+(\.\d+){3,}", "(UID)", text)


class StudyReader(DicomSeriesReader):
    """Read a DICOM folder, zip or files as `DicomSeriesReader`, and NIfTI, NRRD and MetaImage as `CheckedVolumeReader`.

    A network of several channels takes volumes only: one series cannot hold them.

    MONAI's ``LoadImaged`` would try the readers of a list in turn, and hide why the right one fails.

    Args:
        series, check_count, resample_tilt: as for `DicomSeriesReader`.
        channels: as for `CheckedVolumeReader`.

    Attributes:
        last: the DICOM series that was read last, for `StudyWriter`: headers do not fit into MONAI's metadata, whose
            collation knows numbers and strings only. None after a volume.

    >>> from pydicom.data import get_testdata_file
    >>> reader = StudyReader()
    >>> volume, meta = reader.get_data((get_testdata_file("MR_small.dcm"),))
    >>> volume.shape, meta["modality"], reader.last.spacing
    ((64, 64, 1), 'MR', 0.8)
    """

    last: Series | None = None

    def __init__(
        self,
        series: str | None = None,
        check_count: bool = True,
        resample_tilt: bool | str = False,
        channels: int | None = 1,
    ) -> None:
        super().__init__(series, check_count, resample_tilt)
        self.channels = channels

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether one of the two knows the name."""
        return CheckedVolumeReader().verify_suffix(filename) or super().verify_suffix(filename)

    def get_data(self, img: Sequence[str]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """The volume (i, j, k), or (C, i, j, k), with its metadata; the affine maps to RAS millimetres."""
        self.last = None
        if CheckedVolumeReader().verify_suffix(img) and not Path(img[0]).is_dir():
            return CheckedVolumeReader(channels=self.channels).get_data(img)
        if self.channels not in (None, 1):
            problem = f"a DICOM series has one channel, the network takes {self.channels}"
            cure = (
                "Convert the series of a patient to NIfTI on one grid, and name the files x_0000.nii.gz, x_0001.nii.gz"
            )
            raise InputError(img[0], problem, f"{cure} and so on")
        self.last = read_series(img, self.series, self.check_count, self.resample_tilt)
        self.last.source_images  # noqa: B018 what a result could not refer to is an error before the prediction
        return read_volume(self.last)
