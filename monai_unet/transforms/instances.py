"""Section 3: touching cells are set apart by a background ridge for training, and put together again afterwards.

The paper computes the separation border "using morphological operations", which it does not name; the rule here is
that of the authors' 2019 plugin: a voxel becomes background where one of its upper-left neighbours belongs to
another instance.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy import ndimage

__all__ = ["LabelInstances", "LabelInstancesd", "SeparateInstances", "SeparateInstancesd"]


def instance_ids(labels: NdarrayOrTensor) -> np.ndarray:
    """Instance labels (1, *spatial), 0 = background, as int32 ids of shape spatial.

    Ids far apart are renumbered in order, so that none is larger than the number of voxels + 1 and cost follows the
    number of instances rather than the largest id.

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
    becomes background: with ``connectivity`` 1 a voxel is compared with its predecessor along each axis (up and left
    in 2-D), with 2 then with its diagonal predecessors, among what is left. After that, no two instances are
    connected in that sense. Of an instance that the ridge cuts in several, the largest part stays. So
    :py:class:`LabelInstances` with the same
    ``connectivity`` finds as many instances, if each was in one piece.

    An instance that would vanish (it is one voxel wide along its contacts) is kept, and its neighbours are carved
    instead. Where a neighbour would vanish in its turn, only what does not touch it is kept: of two touching
    instances of one voxel each, the later one is lost.

    A network that cannot tell to the voxel where a contact lies learns a ridge of one voxel nowhere. With ``width``
    above 1 a corridor of that width along the line of equal distance to two instances becomes background too; it
    also widens the narrower gaps that the labels have.

    Args:
        width: of the corridor between two instances, in voxels; odd, 1 carves contacts only.
        connectivity: as in ``scipy.ndimage.generate_binary_structure``; 1 is 4-connected in 2-D, 6-connected in 3-D.
        keep_ids: return the carved instance ids (the weight map is computed on them) instead of the mask.

    Raises:
        ValueError: width or connectivity out of range; labels negative, fractional, or of several channels.

    Source: Ronneberger et al. 2015, section 3; neighbours as in the authors' plugin (Falk et al. 2019).
    """

    def __init__(self, connectivity: int = 1, keep_ids: bool = False, width: int = 1) -> None:
        if width < 1 or width % 2 == 0:
            raise ValueError(f"width is {width!r}; it must be an odd number of voxels, {max(width - 1, 1)} for one")
        self.connectivity, self.keep_ids, self.width = _checked_connectivity(connectivity), keep_ids, width

    def __call__(self, labels: NdarrayOrTensor) -> NdarrayOrTensor:
        """
        Args:
            labels: instance ids (1, H, W) or (1, H, W, D), whole numbers of any dtype, 0 = background.

        Returns:
            mask (1, *spatial) uint8, 1 = foreground; or with ``keep_ids`` the carved ids in the labels' dtype. Of
            the labels' array type; a MetaTensor keeps its meta data.
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
        nearest = ndimage.distance_transform_edt(ids == 0, return_distances=False, return_indices=True)
        middle = self._carve(ids[tuple(nearest)]) == 0
        if middle.any():
            carved[ndimage.distance_transform_edt(~middle) <= self.width // 2] = 0

    def _rescue(self, ids: np.ndarray, carved: np.ndarray) -> None:
        """Bring back instances that were carved away, at their neighbours' expense where those survive it."""
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
        """Of what was one piece and is cut in several, keep the largest: it would be counted more than once."""
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
    """Foreground to instances: connected components, parted at thin necks, with the carved ridge given back.

    Args:
        connectivity: as in ``scipy.ndimage.generate_binary_structure``; 1 is 4-connected in 2-D, 6-connected in 3-D.
        min_size: components of fewer voxels are dropped.
        fill_holes: fill the background enclosed by an instance.
        grow: give back the ridge, so that touching cells touch again: background voxels that have two different
            instances within this many steps from face to face go to the nearest one, of equally near ones to the
            later. A straight ridge is given back whole when ``grow`` is at least its width, so 1 undoes
            :py:class:`SeparateInstances` but for single voxels where three cells meet or contacts end. Outlines that
            face no other instance stay as they are.
        neck: parts of a component are instances of their own where what joins them is nowhere wider than twice this
            many voxels: what lies deeper than that below the surface are the cores, and each voxel goes to the nearest
            core of its component. With ``fill_holes``, holes of fewer than ``min_size`` voxels are no surface. 0:
            components stay as they are. A good value is the largest that parts none of the training set's instances.

    Raises:
        ValueError: a parameter is out of range; the mask is fractional (probabilities), or of several channels.
    """

    def __init__(
        self, connectivity: int = 1, min_size: int = 0, fill_holes: bool = False, grow: int = 1, neck: float = 0
    ) -> None:
        for name, value in (("min_size", min_size), ("grow", grow), ("neck", neck)):
            if value < 0:
                raise ValueError(f"{name} is {value!r}; it must be at least 0, which turns it off")
        self.connectivity = _checked_connectivity(connectivity)
        self.min_size, self.fill_holes, self.grow, self.neck = min_size, fill_holes, grow, neck

    def __call__(self, mask: NdarrayOrTensor) -> NdarrayOrTensor:
        """
        Args:
            mask: foreground (1, H, W) or (1, H, W, D), whole numbers of any dtype, foreground where not 0.

        Returns:
            ids (1, *spatial), 1 … n in array order of their components' first voxels, 0 = background; uint16, or int32
            above 65,535 instances. Of the mask's array type; a MetaTensor keeps its meta data.
        """
        foreground: np.ndarray = convert_to_numpy(mask)
        if foreground.ndim not in (3, 4) or foreground.shape[0] != 1:
            raise ValueError(f"the mask has shape {foreground.shape}; it must be (1, H, W) or (1, H, W, D)")
        if foreground.dtype.kind == "f" and not np.array_equal(foreground, np.floor(foreground)):  # NaN too
            raise ValueError("the mask holds fractional values; binarise first, as with AsDiscrete(threshold=0.5)")
        foreground = foreground[0] != 0
        structure = ndimage.generate_binary_structure(foreground.ndim, self.connectivity)
        ids, count = ndimage.label(foreground, structure, output=np.int32)
        ids, count = self._without_small(ids, count)
        if self.neck and count:
            ids, count = self._without_small(*self._part(foreground, ids, count))
        if self.fill_holes:
            self._fill_holes(ids)
        if self.grow and count > 1:
            self._give_back_ridge(ids)
        out = ids.astype(np.uint16 if count <= np.iinfo(np.uint16).max else np.int32)
        return convert_to_dst_type(out[None], mask, dtype=out.dtype)[0]

    def _without_small(self, ids: np.ndarray, count: int) -> tuple[np.ndarray, int]:
        if self.min_size <= 1:
            return ids, count
        large = np.bincount(ids.ravel(), minlength=count + 1) >= self.min_size
        large[0] = False
        return np.where(large, np.cumsum(large), 0).astype(np.int32)[ids], int(large.sum())

    def _part(self, foreground: np.ndarray, ids: np.ndarray, count: int) -> tuple[np.ndarray, int]:
        structure = ndimage.generate_binary_structure(ids.ndim, self.connectivity)
        if self.fill_holes:
            holes, _ = ndimage.label(~foreground)
            foreground = foreground | ((holes > 0) & (np.bincount(holes.ravel()) < self.min_size)[holes])
        # the image's edge is no surface: what lies beyond it is not known
        depth = ndimage.distance_transform_edt(np.pad(foreground, 1, mode="edge"))[(slice(1, -1),) * ids.ndim]
        deep = (ids > 0) & (depth > self.neck)
        cores, parts = ndimage.label(deep, structure, output=np.int32)
        owner = np.zeros(parts + 1, np.int32)
        owner[cores[deep]] = ids[deep]
        per_component = np.bincount(owner[1:], minlength=count + 1)
        taken = np.maximum(per_component, 1)  # a component without a core stays one instance
        taken[0] = 0
        before = (np.cumsum(taken) - taken).astype(np.int32)
        parted = np.where(ids, before[ids] + 1, 0).astype(np.int32)
        several = np.flatnonzero(per_component > 1)
        boxes = ndimage.find_objects(ids) if len(several) else []
        for number in several.tolist():
            box = boxes[number - 1]
            own = ids[box] == number
            mine = np.where(own, cores[box], 0)
            nearest = ndimage.distance_transform_edt(mine == 0, return_distances=False, return_indices=True)
            mine = mine[tuple(nearest)][own]
            parted[box][own] = before[number] + 1 + np.searchsorted(np.unique(mine), mine)
        return parted, int(taken.sum())

    def _fill_holes(self, ids: np.ndarray) -> None:
        # one by one: on the mask as a whole, a pocket enclosed by several cells would weld them together
        outside = ndimage.generate_binary_structure(ids.ndim, ids.ndim if self.connectivity == 1 else 1)
        for number, box in enumerate(ndimage.find_objects(ids), start=1):
            window = ids[box]
            window[ndimage.binary_fill_holes(window == number, outside) & (window == 0)] = number

    def _give_back_ridge(self, ids: np.ndarray) -> None:
        # seen from the last voxel: of two instances equally near, scipy then takes the later one, which was carved
        ids = np.flip(ids)
        highest = _within_steps(ids, self.grow, np.maximum)
        lowest = _within_steps(np.where(ids, ids, ids.max() + 1), self.grow, np.minimum)
        ridge = (ids == 0) & (lowest < highest)
        nearest = ndimage.distance_transform_edt(ids == 0, return_distances=False, return_indices=True)
        ids[ridge] = ids[tuple(nearest[:, ridge])]


class SeparateInstancesd(MapTransform):
    """Dictionary form of :py:class:`SeparateInstances`.

    Args:
        keys: items of instance ids.
        allow_missing_keys: skip absent keys.
    """

    def __init__(
        self,
        keys: KeysCollection,
        connectivity: int = 1,
        keep_ids: bool = False,
        allow_missing_keys: bool = False,
        width: int = 1,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.separate = SeparateInstances(connectivity, keep_ids, width)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Replace each key's labels; see :py:meth:`SeparateInstances.__call__`."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.separate(d[key])
        return d


class LabelInstancesd(MapTransform):
    """Dictionary form of :py:class:`LabelInstances`.

    Args:
        keys: items of foreground masks.
        allow_missing_keys: skip absent keys.
    """

    def __init__(
        self,
        keys: KeysCollection,
        connectivity: int = 1,
        min_size: int = 0,
        fill_holes: bool = False,
        grow: int = 1,
        allow_missing_keys: bool = False,
        neck: float = 0,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label = LabelInstances(connectivity, min_size, fill_holes, grow, neck)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Replace each key's mask; see :py:meth:`LabelInstances.__call__`."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.label(d[key])
        return d


def _within_steps(ids: np.ndarray, steps: int, choose: np.ufunc) -> np.ndarray:
    """The largest or smallest id within so many steps from face to face of each voxel."""
    for _ in range(steps):
        before, ids = ids, ids.copy()
        for axis in range(ids.ndim):
            here, there = np.moveaxis(ids, axis, 0), np.moveaxis(before, axis, 0)
            choose(here[1:], there[:-1], out=here[1:])
            choose(here[:-1], there[1:], out=here[:-1])
    return ids


def _checked_connectivity(connectivity: int) -> int:
    if connectivity not in (1, 2, 3):
        raise ValueError(f"connectivity is {connectivity!r}; use 1 (faces), 2 (edges) or 3 (corners, in 3-D)")
    return connectivity
