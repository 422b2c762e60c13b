"""What there is to predict below a path: each series or volume a study of its own, under a pseudonym.

DICOM needs the extra ``dicom``, NRRD and MetaImage the extra ``volumes``.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from monai_unet.data.channels import channel_files, group_channels, missing_channel
from monai_unet.data.dicom.files import is_chosen
from monai_unet.data.dicom.silence import silence_dicom_libraries
from monai_unet.data.studies.locations import UNREAD, Location, find_locations
from monai_unet.data.studies.pseudonyms import Pseudonyms
from monai_unet.data.studies.study import Study, volume_suffix
from monai_unet.errors import InputError
from monai_unet.options import parse_bool

__all__ = ["find_studies"]


def find_studies(
    path: str | os.PathLike[str],
    series: str | None = None,
    keep_names: bool | str = False,
    without: str | os.PathLike[str] | None = None,
    channels: int = 1,
) -> list[Study]:
    """Find the studies below a path, in the order of their paths, and add their pseudonyms to the user's table.

    A NIfTI, NRRD or MetaImage file is a study; a zip is one; the DICOM files of a folder are one, together with those
    of other folders that hold more of the same series, unless these are copies of the whole. If they belong to several
    series, `Study.error` lists them. A folder directly below the path that holds no study at all is one with an error.
    Hidden files are ignored.

    Args:
        path: a file, or a folder to any depth.
        series: the DICOM series to find, the only ones: their SeriesDescription ("t1*"), their SeriesNumber, or the UID
            or pseudonym of one.
        keep_names: whether names and errors of studies may contain paths; "true" and "false" are understood.
        without: a folder below the path to leave out, such as that of the results.
        channels: the channels the network takes. Of two, x_0000.nii.gz and x_0001.nii.gz are the study x; a study of
            which one is missing has an error.

    Raises:
        InputError: there is nothing at the path, or not this series; ``without`` is the path itself.
        ValueError: ``keep_names`` is neither true nor false.

    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> with TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CONFIG_HOME=f"{folder}/.config"):
    ...     (Path(folder) / "brain.nii.gz").touch()
    ...     (study,) = find_studies(folder)
    >>> len(study.name), Path(study.files[0]).name
    (16, 'brain.nii.gz')
    """
    named = parse_bool("keep_names", keep_names)
    root = Path(path).absolute()  # explanations replace paths in texts, and a short relative one might be a word
    if not root.exists():
        raise InputError("input", "no such file or folder", "Check the path")
    pseudonyms = Pseudonyms()
    skip = Path(without).resolve() if without is not None else None
    if skip == root.resolve():
        raise InputError("output_dir", "the input's own folder: results would be taken for studies", "Name another")
    with silence_dicom_libraries:  # once: setting levels of loggers for every file takes time
        locations = find_locations(root, skip)
    if series is not None:
        facts = {uid: facts for location in locations for uid, facts in location.facts.items()}
        wanted = {
            uid for uid, values in facts.items() if str(series) == pseudonyms(uid) or is_chosen(series, uid, values)
        }
        locations = [location.only(wanted) for location in locations if wanted & set(location.series)]
        if not locations:
            raise InputError("input", "no such series", "List them with: python -m monai_unet.data check PATH")
    if channels > 1:
        locations = _join_channels(locations, channels)
    studies: list[Study] = []
    counts: Counter[str] = Counter()
    for location in locations:
        name = pseudonyms(location.identity())
        counts[name] += 1
        if counts[name] > 1:  # a copy of a series, or several series of which one is the same: both are listed
            name = f"{name}-{counts[name]}"
        if named:
            *folders, last = location.path.relative_to(root).parts or (root.name,)
            name = "_".join((*folders, last[: len(last) - len(volume_suffix(last))], name))
        error = _refusal(location, pseudonyms, channels)
        files = tuple(sorted(location.files))
        place, facts, instances = str(location.path), location.facts, location.instances
        studies.append(Study(name, place, files, location.series, error, named, facts, instances))
    pseudonyms.remember((s.name, s.place, " ".join(s.series)) for s in studies)
    return studies


def _join_channels(locations: list[Location], channels: int) -> list[Location]:
    volumes = {location.path: location for location in locations if volume_suffix(location.path.name)}
    images = [path for path in group_channels(volumes, channels) if path not in volumes]
    # one of the channels may be given alone
    joined = [Location(path, [str(f) for f in channel_files(path, channels) if f.exists()]) for path in images]
    parts = {file for location in joined for file in location.files}
    rest = [location for location in locations if str(location.path) not in parts]
    return sorted([*rest, *joined], key=lambda location: location.path)


def _refusal(location: Location, pseudonyms: Pseudonyms, channels: int) -> InputError | None:
    if volume_suffix(location.path.name) and str(location.path) not in location.files:  # named after its channels
        return missing_channel(location.path, map(Path, location.files), channels)
    unread = next((suffix for suffix in UNREAD if location.path.name.lower().endswith(suffix)), None)
    if unread and location.path.is_file() and not location.series:
        return InputError(location.path, f"{unread} files are not read here", UNREAD[unread])
    if len(location.series) < 2:
        return None
    listed = "; ".join(f"{pseudonyms(uid)} ({len(files)} files)" for uid, files in location.series.items())
    cure = f"Choose one with --series {pseudonyms(next(iter(location.series)))}, or by its description or number"
    return InputError(location.path, f"{len(location.series)} series: {listed}", cure)
