"""The fingerprint of a data set: what its images and labels are like, in the few numbers from which a plan follows."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from monai.utils.misc import ensure_tuple
from scipy import ndimage
from tqdm import tqdm

from monai_unet.bundles.items import Items
from monai_unet.bundles.kinds import UNLABELLED, Labels, class_problems, class_values, infer_kind, instance_problems
from monai_unet.bundles.objects import Measures, Objects, measure
from monai_unet.bundles.samples import Sample, read_sample
from monai_unet.data.decoded import keeping_decoded
from monai_unet.datasets.prepared import add_pixels
from monai_unet.errors import InputError, raise_problems
from monai_unet.options import parse_choice
from monai_unet.transforms.rescale import TOLERANCE

__all__ = ["Fingerprint", "Intensity", "take_fingerprint"]

#: voxels per channel from which the distribution of intensities is measured
SAMPLED = 2_000_000
#: objects whose width and gaps are measured, but of each image as many as may be classes
DETAILED, CLASSES = 10_000, 20
#: HU; lower values, in air, are those of CT alone
AIR = -500


@dataclass(frozen=True)
class Intensity:
    """How the values of one channel are distributed.

    >>> Intensity.of(np.array([1, 3, 1, 3]), (0, 9))
    Intensity(min=0.0, low=1.0, median=2.0, high=3.0, max=9.0, mean=2.0, std=1.0)
    """

    min: float
    #: the percentiles 0.5 and 99.5
    low: float
    median: float
    high: float
    max: float
    mean: float
    std: float

    @classmethod
    def of(cls, sample: np.ndarray, extremes: Sequence[float] | None = None) -> Intensity:
        """Measure a sample, of any shape and not empty, of values whose extremes may be known."""
        sample = np.asarray(sample, np.float64)
        least, most = extremes or (sample.min(), sample.max())
        low, median, high = np.percentile(sample, (0.5, 50, 99.5))
        return cls(*map(float, (least, low, median, high, most, sample.mean(), sample.std())))


@dataclass(frozen=True)
class Fingerprint:
    """What a data set is like, in plain types.

    Lists with one entry per axis are in array order: (Y, X) or (Z, Y, X) of microscopy, and of volumes the axes that
    run from left to right, from back to front and upwards, whichever way a file stores them. Intensities, shares,
    extents and objects are those of all lists but "test".

    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from monai_unet.bundles.items import find_items
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in range(4):
    ...         ids = np.zeros((40, 30), np.uint8)
    ...         ids[3:9, 3:9], ids[20 : 25 + number, 3:9] = 1, 2
    ...         for name in ("images", "labels"):
    ...             Path(folder, name).mkdir(exist_ok=True)
    ...             Image.fromarray(ids).save(f"{folder}/{name}/{number}.png")
    ...     found = take_fingerprint(find_items(folder), kind="instances")
    >>> found.spatial_dims, found.channels, found.dtypes, found.objects.count, found.objects.sizes
    (2, 1, {'uint8': 4}, 8, [30, 36, 36, 36, 36, 36, 42, 48])
    """

    #: of the data set
    name: str
    checksum: str
    #: the number of items in each list
    items: dict[str, int]
    spatial_dims: int
    #: "instances" or "classes", and why
    kind: str
    reason: str
    #: whether the instances are the connected components of the labels
    label_components: bool
    channels: int
    channel_names: list[str]
    #: whether the channels are red, green and blue
    colour: bool
    #: the number of images without colour: of one channel, or R = G = B
    gray: int
    #: "CT", "MR" or "microscopy"
    modality: str
    #: as stored, with the number of images
    dtypes: dict[str, int]
    #: of all images, in pixels
    sizes: list[list[int]]
    #: median per axis, in µm (microscopy) or mm, the lower one of two; None if no image states it
    spacing: list[float] | None
    #: the largest divided by the smallest, per axis
    spacing_spread: list[float] | None
    #: the number of images that do not state it
    unknown_spacing: int
    #: per channel
    intensity: list[Intensity]
    #: per channel, where the label is not background; None if it is everywhere
    foreground: list[Intensity] | None
    #: of classes, in the order of `class_names`: 0, 1, 2 ..., or 0 and 255 of masks; of instances 0 and a number for
    #: each class of objects, or what the masks hold whose connected components they are
    label_values: list[int]
    #: with the background
    class_names: list[str]
    #: of the labelled pixels, per class
    shares: list[float]
    #: the share of all pixels that are not labelled
    unlabelled: float
    #: median size of the box around the foreground, in pixels per axis; None without any
    extent: list[float] | None
    #: of instances, in voxels of `spacing` where images state another one; widths and necks in the shortest side
    objects: Objects | None

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary of what JSON knows."""
        return asdict(self)


