"""Instances or classes: which of the two labels are, and what is wrong with them if they are to be that."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from monai_unet.errors import InputError
from monai_unet.object_classes import class_of

__all__ = ["UNLABELLED", "Labels", "class_problems", "class_values", "infer_kind", "instance_problems"]

#: what nobody has labelled, unless it is the only value of a mask besides 0
UNLABELLED = 255


class Labels(NamedTuple):
    """What one label file holds.

    >>> Labels("a.png", {0: 80, 1: 9, 2: 11}, {1: 1, 2: 3}).pieces[2]
    3
    """

    path: str
    #: the pixels of each value
    counts: dict[int, int]
    #: the separate pieces of each value but 0, or of some of many values
    pieces: dict[int, int]

    @property
    def objects(self) -> int:
        """The pixels of all values but 0."""
        return sum(self.counts.values()) - self.counts.get(0, 0)

    def of_class(self, number: int, classes: int) -> Labels:
        """Return what one of several files holds, of labels that `join_classes` has joined.

        >>> Labels("dead.png", {0: 80, 1: 9, 2: 11}, {1: 1, 2: 3}).of_class(2, classes=2)
        Labels(path='dead.png', counts={0: 89, 1: 11}, pieces={1: 3})
        """
        counts, pieces = (
            {(value - 1) // classes + 1: n for value, n in found.items() if class_of(value, classes) == number}
            for found in (self.counts, self.pieces)
        )
        rest = sum(self.counts.values()) - sum(counts.values())
        return Labels(self.path, {**({0: rest} if rest else {}), **counts}, pieces)


def class_values(files: Sequence[Labels]) -> list[int]:
    """List the values that are classes: all but 255, or 0 and 255 if these are the only ones.

    >>> class_values([Labels("a.png", {0: 5, 255: 5}, {255: 1})]), class_values([Labels("a.png", {1: 5, 255: 5}, {})])
    ([0, 255], [1])
    """
    values = sorted({value for file in files for value in file.counts})
    return values if set(values) <= {0, UNLABELLED} else [value for value in values if value != UNLABELLED]


def infer_kind(files: Sequence[Labels], names: Mapping[int, str], volumes: bool = False) -> tuple[str, str]:
    """Infer "instances" or "classes", and say why.

    Classes are one value; values that have names, more than one of them; values in several pieces each; and few values
    that are the same in most images: at most 3, because cells that are followed over time keep their numbers, or 20
    organs. All else is instances.

    Args:
        files: all labels.
        names: of classes by value, as far as they are known.
        volumes: whether they are medical volumes, not microscopy.

    >>> infer_kind([Labels("a.png", {0: 80, 1: 9, 2: 9}, {1: 1, 2: 1}), Labels("b.png", {0: 80, 1: 9}, {1: 1})], {})
    ('instances', 'ids 1…2 with one piece each')
    """
    values = sorted({value for file in files for value in file.counts} - {0})
    if UNLABELLED in values and values[0] != UNLABELLED and UNLABELLED - 1 not in values:
        values.remove(UNLABELLED)
    images = [{value: file.pieces[value] for value in file.pieces if value in values} for file in files]
    images = [pieces for pieces in images if pieces]
    counts = [number for pieces in images for number in pieces.values()]
    if len(values) < 2:
        separate = sum(counts)
        more = "; instances are possible with --label_components" if separate > len(images) else ""
        return "classes", f"one value besides 0, in {separate} separate pieces{more}"
    named = [name for value, name in names.items() if value]
    if set(values) <= names.keys():
        return "classes", f"the values {_text(values)} have names"
    if 2 * counts.count(1) < len(counts):
        return "classes", f"the values {_text(values)} are in several pieces each"
    if len(named) == 1:
        return "instances", f"ids {values[0]}…{values[-1]} of one class, {named[0]}"
    sets = Counter(frozenset(file.counts.keys() & set(values)) for file in files)
    same, times = sets.most_common(1)[0]
    if 2 * times > len(files) > 1 and 0 < len(same) <= (20 if volumes else 3):
        return "classes", f"the same values, {_text(sorted(same))}, in {times} of {len(files)} images"
    return "instances", f"ids {values[0]}…{values[-1]} with one piece each"


def instance_problems(files: Sequence[Labels], class_name: str | None = None) -> Iterator[InputError]:
    """Find the masks among labels that are to be instances, and the background that is not 0.

    Args:
        files: all labels of a class of objects.
        class_name: where there are several classes.

    >>> print(*instance_problems([Labels("a.png", {0: 80, 255: 20}, {255: 25})]))
    a.png: one value, 255, in 25 separate pieces: label them? Add --label_components, or give each object a number of \
