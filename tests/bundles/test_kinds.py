"""What labels are is inferred from their values and pieces; names count more."""

from __future__ import annotations

import pytest

from monai_unet.bundles.kinds import Labels, class_problems, class_values, infer_kind, instance_problems


def labels(*files: dict[int, int]) -> list[Labels]:
    """Label files by the pieces of their values."""
    return [Labels(f"{n}.png", {0: 900, **dict.fromkeys(pieces, 9)}, pieces) for n, pieces in enumerate(files)]


ORGANS = labels(*[dict.fromkeys(range(1, 8), 1)] * 3, {})
CELLS = labels({1: 1, 2: 1}, {1: 1, 2: 2, 3: 1}, {4: 1})


@pytest.mark.parametrize(
    ("files", "names", "volumes", "expected"),
    [
        (labels({1: 1}, {1: 1}), {}, False, ("classes", "one value besides 0, in 2 separate pieces")),
        (
            labels({255: 4}, {}),
            {},
            False,
            (
                "classes",
                "one value besides 0, in 4 separate pieces; instances are possible with --label_components",
            ),
        ),
        (CELLS, {}, False, ("instances", "ids 1…4 with one piece each")),
        (CELLS, {0: "background", 1: "cell"}, False, ("instances", "ids 1…4 of one class, cell")),
        (CELLS, dict(enumerate("bcdef")), False, ("classes", "the values 1, 2, 3, 4 have names")),
        (labels({1: 9, 2: 5}, {1: 4, 2: 1}), {}, False, ("classes", "the values 1, 2 are in several pieces each")),
        (labels({1: 1, 2: 1}, {1: 1, 2: 1}), {}, False, ("classes", "the same values, 1, 2, in 2 of 2 images")),
        (ORGANS, {}, True, ("classes", "the same values, 1, 2, 3, 4, 5, …, in 3 of 4 images")),
        (ORGANS, {}, False, ("instances", "ids 1…7 with one piece each")),
        # what nobody has labelled is no class, but a 255th object is an object
        (labels({1: 1, 2: 1, 255: 1}, {1: 1, 2: 1}), {}, False, ("classes", "the same values, 1, 2, in 2 of 2 images")),
        (labels(dict.fromkeys(range(1, 256), 1)), {}, False, ("instances", "ids 1…255 with one piece each")),
    ],
)
def test_kind(files, names, volumes, expected):
    assert infer_kind(files, names, volumes) == expected


def test_255_is_a_class_only_of_masks():
    assert class_values(labels({255: 1}, {})) == [0, 255]
    assert class_values(labels({255: 1}, {1: 1})) == [0, 1]


def test_an_object_in_two_pieces_is_an_object():
    assert not list(instance_problems(labels({1: 2, 2: 1})))
    (problem,) = instance_problems(labels({1: 2, 2: 3}))
    assert problem.problem == "the values 1, 2, in 5 separate pieces: label them?"


def test_background_that_is_not_0():
    (problem,) = instance_problems([Labels("a.png", {1: 50, 2: 50}, {1: 1, 2: 1})])
    assert problem.problem.startswith("labels without a background: the values are 1, 2")
    assert not list(instance_problems([Labels("a.png", {1: 30, 2: 30, 3: 30}, {1: 1, 2: 1, 3: 1})]))  # no background


def test_255_among_numbers_of_objects_is_asked_about():
    unclear, clear = labels({1: 1, 2: 1, 3: 1, 255: 1}, {1: 1, 2: 1})
    (problem,) = instance_problems([unclear, clear])
    assert problem.problem == "255 among the numbers of objects, 1…3: not labelled, or an object"
    assert problem.cure.startswith("Save what is not labelled in a file of the same name in ignore/, or give it the nu")
    assert not list(instance_problems(labels(dict.fromkeys(range(1, 256), 1))))
    assert not list(instance_problems(labels({1: 1, 255: 1, 300: 1})))
    assert not list(instance_problems(labels({255: 1}, {255: 1})))


def test_a_file_may_have_nothing_but_what_is_not_labelled():
    assert not list(class_problems("d", labels({255: 1}, {1: 1, 255: 1}), {}))
    assert len(list(class_problems("d", labels({255: 1}, {1: 1}), {}))) == 1


def test_numbers_with_gaps_are_refused_even_if_they_have_names():
    (problem,) = class_problems("d", labels({1: 1, 3: 1}), {0: "background", 1: "liver", 3: "spleen"})
    assert problem.problem == "the label values are 0, 1, 3, and classes are numbered without gaps"
