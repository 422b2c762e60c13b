"""A folder of any of the four layouts becomes the same lists; files without a partner are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_unet.bundles.items import Items, find_items
from monai_unet.errors import InputError


def make(folder: Path, *names: str, document: object = None) -> Path:
    """Empty files, and a dataset.json if there is a document."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if document is not None:
        (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def names_of(items: Items, split: str = "training") -> list[dict[str, object]]:
    """The items with paths from the folder."""

    def short(paths: object) -> object:
        if isinstance(paths, list):
            return [short(path) for path in paths]
        return Path(str(paths)).relative_to(items.folder).as_posix()

    return [{key: short(value) for key, value in item.items()} for item in items.lists[split]]


def test_two_folders_are_paired_by_name(tmp_path):
    make(tmp_path, "images/a.ome.tif", "images/b.png", "labels/a.tif", "labels/b.png", "ignore/b.png")
    make(tmp_path, "images/.hidden.png", "images/notes.txt")
    found = find_items(tmp_path)
    assert names_of(found) == [
        {"image": "images/a.ome.tif", "label": "labels/a.tif"},
        {"image": "images/b.png", "label": "labels/b.png", "ignore": "ignore/b.png"},
    ]
    assert (found.layout, list(found.lists), found.name, found.problems) == (
        "folders",
        ["training"],
        tmp_path.name,
        [],
    )
    assert (found.checksum, found.card, found.channel_names, found.class_names) == (None, None, [], {})


def test_labels_may_have_one_word_more_than_their_images(tmp_path):
    make(tmp_path, "images/a_1.png", "images/b_0000.tif", "images/b_0001.tif")
    make(tmp_path, "labels/a_1_instances.tif", "labels/b_instances.tif")
    found = find_items(tmp_path)
    assert names_of(found) == [
        {"image": "images/a_1.png", "label": "labels/a_1_instances.tif"},
        {"image": ["images/b_0000.tif", "images/b_0001.tif"], "label": "labels/b_instances.tif"},
    ]
    assert not found.problems
    make(tmp_path / "other", "images/a.png", "images/a_mask.png", "labels/a_mask.png")
    assert names_of(find_items(tmp_path / "other")) == [{"image": "images/a_mask.png", "label": "labels/a_mask.png"}]
    make(tmp_path, "labels/c_mask.tif")
    assert len(find_items(tmp_path).problems) == 6, "two words: no file has a partner"


def test_channels_are_files_of_their_own_unless_labels_have_their_name(tmp_path):
    make(tmp_path, "images/x_0000.tif", "images/x_0001.tif", "masks/x.tif", "images/t_0000.tif", "masks/t_0000.tif")
    assert names_of(find_items(tmp_path)) == [
        {"image": "images/t_0000.tif", "label": "masks/t_0000.tif"},
        {"image": ["images/x_0000.tif", "images/x_0001.tif"], "label": "masks/x.tif"},
    ]


def test_each_class_of_objects_has_a_folder_of_labels(tmp_path):
    make(tmp_path, "images/a.tif", "images/b.tif", "labels_live/a.tif", "labels_live/b.png", "labels_dead/a.tif")
    make(tmp_path, "labels_dead/b.tif", "ignore/b.tif", document={"channel_names": {"0": "DAPI"}})
    found = find_items(tmp_path)
    assert names_of(found) == [
        {"image": "images/a.tif", "label": ["labels_dead/a.tif", "labels_live/a.tif"]},
        {"image": "images/b.tif", "label": ["labels_dead/b.tif", "labels_live/b.png"], "ignore": "ignore/b.tif"},
    ]
    assert (found.class_names, found.channel_names) == ({0: "background", 1: "dead", 2: "live"}, ["DAPI"])
    document = {"training": [{"image": "images/a.tif", "label": ["labels_live/a.tif", "labels_dead/a.tif"]}]}
    listed = find_items(make(tmp_path, document=document))
    assert names_of(listed)[0]["label"] == ["labels_live/a.tif", "labels_dead/a.tif"], "in the order of the list"
    make(tmp_path, "labels/a.tif", "labels/b.tif", document={})
    found = find_items(tmp_path)
    assert (names_of(found)[0]["label"], found.class_names) == ("labels/a.tif", {}), "these are of another time"


def test_a_file_of_the_same_name_is_the_image_and_not_a_channel(tmp_path):
    found = find_items(make(tmp_path, "images/t.tif", "images/t_0000.tif", "labels/t.tif"))
    assert names_of(found) == [{"image": "images/t.tif", "label": "labels/t.tif"}]
    assert [Path(problem.path).name for problem in found.problems] == ["t_0000.tif"]


def test_nnunet(tmp_path):
    make(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    make(tmp_path, "imagesTs/b_0000.nii.gz", "imagesTs/b_0001.nii.gz", "labelsTs/b.nii.gz", "imagesTs/c_0000.nii.gz")
    document = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}, "numTraining": 1}
    found = find_items(make(tmp_path, document=document))
    assert found.layout == "nnunet"
    pair = ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"]
    assert names_of(found) == [{"image": pair, "label": "labelsTr/a.nii.gz"}]
    assert [item["label"] for item in names_of(found, "test")] == ["labelsTs/b.nii.gz"]
    assert found.channel_names == ["T1", "T2"]
    assert found.class_names == {0: "background", 1: "tumour"}
    assert not found.problems


