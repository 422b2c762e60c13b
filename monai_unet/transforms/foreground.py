"""Voxels on which `RandElasticDeformation` centres tiles, so that a rare class or object is seen as often as others.

A third of the tiles around foreground is what nnU-Net takes (Isensee et al. 2021, Nature Methods 18:203, supplement).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_numpy

__all__ = ["ForegroundVoxels", "ForegroundVoxelsd"]


class ForegroundVoxels(Transform):
    """List as many voxels of each class, or each instance, as of any other: a random one is of a random class.

    It depends on the labels alone, so its result can be cached.

    Args:
        samples: voxels per class, evenly spaced in array order; those of a smaller one are repeated.

    >>> ForegroundVoxels(samples=2)(np.array([[[0, 0, 0, 7, 2, 2, 2]]])).tolist()
    [[0, 4], [0, 6], [0, 3], [0, 3]]
    """

    def __init__(self, samples: int = 100) -> None:
        if samples < 1:
            raise ValueError(f"samples is {samples!r}; use at least 1 voxel per class")
        self.samples = samples

    def __call__(self, labels: NdarrayOrTensor, ignore: NdarrayOrTensor | None = None) -> np.ndarray:
        """List the voxels of one image.

        Args:
            labels: ``(1, *spatial)``, whole numbers, 0 = background.
            ignore: ``(1, *spatial)``, not 0 where nothing is labelled. In an image with such parts the labelled
                background counts as a class.

        Returns:
            (classes × samples, axes) int64, empty if all is background.
        """
        array: np.ndarray = convert_to_numpy(labels)[0]
        chosen = array != 0
        if ignore is not None and (unknown := convert_to_numpy(ignore)[0] != 0).any():
            chosen = ~unknown
        flat = np.flatnonzero(chosen)
        classes = array.reshape(-1)[flat]
        order = np.argsort(classes, kind="stable")
        _, starts, counts = np.unique(classes[order], return_index=True, return_counts=True)
        steps = np.linspace(0, 1, self.samples)
        picked = np.rint(starts[:, None] + steps * (counts[:, None] - 1)).astype(np.int64).ravel()
        return np.stack(np.unravel_index(flat[order[picked]], array.shape), axis=1)


class ForegroundVoxelsd(MapTransform):
    """Dictionary form of `ForegroundVoxels`: ``data[output_key] = voxels of data[keys]``.

    Args:
        keys: the one key of the labels, which are kept.
        output_key: key for the voxels, the ``foreground_key`` of `RandElasticDeformationd`.
        ignore_key: item that is not 0 where nothing is labelled; None if all is.
        samples: as for `ForegroundVoxels`.
        allow_missing_keys: do nothing if the key is absent.

    >>> ForegroundVoxelsd("label", samples=1)({"label": np.array([[[0, 0, 5]]])})["foreground"].tolist()
    [[0, 2]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_key: str = "foreground",
        ignore_key: str | None = None,
        samples: int = 100,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_key, self.ignore_key = output_key, ignore_key
        self.find = ForegroundVoxels(samples)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add the voxels."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.output_key] = self.find(d[key], d[self.ignore_key] if self.ignore_key else None)
        return d
