"""Section 3: touching cells are separated by a background ridge for training, and made to touch again afterwards.

The paper computes the separation border "using morphological operations", which it does not name. The rule here is
that of the authors' 2019 plugin: a voxel becomes background if one of its upper-left neighbours belongs to another
instance.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy import ndimage

from monai_unet.options import parse_bool
from monai_unet.transforms.rescale import relative_pixel_size

__all__ = ["LabelInstances", "LabelInstancesd", "SeparateInstances", "SeparateInstancesd"]


def instance_ids(labels: NdarrayOrTensor) -> np.ndarray:
    """Check instance labels ``(1, *spatial)``, 0 = background, and return them as int32 ids of shape spatial.

    Large ids are renumbered in order, so that none exceeds the number of voxels + 1, and time and memory depend on the
    number of instances instead of the largest id.

    Raises:
        ValueError: several channels, neither 2-D nor 3-D, empty, negative or fractional labels.
    """
    ids: np.ndarray = convert_to_numpy(labels)
    if ids.ndim not in (3, 4) or ids.shape[0] != 1 or ids.size == 0:
        raise ValueError(f"instance labels have shape {ids.shape}; they must be (1, H, W) or (1, H, W, D)")
    if ids.dtype.kind == "f" and not np.all(np.isfinite(ids) & (ids == np.floor(ids))):
        raise ValueError("instance labels hold fractional or non-finite values; they must be whole numbers")
    if ids.min() < 0:
        raise ValueError(f"instance labels hold {ids.min()}; they must be at least 0, 0 = background")
    ids = ids[0]
    if ids.max() > ids.size:
        values, ids = np.unique(ids, return_inverse=True)
        ids = ids + int(values[0] > 0)
    return ids.astype(np.int32)


class SeparateInstances(Transform):
    """Carve a background ridge between touching instances.

    The ridge is one voxel wide: of two neighbouring voxels of different instances, the later one in array order
    becomes background. With ``connectivity`` 1 a voxel is compared with its predecessor along each axis (up and left in
    2-D), with 2 then also with its diagonal predecessors, among what is left. After that no two instances are
    connected in this sense. If the ridge cuts an instance into pieces, only the largest remains, so that
    `LabelInstances` with the same ``connectivity`` finds as many instances as there were, provided that each was
    connected.

    An instance that would vanish (it is one voxel wide along its contacts) is kept, and its neighbours are carved
    instead. If a neighbour would vanish in its turn, only the voxels that do not touch it are kept: of two touching
    instances of one voxel each, the later one is lost.

    A network that cannot locate a contact to the voxel never learns a ridge of one voxel. With ``width`` above 1 a
    corridor of that width along the line of equal distance to two instances becomes background as well, which also
    widens narrower gaps in the labels.

    Args:
        connectivity: as in `scipy.ndimage.generate_binary_structure`; 1 is 4-connected in 2-D, 6-connected in 3-D.
        keep_ids: return the carved instance ids (for `BorderWeightMap`) instead of the mask.
        width: width of the corridor between two instances, in voxels; odd. 1 carves contacts only.
        spacing: sides of a voxel, in those by which ``width`` counts: (3, 1, 1) where planes are three times as far
            apart as pixels. The corridor is then as wide across the planes as within them, but for contacts, which
            are carved by at least a voxel. None: all are 1.

    Raises:
        ValueError: width, connectivity or spacing is out of range; labels are negative, fractional, or of several
            channels.

    Source: Ronneberger et al. 2015, section 3; neighbours as in the authors' plugin (Falk et al. 2019).

    >>> cells = np.array([[[1, 1, 2, 2], [1, 1, 2, 2]]])
    >>> SeparateInstances(keep_ids=True)(cells)
    array([[[1, 1, 0, 2],
            [1, 1, 0, 2]]])
    """

    def __init__(
        self, connectivity: int = 1, keep_ids: bool = False, width: int = 1, spacing: Sequence[float] | None = None
    ) -> None:
        if width < 1 or width % 2 == 0:
            raise ValueError(f"width is {width!r}; it must be an odd number of voxels, {max(width - 1, 1)} for one")
        self.connectivity, self.keep_ids, self.width = _checked_connectivity(connectivity), keep_ids, width
        self.spacing = _checked_spacing(spacing)

    def __call__(self, labels: NdarrayOrTensor) -> NdarrayOrTensor:
        """Carve the labels of one image.

        Args:
            labels: instance ids (1, H, W) or (1, H, W, D), whole numbers of any dtype, 0 = background.

        Returns:
            mask ``(1, *spatial)`` uint8, 1 = foreground; with ``keep_ids`` the carved ids in the labels' dtype. Of the
            labels' array type; a MetaTensor keeps its metadata.
        """
        ids = instance_ids(labels)
        carved = self._carve(ids)
        if self.width > 1 and ids.any():
            self._widen(ids, carved)
        self._rescue(ids, carved)
        self._drop_fragments(ids, carved)
        out = convert_to_numpy(labels).copy()
        out[0][carved == 0] = 0
        if not self.keep_ids:
            out = (out > 0).astype(np.uint8)
        return convert_to_dst_type(out, labels, dtype=out.dtype)[0]

    def _carve(self, ids: np.ndarray) -> np.ndarray:
        carved = ids.copy()
        offsets = np.argwhere(ndimage.generate_binary_structure(ids.ndim, self.connectivity)) - 1
        offsets = offsets[: len(offsets) // 2]  # the first half precede the centre in array order
        for order in range(1, self.connectivity + 1):  # diagonals after faces: a straight ridge stays one voxel wide
            before = carved.copy()
            for offset in offsets[np.abs(offsets).sum(1) == order].tolist():
                here = tuple(slice(max(-o, 0), n + min(-o, 0)) for o, n in zip(offset, ids.shape, strict=True))
                there = tuple(slice(max(o, 0), n + min(o, 0)) for o, n in zip(offset, ids.shape, strict=True))
                carved[here][(before[here] != before[there]) & (before[there] > 0)] = 0
        return carved

    def _widen(self, ids: np.ndarray, carved: np.ndarray) -> None:
        middle = self._carve(ids[_nearest(ids == 0, self.spacing)]) == 0
        if middle.any():
            carved[_distance(~middle, self.spacing) <= self.width // 2] = 0

    def _rescue(self, ids: np.ndarray, carved: np.ndarray) -> None:
        """Restore instances that were carved away, at the expense of neighbours that survive it."""
        structure = ndimage.generate_binary_structure(ids.ndim, self.connectivity)
        left = np.bincount(carved.ravel(), minlength=ids.max() + 1)
        lost = np.flatnonzero((np.bincount(ids.ravel()) > 0) & (left == 0))
        boxes = ndimage.find_objects(ids) if lost.any() else []
        for number in lost[lost > 0].tolist():
            window = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in boxes[number - 1])
            own, around = ids[window] == number, carved[window]
            rim = ndimage.binary_dilation(own, structure) & (around > 0)
            neighbours, taken = np.unique(around[rim], return_counts=True)
            if (taken < left[neighbours]).all():
                around[rim] = 0
                left[neighbours] -= taken
            else:
                own &= ~ndimage.binary_dilation(rim, structure)
            around[own] = number
            left[number] = own.sum()

    def _drop_fragments(self, ids: np.ndarray, carved: np.ndarray) -> None:
        """Keep only the largest fragment of a piece that was cut: it would be counted more than once."""
        structure = ndimage.generate_binary_structure(ids.ndim, self.connectivity)
        fragments, count = ndimage.label(carved, structure)
        size = np.bincount(fragments.ravel(), minlength=count + 1)
        owner = np.zeros(count + 1, dtype=ids.dtype)
        owner[fragments] = carved
        several = np.flatnonzero(np.bincount(owner[1:]) > 1)
        boxes = ndimage.find_objects(ids) if len(several) else []
        for number in several.tolist():
            window = boxes[number - 1]
            inside = np.where(carved[window] == number, fragments[window], 0)
            pieces, n = ndimage.label(ids[window] == number, structure)
            for piece in range(1, n + 1):
                parts = np.unique(inside[(pieces == piece) & (inside > 0)])
                if len(parts) > 1:
                    carved[window][np.isin(inside, np.delete(parts, size[parts].argmax()))] = 0


class LabelInstances(Transform):
    """Find the instances of a mask: connected components, split at necks and doubts, with the carved ridge given back.

    Args:
        connectivity: as in `scipy.ndimage.generate_binary_structure`; 1 is 4-connected in 2-D, 6-connected in 3-D.
        min_size: components of fewer voxels are dropped.
        fill_holes: fill the background enclosed by an instance.
        grow: give back the ridge, so that touching cells touch again: a background voxel that has two different
            instances within this many steps from face to face goes to the nearest one (the later one if equally near).
            A straight ridge is given back completely if ``grow`` is at least its width, so 1 undoes `SeparateInstances`
            except for single voxels where three cells meet or contacts end. Outlines that face no other instance stay.
            Along an axis of longer voxels, see ``spacing``, there are fewer steps, but always one.
        neck: split a component where its parts are joined by necks no wider than twice this many voxels: the voxels
            deeper than that below the surface are the cores, and each voxel goes to the nearest core of its component.
            With ``fill_holes``, holes of fewer than ``min_size`` voxels do not count as surface. 0 never splits. A good
            value is the largest that splits no instance of the training set.
        core: split a component where its parts are joined by voxels that the network doubts, as it does where it sees
            a ridge, but not clearly. The mask is then the probability of the foreground, and the cores are those of its
            regions of at least ``min_size`` voxels above ``core``. 0 never splits; None: the mask has no probabilities.
        spacing: sides of a voxel, in those by which ``grow`` and ``neck`` count, see `SeparateInstances`; None: all are
            1.

    Raises:
        ValueError: a parameter is out of range; the mask has several channels, is fractional (probabilities) without
            ``core``, or not from 0 to 1 with it.

    Source: Ronneberger et al. 2015, section 3; ``core`` is not in the paper.

    >>> mask = np.array([[[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0]]])
    >>> LabelInstances()(mask)
    array([[[1, 1, 2, 2],
            [1, 1, 2, 2],
            [0, 0, 0, 0]]], dtype=uint16)
    >>> LabelInstances(core=0.7)(np.array([[[0.9, 0.8, 0.6, 0.9, 0, 0, 0.6]]]))
    array([[[1, 1, 1, 2, 0, 0, 3]]], dtype=uint16)
    """

    def __init__(
        self,
        connectivity: int = 1,
        min_size: int = 0,
        fill_holes: bool = False,
        grow: int = 1,
        neck: float = 0,
        spacing: Sequence[float] | None = None,
        core: float | None = None,
    ) -> None:
        if core is not None and not 0 <= core <= 1:
            raise ValueError(f"core is {core!r}; it must be a probability, from 0 to 1")
        for name, value in (("min_size", min_size), ("grow", grow), ("neck", neck)):
            if value < 0:
                raise ValueError(f"{name} is {value!r}; it must be at least 0, which turns it off")
        self.connectivity = _checked_connectivity(connectivity)
        self.min_size, self.grow, self.neck, self.core = min_size, grow, neck, core
        self.spacing = _checked_spacing(spacing)
        self.fill_holes = parse_bool("fill_holes", fill_holes)

    def __call__(self, mask: NdarrayOrTensor) -> NdarrayOrTensor:
        """Label the instances of one image.

        Args:
            mask: (1, H, W) or (1, H, W, D), whole numbers of any dtype, foreground where not 0. With ``core``, the
                probability of the foreground where it is foreground, else 0.

        Returns:
            ids ``(1, *spatial)``, 1 … n in the array order of the components' first voxels, 0 = background; uint16, or
            int32 above 65,535 instances. Of the mask's array type; a MetaTensor keeps its metadata.
        """
        values: np.ndarray = convert_to_numpy(mask)
        if values.ndim not in (3, 4) or values.shape[0] != 1:
            raise ValueError(f"the mask has shape {values.shape}; it must be (1, H, W) or (1, H, W, D)")
        if self.core is not None and not np.all((values >= 0) & (values <= 1)):  # NaN too
            raise ValueError("the mask holds values that are no probabilities from 0 to 1, which core needs")
        if self.core is None and values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
            raise ValueError("the mask holds fractional values; binarise first, as with AsDiscrete(threshold=0.5)")
        foreground = values[0] != 0
        structure = ndimage.generate_binary_structure(foreground.ndim, self.connectivity)
        ids, count = ndimage.label(foreground, structure, output=np.int32)
        ids, count = self._without_small(ids, count)
        if (self.neck or self.core) and count:
            sure = foreground
            if self.core:
                sure = self._without_small(*ndimage.label(values[0] > self.core, structure, output=np.int32))[0] > 0
            ids, count = self._without_small(*self._split(foreground, sure, ids, count))
        if self.fill_holes:
            self._fill_holes(ids)
        if self.grow and count > 1:
            self._give_back_ridge(ids)
        out = ids.astype(np.uint16 if count <= np.iinfo(np.uint16).max else np.int32)
        return convert_to_dst_type(out[None], mask, dtype=out.dtype)[0]

    def in_pixels_of(self, ratio: Sequence[float] | np.ndarray) -> LabelInstances:
        """Convert the rules to pixels that are this many times as large, per axis.

        >>> rules = LabelInstances(min_size=40, grow=1, neck=2).in_pixels_of((0.5, 0.5))
        >>> rules.min_size, rules.grow, rules.neck
        (160, 2, 4.0)
        """
        length = float(np.prod(ratio) ** (1 / len(ratio)))
        return LabelInstances(
            self.connectivity,
            round(self.min_size / float(np.prod(ratio))),
            self.fill_holes,
            math.ceil(round(self.grow / length, 3)),
            self.neck / length,
            None if self.spacing is None else [float(side) for side in np.multiply(self.spacing, ratio) / length],
            self.core,
        )

    def _without_small(self, ids: np.ndarray, count: int) -> tuple[np.ndarray, int]:
        if self.min_size <= 1:
            return ids, count
        large = np.bincount(ids.ravel(), minlength=count + 1) >= self.min_size
        large[0] = False
        return np.where(large, np.cumsum(large), 0).astype(np.int32)[ids], int(large.sum())

    def _split(self, foreground: np.ndarray, sure: np.ndarray, ids: np.ndarray, count: int) -> tuple[np.ndarray, int]:
        """Split each component into the parts nearest to its cores, the voxels deep within what is sure."""
        structure = ndimage.generate_binary_structure(ids.ndim, self.connectivity)
        if self.fill_holes:
            holes, _ = ndimage.label(~foreground)  # not of what is sure: a ridge that is doubted is no hole
            sure = sure | ((holes > 0) & (np.bincount(holes.ravel()) < self.min_size)[holes])
        deep = (ids > 0) & sure
        if self.neck:  # the edge of the image does not count as surface: what is beyond it is unknown
            depth = _distance(np.pad(sure, 1, mode="edge"), self.spacing)[(slice(1, -1),) * ids.ndim]
            deep &= depth > self.neck
        cores, parts = ndimage.label(deep, structure, output=np.int32)
        owner = np.zeros(parts + 1, np.int32)
        owner[cores[deep]] = ids[deep]
        per_component = np.bincount(owner[1:], minlength=count + 1)
        taken = np.maximum(per_component, 1)  # a component without a core stays one instance
        taken[0] = 0
        before = (np.cumsum(taken) - taken).astype(np.int32)
        divided = np.where(ids, before[ids] + 1, 0).astype(np.int32)
        several = np.flatnonzero(per_component > 1)
        boxes = ndimage.find_objects(ids) if len(several) else []
        for number in several.tolist():
            box = boxes[number - 1]
            own = ids[box] == number
            mine = np.where(own, cores[box], 0)
            mine = mine[_nearest(mine == 0, self.spacing)][own]
            divided[box][own] = before[number] + 1 + np.searchsorted(np.unique(mine), mine)
        return divided, int(taken.sum())

    def _fill_holes(self, ids: np.ndarray) -> None:
        # one by one: in the whole mask, filling a pocket between several cells would merge them
        outside = ndimage.generate_binary_structure(ids.ndim, ids.ndim if self.connectivity == 1 else 1)
        for number, box in enumerate(ndimage.find_objects(ids), start=1):
            window = ids[box]
            window[ndimage.binary_fill_holes(window == number, outside) & (window == 0)] = number

    def _give_back_ridge(self, ids: np.ndarray) -> None:
        # flipped, because of two equally near instances scipy then takes the later one, which was carved
        ids = np.flip(ids)
        steps = [max(int(self.grow / side), 1) for side in self.spacing or (1,) * ids.ndim]
        highest = _within_steps(ids, steps, np.maximum)
        lowest = _within_steps(np.where(ids, ids, ids.max() + 1), steps, np.minimum)
        ridge = (ids == 0) & (lowest < highest)
        ids[ridge] = ids[_nearest(ids == 0, self.spacing)][ridge]


class SeparateInstancesd(MapTransform):
    """Dictionary form of `SeparateInstances`.

    Args:
        keys: items of instance ids.
        allow_missing_keys: skip absent keys.
        args, kwargs: as for `SeparateInstances`.

    >>> separate = SeparateInstancesd("label", keep_ids=True)
    >>> separate({"label": np.array([[[1, 1, 2, 2]]])})["label"]
    array([[[1, 1, 0, 2]]])
    """

    def __init__(self, keys: KeysCollection, *args: Any, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(keys, allow_missing_keys)
        self.separate = SeparateInstances(*args, **kwargs)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Replace the labels of each key, as `SeparateInstances` does."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.separate(d[key])
        return d


class LabelInstancesd(MapTransform):
    """Dictionary form of `LabelInstances`.

    Args:
        keys: items of foreground masks.
        pixel_size_um: µm per axis of the pixels in which ``min_size``, ``grow`` and ``neck`` are given. They are
            converted for a mask whose own pixels are known to be of another size.
        rescale: if false, they are not, as `RescaleToPixelSized` leaves the image as it is if ``enabled`` is false;
            "true" and "false" are taken, too.
        allow_missing_keys: skip absent keys.
        args, kwargs: as for `LabelInstances`.

    >>> label = LabelInstancesd("pred", min_size=2)
    >>> label({"pred": np.array([[[1, 0, 0, 1, 1]]])})["pred"]
    array([[[0, 0, 0, 1, 1]]], dtype=uint16)
    """

    def __init__(
        self,
        keys: KeysCollection,
        *args: Any,
        pixel_size_um: Sequence[float] | None = None,
        rescale: bool | str = True,
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixel_size_um = pixel_size_um if parse_bool("rescale", rescale) else None
        self.label = LabelInstances(*args, **kwargs)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Replace the mask of each key, as `LabelInstances` does."""
        d = dict(data)
        for key in self.key_iterator(d):
            label = self.label
            if self.pixel_size_um is not None:
                ratio = relative_pixel_size(d[key], self.pixel_size_um)
                label = label if np.isnan(ratio).any() else label.in_pixels_of(ratio)
            d[key] = label(d[key])
        return d


