"""What there is to predict below a path: each series or volume a study of its own, under a pseudonym.

DICOM needs the extra ``dicom``, NRRD and MetaImage the extra ``volumes``.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from monai_unet.data.dicom.quiet import quiet
from monai_unet.data.dicom.reader import DICOM_SUFFIXES, NO_IMAGES, read_dataset
from monai_unet.data.studies.pseudonyms import Pseudonyms
from monai_unet.data.studies.study import Study, members
from monai_unet.data.volumes.itk import META, NRRD
from monai_unet.data.volumes.nifti import NIFTI
from monai_unet.errors import InputError
from monai_unet.options import parse_bool

__all__ = ["VOLUMES", "find_studies"]

VOLUMES = (*NIFTI, *NRRD, *META)


def find_studies(
    path: str | os.PathLike[str],
    series_uid: str | None = None,
    keep_names: bool | str = False,
    without: str | os.PathLike[str] | None = None,
) -> list[Study]:
    """The studies below a path, in the order of their places; their pseudonyms go to the user's table.

    A NIfTI, NRRD or MetaImage file is a study; a zip is one; the DICOM files of a folder are one, together with those
    of other folders that hold more of the same series. Where they belong to several series, `Study.error` lists them.
    A folder directly below the path that holds no study at all is one with an error. Hidden files are left out.

    Args:
        path: a file, or a folder to any depth.
        series_uid: of DICOM, only this series: its UID or its pseudonym.
        keep_names: whether the studies' names and errors may tell paths; "true" and "false" are understood.
        without: a folder below the path that is left out, such as that of the results.

    Raises:
        InputError: there is nothing at the path, or not this series; ``without`` is the path itself.
        ValueError: ``keep_names`` is neither true nor false.
    """
    named = parse_bool("keep_names", keep_names)
    root = Path(path).absolute()  # explanations replace what is a path, and a short one might be a word
    if not root.exists():
        raise InputError("input", "no such file or folder", "Check the path")
    pseudonyms = Pseudonyms()
    skip = Path(without).resolve() if without is not None else None
    if skip == root.resolve():
        raise InputError("output_dir", "the input's own folder: results would be taken for studies", "Name another")
    places = _joined(_below(root, skip)) if root.is_dir() else [_scan(root, [str(root)])]
    if series_uid is not None:
        wanted = {str(series_uid)}
        wanted |= {uid for place in places for uid in place.series if pseudonyms(uid) == series_uid}
        places = [_only(place, wanted) for place in places if wanted & set(place.series)]
        if not places:
            raise InputError("input", "no such series", "List them with: python -m monai_unet.data check PATH")
    studies: list[Study] = []
    counts: Counter[str] = Counter()
    for place in places:
        name = pseudonyms(_identity(place))
        counts[name] += 1
        if counts[name] > 1:  # a copy of a series, or a series in which one of them is broken: both are told
            name = f"{name}-{counts[name]}"
        if named:
            *folders, last = place.path.relative_to(root).parts or (root.name,)
            stem = last.removesuffix(next((s for s in (".nii.gz", *VOLUMES) if last.lower().endswith(s)), ""))
            name = "_".join((*folders, stem, name))
        refusal = _refusal(place, pseudonyms) if len(place.series) > 1 else None
        files = tuple(sorted(place.files))
        studies.append(Study(name, str(place.path), files, place.series, refusal, named))
    pseudonyms.remember((s.name, s.place, " ".join(s.series)) for s in studies)
    return studies


@dataclass
class _Place:
    """A folder with the files directly in it, a volume or a zip."""

    path: Path
    files: list[str]
    series: dict[str, list[str]] = field(default_factory=dict)
    instances: set[str] = field(default_factory=set)
    companions: list[str] = field(default_factory=list)


def _below(root: Path, skip: Path | None) -> list[_Place]:
    places: list[_Place] = []
    told: set[Path] = set()  # folders with something in them that is known
    seen: set[Path] = set()

    def unreadable(error: OSError) -> None:
        places.append(_Place(Path(error.filename), [error.filename]))  # the reader will say it
        told.add(Path(error.filename))

    for name, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        folder = Path(name)
        if folder.resolve() in seen:  # links may lead back
            subfolders.clear()
            continue
        seen.add(folder.resolve())
        subfolders[:] = sorted(s for s in subfolders if _seen(s) and (folder / s).resolve() != skip)
        files = [str(folder / n) for n in sorted(names) if _seen(n)]
        alone = [f for f in files if f.lower().endswith((*VOLUMES, ".zip"))]
        rest = _scan(folder, [f for f in files if f not in alone])
        found = [_scan(Path(f), [f]) for f in alone]
        if rest.series or any(f.lower().endswith(DICOM_SUFFIXES) for f in rest.files if f not in rest.companions):
            found.append(rest)
        places += found
        if found or rest.companions:
            told |= {folder, *folder.parents}
    children = [c for c in root.iterdir() if c.is_dir() and _seen(c.name) and c.resolve() != skip]
    places += [_Place(c, [str(c)]) for c in children if c not in told]
    return sorted(places, key=lambda place: place.path) or [_Place(root, [str(root)])]


def _seen(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _scan(path: Path, files: list[str]) -> _Place:
    place = _Place(path, files)
    for file in files:
        if file.lower().endswith(VOLUMES):
            continue
        for source in members(file):
            try:
                if Path(source).is_file():
                    with Path(source).open("rb") as opened:
                        if opened.read(132)[128:] != b"DICM":  # spares reading large files of other kinds
                            continue
                with quiet():
                    header = read_dataset(source, stop_before_pixels=True)
                    sop_class = header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID
                    series, instance = str(header.get("SeriesInstanceUID") or ""), str(header.get("SOPInstanceUID"))
            except Exception:  # whatever damage makes zipfile and pydicom raise: the reader will say it
                continue
            if f"{sop_class}.".startswith(NO_IMAGES):
                place.companions.append(source)
            elif series:
                place.series.setdefault(series, []).append(source)
                place.instances.add(instance)
    return place


def _joined(places: list[_Place]) -> list[_Place]:
    """Folders that hold different images of one series are one place; those that hold the same are copies."""
    joined: list[_Place] = []
    for place in places:
        for other in joined:
            if place.series.keys() & other.series.keys() and not place.instances & other.instances:
                other.path = Path(os.path.commonpath([other.path, place.path]))
                other.files += place.files
                other.instances |= place.instances
                for uid, files in place.series.items():
                    other.series.setdefault(uid, []).extend(files)
                break
        else:
            joined.append(place)
    return joined


def _only(place: _Place, wanted: set[str]) -> _Place:
    others = {file for uid, files in place.series.items() if uid not in wanted for file in files}
    if not others <= set(place.files):
        return place  # inside a zip: it stays refused
    files = [file for file in place.files if file not in others]
    series = {uid: files for uid, files in place.series.items() if uid in wanted}
    return _Place(place.path, files, series, place.instances, place.companions)


def _identity(place: _Place) -> str:
    if place.series:
        return " ".join(sorted(place.series))
    if place.path.is_file():
        content = hashlib.sha256(place.path.read_bytes()).hexdigest()
        detached = place.path.suffix.lower() in (".mhd", ".nhdr")  # the header of another volume may be the same
        return f"{content} {place.path.absolute()}" if detached else content
    return str(place.path.absolute())


def _refusal(place: _Place, pseudonyms: Pseudonyms) -> InputError:
    listed = "; ".join(f"{pseudonyms(uid)} ({len(files)} files)" for uid, files in place.series.items())
    cure = f"Choose one with --series_uid {pseudonyms(next(iter(place.series)))}"
    if place.path.is_file():
        cure = "Unpack it, then choose one with --series_uid"
    return InputError(place.path, f"{len(place.series)} series: {listed}", cure)