its own, from 1 on.
    """
    ids = sorted({value for file in files for value in file.counts} - {0})
    gap = len(ids) > 2 and ids[-1] == UNLABELLED and UNLABELLED - 1 not in ids
    for path, counts, pieces in files:
        if gap and UNLABELLED in counts:
            problem = f"{UNLABELLED} among the numbers of objects, {ids[0]}…{ids[-2]}: not labelled, or an object"
            cure = "Save what is not labelled in a file of the same name in ignore/, or give it the number "
            cure += f"{ids[-2] + 1}"
            yield InputError(path, problem, cure)
            continue
        largest = max(counts, key=lambda value: counts[value])
        if min(counts) > 0 and (len(counts) == 2 or 2 * counts[largest] > sum(counts.values()) > counts[largest]):
            problem = f"labels without a background: the values are {_text(sorted(counts))}; 0 is background"
            yield InputError(path, problem, f"Save the background as 0, where it is now {largest}")
        elif pieces and min(pieces.values()) > 1:  # an object in two pieces is possible, all of them are not
            values = "one value, " if len(pieces) == 1 else "the values "
            problem = f"{values}{_text(sorted(pieces))}, in {sum(pieces.values())} separate pieces"
            if class_name is None:
                cure = "Add --label_components, or give each object a number of its own, from 1 on"
                yield InputError(path, f"{problem}: label them?", cure)
            else:
                yield InputError(path, problem, "Give each object a number of its own, from 1 on")
    if files and not any(counts.keys() - {0} for _, counts, _ in files):
        place, cure = ("labels", "") if class_name is None else (f"class {class_name}", ", or take the class away")
        yield InputError(
            place, f"no object in {len(files)} files: all pixels are 0", f"Give each object a number{cure}"
        )


def class_problems(
    place: str | os.PathLike[str], files: Sequence[Labels], names: Mapping[int, str]
) -> Iterator[InputError]:
    """Compare the values of all labels with 0, 1, 2 ... and with the names of the classes.

    Args:
        place: the folder or dataset.json.
        files: all labels.
        names: of classes by value; empty if they are not known.

    >>> files = [Labels("a.png", {1: 80, 2: 20}, {1: 1, 2: 3})]
    >>> print(*class_problems("dataset", files, {}))
    dataset: no pixel is 0: the values are 1, 2, and the first class is 0, the background. Subtract 1 from all labels: \
ilastik, for example, saves the background as 1.
    """
    values = class_values(files)
    masks = [file.path for file in files if file.counts.keys() == {0, UNLABELLED}]
    sparse = any(UNLABELLED in file.counts and set(file.counts) - {0, UNLABELLED} for file in files)
    if masks and not sparse and UNLABELLED not in values:
        for path in masks:
            problem = f"its values are 0, {UNLABELLED}, those of other files {_text(values)}"
            yield InputError(path, problem, f"Save all labels with the same values; {UNLABELLED} means not labelled")
    if 0 not in values:
        problem = f"no pixel is 0: the values are {_text(values)}, and the first class is 0, the background"
        cure = "Subtract 1 from all labels: ilastik, for example, saves the background as 1"
        yield InputError(place, problem, cure)
        return
    if len(values) < 2:
        yield InputError(place, f"all pixels of {len(files)} label files are 0", "Number the classes 0, 1, 2 ...")
        return
    if values == [0, UNLABELLED]:
        return
    if names:
        for value in sorted(set(values) - names.keys()):
            having = [file.path for file in files if value in file.counts]
            more = f" (and {len(having) - 1} other files)" if len(having) > 1 else ""
            stated = ", ".join(f"{number}: {name}" for number, name in names.items())
            problem = f"the label value {value}{more} has no name; the classes are {stated}"
            yield InputError(having[0], problem, "Correct the file, or add the name to 'labels' in dataset.json")
        for value in sorted(names.keys() - set(values)):
            problem = f"no label has the value {value}, the class {names[value]!r}"
            yield InputError(place, problem, "Take it out of 'labels' in dataset.json, or add images that have it")
    if (not names or names.keys() == set(values)) and values != list(range(len(values))):
        problem = f"the label values are {_text(values)}, and classes are numbered without gaps"
        yield InputError(place, problem, f"Renumber them from 0 to {len(values) - 1}; {UNLABELLED} means not labelled")


def _text(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