def test_decathlon(tmp_path, caplog):
    make(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b.nii.gz")
    document = {"name": "Heart", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "left atrium"}}
    document |= {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], "validation": []}
    found = find_items(make(tmp_path, document=document | {"test": ["./imagesTs/b.nii.gz"]}))
    assert (found.layout, found.name, list(found.lists)) == ("decathlon", "Heart", ["training"])  # b has no labels
    assert names_of(found) == [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    assert (found.channel_names, found.class_names) == (["MRI"], {0: "background", 1: "left atrium"})
    assert not found.problems
    assert "the list 'validation' has no items: taken as not there" in caplog.text


def test_a_datalist_goes_before_the_folders(tmp_path):
    make(tmp_path, "images/a.png", "labels/a.png", "images/b.png", "labels/b.png", "images/b2.png")
    document = {
        "training": [{"image": ["images/b.png", "images/b2.png"], "label": "labels/b.png"}],
        "test": [{"image": str(tmp_path / "images/a.png"), "label": "labels/a.png"}],
        "channel_names": ["DAPI", "GFP"],
    }
    found = find_items(make(tmp_path, document=document))
    assert found.layout == "datalist"
    assert names_of(found) == [{"image": ["images/b.png", "images/b2.png"], "label": "labels/b.png"}]
    assert names_of(found, "test") == [{"image": "images/a.png", "label": "labels/a.png"}]
    assert found.channel_names == ["DAPI", "GFP"]


def test_a_prepared_card_is_known(tmp_path):
    document = {"name": "cell_phantom", "checksum": "1f3a", "labels": {"0": "background", "1": "cell"}}
    document |= {"training": [{"image": "a.png", "label": "l.png"}]}
    found = find_items(make(tmp_path, "a.png", "l.png", document=document))
    assert (found.layout, found.card, found.checksum) == ("datalist", "cell_phantom", "1f3a")
    assert found.class_names == {0: "background", 1: "cell"}


def test_a_name_alone_is_no_card(tmp_path):
    document = {"name": "cell_phantom", "training": [{"image": "a.png", "label": "l.png"}]}
    assert find_items(make(tmp_path, "a.png", "l.png", document=document)).card is None


def test_pages_of_a_stack_are_items_and_links_are_not(tmp_path):
    pages = [{"image": "a.tif", "label": "l.tif", "page": page} for page in range(2)]
    make(tmp_path, "a.tif", "l.tif", document={"training": pages})
    assert not find_items(tmp_path).problems
    (tmp_path / "b.tif").symlink_to("a.tif")
    lists = {"training": [{"image": "a.tif", "label": "l.tif"}], "test": [{"image": "b.tif", "label": "l.tif"}]}
    (problem,) = find_items(make(tmp_path, document=lists)).problems
    assert problem.problem == "listed in 'training' and in 'test'"


def test_names_of_channels_follow_their_numbers(tmp_path):
    make(tmp_path, "images/a.png", "labels/a.png")
    document = {"channel_names": {"10": "k", "2": "c", "0": "a"}, "labels": {"background": 0, "ignore": 255}}
    found = find_items(make(tmp_path, document=document))
    assert (found.channel_names, found.class_names, found.problems) == (["a", "c", "k"], {0: "background"}, [])


def test_names_without_lists(tmp_path):
    make(tmp_path, "images/a.png", "labels/a.png", document={"labels": ["background", "cell"], "test": []})
    found = find_items(tmp_path)
    assert (found.layout, found.class_names, list(found.lists)) == (
        "folders",
        {0: "background", 1: "cell"},
        ["training"],
    )


@pytest.mark.parametrize(
    ("names", "document", "messages"),
    [
        (
            ["images/a.png", "images/b.png", "labels/a.png", "labels/c.png", "ignore/d.png"],
            None,
            [
                "c.png: labels without an image: images/ has neither c nor c_0000. Add the image, or take the labels",
                "b.png: an image without labels: labels/ has no b. Add its labels, or take the image away.",
                "d.png: a mask without labels: labels/ has no d. Give it the name of its image.",
            ],
        ),
        (
            ["images/a.png", "labels/RoiSet.zip", "labels/annotations.json"],
            None,
            [
                "RoiSet.zip: outlines, not an image of numbers (2 such files). Draw them as label images: docs/new_bu",
                "a.png: an image without labels: labels/ has no a. Add its labels, or take the image away.",
            ],
        ),
        (
            ["images/a.png", "images/a.tif", "labels/a.png"],
            None,
            ["a.tif: differs from a.png only in the ending. Keep one of them."],
        ),
        (
            ["images/a.tif", "images/b.tif", "images/c.tif", "labels_x/a.tif", "labels_y/a.tif", "labels_y/b.tif"],
            None,
            [
                "b.tif: labels of one class of objects without those of another: labels_x/ has no b. Add the file, all",
                "c.tif: an image without labels: labels_x/ has no c. Add its labels, or take the image away.",
            ],
        ),
        (
            ["imagesTr/a_0000.nii.gz", "imagesTr/a_0002.nii.gz", "labelsTr/a.nii.gz"],
            None,
            ["a_0000.nii.gz: its channels are _0000, _0002. Number the channels from _0000 on, without gaps."],
        ),
        (
            ["a.png", "b.png"],
            {"training": [{"image": "a.png"}, {"image": "b.png", "label": "no.png"}]},
            [
                "dataset.json: item 0 of 'training' has no 'label', only image. Add its path.",
                "no.png: there is no such file. Correct item 1 of 'training'.",
            ],
        ),
        (
            ["a.png", "b.png", "l.png"],
            {"training": [{"image": "a.png", "label": "l.png"}], "test": [{"image": "a.png", "label": "l.png"}]},
            ["a.png: listed in 'training' and in 'test'. Keep one of the two items."],
        ),
        (
            ["a.png", "l.png"],
            {"training": [{"image": "a.png", "label": "l.png"}] * 2},
            ["a.png: listed twice in 'training'. Keep one of the two items."],
        ),
        (
            ["images/a.png", "labels/a.png"],
            {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}},
            [
                "dataset.json: the class 'whole' of 'labels' has the value [1, 2]. Give each class one whole number",
                "dataset.json: the label 'ignore' of 'labels' has the value 3. Save what is not labelled as 255.",
            ],
        ),
    ],
)
def test_each_problem_is_named(tmp_path, names, document, messages):
    problems = [str(problem) for problem in find_items(make(tmp_path, *names, document=document)).problems]
    assert len(problems) == len(messages)
    for problem, message in zip(problems, messages, strict=True):
        assert message in problem


def test_a_folder_of_no_layout(tmp_path):
    with pytest.raises(InputError, match=r"no images with labels to train on. Put images into images/ and labels"):
        find_items(make(tmp_path, "a.png"))
    with pytest.raises(InputError, match=r"missing: there is no such folder. Check --dataset_dir."):
        find_items(tmp_path / "missing")
