"""One function per layout of an archive: `(card, folder of the archive, store)` → the lists of dataset.json.

Each returns `{folder: {list name: [item, ...]}}`; "." is the folder of the data set, others are its folds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from monai_unet.datasets.dicom_series import dicom_series
from monai_unet.datasets.phantoms import cell_phantom, em_phantom, organ_phantom
from monai_unet.datasets.store import Store, load, sha256
from monai_unet.errors import InputError

__all__ = ["LAYOUTS"]

Datalists = dict[str, dict[str, list[Any]]]
Layout = Callable[[dict[str, Any], Path, Store], Datalists]


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(path, "this file is missing from the archive", "Delete the archive's folder and run again")
    try:
        return load(path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise exceptions of many kinds
        raise InputError(path, f"damaged file ({error})", "Delete the archive's folder and run again") from error


def _verify(path: Path, expected: str | None, *arrays: np.ndarray) -> None:
    """Compare with the checksum of the card, which may be its first digits, or None where it is unknown."""
    found = sha256(*arrays)
    if expected is not None and not found.startswith(expected):
        problem = f"wrong checksum of the pixels: expected {expected}, got {found}"
        raise InputError(path, problem, "Delete it, and the archive it came from, and run again")


def _drawn(split: dict[str, Any], case: str) -> str:
    """The list of a case, drawn by a hash of (seed, case), so that it does not depend on the other cases."""
    draw = int(hashlib.sha256(f"{split['seed']}:{case}".encode()).hexdigest()[:13], 16) / 16**13
    ends = np.cumsum(list(split["shares"].values()))
    return list(split["shares"])[int(np.searchsorted(ends[:-1], draw, side="right"))]


def _slices(card: dict[str, Any], volumes: dict[str, np.ndarray], store: Store) -> Datalists:
    """Write pages as PNG files: Pillow, used by MONAI and MONAI Label, reads only the first page of a stack."""
    for volume in volumes.values():
        store.add_to_checksum(volume)
    names = {
        key: [store.image(f"slices/{key}-{index:02d}.png", page) for index, page in enumerate(volume)]
        for key, volume in volumes.items()
    }
    lists: dict[str, list[dict[str, str]]] = {}
    for title, rule in card["split"].items():
        first, last = rule["slices"]
        keys = {key: rule[key] for key in ("image", "label") if rule.get(key) in names}
        lists[title] = [{key: names[stem][i] for key, stem in keys.items()} for i in range(first, last + 1)]
    return {".": lists}


def stack(card: dict[str, Any], archive: Path, store: Store) -> Datalists:
    """Multi-page TIFF volumes with their labels, 0 and 255, as in the ISBI 2012 challenge."""
    volumes = {}
    for stem, rule in card["volumes"].items():
        path = archive / f"{stem}.tif"
        if rule.get("optional") and not path.is_file():
            print(f"{path.name} is not in the archive: there are no labels for its list")
            continue
        volume = _read(path)
        _verify(path, rule.get("sha256"), volume)
        if list(volume.shape) != card["shape"] or volume.dtype != np.uint8:
            problem = f"{volume.dtype} of shape {volume.shape}, expected uint8 of {tuple(card['shape'])}"
            raise InputError(path, problem, "Delete it and run again")
        wrong = np.setdiff1d(volume, rule.get("values", volume))
        if len(wrong):
            raise InputError(path, f"labels that are not {rule['values']}: {wrong[:5]}", "Delete it and run again")
        volumes[stem] = volume
    return _slices(card, volumes, store)


def em_stack(card: dict[str, Any], archive: Path, store: Store) -> Datalists:
    """Synthetic sections with the layout of `stack`."""
    images, labels = em_phantom(card["slices"], card["size"], card["seed"])
    return _slices(card, {"train-volume": images, "train-labels": labels}, store)


def _unlabelled(gold: np.ndarray, references: list[np.ndarray], margin: int) -> np.ndarray:
    """Mask of the cells of a frame that have no label in its gold truth, (H, W).

    An object of a reference (silver truth, tracking markers) is unlabelled if gold cells cover less than half of it.
    The mask is the union of these objects, grown by `margin` pixels because their outlines are not exact, minus the
    gold cells.
    """
    mask = np.zeros(gold.shape, bool)
    for reference in references:
        size, covered = np.bincount(reference.ravel()), np.bincount(reference[gold > 0], minlength=reference.max() + 1)
        unlabelled = 2 * covered < size
        unlabelled[0] = False
        mask |= unlabelled[reference]
    if margin and mask.any():
        mask = ndimage.binary_dilation(mask, iterations=margin)
    return mask & (gold == 0)


def cell_tracking(card: dict[str, Any], archive: Path, store: Store) -> Datalists:
    """Sequences of the Cell Tracking Challenge: the frames with gold segmentation, and masks of unlabelled cells."""
    sequences: dict[str, list[dict[str, str]]] = {}
    partial = []
    for sequence in card["sequences"]:
        items = sequences.setdefault(sequence, [])
        for path in sorted((archive / f"{sequence}_GT" / "SEG").glob("man_seg*.tif")):
            frame = path.stem.removeprefix("man_seg")
            image_path = archive / sequence / f"t{frame}.tif"
            image, gold = _read(image_path), _read(path)
            if image.shape != gold.shape or image.ndim != 2:
                problem = f"labels of shape {gold.shape}, the image {image_path} has {image.shape}"
                raise InputError(path, problem, "Delete the archive's folder and run again")
            _verify(path, card["frames"].get(f"{sequence}/{frame}"), image, gold)
            store.add_to_checksum(image, gold)
            known = [archive / f"{sequence}_{rule.format(frame)}" for rule in card["unlabelled"]["references"]]
            references = [_read(file) for file in known if file.is_file()]
            if not references:
                print(f"{sequence}/t{frame}: no silver truth and no tracking markers, assumed to be fully labelled")
            mask = _unlabelled(gold, references, card["unlabelled"]["margin"])
            if mask.any():
                partial.append(f"{sequence}/t{frame}")
            name = f"ignore/{card['name']}-{sequence}-{frame}.png"
            ignore = store.image(name, np.where(mask, 255, 0).astype(np.uint8))
            items.append({"image": str(image_path), "label": str(path), "ignore": ignore})
        if not items:
            print(f"sequence {sequence} is not in {archive}: lists that need it are omitted")
    if not any(sequences.values()):
        problem = f"no frame with gold truth in {', '.join(f'{name}_GT/SEG' for name in sequences)}"
        raise InputError(archive, problem, "Delete it and run again")
    within, start = sequences[card["split"]["sequence"]], card["split"]["test_from"]
    late = [int(Path(item["image"]).stem[1:]) >= start for item in within]
    lists: Datalists = {".": {"partial_frames": partial}}
    if within:
        lists["."]["training"] = [item for item, test in zip(within, late, strict=True) if not test]
        lists["."]["test"] = [item for item, test in zip(within, late, strict=True) if test]
    if all(sequences.values()):
        for one, two in (card["sequences"], card["sequences"][::-1]):
            lists[f"fold_{one}"] = {"partial_frames": partial, "training": sequences[one], "test": sequences[two]}
    return lists


def cells(card: dict[str, Any], archive: Path, store: Store) -> Datalists:
    """Synthetic frames with the layout of `cell_tracking`; every cell is labelled."""
    frames = [cell_phantom(card["size"], card["cells"], card["seed"], number) for number in range(card["frames"])]
    items = []
    for number, (image, label) in enumerate(frames):
        store.add_to_checksum(image, label)
        item = {"image": store.image(f"images/t{number:03d}.png", image)}
        item["label"] = store.image(f"labels/t{number:03d}.tif", label)
        item["ignore"] = store.image(f"ignore/t{number:03d}.png", np.zeros(image.shape, np.uint8))
        items.append(item)
    return {".": {title: items[first : last + 1] for title, (first, last) in card["split"].items()}}


def decathlon(card: dict[str, Any], archive: Path, store: Store) -> Datalists:
    """Those pairs of a Medical Segmentation Decathlon task that are in the archive."""
    import nibabel as nib

    lists: dict[str, list[Any]] = {title: [] for title in card["split"]["shares"]}
    try:
        pairs = json.loads((archive / "dataset.json").read_text(encoding="utf-8"))["training"]
    except (FileNotFoundError, KeyError, ValueError) as error:
        problem = f"no list of training pairs in its dataset.json ({error})"
        raise InputError(archive, problem, "Delete the folder and run again") from error
    absent = unknown = 0
    for pair in pairs:
        image_path, path = (archive / pair[key] for key in ("image", "label"))
        if not (image_path.is_file() and path.is_file()):
            absent += 1
            continue
        case = path.name.removesuffix(".gz").removesuffix(".nii")
        image, label = _read(image_path), _read(path)
        _verify(path, card["pairs"].get(case), image, label)
        unknown += case not in card["pairs"]
        here, there = nib.load(image_path), nib.load(path)
        if image.shape != label.shape or not np.allclose(here.affine, there.affine):  # type: ignore[attr-defined]
            problem = f"shape {label.shape} or affine differs from the image {image_path}, of shape {image.shape}"
            raise InputError(path, problem, "Delete the archive's folder and run again")
        wrong = np.setdiff1d(label, list(card["labels"]))
        if len(wrong):
            raise InputError(path, f"labels beyond {list(card['labels'])}: {wrong[:5]}", "Delete it and run again")
        store.add_to_checksum(image, label)
        lists[_drawn(card["split"], case)].append({"image": str(image_path), "label": str(path)})
    if not any(lists.values()):
        raise InputError(archive, f"it has none of the {len(pairs)} listed pairs", "Delete the folder and run again")
    if absent:
        print(f"{absent} of {len(pairs)} listed pairs are not in the archive")
    if unknown:
        print(f"{unknown} pairs have no checksum in the card: only geometry and labels were checked")
    return {".": lists}


def nuclei(card: dict[str, Any], archive: Path, store: Store) -> Datalists:
    """Images of the 2018 Data Science Bowl, whose nuclei are one PNG each, merged into one TIFF of ids.

    ``type`` of an item tells how its image was made: gray or coloured, bright or dark background, height × width. A
    pixel of two nuclei belongs to the one whose file name comes first.
    """
    lists: dict[str, list[Any]] = {title: [] for title in card["split"]["shares"]}
    shared = unknown = 0
    for folder in sorted(path.parent for path in archive.glob("stage1_train/*/images")):
        name = folder.name
        image_path = folder / "images" / f"{name}.png"
        image, files = _read(image_path), sorted((folder / "masks").glob("*.png"))
        if image.ndim != 3 or image.shape[2] != 4 or not (image[..., 3] == 255).all():
            problem = f"pixels of shape {image.shape}, expected opaque RGBA"
            raise InputError(image_path, problem, "Delete the archive's folder and run again")
        label: np.ndarray = np.zeros(image.shape[:2], np.uint16)
        for number, file in enumerate(files, start=1):
            mask = _read(file)
            if mask.shape != label.shape or not np.isin(mask, (0, 255)).all():
                problem = f"not a mask of 0 and 255 in the image's shape {label.shape}"
                raise InputError(file, problem, "Delete the archive's folder and run again")
            shared += int(np.count_nonzero(mask[label > 0]))
            label[(mask > 0) & (label == 0)] = number
        _verify(image_path, card["images"].get(name[:12]), image, label)
        unknown += name[:12] not in card["images"]
        store.add_to_checksum(image, label)
        colour = "gray" if np.ptp(image[..., :3], axis=2).max() == 0 else "coloured"
        ground = "bright" if np.median(image[..., :3].mean(axis=2)) > 127 else "dark"
        lists[_drawn(card["split"], name)].append(
            {
                "image": str(image_path),
                "label": store.image(f"labels/{name}.tif", label),
                "type": f"{colour}, {ground}, {label.shape[0]} × {label.shape[1]}",
            }
        )
    if not any(lists.values()):
        raise InputError(archive, "there is no image in its stage1_train", "Delete the folder and run again")
    print(f"{shared} pixels belong to two nuclei; each was given to the first")
    if unknown:
        print(f"{unknown} images have no checksum in the card: only shapes and values were checked")
    return {".": lists}


def organs(card: dict[str, Any], archive: Path, store: Store) -> Datalists:
    """Synthetic pairs as NIfTI; each image also as a folder of DICOM slices, under the key ``dicom``."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", card["rotation"], degrees=True).as_matrix() * card["spacing"]
    affine[:3, 3] = card["centre"] - affine[:3, :3] @ (np.array(card["size"]) - 1) / 2
    lists: Datalists = {".": {}}
    for title, (first, last) in card["split"].items():
        lists["."][title] = []
        for number in range(first, last + 1):
            name = f"organ-{number:02d}"
            image, label = organ_phantom(card["size"], card["spacing"], card["seed"], number)
            store.add_to_checksum(image, label)
            slices = [
                store.write(f"dicom/{name}/{k:03d}.dcm", data)
                for k, data in enumerate(dicom_series(image, affine, name))
            ]
            item = {"image": store.volume(f"images/{name}.nii.gz", image, affine)}
            item["label"] = store.volume(f"labels/{name}.nii.gz", label, affine)
            lists["."][title].append({**item, "dicom": str(Path(slices[0]).parent)})
    return lists


LAYOUTS: dict[str, Layout] = {
    "stack": stack,
    "em_phantom": em_stack,
    "cell_tracking": cell_tracking,
    "cell_phantom": cells,
    "decathlon": decathlon,
    "data_science_bowl": nuclei,
    "organ_phantom": organs,
}
