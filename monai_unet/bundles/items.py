"""From a folder to the items of a data set: a MONAI datalist, two folders paired by name, nnU-Net's or Decathlon's."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.utils.misc import ensure_tuple

from monai_unet.data.microscopy.reader import SUFFIXES
from monai_unet.data.microscopy.scenes import scene_of
from monai_unet.data.volumes.itk import META, NRRD
from monai_unet.data.volumes.nifti import NIFTI
from monai_unet.datasets import cards
from monai_unet.datasets.prepared import LISTS, datalist, read_document
from monai_unet.errors import InputError

__all__ = ["Items", "find_items"]

logger = logging.getLogger(__name__)

#: longest first: ".nii.gz" ends in ".gz", and ".ome.tif" in ".tif"
ENDINGS = sorted((*(f".ome{suffix}" for suffix in SUFFIXES), *SUFFIXES, *NIFTI, *NRRD, *META), key=len, reverse=True)
#: what Fiji, QuPath and annotation services save instead of label images
OUTLINES = (".json", ".geojson", ".zip", ".roi")
#: folders of images, folders of their labels (the first that there is, or one for each class of objects), the list
PAIRS = (("images", ("labels", "masks", "labels_?*"), "training"),)
NNUNET = (("imagesTr", ("labelsTr",), "training"), ("imagesTs", ("labelsTs",), "test"))


@dataclass(frozen=True)
class Items:
    """What a folder holds: lists of items, and what its dataset.json says about them.

    >>> Items(Path("cells"), "folders", {"training": [{"image": "cells/images/a.png", "label": "cells/labels/a.png"}]})
    ... # doctest: +ELLIPSIS
    Items(folder=...Path('cells'), layout='folders', lists={'training': [...]}, name='', ...)
    """

    folder: Path
    #: "datalist", "folders", "nnunet" or "decathlon"
    layout: str
    #: those of "training", "validation" and "test" that have items: {"image": path or paths, "label": path, or one for
    #: each class of objects} and, where parts are not labelled, "ignore": path
    lists: dict[str, list[dict[str, Any]]]
    name: str = ""
    #: of all pixels, if dataset.json states it
    checksum: str | None = None
    #: of a card, if its preparation wrote dataset.json
    card: str | None = None
    #: empty if they are not stated
    channel_names: list[str] = field(default_factory=list)
    #: by value in the label files; empty if they are not stated
    class_names: dict[int, str] = field(default_factory=dict)
    #: what is wrong with files that are no item therefore
    problems: list[InputError] = field(default_factory=list)


def find_items(dataset_dir: str | os.PathLike[str]) -> Items:
    """Find the images and labels in a folder, whichever way they are laid out.

    In this order: the nnU-Net layout (``imagesTr/x_0000.tif``, ``labelsTr/x.tif``; a test list if ``imagesTs`` and
    ``labelsTs`` exist), the lists of a dataset.json (MONAI's and the Decathlon's), and the folders ``images`` and
    ``labels`` (or ``masks``, or for each class of objects ``labels_NAME``), with ``ignore`` where there is one. An
    image has the name of its label, or several files, one per channel, that add ``_0000``, ``_0001`` ... to it. Without
    lists, a dataset.json may still name channels and classes. Items of a test list without labels are left out, and so
    are lists without items.

    Raises:
        InputError: the folder has none of these layouts, or no item to train on. Whatever is wrong with single files
            is in ``problems`` of what is returned.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("imagesTr/a_0000.tif", "imagesTr/a_0001.tif", "labelsTr/a.tif"):
    ...         Path(folder, name).parent.mkdir(exist_ok=True)
    ...         Path(folder, name).touch()
    ...     found = find_items(folder)
    >>> found.layout, [Path(file).name for file in found.lists["training"][0]["image"]]
    ('nnunet', ['a_0000.tif', 'a_0001.tif'])
    """
    folder = Path(dataset_dir).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(folder, "there is no such folder", "Check --dataset_dir")
    file, document = read_document(folder) if (folder / "dataset.json").is_file() else (folder, {})
    problems: list[InputError] = []
    listed = [name for name in LISTS if document.get(name)]
    if any(re.search(r"_\d{4}$", stem) for stem in _files(folder / "imagesTr", [])) and (folder / "labelsTr").is_dir():
        layout, lists = "nnunet", _paired(folder, NNUNET, problems)
    elif listed:
        layout = "decathlon" if "modality" in document or (folder / "imagesTr").is_dir() else "datalist"
        lists = {name: datalist(folder, name) for name in listed}
        lists = {name: list(_checked(file, name, items, problems)) for name, items in lists.items()}
        for name in (name for name in LISTS if document.get(name) == []):
            logger.warning("%s: the list %r has no items: taken as not there", file, name)
    elif (folder / "labelsTr").is_dir():
        layout, lists = "decathlon", _paired(folder, NNUNET, problems)
    else:
        layout, lists = "folders", _paired(folder, PAIRS, problems)
        if (names := _folders(folder, PAIRS[0][1])) and "_" in names[0]:
            document["labels"] = ["background", *(name.removeprefix("labels_") for name in names)]
    problems += _repeated(lists)
    lists = {name: items for name, items in lists.items() if items}
    if "training" not in lists and not problems:
        problem = "no images with labels to train on"
        cure = "Put images into images/ and labels of the same names into labels/, or write a dataset.json"
        raise InputError(folder, problem, f"{cure} with a list 'training' of {{'image': PATH, 'label': PATH}}")
    name, checksum = document.get("name") or folder.name, document.get("checksum")
    return Items(
        folder,
        layout,
        lists,
        name=name,
        checksum=checksum,
        card=name if checksum and name in cards() else None,
        channel_names=_channels(document),
        class_names=_classes(file, document, problems),
        problems=problems,
    )


def _stem(file: Path) -> str | None:
    """The name without its ending; None if it is no image."""
    ending = next((ending for ending in ENDINGS if file.name.lower().endswith(ending)), "")
    return file.name[: -len(ending)] if ending and file.name[0] != "." else None


def _files(folder: Path, problems: list[InputError]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (stem := _stem(file)) in found:
            problems.append(InputError(file, f"differs from {found[stem].name} only in the ending", "Keep one of them"))
        elif stem is not None:
            found[stem] = file
    return found


def _paired(
    folder: Path, pairs: tuple[tuple[str, tuple[str, ...], str], ...], problems: list[InputError]
) -> dict[str, list[dict[str, Any]]]:
    """Pair images with labels by their names, and say which have no partner."""
    lists: dict[str, list[dict[str, Any]]] = {}
    for image_folder, label_folders, name in pairs:
        there = _folders(folder, label_folders)
        if not (there and (folder / image_folder).is_dir()):
            continue
        images = _files(folder / image_folder, problems)
        found = {label_folder: _files(folder / label_folder, problems) for label_folder in there}
        masks = _files(folder / "ignore", problems)
        channels: dict[str, dict[int, str]] = {}
        for stem in images:
            if part := re.fullmatch(r"(.+)_(\d{4})", stem):
                channels.setdefault(part[1], {})[int(part[2])] = stem
        found = {label_folder: _renamed(labels, {*images, *channels}) for label_folder, labels in found.items()}
        items = lists.setdefault(name, [])
        for stem in dict.fromkeys(stem for labels in found.values() for stem in labels):
            label = [str(labels[stem]) for labels in found.values() if stem in labels]
            parts = {0: stem} if stem in images else channels.get(stem, {})
            files = [str(images.pop(parts[number])) for number in sorted(parts)]
            if not files:
                problem = f"labels without an image: {image_folder}/ has neither {stem} nor {stem}_0000"
                problems.append(InputError(label[0], problem, "Add the image, or take the labels away"))
            elif sorted(parts) != list(range(len(parts))):
                problem = f"its channels are {', '.join(f'_{number:04d}' for number in sorted(parts))}"
                problems.append(InputError(files[0], problem, "Number the channels from _0000 on, without gaps"))
            elif len(label) < len(there):
                absent = next(label_folder for label_folder, labels in found.items() if stem not in labels)
                problem = f"labels of one class of objects without those of another: {absent}/ has no {stem}"
                problems.append(
                    InputError(label[0], problem, "Add the file, all of it 0 where there is no such object")
                )
            else:
                item: dict[str, Any] = {
                    key: paths if len(paths) > 1 else paths[0] for key, paths in (("image", files), ("label", label))
                }
                items.append(item | ({"ignore": str(masks.pop(stem))} if stem in masks else {}))
        outlines = [file for part in there for file in (folder / part).iterdir() if file.suffix.lower() in OUTLINES]
        if outlines and images and name != "test":
            problem = f"outlines, not an image of numbers ({len(outlines)} such files)"
            problems.append(
                InputError(min(outlines), problem, "Draw them as label images: docs/new_bundle.md says how")
            )
        for stem, file in images.items() if name != "test" else ():
            case = re.sub(r"_\d{4}$", "", stem) if image_folder != "images" else stem
            problem = f"an image without labels: {there[0]}/ has no {case}"
            problems.append(InputError(file, problem, "Add its labels, or take the image away"))
        if image_folder == "images":
            for mask in masks.values():
                cure = "Give it the name of its image"
                problems.append(InputError(mask, f"a mask without labels: {there[0]}/ has no {_stem(mask)}", cure))
    return lists


def _renamed(labels: dict[str, Path], names: set[str]) -> dict[str, Path]:
    """Labels by the names of their images, where all have the same word behind it, as a_mask and b_mask."""
    words = {match[0] if (match := re.search(r"[_-][A-Za-z]+$", stem)) else "" for stem in labels}
    word = words.pop() if len(words) == 1 else ""
    stripped = {stem.removesuffix(word): file for stem, file in labels.items()}
    return stripped if word and not names & labels.keys() and stripped.keys() <= names else labels


def _folders(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """The folders of the first pattern that there are."""
    found = ([path.name for path in folder.glob(pattern) if path.is_dir()] for pattern in patterns)
    return sorted(next(filter(None, found), []))


def _checked(
    file: Path, name: str, items: list[dict[str, Any]], problems: list[InputError]
) -> Iterator[dict[str, Any]]:
    """The items of a list that have an image and labels, all of them files that exist."""
    for number, item in enumerate(items):
        missing = [key for key in ("image", "label") if not item.get(key)]
        if missing == ["label"] and name == "test":
            continue
        if missing:
            problem = f"item {number} of {name!r} has no {missing[0]!r}, only {', '.join(item) or 'nothing'}"
            problems.append(InputError(file, problem, "Add its path"))
            continue
        paths = [Path(path) for key in ("image", "label", "ignore") for path in ensure_tuple(item.get(key, ()))]
        absent = [path for path in paths if not scene_of(path)[0].exists()]
        problems += [InputError(path, "there is no such file", f"Correct item {number} of {name!r}") for path in absent]
        if not absent:
            yield item


def _repeated(lists: Mapping[str, list[dict[str, Any]]]) -> Iterator[InputError]:
    """Images that occur twice: then the scores would be those of the training."""
    seen: dict[tuple[str, ...], str] = {}
    for name, items in lists.items():
        for item in items:
            files = ensure_tuple(item["image"])
            key = (*(os.path.realpath(file) for file in files), str(item.get("page")))
            if key in seen:
                where = f"listed twice in {name!r}" if seen[key] == name else f"listed in {seen[key]!r} and in {name!r}"
                yield InputError(files[0], where, "Keep one of the two items")
            seen[key] = name


def _channels(document: Mapping[str, Any]) -> list[str]:
    stated = document.get("channel_names") or document.get("modality") or []
    if isinstance(stated, Mapping):
        stated = [stated[key] for key in sorted(stated, key=lambda key: (len(key), key))]
    return [str(name) for name in ensure_tuple(stated)]


def _classes(file: Path, document: Mapping[str, Any], problems: list[InputError]) -> dict[int, str]:
    """The names by value, of {"0": "background"} (Decathlon), {"background": 0} (nnU-Net) or a list."""
    names: dict[int, str] = {}
    labels = document.get("labels") or {}
    for key, value in labels.items() if isinstance(labels, Mapping) else enumerate(labels):
        number, name = (key, value) if str(key).isdecimal() else (value, key)
        if not str(number).isdecimal():
            problem = f"the class {name!r} of 'labels' has the value {number!r}"
            problems.append(InputError(file, problem, "Give each class one whole number; regions are not supported"))
        elif name == "ignore" and int(number) != 255:
            problem = f"the label 'ignore' of 'labels' has the value {number}"
            problems.append(InputError(file, problem, "Save what is not labelled as 255"))
        elif name != "ignore":
            names[int(number)] = str(name)
    return dict(sorted(names.items()))
