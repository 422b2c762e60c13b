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
    if ids.dtype.kind == "f" and not np.array_equal(ids, np.floor(ids)):  # NaN is unequal to itself
        raise ValueError("instance labels hold fractional values; they must be whole numbers, 0 = background")
    if ids.min() < 0:
        raise ValueError(f"instance labels hold {ids.min()}; they must be at least 0, 0 = background")
    ids = ids[0]
    if ids.max() > ids.size:
        values, ids = np.unique(ids, return_inverse=True)
        ids = ids + int(values[0] > 0)
    return ids.astype(np.int32)


class SeparateInstances(Transform):
    """Carve a thin background ridge between touching instances.

    Of two neighbouring voxels of different instances, the later one in array order becomes background: with
    ``connectivity`` 1 a voxel is compared with its predecessor along each axis (up and left in 2-D), with 2 with its
    diagonal predecessors too. After that, no two instances are connected in that sense, so
    :py:class:`LabelInstances` with the same ``connectivity`` counts them as they were, unless an instance was in
    several pieces or narrower than two voxels where it touched.

    An instance that would vanish (one voxel wide along its contact) is kept, and its neighbours are carved instead.
    Only where both cannot stay, as with two touching instances of one voxel each, the later one is lost.

    Args:
        connectivity: as in ``scipy.ndimage.generate_binary_structure``; 1 is 4-connected in 2-D, 6-connected in 3-D.
        keep_ids: return the carved instance ids (the weight map is computed on them) instead of the mask.

    Raises:
        ValueError: connectivity out of range; labels negative, fractional, or of several channels.

    Source: Ronneberger et al. 2015, section 3; neighbours as in the authors' plugin (Falk et al. 2019).
    """

    def __init__(self, connectivity: int = 1, keep_ids: bool = False) -> None:
        self.connectivity, self.keep_ids = _checked_connectivity(connectivity), keep_ids

    def __call__(self, labels: NdarrayOrTensor) -> NdarrayOrTensor:
        """
        Args:
            labels: instance ids (1, H, W) or (1, H, W, D), whole numbers of any dtype, 0 = background.

        Returns:
            mask (1, *spatial) uint8, 1 = foreground; or with ``keep_ids`` the carved ids in the labels' dtype. Of
            the labels' array type; a MetaTensor keeps its meta data.
        """
        ids = instance_ids(labels)
        ridge = self._ridge(ids, np.zeros(ids.max() + 1, dtype=bool))
        lost = _lost(ids, ridge)
        if lost.any():
            other = self._ridge(ids, lost)
            if _lost(ids, other).sum() < lost.sum():
                ridge = other
        out = convert_to_numpy(labels).copy()
        out[0][ridge] = 0
        if not self.keep_ids:
            out = (out > 0).astype(np.uint8)
        return convert_to_dst_type(out, labels, dtype=out.dtype)[0]

    def _ridge(self, ids: np.ndarray, spared: np.ndarray) -> np.ndarray:
        """The voxels to carve; of a pair, a spared instance's voxel only when the other's is spared too."""
        ridge = np.zeros(ids.shape, dtype=bool)
        structure = ndimage.generate_binary_structure(ids.ndim, self.connectivity)
        offsets = np.argwhere(structure) - 1
        for offset in offsets[: len(offsets) // 2].tolist():  # the first half precede the centre in array order
            here = tuple(slice(max(-o, 0), n + min(-o, 0)) for o, n in zip(offset, ids.shape, strict=True))
            there = tuple(slice(max(o, 0), n + min(o, 0)) for o, n in zip(offset, ids.shape, strict=True))
            later, earlier = ids[here], ids[there]
            touching = (later != earlier) & (later > 0) & (earlier > 0)
            keep_later = touching.copy()
            keep_later[touching] = spared[later[touching]] & ~spared[earlier[touching]]
            ridge[here] |= touching & ~keep_later
            ridge[there] |= keep_later
        return ridge


class LabelInstances(Transform):
    """Foreground to instances: connected components, with the carved ridge given back.

    Args:
        connectivity: as in ``scipy.ndimage.generate_binary_structure``; 1 is 4-connected in 2-D, 6-connected in 3-D.
        min_size: components of fewer voxels are dropped.
        fill_holes: fill the background enclosed by an instance.
        grow: give back the ridge, so that touching cells touch again: background voxels that have two different
            instances within this many voxels, diagonals included, go to the nearest one. A ridge is given back whole
            when ``grow`` is at least its width; 1 undoes :py:class:`SeparateInstances`, but for which of the two
            instances a ridge voxel came from. Outlines that face no other instance stay as they are.

    Raises:
        ValueError: a parameter is out of range; the mask is fractional (probabilities), or of several channels.
    """

    def __init__(self, connectivity: int = 1, min_size: int = 0, fill_holes: bool = False, grow: int = 1) -> None:
        for name, value in (("min_size", min_size), ("grow", grow)):
            if value < 0:
                raise ValueError(f"{name} is {value!r}; it must be at least 0, which turns it off")
        self.connectivity = _checked_connectivity(connectivity)
        self.min_size, self.fill_holes, self.grow = min_size, fill_holes, grow

    def __call__(self, mask: NdarrayOrTensor) -> NdarrayOrTensor:
        """
        Args:
            mask: foreground (1, H, W) or (1, H, W, D), whole numbers of any dtype, foreground where not 0.

        Returns:
            ids (1, *spatial), 1 … n in array order of their first voxels, 0 = background; uint16, or int32 above
            65,535 instances. Of the mask's array type; a MetaTensor keeps its meta data.
        """
        foreground: np.ndarray = convert_to_numpy(mask)
        if foreground.ndim not in (3, 4) or foreground.shape[0] != 1:
            raise ValueError(f"the mask has shape {foreground.shape}; it must be (1, H, W) or (1, H, W, D)")
        if foreground.dtype.kind == "f" and not np.array_equal(foreground, np.floor(foreground)):
            raise ValueError("the mask holds fractional values; binarise first, as with AsDiscrete(threshold=0.5)")
        foreground = foreground[0] != 0
        structure = ndimage.generate_binary_structure(foreground.ndim, self.connectivity)
        ids, count = ndimage.label(foreground, structure, output=np.int32)
        if self.min_size > 1:
            large = np.bincount(ids.ravel(), minlength=count + 1) >= self.min_size
            large[0] = False
            count = int(large.sum())
            ids = np.where(large, np.cumsum(large), 0).astype(np.int32)[ids]
        if self.fill_holes:
            self._fill_holes(ids)
        if self.grow and count > 1:
            self._give_back_ridge(ids)
        out = ids.astype(np.uint16 if count <= np.iinfo(np.uint16).max else np.int32)
        return convert_to_dst_type(out[None], mask, dtype=out.dtype)[0]

    def _fill_holes(self, ids: np.ndarray) -> None:
        # one by one: on the mask as a whole, a pocket enclosed by several cells would weld them together
        outside = ndimage.generate_binary_structure(ids.ndim, ids.ndim + 1 - self.connectivity)
        for number, box in enumerate(ndimage.find_objects(ids), start=1):
            window = ids[box]
            window[ndimage.binary_fill_holes(window == number, outside) & (window == 0)] = number

    def _give_back_ridge(self, ids: np.ndarray) -> None:
        size, absent = 2 * self.grow + 1, ids.max() + 1
        highest = ndimage.maximum_filter(ids, size, mode="nearest")
        lowest = ndimage.minimum_filter(np.where(ids, ids, absent), size, mode="nearest")
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
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.separate = SeparateInstances(connectivity, keep_ids)

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
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label = LabelInstances(connectivity, min_size, fill_holes, grow)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Replace each key's mask; see :py:meth:`LabelInstances.__call__`."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.label(d[key])
        return d


def _lost(ids: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Per id: whether the ridge takes all of its voxels."""
    lost: np.ndarray = np.bincount(ids.ravel()) > 0
    lost[ids[~ridge]] = False
    lost[0] = False
    return lost


def _checked_connectivity(connectivity: int) -> int:
    if connectivity not in (1, 2, 3):
        raise ValueError(f"connectivity is {connectivity!r}; use 1 (faces), 2 (edges) or 3 (corners, in 3-D)")
    return connectivity
