"""A study: one series or volume under a pseudonym, its reader, and what may be said of its errors."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import ensure_tuple

from monai_unet.data.dicom.reader import DicomSeriesReader
from monai_unet.data.volumes.reader import CheckedVolumeReader
from monai_unet.errors import InputError

__all__ = ["Study", "StudyReader", "members"]


@dataclass(frozen=True)
class Study:
    """One series or volume, or what stands in the place of one and cannot be read.

    Attributes:
        name: the pseudonym; with ``keep_names`` the path below the input before it. Results are called so.
        place: the folder or file.
        files: what `StudyReader` takes: the files of the series in the order of their names, or one volume or zip.
        series: per SeriesInstanceUID its files.
        error: why it cannot be read, where that is known before reading.
        keep_names: whether `explain` may name files.
    """

    name: str
    place: str
    files: tuple[str, ...]
    series: dict[str, list[str]] = field(default_factory=dict)
    error: InputError | None = None
    keep_names: bool = False

    def explain(self, error: BaseException) -> tuple[str, str]:
        """Problem and cure of an error, without names, paths and UIDs; files as "file 3 of 35", in order of names."""
        cause = error
        while not isinstance(cause, InputError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ImportError):
            return str(cause), "Install it"
        if not isinstance(cause, InputError):
            problem = f"{type(cause).__name__}: {cause}" if self.keep_names else f"unexpected {type(cause).__name__}"
            return problem, "Run this study alone with --keep_names true to see all of it, and report it"
        if self.keep_names:
            return (cause.problem if cause.path == self.place else f"{cause.path}: {cause.problem}"), cause.cure
        among = cause.path != self.place and cause.path in self._sources()
        where = self._numbered(cause.path) + ": " if among else ""
        return where + self._anonymous(cause.problem), self._anonymous(cause.cure)

    def _sources(self) -> list[str]:
        return members(self.files[0]) if len(self.files) == 1 else list(self.files)

    def _numbered(self, source: str) -> str:
        sources = self._sources()
        return f"file {sources.index(source) + 1} of {len(sources)}"

    def _anonymous(self, text: str) -> str:
        for source in sorted({*self._sources(), *self.files}, key=len, reverse=True):
            number = self._numbered(source) if source in self._sources() else "the file"
            text = text.replace(source, number)
        text = text.replace(self.place, "the study")
        # what libraries say, and what a damaged header says, may quote anything
        text = re.sub(r"\((\w+): .*\)", r"(\1)", text, flags=re.DOTALL)
        text = re.sub(r"(in one file ).*(, which does not exist)", r"\1of its own\2", text)
        text = re.sub(r"(\d series): \d+\..*", r"\1", text, flags=re.DOTALL)
        text = re.sub(r"(differ in \w+UID): .*; one of", r"\1; one of", text)
        return re.sub(r"\b\d+(\.\d+){3,}", "(UID)", text)


class StudyReader(ImageReader):
    """`DicomSeriesReader` for a folder, a zip or DICOM files; `CheckedVolumeReader` for NIfTI, NRRD and MetaImage.

    MONAI's ``LoadImaged`` with a list of readers would take the last of them for every file.

    Args:
        check_count: as in `DicomSeriesReader`.

    Raises:
        InputError: from ``get_data``.
    """

    def __init__(self, check_count: bool = True) -> None:
        self.volumes, self.dicom = CheckedVolumeReader(), DicomSeriesReader(check_count=check_count)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether one of the two knows the name."""
        return self.volumes.verify_suffix(filename) or self.dicom.verify_suffix(filename)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Note the paths; ``get_data`` opens them."""
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """The volume (i, j, k) with its metadata; the affine maps to RAS millimetres."""
        volume = self.volumes.verify_suffix(img) and not Path(img[0]).is_dir()
        return self.volumes.get_data(img) if volume else self.dicom.get_data(img)


def members(file: str) -> list[str]:
    """The file itself, or of a readable zip "archive.zip/member" for each of its files, in order."""
    try:
        with zipfile.ZipFile(file) as archive:
            return sorted(f"{file}/{name}" for name in archive.namelist() if not name.endswith("/"))
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        return [file]