def _within_steps(ids: np.ndarray, steps: Sequence[int], choose: np.ufunc) -> np.ndarray:
    """The largest or smallest id within this many steps from face to face, at most these along each axis."""
    for step in range(max(steps)):
        before, ids = ids, ids.copy()
        for axis in range(ids.ndim):
            if step >= steps[axis]:
                continue
            here, there = np.moveaxis(ids, axis, 0), np.moveaxis(before, axis, 0)
            choose(here[1:], there[:-1], out=here[1:])
            choose(here[:-1], there[1:], out=here[:-1])
    return ids


def _distance(mask: np.ndarray, spacing: Sequence[float] | None) -> np.ndarray:
    """From each voxel of a mask to the nearest one outside of it."""
    out: np.ndarray = ndimage.distance_transform_edt(mask, sampling=spacing)
    return out


def _nearest(mask: np.ndarray, spacing: Sequence[float] | None) -> tuple[np.ndarray, ...]:
    """The indices of the nearest voxel outside of a mask, for each of its voxels; the voxel itself elsewhere."""
    return tuple(ndimage.distance_transform_edt(mask, sampling=spacing, return_distances=False, return_indices=True))


def _checked_spacing(spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    if spacing is not None and not min(spacing) > 0:
        raise ValueError(f"spacing is {spacing!r}; the sides of a voxel are above 0")
    return None if spacing is None else tuple(map(float, spacing))


def _checked_connectivity(connectivity: int) -> int:
    if connectivity not in (1, 2, 3):
        raise ValueError(f"connectivity is {connectivity!r}; use 1 (faces), 2 (edges) or 3 (corners, in 3-D)")
    return connectivity
