"""From a fingerprint to a plan: the few numbers that follow from the data, the memory and the minutes at hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.utils.misc import ensure_tuple_rep

from monai_unet.bundles.cost import Cost, measure_cost, multiplications, step_seconds
from monai_unet.bundles.fingerprint import Fingerprint
from monai_unet.bundles.plan import PAPER_2D, PAPER_3D, Plan, Setting
from monai_unet.data.dicom.segmentation import words_of
from monai_unet.errors import InputError
from monai_unet.memory import available_bytes
from monai_unet.networks import ValidUNet
from monai_unet.training.step_memory import step_bytes

__all__ = ["decide"]

#: channels of the top level to choose from: the paper's, and its halves
WIDTHS = (64, 32, 16)
#: where so many steps do not fit into the minutes, the network is narrower, or the tile smaller
ENOUGH_STEPS = 1500
#: as many as the shipped bundles take for the paper's ten hours
MOST_STEPS = 30_000
#: validations in a training, fewer where they would take more than this share of its minutes
VALIDATIONS, VALIDATING = 10, 0.2
#: words of names that say on which side of a body something is
SIDES = {"left", "right", "l", "r", "lt", "rt", "lh", "rh", "sin", "dex", "sinister", "dexter", "sinistra", "dextra"}
#: poolings of the deepest network, by dimension, as in the two papers
DEEPEST = {2: 4, 3: 3}
#: output voxels per axis of the largest tile, by dimension: in 2-D the paper's
LARGEST = {2: 388, 3: 68}


def decide(name: str, fingerprint: Fingerprint, memory: float | None = None, minutes: float = 60) -> Plan:
    """Plan a bundle for a data set.

    Args:
        name: of the bundle.
        fingerprint: of the data set.
        memory: GiB that a training step may take; None for half of what is free.
        minutes: that the training may take on this machine.

    Raises:
        InputError: instances in NIfTI files; no network fits into the memory.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from monai_unet.bundles.fingerprint import take_fingerprint
    >>> from monai_unet.bundles.items import find_items
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in range(4):
    ...         ids = np.zeros((48, 48), np.uint8)
    ...         ids[3:9, 3:9], ids[20 : 25 + number, 3:9] = 1, 2
    ...         for name in ("images", "labels"):
    ...             Path(folder, name).mkdir(exist_ok=True)
    ...             Image.fromarray(ids).save(f"{folder}/{name}/{number}.png")
    ...     plan = decide("spots", take_fingerprint(find_items(folder), "instances"), minutes=1)
    >>> plan.settings["min_size"]
    Setting(value=15, why='pixels; half of the smallest of 8 labelled objects')
    """
    volumes = fingerprint.modality != "microscopy"
    if volumes and fingerprint.kind == "instances":
        problem = "instances in volumes of NIfTI or NRRD files are not planned for"
        raise InputError(fingerprint.name, problem, "Save images and labels as TIFF stacks, or choose --kind classes")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    free = available_bytes(device) or 8 << 30
    settings = {**(PAPER_2D if fingerprint.spatial_dims == 2 else PAPER_3D)}
    unused = ("momentum", "validation_items", *(("w0", "sigma_border") if fingerprint.kind == "classes" else ()))
    for key in unused:
        settings.pop(key, None)
    settings |= _image(fingerprint, volumes)
    settings |= _levels(fingerprint, volumes)
    settings |= _labels(fingerprint)
    if fingerprint.spatial_dims == 2:  # volumes look more alike, and their tiles would become too small
        settings["batch_size"] = Setting(2, "tiles, of two images, so that batch norm sees both: §3 has one")
    settings |= _size(fingerprint, settings, memory * 2**30 if memory else free / 2, minutes, device)
    network = _network(fingerprint, settings, settings["features"].value)
    tile = ensure_tuple_rep(settings["tile_size"].value, fingerprint.spatial_dims)
    size = [int(n) for n in np.median(fingerprint.sizes, axis=0)]
    batch = settings["batch_size"].value
    cost = measure_cost(network, tile, size, max(fingerprint.items.get("validation", 0), 1), device, batch)
    if cost.bytes:
        tile, why = settings["tile_size"]
        settings["tile_size"] = Setting(tile, f"{why}; a step on it takes {cost.bytes / 2**30:.2g} GiB")
    settings |= _augmentation(fingerprint, settings, volumes) | _schedule(cost, minutes)
    plan = Plan(
        name=name,
        kind=fingerprint.kind,
        dims=fingerprint.spatial_dims,
        volumes=volumes,
        channel_names=fingerprint.channel_names,
        class_names=fingerprint.class_names,
        modality=fingerprint.modality,
        settings=settings,
        colour=fingerprint.colour,
        masks=fingerprint.label_values == [0, 255],
        sparse=True,
        components=fingerprint.label_components,
        values=fingerprint.label_values if fingerprint.label_components else (),
        split="test" if fingerprint.items.get("test") else "validation",
        subject=f"the data set {fingerprint.name}",
        why=fingerprint.reason,
    )
    if fingerprint.objects:
        plan = replace(plan, reach=2 ** math.ceil(math.log2(max(2 * max(fingerprint.objects.extent), 256))))
    return plan


def _image(fingerprint: Fingerprint, volumes: bool) -> dict[str, Setting]:
    """What the network sees of an image."""
    found = {"in_channels": Setting(fingerprint.channels, ", ".join(fingerprint.channel_names))}
    if volumes:
        spacing = [_rounded(length) for length in fingerprint.spacing or [1.0] * fingerprint.spatial_dims]
        why = "mm, of the voxels that the network sees: the median; axes right, anterior, superior"
        found["spacing"] = Setting(spacing, why)
        if fingerprint.modality == "CT":
            inside = (fingerprint.foreground or fingerprint.intensity)[0]
            window = [math.floor(inside.low), math.ceil(inside.high)]
            found["window"] = Setting(window, "HU: the percentiles 0.5 and 99.5 of the labelled voxels")
            found["mean"] = Setting(_rounded(inside.mean), "HU, of the labelled voxels")
            found["std"] = Setting(_rounded(inside.std or 1), "HU, of the labelled voxels")
    elif fingerprint.spacing:
        stated = sum(fingerprint.items.values()) - fingerprint.unknown_spacing
        why = f"µm per axis: the median of the {stated} images that state it"
        found["pixel_size_um"] = Setting([_rounded(length) for length in fingerprint.spacing], why)
        why = "true: an image whose own pixel size differs by more than a tenth is rescaled, and the result scaled back"
        found["rescale"] = Setting(True, why)
    return found


def _levels(fingerprint: Fingerprint, volumes: bool) -> dict[str, Setting]:
    """The depth of the network, and which axes its levels leave alone."""
    dims = fingerprint.spatial_dims
    size = np.median(fingerprint.sizes, axis=0)
    spacing = np.array(fingerprint.spacing or [1.0] * dims) if dims == 3 else np.ones(2)
    wanted = 2 * max(fingerprint.objects.extent) if fingerprint.objects else math.inf
    for depth in range(DEEPEST[dims], 0, -1):
        kernels, strides = _spared(spacing, depth)
        network = ValidUNet(dims, 1, 2, [1] * (depth + 1), kernel_size=kernels, strides=strides)
        margin = np.broadcast_to(network.margin, dims)
        shallower = ValidUNet(dims, 1, 2, [1] * depth).margin if depth > 2 else 0
        if (margin <= 0.75 * size).all() and np.max(shallower) < wanted:
            break
    text = "as much as objects need" if fingerprint.objects else "the deepest where it stays within the images"
    sides = margin.tolist() if len(set(margin.tolist())) > 1 else [margin[0]]
    unit = "pixels" if dims == 2 else "voxels"
    why = f"{depth + 1} levels, with {' × '.join(map(str, sides))} {unit} of context, {text}"
    found = {"features": Setting([1] * (depth + 1), why)}
    if dims == 3 and any(1 in kernel for kernel in kernels):
        why = f"per level and axis: 1 spares the axes with voxels {spacing.max() / spacing.min():.1f} times as long"
        found["kernel_size"] = Setting(kernels, f"{why}, until all are about as long")
        found["strides"] = Setting(strides, "of the pooling below each level, likewise")
    return found


def _spared(spacing: np.ndarray, depth: int) -> tuple[list[list[int]], list[list[int]]]:
    """Kernels and strides per level: 1 along axes whose voxels are more than twice as long as the shortest there."""
    kernels, strides, current = [], [], spacing.astype(float)
    for _ in range(depth + 1):
        coarse = current > 2 * current.min()
        kernels.append([1 if axis else 3 for axis in coarse])
        strides.append([1 if axis else 2 for axis in coarse])
        current = current * strides[-1]
    return kernels, strides[:-1]


def _labels(fingerprint: Fingerprint) -> dict[str, Setting]:
    """Weights of the classes, and the rules by which foreground becomes instances."""
    objects, shares = fingerprint.objects, np.array(fingerprint.shares)
    weights = np.sqrt(shares.max() / shares.clip(min=shares.max() / 25))
    why = "per class, the root of how much rarer than the most frequent one it is; at most 5"
    found = {"class_weights": Setting([_rounded(weight) for weight in weights], why)}
    if objects is None:
        return found
    flat = fingerprint.spatial_dims == 2
    count, unit = objects.count, "pixels" if flat else "voxels"
    length = unit
    if not flat and fingerprint.spacing:  # planes are farther apart than pixels
        length = f"steps of {_rounded(min(fingerprint.spacing))} µm"
    smallest = objects.smallest
    at = f"half of the smallest of {count} labelled objects"
    if 20 * smallest < objects.median:  # specks in the labels
        smallest = objects.sizes[len(objects.sizes) // 100]
        at = f"half of the smallest but for 1 % of {count} labelled objects"
    width = _rounded(objects.median_width)
    # of narrow objects, 3 pixels are too much; a short training does not learn a ridge of one
    ridge = 1 if width < 10 else 3 if width < 80 else 5
    grow = ridge if flat else 1
    given = "a ridge up to this wide is given back to the objects that it separates"
    sigma = _rounded(min(5, max(2, width / 6)))
    half = (objects.smallest_width + 1) / 4  # the distance to the background is half of the width and a half
    neck = round(min(half, objects.neck))
    rule = "half the width of the narrowest object" if half <= objects.neck else "wider necks occur in labelled objects"
    found |= {
        "ridge": Setting(ridge, f"{length} of background between touching objects, which are {width:.3g} wide"),
        "sigma_border": Setting(sigma, f'{length}: a sixth of the width, from 2 to 5; §3: "σ ≈ 5 pixels"'),
        "min_size": Setting(max(int(smallest / 2), 1), f"{unit}; {at}"),
        "fill_holes": Setting(True, "an object has none"),
        "grow": Setting(grow, f"{length}; {given}{'' if flat else ': more would fill the wedges beside contacts'}"),
        "neck": Setting(
            neck,
            f"{length}; objects joined by less than twice this are split: {rule}"
            if neck
            else f"{length}; none: labelled objects are as narrow, as a whole or at a waist, as where they are joined",
        ),
        "core": Setting(
            0 if neck else 0.75,
            "objects joined only by less probable pixels are split; 0: none"
            if neck
            else "objects joined only by less probable pixels are split, as necks cannot do it",
        ),
    }
    if fingerprint.spatial_dims == 3:  # what the 3-D paper has not
        found["w0"] = Setting(PAPER_2D["w0"].value, "§3 of the 2015 paper")
    return found


def _size(
    fingerprint: Fingerprint, settings: Mapping[str, Setting], memory: float, minutes: float, device: torch.device
) -> dict[str, Setting]:
    """Width and tile: the widest network on the largest tile for which memory and minutes suffice."""
    dims, levels = fingerprint.spatial_dims, len(settings["features"].value)
    batch = settings["batch_size"].value
    size = np.median(fingerprint.sizes, axis=0)
    spacing = np.array(fingerprint.spacing or [1.0] * dims) if dims == 3 else np.ones(dims)
    cube = LARGEST[dims] * spacing.prod() ** (1 / dims) / spacing  # as long along each axis
    candidates = []
    for shrink, width in product((1.0, 0.7, 0.5), WIDTHS):
        network = _network(fingerprint, settings, [width * 2**level for level in range(levels)])
        tile = [
            network.output_size(network.input_size(int(max(n, 1)), axis), axis)
            for axis, n in enumerate(np.minimum(size if dims == 3 else size.max(), shrink * cube))
        ]
        shape = [network.input_size(n, axis) for axis, n in enumerate(tile)]
        candidates.append((network, tile, shape, step_bytes(network, (batch, fingerprint.channels, *shape))))
    fitting = [candidate for candidate in candidates if candidate[-1] <= memory]
    if not fitting:
        problem = f"it is {memory / 2**30:.2g} GiB, and the smallest step here takes {candidates[-1][-1] / 2**30:.2g}"
        raise InputError("--memory", problem, "Give more, or train on another machine")
    smallest, _, shape, _ = fitting[-1]
    rate = multiplications(smallest, shape) / step_seconds(smallest, shape, device, batch)[0]
    network, tile, shape, _ = next(
        (found for found in fitting if 60 * minutes * rate / multiplications(found[0], found[2]) >= ENOUGH_STEPS),
        fitting[-1],
    )
    why = f"{settings['features'].why}; as wide as {_minutes(minutes)} and {memory / 2**30:.1f} GiB allow"
    return {
        "features": Setting(list(network.features), why),
        "norm": Setting("batch", "the 3-D paper's, for a short training: not in that of 2015"),
        "fix_norm_after": Setting(
            "$(2 * @train#trainer#max_epochs + 2) // 3", "then batch norm has the statistics of prediction"
        ),
        "dropout": Setting(0.2 if dims == 2 else 0, "a narrower network overfits less than the paper's"),
        "tile_size": Setting(
            tile if dims == 3 else tile[0], f"output per axis; the input tile is {' × '.join(map(str, shape))}"
        ),
    }


def _network(fingerprint: Fingerprint, settings: Mapping[str, Setting], features: Sequence[int]) -> ValidUNet:
    kernels = {name: settings[name].value for name in ("kernel_size", "strides") if name in settings}
    outputs = len(fingerprint.class_names)
    return ValidUNet(fingerprint.spatial_dims, fingerprint.channels, outputs, features, norm="batch", **kernels)


def is_sided(name: str) -> bool:
    """Whether a class is of the left or the right of a body, by the words of its name.

    >>> [is_sided(name) for name in ("left_kidney", "Right-Hippocampus", "LungL", "Parotid (Lt)", "lh.V1", "rectum")]
    [True, True, True, True, True, False]
    """
    return not SIDES.isdisjoint(word.lower() for word in words_of(name))


def _augmentation(fingerprint: Fingerprint, settings: Mapping[str, Setting], volumes: bool) -> dict[str, Setting]:
    dims, tile = fingerprint.spatial_dims, settings["tile_size"].value
    spacing = np.array(fingerprint.spacing or [1.0] * dims)
    found = {"scale_range": Setting(0.1, "objects of other sizes: not in the paper")}
    if dims == 2:
        sigma = _rounded(10 * (tile + 184) / 572)
        found["elastic_sigma"] = Setting(sigma, '"10 pixels standard deviation", of a tile of 572')
        return found
    coarse = spacing > 2 * spacing.min()
    around = [0.0 if coarse.any() and not axis else 0.26 for axis in coarse]
    if not volumes:
        around = [float(np.pi) if number == 0 else 0.0 for number in range(dims)]
    why = "radians about each axis: within the slices" if not all(around) else "radians about each axis, 15°"
    found["rotate_range"] = Setting(around, why)
    found["elastic_grid"] = Setting(3, "a coarse grid, as in 2015")
    if volumes:
        sigma = _rounded(2 * spacing.min())
        found["elastic_sigma"] = Setting(
            sigma, "mm, two of the shorter voxels: half of the paper's, for a short training"
        )
    else:
        sides = [_rounded(2 * spacing.min() / length) for length in spacing]
        found["elastic_sigma"] = Setting(sides, "voxels per axis; half of the paper's, for a short training")
    # unnamed classes may be the left and the right of a pair
    sided = [name for name in fingerprint.class_names if is_sided(name) or re.fullmatch(r"class \d+", name)]
    flips: Any = [0.5, 0.5, 0.5] if not volumes else [0 if sided else 0.5, 0, 0]
    why = "mirroring: not in the paper" if not volumes else "left and right swapped: not in the paper"
    if volumes and sided:
        why = f"never: {sided[0]!r} {'would' if is_sided(sided[0]) else 'might'} be on the other side"
    found["flip_prob"] = Setting(flips, why)
    if min(fingerprint.shares) < 0.1:
        why = "a third of the tiles is around a voxel of a random class, as in nnU-Net: the rarest fills "
        found["foreground_prob"] = Setting(0.33, f"{why}{min(fingerprint.shares):.2%}")
    return found


def _schedule(cost: Cost, minutes: float) -> dict[str, Setting]:
    fitting = int(VALIDATING * 60 * minutes / cost.validation) if cost.validation else VALIDATIONS
    validations = min(max(fitting, 1), VALIDATIONS)
    steps = min(max(cost.steps(minutes, validations), 2 * VALIDATIONS), MOST_STEPS)
    interval = max(math.ceil(steps / validations / 100), math.ceil(VALIDATIONS / validations))
    epochs = validations * interval  # the last one is validated
    each = round(steps / epochs)
    per = cost.seconds + cost.augmentation
    taken = _minutes(round(epochs * each * per / 60, 1))
    why = f"{epochs * each:,} steps of {per:.2g} s: {taken} and the validations, on the "
    return {
        "learning_rate": Setting(0.001, "Adam's usual one"),
        "max_epochs": Setting(epochs, f"{why}{cost.device} that planned this"),
        "steps_per_epoch": Setting(each, "training steps"),
        "val_interval": Setting(interval, f"epochs; a validation takes {cost.validation:.2g} s"),
    }


def _minutes(number: float) -> str:
    return f"{number:g} minute{'s' * (number != 1)}"


def _rounded(number: float) -> float:
    """To three digits, as people write them."""
    return float(f"{float(number):.3g}")