class _Facts(NamedTuple):
    """What is kept of an item when its pixels are gone."""

    path: str
    form: str
    channels: int
    colour: bool
    gray: bool
    dtype: str
    size: tuple[int, ...]
    spacing: np.ndarray
    classes: int
    # of each class of objects
    labels: list[Labels]
    ignored: int
    extent: tuple[int, ...] | None
    objects: Measures | None
    # of the channels:
    extremes: np.ndarray
    intensity: np.ndarray
    foreground: np.ndarray
    training: bool


def take_fingerprint(items: Items, kind: str | None = None, label_components: bool = False) -> Fingerprint:
    """Read all files of a data set, check them, and measure them; each is decoded once.

    Args:
        items: see `find_items`.
        kind: "instances" or "classes"; inferred by default.
        label_components: whether the connected components of the labels are the instances.

    Raises:
        InputError: with all that is wrong with the files, and with the data set as a whole.
        ValueError: another kind.

    >>> from pathlib import Path
    >>> take_fingerprint(Items(Path("cells"), "folders", {}), kind="objects")
    Traceback (most recent call last):
    ValueError: kind is 'objects'; it must be instances or classes
    """
    if kind is not None:
        parse_choice("kind", kind, ("instances", "classes"))
    if label_components and kind == "classes":
        raise InputError("--label_components", "it makes instances, and --kind is classes", "Leave out one of the two")
    kind = "instances" if label_components else kind
    problems, facts = list(items.problems), list[_Facts]()
    listed = [(name, item) for name, some in items.lists.items() for item in some]
    digest = None if items.checksum else hashlib.sha256()
    masks = set[int]()
    for name, item in tqdm(listed, desc="fingerprint", unit=" images", leave=False, disable=None):
        try:
            with keeping_decoded():
                sample = read_sample(item)
            if digest:
                add_pixels(digest, item)
        except InputError as error:
            problems.append(error)
            continue
        if sample.classes > 1 and (label_components or kind == "classes"):
            option = "--label_components" if label_components else "--kind classes"
            problem = f"{sample.classes} files of labels, one per class of objects, do not go with {option}"
            raise InputError(ensure_tuple(item["label"])[0], problem, "Leave it out, and give each object a number")
        if label_components:
            pieces = ndimage.label(sample.label)[0]
            masks.update(np.unique(sample.label).tolist())
            sample = sample._replace(label=pieces)
        facts.append(_measure(item, sample, "instances" if sample.classes > 1 else kind, name != "test", len(listed)))
    if not items.problems and len(listed) < 4:
        problem = f"{len(listed)} images with labels: too few to train on some, choose by others and test on the rest"
        problems.append(InputError(items.folder, problem, "Add images until there are at least four"))
    problems += _mixed(facts)
    if facts and (names := items.channel_names) and len(names) not in (counts := {fact.channels for fact in facts}):
        problem = f"it names {len(names)} channels, {', '.join(names)}, but the images have {max(counts)}"
        problems.append(InputError(items.folder / "dataset.json", problem, "Correct the names, or add the channels"))
    labels = [labels for fact in facts for labels in fact.labels]
    classes = max((fact.classes for fact in facts), default=1)
    reason = "connected components of the labels" if label_components else "as chosen"
    if items.class_names and classes > 1 and [*items.class_names] != list(range(classes + 1)):
        stated = ", ".join(f"{number}: {name}" for number, name in items.class_names.items())
        problem = f"its 'labels' are {stated}, but there are {classes} files of labels per image"
        problems.append(
            InputError(items.folder / "dataset.json", problem, "Name the background, 0, and each class of objects")
        )
    if kind is None and classes > 1:
        kind, reason = "instances", f"{classes} files of labels per image, one per class of objects"
    elif kind is None and facts:
        kind, reason = infer_kind(labels, items.class_names, "volumes" in facts[0].form)
    if kind == "instances":
        named = [items.class_names.get(c, f"object {c}") for c in range(1, classes + 1)]
        # scores are named after them, in MONAI's configs and in MLflow
        if classes > 1 and (wrong := [name for name in named if re.search(r"[^\w .-]", name) or named.count(name) > 1]):
            problem = f"the classes of objects have the names {', '.join(wrong)}"
            cure = "Give each a name of its own, of letters, digits, spaces, '_', '-' and '.'"
            problems.append(InputError(items.folder, problem, cure))
        for c, class_name in enumerate(named if classes > 1 else [None]):
            problems += instance_problems([fact.labels[c] for fact in facts if fact.classes == classes], class_name)
    elif facts:
        problems += class_problems(items.folder, labels, items.class_names)
    raise_problems(items.folder, problems)
    checksum = items.checksum or (digest.hexdigest() if digest else "")
    of_labels = _of_labels(facts, items.class_names, str(kind))
    of_labels |= {"label_values": sorted(masks)} if label_components else {}
    return Fingerprint(
        name=items.name,
        checksum=checksum,
        items={name: len(some) for name, some in items.lists.items()},
        kind=str(kind),
        reason=reason,
        label_components=label_components,
        **_of_images(facts, items.channel_names),
        **of_labels,
    )


