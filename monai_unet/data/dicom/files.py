"""The files of a DICOM series: found in files, folders or a zip, told from what lies beside them, and chosen.

Needs the extra ``dicom``: ``pip install "monai_unet[dicom]"``.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from monai_unet.data.dicom.geometry import Plane, planes_of
from monai_unet.data.dicom.silence import EXPORT_AGAIN, reading
from monai_unet.errors import InputError
from monai_unet.options import require

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["list_sources"]

logger = logging.getLogger(__name__)

#: A file, or a member of a zip; as a string "archive.zip/member".
Source: TypeAlias = Path | zipfile.Path

#: SOP classes that accompany images (PS3.6): media directory, presentation states, reports and key objects, waveforms,
#: documents, segmentations and registrations, radiotherapy objects, protocols.
NO_IMAGES = ("1.2.840.10008.1.3.10", *(f"1.2.840.10008.5.1.4.1.1.{n}." for n in (9, 11, 66, 88, 104, 200, 481)))
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
#: How a file begins that holds a DICOM dataset without the preamble: group 2 or 8, an element and, mostly, a VR.
BARE_DATASET = re.compile(rb"[\x02\x08]\0[\0-\x70]\0(UL|OB|UI|CS|[\x02-\x40]\0\0\0)")
DIGITS = re.compile(r"\d[\da-f]*|\b[\da-f]{8,}", re.IGNORECASE)
#: A zip that unpacks to more than both holds no images.
BOMB_BYTES, BOMB_RATIO = 1 << 30, 100
#: The defined terms of Modality (PS3.3 C.7.3.1.1.1), retired ones included.
MODALITIES = (
    "ANN AR AS ASMT AU BDUS BI BMD CD CF CFM CP CR CS CT CTPROTOCOL DD DF DG DM DMS DOC DS DX EC ECG EEG EMG EOG "
    "EPS ES FA FID FS GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV "
    "OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN "
    "RTSTRUCT RWV SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC"
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def list_sources(path: str | os.PathLike[str]) -> list[Source]:
    """List the visible files of a folder at any depth or of a zip in the order of their names, or a file itself.

    The members of a zip share one open archive, which is closed with the last of them.

    Raises:
        InputError: there is nothing at the path, or the zip is damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with zipfile.ZipFile(Path(folder) / "study.zip", "w") as archive:
    ...         archive.writestr("1.dcm", b"")
    ...     [source.name for source in list_sources(Path(folder) / "study.zip")]
    ['1.dcm']
    """
    root = Path(path)
    found: list[Source]
    with reading(path):
        if root.is_dir():
            found = [p for p in sorted(root.rglob("*")) if p.is_file()]
        elif not root.is_file():
            raise InputError(path, "no such file or folder", "Check the path")
        elif root.suffix.lower() == ".zip":
            archive = zipfile.ZipFile(root)
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > max(BOMB_BYTES, BOMB_RATIO * root.stat().st_size):
                problem = f"it would unpack to {unpacked / 2**30:.4g} GiB, more than {BOMB_RATIO} times its size"
                raise InputError(path, problem, "Unpack it, and check what is in it")
            found = [zipfile.Path(archive, name) for name in sorted(archive.namelist()) if not name.endswith("/")]
        else:
            found = [root]
    return [source for source in found if not source.name.startswith(".") and "__MACOSX" not in str(source)]


def list_all(paths: Iterable[str]) -> list[Source]:
    """List the sources of several paths, of which some may be in a zip, which is opened once.

    Raises:
        InputError: see `list_sources`.
    """
    sources: list[Source] = []
    members: dict[Path, dict[str, Source]] = {}
    for path in paths:
        archive = next((p for p in Path(path).parents if p.suffix.lower() == ".zip" and p.is_file()), None)
        if archive is None:
            sources += list_sources(path)
            continue
        if archive not in members:
            members[archive] = {str(source): source for source in list_sources(archive)}
        sources.append(members[archive][path])
    return sources


def read_header(source: Source) -> Dataset | None:
    """Read the header of a DICOM file; of other files, which may be large, the first 132 bytes only: None."""
    with source.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
        file.seek(0)
        return require("pydicom", "dicom").dcmread(file, stop_before_pixels=True)


def is_image(header: Dataset) -> bool:
    """Whether the object is an image, and not one of those that accompany images."""
    sop_class = header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID  # a DICOMDIR has no first
    return not f"{sop_class}.".startswith(NO_IMAGES)


def modality_of(header: Dataset) -> str:
    """Return the modality; an empty string for one that is missing or damaged, which might be a name.

    >>> [modality_of({"Modality": value}) for value in ("MR", "DOE^JANE", None)]
    ['MR', '', '']
    """
    return value if (value := str(header.get("Modality"))) in MODALITIES.split() else ""


def read_headers(path: str, paths: Sequence[str]) -> tuple[dict[Source, Dataset], dict[Source, Dataset]]:
    """Headers of the images below the paths, and of those that belong to no series.

    A file among the slices that is broken or not DICOM is an error.
    """
    images: dict[Source, Dataset] = {}
    strays: dict[Source, Dataset] = {}
    others: list[Source] = []
    companions: list[str] = []
    for source in list_all(paths):
        with reading(source):
            header = read_header(source)
            if header is None:
                others.append(source)
            elif not is_image(header):
                companions.append(modality_of(header) or "?")
            else:
                (images if header.get("SeriesInstanceUID") else strays)[source] = header
    for source in others:
        with reading(source):
            if [str(source)] != paths and not _like_a_slice(source, images):
                continue
            with source.open("rb") as file:
                is_bare = BARE_DATASET.match(file.read(8))
                size = file.seek(0, os.SEEK_END)
        if is_bare:
            problem = "not a DICOM file but a bare dataset: the preamble and the DICM mark are missing"
            raise InputError(str(source), problem, "Add them, for example with dcmconv, or take it out of the folder")
        problem = f"not a DICOM file ({size} bytes, without the DICM mark)" if size else "empty file"
        raise InputError(str(source), problem, "Fetch it again, or take it out of the folder if it is not a slice")
    without_images = f"{len(companions)} DICOM objects without images {sorted(set(companions))}"
    if others or companions:
        logger.warning("skipped %d files that are not DICOM and %s", len(others), without_images)
    if not images and strays:
        raise _without_series(next(iter(strays)))
    if not images:
        problem = f"no DICOM images ({len(others)} other files, {without_images})"
        raise InputError(path, problem, "Give the folder of one image series")
    return images, strays


def _without_series(source: Source) -> InputError:
    return InputError(str(source), "no SeriesInstanceUID: the header is damaged", f"Take it out, or: {EXPORT_AGAIN}")


def check_strays(planes: Sequence[Plane], strays: dict[Source, Dataset]) -> None:
    """Raise if an image of no series is where a slice may be missing, or has no position; leave out the others."""
    for source, header in strays.items():
        if is_screen(header):
            continue
        try:
            found = planes_of(str(source), header)
        except InputError as error:
            raise _without_series(source) from error
        for plane in found:
            if plane.size == planes[0].size and all(np.abs(plane.position - p.position).max() > 0.01 for p in planes):
                raise _without_series(source)
    if strays:
        logger.warning("skipped %d images without SeriesInstanceUID", len(strays))


def without_screens(headers: dict[Source, Dataset]) -> dict[Source, Dataset]:
    """Leave out pictures that accompany the slices of a series."""
    slices = {source: header for source, header in headers.items() if not is_screen(header)}
    if 0 < len(slices) < len(headers):
        logger.warning("skipped %d pictures without a position, such as dose reports", len(headers) - len(slices))
    return slices or headers


def is_screen(header: Dataset) -> bool:
    """Whether it is a picture without a position, such as a dose report."""
    is_picture = str(header.get("SOPClassUID")).startswith(SECONDARY_CAPTURE)
    is_picture |= "SECONDARY" in (header.get("ImageType") or [])
    placed = ("ImagePositionPatient", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    return is_picture and not any(header.get(keyword) for keyword in placed)


def _like_a_slice(source: Source, images: dict[Source, Dataset]) -> bool:
    """By its suffix; in a folder of slices by a name like theirs but for the digits, or without suffixes by bytes."""
    path = Path(str(source))
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    slices = [other.name for other in map(Path, map(str, images)) if other.parent == path.parent]
    if re.sub(DIGITS, "#", path.name) in {re.sub(DIGITS, "#", name) for name in slices}:
        return True
    if not slices or any(re.search(r"\.[A-Za-z]\w*$", name) for name in (path.name, *slices)):
        return False
    with source.open("rb") as file:
        start = file.read(132)
    return b"\0" in start


def is_chosen(pattern: object, uid: str, values: Mapping[str, Iterable[str]]) -> bool:
    """Whether a series is meant by its UID, number or description, in upper or lower case and with * and ?.

    >>> is_chosen("t1*", "1.2.3", {"SeriesNumber": ["4"], "SeriesDescription": ["T1 MPRAGE"]})
    True
    """
    wanted = str(pattern).lower()
    descriptions = values.get("SeriesDescription", ())
    return wanted in (uid, *values.get("SeriesNumber", ())) or any(fnmatchcase(d.lower(), wanted) for d in descriptions)


def choose(path: str, images: dict[Source, Dataset], series: str | None) -> dict[Source, Dataset]:
    groups: dict[str, dict[Source, Dataset]] = {}
    for source, header in images.items():
        groups.setdefault(str(header.SeriesInstanceUID), {})[source] = header
    chosen = groups
    if series is not None:
        chosen = {}
        for uid, group in groups.items():
            header = next(iter(group.values()))
            values = {key: [str(header.get(key) or "")] for key in ("SeriesNumber", "SeriesDescription")}
            if is_chosen(series, uid, values):
                chosen[uid] = group
    if len(chosen) == 1:
        return next(iter(chosen.values()))
    listed = "; ".join(
        f"{uid} ({next(iter(g.values())).get('SeriesDescription') or 'no description'}, {len(g)} files)"
        for uid, g in (chosen or groups).items()
    )
    problem = f"{len(chosen)} series" if chosen else f"no series {series}; found"
    raise InputError(path, f"{problem}: {listed}", f'Choose one with series="{next(iter(groups))}" or its folder')
