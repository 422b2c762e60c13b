"""Where studies are: the volumes, zips and DICOM folders below a path, and the series in each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, MutableSequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_unet.data.dicom.files import (
    DICOM_SUFFIXES,
    Source,
    is_image,
    is_screen,
    list_sources,
    modality_of,
    read_header,
)
from monai_unet.data.dicom.silence import reading
from monai_unet.data.studies.study import Facts, volume_suffix
from monai_unet.errors import InputError

__all__ = ["Location", "find_locations"]


#: Files that people take for studies, and what to do with each: they are listed, not ignored.
UNREAD = {
    **dict.fromkeys((".hdr", ".img"), "Convert it to .nii.gz, for example with fslchfiletype NIFTI_GZ"),
    **dict.fromkeys((".mgz", ".mgh"), "Convert it to .nii.gz, for example with mri_convert"),
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".7z", ".rar"), "Unpack it"),
}


#: What tells series apart.
FACTS = ("SeriesNumber", "EchoTime", "DiffusionBValue", "ImageType", "SeriesDescription", "Modality")


@dataclass
class Location:
    """A folder with the files directly in it, a volume or a zip.

    Attributes:
        path: of the folder or file.
        files: those of the folder, or the path itself.
        series: of each SeriesInstanceUID, the files or members of the zip.
        instances: of each SeriesInstanceUID, the SOPInstanceUIDs, but for pictures without a position.
        companions: DICOM objects without images.
        facts: of each SeriesInstanceUID, the values that its headers have of each attribute in `FACTS`.
        members: the files, or those in the zip.

    >>> Location(Path("study.zip"), ["study.zip"], {"1.2": ["study.zip/a.dcm"]}).identity()
    '1.2'
    """

    path: Path
    files: list[str]
    series: dict[str, list[str]] = field(default_factory=dict)
    instances: dict[str, set[str]] = field(default_factory=dict)
    companions: list[str] = field(default_factory=list)
    facts: dict[str, Facts] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)

    def identity(self) -> str:
        """What a pseudonym stands for: the series, else the content of the file or channels, else the path."""
        if self.series:
            return " ".join(sorted(self.series))
        if self.path.is_dir() or not all(Path(file).is_file() for file in self.files):
            return str(self.path)
        digest = hashlib.sha256()
        for name in self.files:
            with Path(name).open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        detached = self.path.suffix.lower() in (".mhd", ".nhdr")  # another volume may have the same header
        return f"{digest.hexdigest()} {self.path}" if detached else digest.hexdigest()

    def only(self, wanted: set[str]) -> Location:
        """The location without the files of other series."""
        others = {file for uid, files in self.series.items() if uid not in wanted for file in files}
        files = [file for file in self.members if file not in others] if others else self.files
        series = {uid: files for uid, files in self.series.items() if uid in wanted}
        instances = {uid: self.instances[uid] for uid in series}
        return Location(self.path, files, series, instances, facts=self.facts)


def find_locations(root: Path, without: Path | None = None) -> list[Location]:
    """Find what may be studies at or below an absolute path, in the order of their paths; at least one.

    A folder directly below the path with nothing known in it is a location too. Hidden files are ignored.

    Args:
        root: a file, or a folder to any depth.
        without: a resolved folder to leave out.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.nii.gz", "notes.txt", "b.dcm"):
    ...         (Path(folder) / name).touch()
    ...     [[Path(file).name for file in location.files] for location in find_locations(Path(folder))]
    [['b.dcm', 'notes.txt'], ['a.nii.gz']]
    """
    if not root.is_dir():
        return [_scan(root, [str(root)])]
    locations: list[Location] = []
    known: set[Path] = set()  # folders that hold a location, or companions of one
    visited: set[Path] = set()

    def unreadable(error: OSError) -> None:
        locations.append(Location(Path(error.filename), [error.filename]))  # reading it will give the error
        known.add(Path(error.filename))

    for name, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        folder = Path(name)
        if folder.resolve() in visited:  # links may lead back
            subfolders.clear()
            continue
        visited.add(folder.resolve())
        subfolders[:] = sorted(s for s in subfolders if _is_visible(s) and (folder / s).resolve() != without)
        files = [str(folder / n) for n in sorted(names) if _is_visible(n)]
        files = [f for f in files if not (f.lower().endswith(".img") and f"{f[:-4]}.hdr" in files)]
        alone = [f for f in files if volume_suffix(f) or f.lower().endswith((".zip", *UNREAD))]
        found = [_scan(Path(f), [f]) for f in alone]
        rest = _scan(folder, [f for f in files if f not in alone])
        if rest.series or any(f.lower().endswith(DICOM_SUFFIXES) for f in rest.files if f not in rest.companions):
            found.append(rest)
        locations += found
        if found or rest.companions:
            known |= {folder, *folder.parents}
    children = [c for c in root.iterdir() if c.is_dir() and _is_visible(c.name) and c.resolve() != without]
    locations += [Location(c, [str(c)]) for c in children if c not in known]
    return _join(sorted(locations, key=lambda location: location.path)) or [Location(root, [str(root)])]


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _scan(path: Path, files: list[str]) -> Location:
    location = Location(path, files)
    for file in files:
        try:
            sources: list[Source] = [] if volume_suffix(file) else list_sources(file)
        except InputError:
            sources = []  # reading it will give the error
        location.members += [str(source) for source in sources] or [file]
        for source in sources:
            try:
                with reading(source):
                    if (header := read_header(source)) is None:
                        continue
                    if not is_image(header):
                        location.companions.append(str(source))
                    elif uid := str(header.get("SeriesInstanceUID") or ""):
                        instances = location.instances.setdefault(uid, set())
                        if not is_screen(header):
                            instances.add(str(header.get("SOPInstanceUID")))
                        location.series.setdefault(uid, []).append(str(source))
                        for keyword in FACTS:
                            value = modality_of(header) if keyword == "Modality" else header.get(keyword)
                            words = value if isinstance(value, MutableSequence) else [] if value is None else [value]
                            found = location.facts.setdefault(uid, {}).setdefault(keyword, set())
                            found.add("/".join(map(str, words)))
            except (InputError, ImportError):
                continue
    return location


def _join(locations: list[Location]) -> list[Location]:
    """Folders that hold different images of one series are one location; those that hold the same are copies.

    A folder with a part of a series of which another holds these images, too, is no copy: it could be taken for the
    whole. The two are one location, and reading it gives the error about duplicate slices.
    """
    joined = _merge(locations, lambda uid, one, other: not one & other, all)
    whole: dict[str, set[str]] = {}
    for location in joined:
        for uid, instances in location.instances.items():
            whole[uid] = whole.get(uid, set()) | instances
    return _merge(joined, lambda uid, one, other: not (one == other == whole[uid]), any)


def _merge(
    locations: list[Location],
    belong: Callable[[str, set[str], set[str]], bool],
    of_series: Callable[[Iterable[bool]], bool],
) -> list[Location]:
    """Merge two locations if the instances of all, or of any, of the series in both belong together."""
    merged: list[Location] = []
    for location in locations:
        for other in merged:
            common = location.series.keys() & other.series.keys()
            if common and of_series(belong(uid, location.instances[uid], other.instances[uid]) for uid in common):
                other.path = Path(os.path.commonpath([other.path, location.path]))
                other.files += location.files
                other.members += location.members
                other.facts = {**location.facts, **other.facts}
                for uid, files in location.series.items():
                    other.series.setdefault(uid, []).extend(files)
                    other.instances[uid] = other.instances.get(uid, set()) | location.instances[uid]
                break
        else:
            merged.append(location)
    return merged