def _measure(item: Mapping[str, Any], sample: Sample, kind: str | None, training: bool, of: int) -> _Facts:
    image, label, ignore = sample.image, sample.label, sample.ignore
    counted = label[~ignore]
    if counted.max(initial=0) <= label.size:
        counts = np.bincount(counted)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(counted, return_counts=True)
    foreground = (label > 0) & ~ignore
    if kind != "instances" and set(values) - {0, UNLABELLED}:
        foreground &= label != UNLABELLED
    boxes = ndimage.find_objects(foreground.astype(np.uint8))
    detailed = max(DETAILED // of, CLASSES)
    found = None if kind == "classes" else measure(label, detailed, _relative(sample.spacing))
    flat = image.reshape(len(image), -1)
    return _Facts(
        path=str(ensure_tuple(item["image"])[0]),
        form=sample.form,
        channels=len(image),
        colour=sample.colour,
        gray=len(image) == 1 or (len(image) == 3 and bool((image == image[:1]).all())),
        dtype=sample.dtype,
        size=label.shape,
        spacing=sample.spacing,
        classes=sample.classes,
        labels=[
            Labels(
                str(path), dict(zip(values.tolist(), counts.tolist(), strict=True)), found.pieces if found else {}
            ).of_class(c, sample.classes)
            for c, path in enumerate(ensure_tuple(item["label"]), 1)
        ],
        ignored=label.size - counted.size,
        extent=tuple(part.stop - part.start for part in boxes[0]) if boxes else None,
        objects=found,
        extremes=np.stack([flat.min(1), flat.max(1)], axis=1),
        intensity=flat[:, _drawn(np.arange(label.size), SAMPLED // of)],
        foreground=flat[:, _drawn(np.flatnonzero(foreground), SAMPLED // of)],
        training=training,
    )


def _drawn(positions: np.ndarray, limit: int) -> np.ndarray:
    """All positions, or as many of them as the limit allows."""
    if len(positions) <= limit:
        return positions
    return positions[np.random.default_rng(0).integers(0, len(positions), limit)]


def _mixed(facts: Sequence[_Facts]) -> Iterator[InputError]:
    """The images that have another number of axes or channels than most."""
    for name, unit, cure in (
        ("form", "", "Make a data set of each kind"),
        ("channels", " channels", "Give all images the same channels, or make a data set of each kind"),
        ("classes", " files of labels", "Give each image one for each class of objects, all 0 where there is none"),
    ):
        counts = Counter(getattr(fact, name) for fact in facts)
        colours = (
            name == "channels" and counts.keys() == {1, 3} and all(fact.colour for fact in facts if fact.channels == 3)
        )
        if len(counts) > 1 and not colours:
            (most, times), *_ = counts.most_common(1)
            for fact in facts:
                if (found := getattr(fact, name)) != most:
                    yield InputError(fact.path, f"{found}{unit}, but {times} of {len(facts)} have {most}", cure)


def _of_images(facts: Sequence[_Facts], names: Sequence[str]) -> dict[str, Any]:
    gray = sum(fact.gray for fact in facts)
    colour = all(fact.colour or fact.channels == 1 for fact in facts) and gray < len(facts)
    channels = 1 if gray == len(facts) else max(fact.channels for fact in facts)
    known, spacing = _spacings(facts)
    training = [fact for fact in facts if fact.training]

    def intensities(name: str, extremes: bool) -> list[Intensity] | None:
        """Per channel; gray images have the same values in all channels."""
        found = []
        for channel in range(channels):
            rows = [min(channel, fact.channels - 1) for fact in training]
            values = np.concatenate([getattr(fact, name)[row] for fact, row in zip(training, rows, strict=True)])
            if not values.size:
                return None
            ends = np.array([fact.extremes[row] for fact, row in zip(training, rows, strict=True)])
            found.append(Intensity.of(values, (ends.min(), ends.max()) if extremes else None))
        return found

    intensity = intensities("intensity", True)
    modality = "microscopy"
    if "volumes" in facts[0].form:
        hounsfield = any(
            fact.extremes.min() < AIR and np.array_equal(fact.intensity, fact.intensity.round()) for fact in facts
        )
        modality = "CT" if hounsfield or any("ct" in name.lower().split() for name in names) else "MR"
    named = (
        list(names) if len(names) == channels else ["red", "green", "blue"] if colour else ["image"] * (channels == 1)
    )
    return {
        "spatial_dims": len(facts[0].size),
        "channels": channels,
        "channel_names": named or [f"channel {number}" for number in range(channels)],
        "colour": colour,
        "gray": gray,
        "modality": modality,
        "dtypes": dict(Counter(fact.dtype for fact in facts).most_common()),
        "sizes": [list(fact.size) for fact in facts],
        "spacing": spacing.tolist() if len(known) else None,
        "spacing_spread": (known.max(0) / known.min(0)).tolist() if len(known) else None,
        "unknown_spacing": len(facts) - len(known),
        "intensity": intensity,
        "foreground": intensities("foreground", False),
    }


def _spacings(facts: Sequence[_Facts]) -> tuple[np.ndarray, np.ndarray]:
    """Of the images that state it, and the median per axis, of an even number the lower one: one that occurs."""
    known = np.array([fact.spacing for fact in facts if np.isfinite(fact.spacing).all()])
    return known, np.percentile(known, 50, axis=0, method="lower") if len(known) else np.full(0, np.nan)


def _relative(spacing: np.ndarray) -> list[float] | None:
    """The sides of a voxel in the shortest of them; None for pixels, and where no file states them."""
    known = len(spacing) == 3 and np.isfinite(spacing).all()
    return (spacing / spacing.min()).tolist() if known else None


def _objects(facts: Sequence[_Facts], spacing: np.ndarray) -> list[Measures]:
    """The objects of each image, in pixels of the data set's size, to which it is going to be rescaled."""
    found = []
    for fact in facts:
        ratio = fact.spacing / spacing if len(spacing) else np.ones(1)
        rescaled = np.isfinite(ratio).all() and (np.abs(ratio - 1) > TOLERANCE).any()
        if fact.objects:
            found.append(fact.objects.in_pixels_of(spacing, fact.spacing) if rescaled else fact.objects)
    return found


def _of_labels(facts: Sequence[_Facts], names: Mapping[int, str], kind: str) -> dict[str, Any]:
    training = [fact for fact in facts if fact.training]
    ignored = sum(fact.ignored for fact in training)
    labelled = sum(math.prod(fact.size) - fact.ignored for fact in training)
    if kind == "instances":
        values = list(range(facts[0].classes + 1))
        pixels = [sum(fact.labels[c].objects for fact in training) for c in range(facts[0].classes)]
        pixels = [labelled - sum(pixels), *pixels]
        unnamed = ["object"] if len(values) == 2 else [f"object {number}" for number in values[1:]]
        texts = ["background", *(names.get(number, name) for number, name in enumerate(unnamed, 1))]
    else:
        counts = sum((Counter(fact.labels[0].counts) for fact in training), Counter())
        values = class_values([fact.labels[0] for fact in facts])
        pixels = [counts[value] for value in values]
        unnamed = [f"class {number}" for number in range(len(values))] if len(values) > 2 else ["", "foreground"]
        unnamed[0] = "background"
        texts = [names.get(value, names.get(number, unnamed[number])) for number, value in enumerate(values)]
    extents = [fact.extent for fact in training if fact.extent]
    return {
        "label_values": values,
        "class_names": texts,
        "shares": [number / max(sum(pixels), 1) for number in pixels],
        "unlabelled": 1 - sum(pixels) / (labelled + ignored),
        "extent": np.median(extents, axis=0).tolist() if extents else None,
        "objects": Objects.of(_objects(training, _spacings(facts)[1])) if kind == "instances" else None,
    }
