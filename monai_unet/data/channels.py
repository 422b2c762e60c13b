"""Channels in files of their own, by nnU-Net's names: x_0000.tif and x_0001.tif are the two channels of x.tif."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from monai_unet.errors import InputError

__all__ = ["channel_files", "group_channels", "missing_channel"]

CHANNEL = re.compile(r"(?P<stem>.+)_(?P<number>\d{4})(?P<suffix>(\.nii)?\.[^.]+)")


def channel_files(path: Path, channels: int) -> list[Path]:
    """Name the files of an image's channels.

    >>> [file.name for file in channel_files(Path("brain.nii.gz"), 2)]
    ['brain_0000.nii.gz', 'brain_0001.nii.gz']
    """
    suffix = _suffix(path)
    return [path.with_name(f"{path.name.removesuffix(suffix)}_{number:04d}{suffix}") for number in range(channels)]


def group_channels(files: Iterable[Path], channels: int) -> dict[Path, list[Path]]:
    """Find the images whose channels are files of their own.

    Args:
        files: their names; files with numbers that no channel has, such as those of a series, are images.
        channels: of an image.

    Returns:
        For each image, by the name that it has without channels, its files in the order of the channels; for any other
        file the file itself.

    >>> found = group_channels(map(Path, ["a_0001.tif", "a_0000.tif", "b.tif", "t_0001.tif", "t_0002.tif"]), channels=2)
    >>> [image.name for image in found], [file.name for file in found[Path("a.tif")]]
    (['a.tif', 'b.tif', 't_0001.tif', 't_0002.tif'], ['a_0000.tif', 'a_0001.tif'])
    """
    known = {file: _image_of(file) for file in files}
    parts: dict[Path, dict[int, Path]] = {}
    for file, (image, number) in known.items():
        parts.setdefault(image, {})[number] = file
    groups: dict[Path, list[Path]] = {}
    for file, (image, _) in known.items():
        split = image not in known and max(parts[image]) < channels
        groups |= {image: [part for _, part in sorted(parts[image].items())]} if split else {file: [file]}
    return groups


def missing_channel(image: Path, files: Iterable[Path], channels: int) -> InputError | None:
    """Say which channel of an image has no file, without the name, which may be a patient's.

    >>> print(missing_channel(Path("a.tif"), [Path("a_0000.tif")], channels=2))
    a.tif: channel 2 of 2 is missing: there is no file that ends in _0001.tif. Put it beside the others.
    """
    found = set(files)
    for number, file in enumerate(channel_files(image, channels)):
        if file not in found:
            ending = f"_{number:04d}{_suffix(image)}"
            problem = f"channel {number + 1} of {channels} is missing: there is no file that ends in {ending}"
            return InputError(image, problem, "Put it beside the others")
    return None


def _suffix(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def _image_of(file: Path) -> tuple[Path, int]:
    """The name of the image of which a file may be a channel, and the channel's number; else itself, and -1."""
    found = CHANNEL.fullmatch(file.name)
    return (file.with_name(found["stem"] + found["suffix"]), int(found["number"])) if found else (file, -1)
