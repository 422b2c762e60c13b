"""Each field of a fingerprint in closed form, and each bad data set with its sentence."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_unet.bundles import fingerprint as module
from monai_unet.bundles.fingerprint import Fingerprint, take_fingerprint
from monai_unet.bundles.items import find_items
from monai_unet.bundles.objects import BOX, Objects, measure
from monai_unet.datasets.prepared import identity
from monai_unet.errors import InputError

SHAPE = (40, 30)


def squares(*corners: tuple[int, int], side: int = 5, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Ids from 1 on."""
    ids = np.zeros(shape, np.uint16)
    for number, corner in enumerate(corners, 1):
        ids[tuple(slice(start, start + side) for start in corner)] = number
    return ids


def save(path: Path, array: np.ndarray, spacing: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        affine = spacing if np.ndim(spacing) == 2 else np.diag([*(spacing or (1, 1, 1)), 1])
        nib.save(nib.Nifti1Image(array, affine), path)
    elif path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        options: dict[str, Any] = {"photometric": "rgb" if array.shape[-1] == 3 else "minisblack"}
        if spacing:
            options |= {"resolution": (1e4 / spacing, 1e4 / spacing), "resolutionunit": 3}
        tifffile.imwrite(path, array, **options)


def dataset(folder: Path, labels: list[np.ndarray], images: list[np.ndarray] | None = None, **options: Any) -> Path:
    """Images (by default the labels) and labels in two folders."""
    ending, spacing = options.get("ending", "tif"), options.get("spacing")
    for number, label in enumerate(labels):
        image = label if images is None else images[number]
        save(folder / "images" / f"{number}.{ending}", image, spacing[number] if spacing else None)
        save(folder / "labels" / f"{number}.{ending}", label, spacing[number] if spacing else None)
    return folder


def fingerprint(folder: Path, kind: str | None = None, label_components: bool = False) -> Fingerprint:
    found = take_fingerprint(find_items(folder), kind, label_components)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()  # plain types
    return found


CELLS = [squares((2, 2), (2, 7), (20, 20)), squares((2, 2)), squares((2, 2), (30, 20)), squares((2, 2), (10, 2))]


def test_instances_in_closed_form(tmp_path):
    images = [np.where(ids > 0, 200, 100).astype(np.uint16) + number for number, ids in enumerate(CELLS)]
    found = fingerprint(dataset(tmp_path, CELLS, images, spacing=[0.5, 0.5, 1.0, None]))
    assert (found.kind, found.reason) == ("instances", "ids 1…3 with one piece each")
    assert (found.spatial_dims, found.channels, found.channel_names, found.modality) == (2, 1, ["image"], "microscopy")
    assert (found.colour, found.gray, found.dtypes) == (False, 4, {"uint16": 4})
    assert found.sizes == [list(SHAPE)] * 4
    assert found.spacing == pytest.approx([0.5, 0.5])
    assert found.spacing_spread == pytest.approx([2, 2])
    assert found.unknown_spacing == 1
    everything = np.concatenate([image.ravel() for image in images])
    objects = np.concatenate([image[ids > 0] for image, ids in zip(images, CELLS, strict=True)])
    for measured, values in ((found.intensity[0], everything), (found.foreground[0], objects)):
        assert (measured.min, measured.max) == (values.min(), values.max())
        assert (measured.mean, measured.std) == pytest.approx((values.mean(), values.std()))
        assert (measured.low, measured.median, measured.high) == tuple(np.percentile(values, (0.5, 50, 99.5)))
    assert (found.label_values, found.class_names) == ([0, 1], ["background", "object"])
    assert found.shares == pytest.approx([1 - 200 / 4800, 200 / 4800])
    assert found.unlabelled == 0
    # boxes around the foreground: 23 x 23, 5 x 5, 33 x 23, 13 x 5
    assert found.extent == [18, 14]
    assert found.objects.per_image == [3, 1, 2, 2]
    assert found.objects.count == 8
    assert (found.objects.smallest, found.objects.median, found.objects.largest) == (25, 25, 100)
    assert found.objects.sizes == [25] * 6 + [100] * 2, "in pixels of 0.5 µm"
    assert (found.objects.smallest_width, found.objects.median_width, found.objects.extent) == (5, 5, [5, 5])
    assert found.objects.touching == 2 / 8
    gaps = [0, 0, np.hypot(14, 9) - 1, 16, 16, 16, 3, 3]  # none, at an angle, out of reach, three rows
    assert found.objects.gaps == pytest.approx(np.percentile(gaps, (5, 25, 50)).tolist())
    assert found.items == {"training": 4}


def test_classes_in_closed_form(tmp_path):
    labels = [np.zeros(SHAPE, np.uint8) for _ in range(4)]
    for label in labels:
        label[:10], label[20:23, ::3], label[30:, 15:] = 1, 2, 255
    found = fingerprint(dataset(tmp_path, labels, ending="png"))
    assert (found.kind, found.reason) == ("classes", "the same values, 1, 2, in 4 of 4 images")
    assert (found.label_values, found.class_names) == ([0, 1, 2], ["background", "class 1", "class 2"])
    assert found.unlabelled == pytest.approx(150 / 1200)
    assert found.shares == pytest.approx([(1050 - 330) / 1050, 300 / 1050, 30 / 1050])
    assert found.objects is None
    assert found.foreground[0].max == 2  # the images are the labels
    assert found.extent == [23, 30]


def test_what_is_ignored_has_no_share(tmp_path):
    dataset(tmp_path, CELLS)
    save(tmp_path / "ignore/0.png", np.where(CELLS[0] == 3, 255, 0).astype(np.uint8))
    images = [np.where(ids == 3, 900, ids) for ids in CELLS]
    save(tmp_path / "images/0.tif", images[0])
    found = fingerprint(tmp_path, "instances")
    assert (found.intensity[0].max, found.foreground[0].max) == (900, 2)
    assert found.unlabelled == pytest.approx(25 / 4800)
    assert found.shares == pytest.approx([4600 / 4775, 175 / 4775])


def test_a_sample_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLED", 400)  # 100 per image
    images = [np.arange(ids.size, dtype=np.uint16).reshape(ids.shape) for ids in CELLS]
    found = fingerprint(dataset(tmp_path, CELLS, images), "instances").intensity[0]
    assert (found.min, found.max) == (0, 1199)  # of all
    assert found.median == pytest.approx(600, abs=100)
    assert found.mean != 599.5


def test_the_test_list_is_checked_and_not_measured(tmp_path):
    dataset(tmp_path, CELLS)
    paths = [{"image": f"images/{number}.tif", "label": f"labels/{number}.tif"} for number in range(4)]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": paths[1:], "test": paths[:1]}))
    found = fingerprint(tmp_path)
    assert found.objects.per_image == [1, 2, 2]
    assert found.intensity[0].max == 2
    assert len(found.sizes) == 4
    assert found.items == {"training": 3, "test": 1}


def volume_labels() -> list[np.ndarray]:
    labels = [np.zeros((12, 10, 6), np.uint8) for _ in range(4)]
    for label in labels:
        label[2:6, 2:8, 1:4], label[7:10, 2:4, 2:4] = 1, 2
    return labels


def test_volumes_have_the_axes_of_the_body(tmp_path):
    labels = volume_labels()
    spacing: list[Any] = [(0.7, 0.7, 5.0)] * 4
    spacing[3] = np.array([[0, 0, -5, 0], [0.7, 0, 0, 0], [0, 0.7, 0, 0], [0, 0, 0, 1]])  # (y, z, x) with x from right
    images = [np.where(label > 0, 40, -1000).astype(np.int16) for label in labels]
    found = fingerprint(dataset(tmp_path, labels, images, ending="nii.gz", spacing=spacing))
    assert (found.spatial_dims, found.modality, found.dtypes) == (3, "CT", {"int16": 4})
    assert found.sizes == [[12, 10, 6]] * 3 + [[6, 12, 10]]
    assert found.spacing == pytest.approx([0.7, 0.7, 5])
    assert found.spacing_spread == pytest.approx([5 / 0.7, 1, 5 / 0.7])
    assert found.extent == [8, 6, 3]
    assert found.kind == "classes"


def test_numbers_below_air_with_fractions_are_no_hounsfield_units(tmp_path):
    images = [np.where(label > 0, 40.5, -1000).astype(np.float32) for label in volume_labels()]
    assert fingerprint(dataset(tmp_path, volume_labels(), images, ending="nii.gz")).modality == "MR"


def test_two_channels_of_mr(tmp_path):
    for number, label in enumerate(volume_labels()):
        save(tmp_path / f"imagesTr/{number}_0000.nii.gz", label * 3)
        save(tmp_path / f"imagesTr/{number}_0001.nii.gz", label + np.uint8(7))
        save(tmp_path / f"labelsTr/{number}.nii.gz", label)
    document = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "left": 1, "right": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    found = fingerprint(tmp_path)
    assert (found.channels, found.channel_names, found.modality) == (2, ["T1", "T2"], "MR")
    assert [(channel.min, channel.max) for channel in found.intensity] == [(0, 6), (7, 9)]
    assert (found.kind, found.reason) == ("classes", "the values 1, 2 have names")
    assert found.class_names == ["background", "left", "right"]


def test_channels_in_one_file(tmp_path):
    images = [np.stack([label * 3, label + np.uint8(7)], axis=-1) for label in volume_labels()]
    found = fingerprint(dataset(tmp_path, volume_labels(), images, ending="nii.gz"))
    assert (found.channels, found.channel_names, found.sizes[0]) == (2, ["channel 0", "channel 1"], [12, 10, 6])
    assert [(channel.min, channel.max) for channel in found.intensity] == [(0, 6), (7, 9)]


def test_a_stack_is_a_volume_of_objects(tmp_path):
    stacks = [squares((2, 2, 2), (2, 2, 9 + number), shape=(12, 20, 20)) for number in range(4)]
    found = fingerprint(dataset(tmp_path, stacks), "instances")
    assert (found.spatial_dims, found.modality, found.spacing) == (3, "microscopy", None)
    assert found.objects.extent == [5, 5, 5]
    assert found.objects.largest == 125
    assert found.objects.smallest_width == 5
    assert found.objects.gaps[2] == np.median([2, 2, 3, 3, 4, 4, 5, 5])
    assert found.objects.reach == 8


def test_colour_gray_and_stains(tmp_path):
    coloured = [np.stack([ids * 10, ids * 20, ids * 5], axis=-1).astype(np.uint8) for ids in CELLS]
    coloured[1] = np.repeat(coloured[1][..., :1], 3, axis=-1)
    coloured[2] = coloured[2][..., 0]
    found = fingerprint(dataset(tmp_path / "colour", [ids.astype(np.uint8) for ids in CELLS], coloured, ending="png"))
    assert (found.colour, found.channels, found.gray) == (True, 3, 2)
    assert found.channel_names == ["red", "green", "blue"]
    assert [channel.max for channel in found.intensity] == [30, 60, 20]  # the gray image counts in each
    gray = [np.repeat(ids[..., None], 3, axis=-1).astype(np.uint8) for ids in CELLS]
    found = fingerprint(dataset(tmp_path / "gray", CELLS, gray))
    assert (found.colour, found.channels, found.gray, found.channel_names) == (False, 1, 4, ["image"])
    stains = [np.stack([ids, ids + 1, 2 * ids]) for ids in CELLS]
    dataset(tmp_path / "stains", CELLS)
    for number, image in enumerate(stains):
        tifffile.imwrite(tmp_path / f"stains/images/{number}.tif", image, imagej=True, metadata={"axes": "CYX"})
    found = fingerprint(tmp_path / "stains", "instances")
    assert (found.colour, found.channels, found.gray) == (False, 3, 0)
    save(tmp_path / "stains/images/0.tif", CELLS[0])  # gray is no substitute for stains
    with pytest.raises(InputError, match=r"0.tif: 1 channels, but 3 of 4 have 3. Give all images the same channels"):
        fingerprint(tmp_path / "stains", "instances")


def test_two_equal_channels_are_not_gray_and_16_bits_stay(tmp_path):
    dataset(tmp_path / "two", CELLS)
    for number, ids in enumerate(CELLS):
        image = np.stack([ids, ids])
        tifffile.imwrite(tmp_path / f"two/images/{number}.tif", image, imagej=True, metadata={"axes": "CYX"})
    found = fingerprint(tmp_path / "two", "instances")
    assert (found.channels, found.gray) == (2, 0)
    found = fingerprint(dataset(tmp_path / "deep", CELLS, ending="png"), "instances")
    assert found.dtypes == {"uint16": 4}


@pytest.mark.parametrize("value", [1, 255])
def test_masks_are_classes_until_their_components_are_labelled(tmp_path, value):
    masks = [np.where(ids > 0, value, 0).astype(np.uint8) for ids in CELLS]
    found = fingerprint(dataset(tmp_path, masks))
    pieces = "one value besides 0, in 7 separate pieces; instances are possible with --label_components"
    assert (found.kind, found.reason, found.label_values) == ("classes", pieces, [0, value])
    assert found.unlabelled == 0
    assert found.shares == pytest.approx([1 - 200 / 4800, 200 / 4800])
    found = fingerprint(tmp_path, label_components=True)
    assert (found.kind, found.label_components) == ("instances", True)
    assert found.objects.per_image == [2, 1, 2, 2]
    assert found.objects.sizes == [25] * 6 + [50]


def test_the_checksum_is_that_of_the_data_set(tmp_path):
    found = fingerprint(dataset(tmp_path / "mine", CELLS))
    lists = find_items(tmp_path / "mine").lists
    (tmp_path / "mine" / "dataset.json").write_text(json.dumps(lists))
    assert identity(tmp_path / "mine") == f"dataset.json sha256:{found.checksum}"
    (tmp_path / "mine" / "dataset.json").write_text(json.dumps({"name": "cells", "checksum": "1f3a", **lists}))
    found = fingerprint(tmp_path / "mine", "instances")
    assert (found.name, found.checksum) == ("cells", "1f3a")


def test_corners_touch_specks_do_not_count_and_the_reach_ends():
    found = Objects.of([measure(squares((2, 2), (7, 7)))])
    assert (found.touching, found.gaps[0]) == (1, pytest.approx(2**0.5 - 1))
    found = Objects.of([measure(squares((2, 2), shape=(60, 60)))])
    assert (found.touching, found.gaps) == (0, [16, 16, 16])
    ids = squares((2, 2), (20, 20))
    ids[0, 0] = ids[10, 10] = 1
    ids[30:34, 2:7] = 2
    assert measure(ids).pieces == {1: 1, 2: 2}


def two_classes(folder: Path, classes: list[list[np.ndarray]], document: dict[str, Any] | None = None) -> Path:
    """Images and a folder of labels for each class, "a", "b" …: per image, the labels of each."""
    for number, labels in enumerate(classes):
        save(folder / "images" / f"{number}.tif", sum(labels).astype(np.uint16))
        for name, label in zip("abc", labels, strict=False):
            save(folder / f"labels_{name}" / f"{number}.tif", label)
    if document:
        (folder / "dataset.json").write_text(json.dumps(document))
    return folder


LONE = squares((20, 2), side=4)
PAIRS = [
    [squares((2, 2), (2, 12)), squares((2, 7), side=4)],
    [squares((2, 2)), LONE * 0],
    *[[LONE, squares((2, 2))]] * 2,
]


def test_objects_of_two_classes_in_closed_form(tmp_path):
    found = fingerprint(two_classes(tmp_path, PAIRS))
    assert (found.kind, found.reason) == ("instances", "2 files of labels per image, one per class of objects")
    assert (found.class_names, found.label_values) == (["background", "a", "b"], [0, 1, 2])
    pixels = np.array([50 + 25 + 16 + 16, 16 + 25 + 25])
    assert found.shares == pytest.approx([*(1 - pixels.sum(keepdims=True) / 4800), *(pixels / 4800)])
    assert found.objects is not None
    assert found.objects.sizes == sorted([25] * 5 + [16] * 3)
    assert found.objects.touching == 2 / 8, "each an object of the other class"


def test_bad_labels_of_classes_are_named_all_at_once(tmp_path):
    over = [squares((2, 2)), squares((4, 4))]
    masks = [np.minimum(squares((2, 2), (20, 20)), 1), LONE * 0]
    folder = two_classes(tmp_path / "one", [over, masks, [LONE, LONE * 0], [squares((2, 2)), LONE * 0]])
    with pytest.raises(InputError) as error:
        fingerprint(folder)
    for message in (
        "0.tif and ",
        "labels_b/0.tif: pixels that belong to objects of two classes: 9. Take each of them away from one of the two",
        "labels_a/1.tif: one value, 1, in 2 separate pieces. Give each object a number of its own, from 1 on.",
        "class b: no object in 3 files: all pixels are 0. Give each object a number, or take the class away.",
    ):
        assert message in str(error.value)
    good = two_classes(tmp_path / "two", PAIRS)
    for label, wrong in ((["", "CD3+", "CD8"], "CD3+"), (["", "T cell", "T cell"], "T cell, T cell")):
        with pytest.raises(
            InputError, match=re.escape(f"the classes of objects have the names {wrong}. Give each a name")
        ):
            take_fingerprint(replace(find_items(good), class_names=dict(enumerate(label))))
    for options in ({"kind": "classes"}, {"label_components": True}):
        with pytest.raises(InputError, match="2 files of labels, one per class of objects, do not go with --"):
            fingerprint(good, **options)
    items = [
        {"image": f"images/{n}.tif", "label": [f"labels_a/{n}.tif", f"labels_b/{n}.tif"][: 1 if n == 3 else 2]}
        for n in range(4)
    ]
    document = {"training": items, "labels": ["background", "dead", "live", "sick"]}
    with pytest.raises(InputError) as error:
        fingerprint(two_classes(good, PAIRS, document))
    for message in (
        "3.tif: 1 files of labels, but 3 of 4 have 2. Give each image one for each class of objects, all 0 where",
        "dataset.json: its 'labels' are 0: background, 1: dead, 2: live, 3: sick, but there are 2 files of labels",
    ):
        assert message in str(error.value)


def test_widths_and_necks_of_flat_voxels_are_in_their_shortest_side():
    """Two balls of 15 pixels, joined by a bridge of 5, in planes three pixels apart: five planes high."""
    grid = np.moveaxis(np.indices((9, 30, 50)), 0, -1) * (3, 1, 1)
    ids = np.any([np.linalg.norm(grid - (12, 14, x), axis=-1) < 8 for x in (14, 34)], axis=0).astype(int)
    ids[3:6, 12:17, 14:34] = 1
    found = measure(ids, spacing=(3, 1, 1))
    assert found.widths == pytest.approx([15], abs=1)
    assert found.necks == [2]
    assert measure(ids).widths == pytest.approx([5], abs=0.1), "counted in voxels"
    images = found.in_pixels_of(np.array([1.2, 0.4, 0.4]), own=np.array([1.2, 0.2, 0.2]))
    assert images.widths == pytest.approx([7.5], abs=0.5)
    assert images.extents == [(5, 8, 18)]


def test_many_and_large_objects_take_samples():
    ids = np.zeros((600, 600), int)
    ids[50:550, 50:550], ids[50:550, 560:] = 4 * 600**2, 7
    found = measure(ids)
    assert found.sizes == [500 * 40, 500**2]
    assert found.pieces == {7: 1, 4 * 600**2: 1}
    assert ids.size > BOX
    assert found.widths == pytest.approx([39, 500], abs=4)
    assert found.gaps == pytest.approx([10] * 2, abs=4)
    ids = np.kron(np.arange(1, 401).reshape(20, 20), np.pad(np.ones((2, 2), int), 1))
    found = measure(ids, 30)
    assert len(found.sizes) == 400
    assert len(found.gaps) == 30
    assert set(found.gaps) == {2.0}


BORDER = squares((2, 2), (20, 20)).astype(np.int16)
BORDER[BORDER == 0] = -1


@pytest.mark.parametrize(
    ("labels", "kind", "messages"),
    [
        (CELLS[:3], None, ["3 images with labels: too few to train on some"]),
        (
            [np.minimum(ids, 1) for ids in [CELLS[0], CELLS[2]] * 2],
            "instances",
            ["0.tif: one value, 1, in 2 separate pieces: label them? Add --label_components, or give each object"] * 4,
        ),
        ([np.where(ids > 0, 2, 1).astype(np.uint8) for ids in CELLS], None, ["no pixel is 0: the values are 1, 2"]),
        (
            [*CELLS[:3], np.where(CELLS[3] > 0, 2, 1).astype(np.uint8)],
            "instances",
            ["3.tif: labels without a background: the values are 1, 2; 0 is background. Save the background"],
        ),
        ([*CELLS[:3], BORDER], None, ["3.tif: labels below 0: -1. Save borders and whatever is background as 0"]),
        ([*CELLS[:3], CELLS[3] / 2], None, ["fractional values, such as 0.5. Save labels as whole numbers"]),
        ([ids * 0 for ids in CELLS], "classes", ["all pixels of 4 label files are 0. Number the classes"]),
        (
            [ids * 0 for ids in CELLS],
            "instances",
            ["no object in 4 files: all pixels are 0. Give each object a number"],
        ),
        ([ids * 3 for ids in CELLS], "classes", ["the label values are 0, 3, 6, 9, and classes are numbered without"]),
        (
            [np.minimum(ids, 1) * (255 if number else 1) for number, ids in enumerate(CELLS)],
            "classes",
            [f"{number}.tif: its values are 0, 255, those of other files 0, 1. Save all" for number in (1, 2, 3)],
        ),
    ],
)
def test_bad_labels_are_named(tmp_path, labels, kind, messages):
    with pytest.raises(InputError) as error:
        fingerprint(dataset(tmp_path, labels, [np.zeros(SHAPE, np.uint8)] * len(labels)), kind)
    for message in messages:
        assert message in str(error.value)
    assert str(error.value).count(".tif: ") >= sum(".tif" in message for message in messages)


def test_bad_images_are_named_all_at_once(tmp_path):
    images = [np.zeros(SHAPE, np.uint8), np.zeros((2, *SHAPE), np.uint8), np.zeros((40, 31), np.uint8)]
    images += [np.zeros(SHAPE, np.uint8)] * 3
    labels = [*CELLS, CELLS[0], CELLS[1]]
    dataset(tmp_path, labels, images)
    tifffile.imwrite(tmp_path / "images/1.tif", images[1], photometric="minisblack", planarconfig="separate")
    save(tmp_path / "images/3.tif", np.zeros((5, *SHAPE), np.uint8))
    save(tmp_path / "labels/3.tif", np.zeros((5, *SHAPE), np.uint8))
    (tmp_path / "images/5.tif").write_bytes(b"")
    save(tmp_path / "images/6.tif", images[0])
    with pytest.raises(InputError) as error:
        fingerprint(tmp_path)
    for message in (
        "5 problems:",
        "6.tif: an image without labels",
        "2.tif: labels of shape (40, 30), the image",
        "5.tif: the file is empty",
        "3.tif: 3-D, but 3 of 4 have 2-D",
        "1.tif: 2 channels, but 3 of 4 have 1",
    ):
        assert message in str(error.value)


def test_bad_volumes(tmp_path):
    labels = volume_labels()
    dataset(tmp_path, labels, ending="nii.gz")
    save(tmp_path / "labels/0.nii.gz", labels[0], (1, 1, 2))
    save(tmp_path / "images/1.nii.gz", labels[1][:, :, :1])
    save(tmp_path / "images/2.nii.gz", labels[2][:, :, 0])
    with pytest.raises(InputError) as error:
        fingerprint(tmp_path)
    for message in (
        "3 problems:",
        "0.nii.gz: its affine puts corners elsewhere than that of its image",
        "1.nii.gz: a volume of one slice, shape (12, 10, 1). Save 2-D images and their labels as TIFF or PNG.",
        "2.nii.gz: 2-D, shape (12, 10): 3-D is required",
    ):
        assert message in str(error.value)


def test_names_and_values_must_agree(tmp_path):
    labels = [np.array(label) for label in volume_labels()]
    dataset(tmp_path, labels, ending="nii.gz")
    document = {"channel_names": ["CT", "PET"], "labels": {"background": 0, "liver": 1, "spleen": 3}}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as error:
        fingerprint(tmp_path)
    for message in (
        "it names 2 channels, CT, PET, but the images have 1. Correct the names, or add the channels.",
        "0.nii.gz: the label value 2 (and 3 other files) has no name; the classes are 0: background, 1: liver, 3:",
        "no label has the value 3, the class 'spleen'. Take it out of 'labels' in dataset.json",
    ):
        assert message in str(error.value)
    with pytest.raises(InputError, match=r"--label_components: it makes instances, and --kind is classes. Leave out"):
        fingerprint(tmp_path, "classes", label_components=True)


def test_frames_over_time_are_refused(tmp_path):
    dataset(tmp_path, CELLS)
    tifffile.imwrite(tmp_path / "images/0.tif", np.zeros((5, *SHAPE), np.uint8), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(
        InputError, match=r"0.tif: a series over time of 5 frames. Save each frame as a file of its own"
    ):
        fingerprint(tmp_path)
