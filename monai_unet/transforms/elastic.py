"""Section 3.1: elastic deformation; rotation, shift, mirroring and scaling in the same single interpolation.

"We generate smooth deformations using random displacement vectors on a coarse 3 by 3 grid. The displacements are
sampled from a Gaussian distribution with 10 pixels standard deviation. Per-pixel displacements are then computed
using bicubic interpolation." The *displacements* are interpolated, never the coordinates, so that sigma = 0 is the
identity for every size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.transforms.utils import create_rotate
from monai.utils import convert_to_dst_type, ensure_tuple_rep
from torch import Tensor
from torch.nn import functional as F

from monai_unet.options import parse_bool, parse_choice
from monai_unet.transfers import send

__all__ = ["RandElasticDeformation", "RandElasticDeformationd"]

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("reflection", "border", "zeros")
#: torch cannot gather from these types, but from the same bits read as the signed type of the same width
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class RandElasticDeformation(RandomizableTransform):
    """Deform an image by a smooth random field; rotate, shift, mirror and scale it in the same interpolation.

    Output voxel ``o`` reads the input at ``centre + R·F/S·(o − tile centre) + shift + displacement(o)``, with rotation
    R, mirroring F and magnification S, all in voxels of the input, in the axis order of the array. Beyond the edge the
    image is mirrored about its outermost voxels (numpy's "reflect").

    Args:
        grid_size: nodes of the coarse grid, which spans the output tile from corner to corner; one number or one per
            axis, at least 2: fewer along an axis with few voxels keep the deformation equally smooth.
        sigma: standard deviation of the node displacements, in voxels; one number or one per axis.
        prob: probability of transforming at all; otherwise the tile is cut out unchanged.
        mode: "bilinear" (trilinear in 3-D), "nearest" (for labels: keeps dtype and values) or, in 2-D, "bicubic".
        padding_mode: "reflection", "border" or "zeros".
        spatial_size: size of the output tile, one number or one per axis, which may exceed that of the image; None for
            the size of the input.
        rotate_range: the angle is uniform in ± this many radians, in voxel space; positive angles turn like
            ``torch.rot90(image, 1, (1, 2))``. In 3-D one number for all rotation axes, or one per axis.
        translate_range: the shift is uniform in ± this many voxels; one number or one per axis.
        random_center: centre the tile on a voxel drawn uniformly from the image (regardless of ``prob``) instead of on
            the image's centre.
        foreground_prob: probability of drawing this voxel from a list instead, such as that of `ForegroundVoxels`, if
            there is one.
        flip_prob: probability of mirroring each axis independently; one number or one per axis.
        sigma_in_mm: ``sigma`` is in the unit of the MetaTensor's affine (millimetres) instead of voxels.
        scale_range: the image is magnified by a factor uniform in 1 ± this, the same for all axes; or one range per
            axis, with independent factors. Below 1. From the 3-D U-Net (Çiçek et al. 2016, section 3).

    Raises:
        ValueError: a parameter is out of range, or does not fit the number of axes of the input.

    Source: Ronneberger et al. 2015, section 3.1; mirroring beyond the edge as in their Fig. 2.

    >>> deform = RandElasticDeformation(sigma=10, rotate_range=3.14, spatial_size=572).set_random_state(seed=0)
    >>> deform(torch.rand(1, 512, 512)).shape
    torch.Size([1, 572, 572])
    >>> deform.nodes.shape  # the node displacements just drawn: 2 components on a 3 × 3 grid
    (2, 3, 3)
    """

    def __init__(
        self,
        grid_size: int | Sequence[int] = 3,
        sigma: float | Sequence[float] = 10.0,
        prob: float = 1.0,
        mode: str = "bilinear",
        padding_mode: str = "reflection",
        *,
        spatial_size: int | Sequence[int] | None = None,
        rotate_range: float | Sequence[float] = 0.0,
        translate_range: float | Sequence[float] = 0.0,
        random_center: bool = False,
        flip_prob: float | Sequence[float] = 0.0,
        sigma_in_mm: bool = False,
        scale_range: float | Sequence[float] = 0.0,
        foreground_prob: float = 0.0,
    ) -> None:
        if np.asarray(grid_size).dtype.kind != "i" or np.min(grid_size) < 2:
            raise ValueError(f"grid_size is {grid_size!r}; it must be a whole number of at least 2, the paper's is 3")
        if not np.all(np.isfinite(sigma)) or np.min(sigma) < 0:
            raise ValueError(f"sigma is {sigma!r}; a standard deviation is finite and at least 0, the paper's is 10")
        for name, value in (("prob", prob), ("flip_prob", flip_prob), ("foreground_prob", foreground_prob)):
            if not (np.min(value) >= 0 and np.max(value) <= 1):
                raise ValueError(f"{name} is {value!r}; a probability is in 0 ... 1")
        if spatial_size is not None and np.min(spatial_size) < 1:
            raise ValueError(f"spatial_size is {spatial_size!r}; use at least 1 voxel per axis, or None")
        for name, value in (("rotate_range", rotate_range), ("translate_range", translate_range)):
            if not np.all(np.isfinite(value)):
                raise ValueError(f"{name} is {value!r}; it must be finite, 0 turns it off")
        if not (np.min(scale_range) >= 0 and np.max(scale_range) < 1):
            raise ValueError(f"scale_range is {scale_range!r}; it must be at least 0, which turns it off, and below 1")
        if foreground_prob and not parse_bool("random_center", random_center):
            raise ValueError(
                f"foreground_prob is {foreground_prob!r}, but tiles have a fixed centre; use random_center"
            )
        RandomizableTransform.__init__(self, prob)
        self.grid_size = grid_size
        self.sigma = sigma
        self.mode = parse_choice("mode", mode, MODES)
        self.padding_mode = parse_choice("padding_mode", padding_mode, PADDING_MODES)
        self.spatial_size = spatial_size
        self.rotate_range = rotate_range
        self.translate_range = translate_range
        self.random_center = parse_bool("random_center", random_center)
        self.flip_prob = flip_prob
        self.sigma_in_mm = sigma_in_mm
        self.scale_range = scale_range
        self.foreground_prob = foreground_prob

    def randomize(self, data: NdarrayOrTensor, foreground: NdarrayOrTensor | None = None) -> None:
        """Draw the node vectors, angles, shift, mirroring, tile centre and scale for an image ``(C, *spatial)``.

        Args:
            data: the image.
            foreground: voxels on which the tile may be centred (voxels, axes), used with ``foreground_prob``.
        """
        super().randomize(None)
        rank = _rank(data)
        sigma = _per_axis("sigma", self.sigma, rank)
        if self.sigma_in_mm:
            if not isinstance(data, MetaTensor):
                raise ValueError(
                    f"sigma_in_mm needs a MetaTensor, whose affine holds the voxel size, and got a "
                    f"{type(data).__name__}; load with LoadImaged, or give sigma in voxels"
                )
            sigma = sigma / data.affine[:-1, :rank].norm(dim=0).numpy(force=True)
        nodes = self.R.normal(size=(rank, *_per_axis("grid_size", self.grid_size, rank)))
        #: displacements at the nodes, in voxels: (rank, *grid_size), float64
        self.nodes: np.ndarray = nodes * sigma.reshape(-1, *(1,) * rank)
        turns = _per_axis("rotate_range", self.rotate_range, 1 if rank == 2 else 3)
        self.angles: np.ndarray = self.R.uniform(-1, 1, len(turns)) * turns
        self.shift: np.ndarray = self.R.uniform(-1, 1, rank) * _per_axis("translate_range", self.translate_range, rank)
        self.flips: np.ndarray = self.R.uniform(size=rank) < _per_axis("flip_prob", self.flip_prob, rank)
        self.center: np.ndarray = self.R.uniform(size=rank)
        self.scale: np.ndarray = np.ones(rank)
        if np.any(self.scale_range):  # last and only if needed, so that it does not change the other draws of a seed
            ranges = _per_axis("scale_range", self.scale_range, rank)
            self.scale = 1 + self.R.uniform(-1, 1, np.size(self.scale_range)) * ranges
        voxels = np.empty((0, rank)) if foreground is None else np.asarray(foreground)
        if self.foreground_prob and len(voxels) and self.R.uniform() < self.foreground_prob:
            self.center = (voxels[self.R.randint(len(voxels))] + 0.5) / data.shape[1:]

    def displacement(self, spatial_size: Sequence[int], device: torch.device | None = None) -> Tensor:
        """Interpolate the drawn field on a tile of this size: ``(rank, *spatial_size)`` float32, in voxels.

        Cubic convolution (a = −0.75) of ``self.nodes``, one axis after another, with nodes on the tile's corners.
        """
        field = _sent(self.nodes, device)
        for nodes, n in zip(self.nodes.shape[1:], spatial_size, strict=True):
            # consumes the first axis, appends the new one
            field = torch.tensordot(field, _cubic_convolution(nodes, n, device), dims=([1], [1]))
        return field

    def coordinates(self, input_size: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, bool]:
        """Compute the position in an input of this size that each output voxel reads.

        Returns:
            ``(rank, *tile)`` float32, in voxels of the input, before mirroring at the edge; and whether all positions
            are voxel centres, so that nothing needs to be interpolated.
        """
        rank = len(input_size)
        tile = tuple(input_size)
        if self.spatial_size is not None:
            tile = tuple(_per_axis("spatial_size", self.spatial_size, rank).tolist())
        old, new = np.asarray(input_size), np.asarray(tile)
        # starts on a voxel, as MONAI's crops do: a tile of other parity must not be shifted by half a voxel
        start = np.floor(self.center * old).astype(int) - new // 2 if self.random_center else (old - new) // 2
        middle = (new - 1) / 2
        matrix, target = np.eye(rank), start + middle
        if self._do_transform:
            angles = -self.angles
            turn = create_rotate(rank, float(angles[0]) if rank == 2 else angles.tolist())[:rank, :rank]
            matrix = np.asarray(turn) * np.where(self.flips, -1.0, 1.0) / self.scale
            target = target + self.shift
        straight = not (self._do_transform and self.nodes.any())
        field = torch.zeros((rank, *tile), device=device) if straight else self.displacement(tile, device)
        for i in range(rank):
            for j in range(rank):
                if i != j and matrix[i, j] == 0:
                    continue
                line = matrix[i, j] * (np.arange(new[j]) - middle[j]) + (target[i] if i == j else 0.0)
                shape = [-1 if axis == j else 1 for axis in range(rank)]
                field[i] += _sent(line, device).reshape(shape)
        first = target - matrix @ middle
        off = abs(first - first.round()) + abs(matrix - matrix.round()) @ (new - 1)
        return field, straight and bool(off.max() < 1e-3)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Deform an image.

        Args:
            img: (C, H, W) or (C, H, W, D); numpy array, tensor or MetaTensor.
            randomize: draw new parameters; False applies the last ones again.

        Returns:
            ``(C, *spatial_size)``, of the input's array type and on its device: float32 or, with mode "nearest", the
            input's dtype. A MetaTensor keeps its metadata; as with MONAI's Rand2DElastic, the affine is not changed.
        """
        if randomize:
            self.randomize(img)
        coordinates, on_voxels = self.coordinates(img.shape[1:], _plain(img).device)
        if self.padding_mode == "reflection":
            coordinates = _mirrored(coordinates, img.shape[1:])
        (out,) = _sample([img], coordinates, on_voxels, self.mode, self.padding_mode)
        return out


class RandElasticDeformationd(RandomizableTransform, MapTransform):
    """Dictionary form of `RandElasticDeformation`: every key gets the same field.

    Args:
        keys: channel-first items of one spatial shape (image, label, weight map).
        mode: for all keys, or one per key.
        padding_mode: for all keys, or one per key.
        foreground_key: item with the voxels on which tiles may be centred, as for `RandElasticDeformation.randomize`.
        allow_missing_keys: skip absent keys.
        grid_size, sigma, prob, kwargs: as for `RandElasticDeformation`. ``sigma_in_mm`` uses the first key's affine.

    Raises:
        ValueError: as `RandElasticDeformation`.

    >>> deform = RandElasticDeformationd(["image", "label"], mode=["bilinear", "nearest"], flip_prob=0.5)
    >>> item = {"image": torch.rand(1, 96, 96), "label": torch.randint(0, 3, (1, 96, 96))}
    >>> out = deform.set_random_state(seed=0)(item)
    >>> out["image"].dtype, out["label"].dtype
    (torch.float32, torch.int64)
    """

    def __init__(
        self,
        keys: KeysCollection,
        grid_size: int | Sequence[int] = 3,
        sigma: float | Sequence[float] = 10.0,
        prob: float = 1.0,
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "reflection",
        *,
        foreground_key: str = "foreground",
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.deformation = RandElasticDeformation(grid_size, sigma, prob, **kwargs)
        self.foreground_key = foreground_key
        self.mode = [parse_choice("mode", m, MODES) for m in ensure_tuple_rep(mode, len(self.keys))]
        paddings = ensure_tuple_rep(padding_mode, len(self.keys))
        self.padding_mode = [parse_choice("padding_mode", p, PADDING_MODES) for p in paddings]

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandElasticDeformationd:
        """Set the random state, as MONAI's ``Compose.set_random_state`` does."""
        super().set_random_state(seed, state)
        self.deformation.set_random_state(seed, state)
        return self

    def randomize(self, data: NdarrayOrTensor, foreground: NdarrayOrTensor | None = None) -> None:
        """Draw once for all keys."""
        self.deformation.randomize(data, foreground)
        self._do_transform = self.deformation._do_transform

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Deform each key of ``data``, as `RandElasticDeformation` does.

        Raises:
            ValueError: the keys' spatial shapes differ.
        """
        d = dict(data)
        groups: dict[tuple[str, str], list[Hashable]] = {}  # keys of the same modes are read together
        for key, mode, padding_mode in self.key_iterator(d, self.mode, self.padding_mode):
            groups.setdefault((mode, padding_mode), []).append(key)
        if not groups:
            return d
        first = d[self.first_key(d)]
        self.randomize(first, d.get(self.foreground_key))
        shapes = {key: tuple(d[key].shape[1:]) for key in self.key_iterator(d)}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"the keys' spatial shapes differ: {shapes}; image, label and weights must match")
        coordinates, on_voxels = self.deformation.coordinates(first.shape[1:], _plain(first).device)
        mirrored = _mirrored(coordinates, first.shape[1:])
        for (mode, padding_mode), keys in groups.items():
            where = mirrored if padding_mode == "reflection" else coordinates
            d.update(zip(keys, _sample([d[key] for key in keys], where, on_voxels, mode, padding_mode), strict=True))
        return d


def _waits(device: torch.device) -> bool:
    """Whether reading a value from this device makes the CPU wait until the device has done all its queued work."""
    return device.type != "cpu"


def _sent(values: np.ndarray, device: torch.device | None) -> Tensor:
    """Values as float32 on a device."""
    return send(torch.as_tensor(values, dtype=torch.float32), device)


@functools.lru_cache(maxsize=8)
def _cubic_convolution(nodes: int, n: int, device: torch.device | None) -> Tensor:
    """The matrix (n, nodes) from values at the nodes to values at n voxels from the first to the last node."""
    eye = torch.eye(nodes)[None, None]
    return F.interpolate(eye, size=(n, nodes), mode="bicubic", align_corners=True)[0, 0].to(device=device)


def _sample(
    images: Sequence[NdarrayOrTensor], coordinates: Tensor, on_voxels: bool, mode: str, padding_mode: str
) -> list[NdarrayOrTensor]:
    """Read images ``(C, *spatial)`` of one spatial shape at coordinates (rank, *tile) in voxels.

    For padding mode "reflection" the coordinates must come from `_mirrored`.
    """
    sources = [_plain(image) for image in images]
    size = sources[0].shape[1:]
    if mode == "bicubic" and len(size) != 2:
        raise ValueError(f"mode 'bicubic' is for 2-D images, this one has {len(size)} axes; use 'bilinear'")
    if mode == "nearest" or on_voxels:
        index = _nearest_index(coordinates, size)
        if padding_mode == "zeros":
            nearest = coordinates.round().unbind()
            inside = math.prod((line >= 0) & (line < n) for line, n in zip(nearest, size, strict=True))
        outs = []
        for source in sources:
            bits = source.view(SIGNED.get(source.dtype, source.dtype)).flatten(1)
            out = bits.gather(1, index.expand(len(bits), -1)).unflatten(1, coordinates.shape[1:])
            if padding_mode == "zeros":
                out = out * inside
            out = out.view(source.dtype)
            outs.append(out if mode == "nearest" else out.to(torch.float32))
    else:
        box = [_read_between(line, n) for line, n in zip(coordinates, size, strict=True)]
        stacked = torch.cat([source[(slice(None), *box)].to(torch.float32) for source in sources])[None]
        beyond = 0
        if padding_mode == "reflection":
            if mode == "bicubic" and min(size) > 1:
                beyond, padding_mode = 1, "border"  # the farthest voxel that a cubic reads
                stacked = F.pad(stacked, (beyond,) * 4, "reflect")
            elif mode == "bilinear":
                padding_mode = "border"
        # x first, in −1 … 1 between the centres of the outermost voxels
        grid = torch.empty_like(coordinates)
        for line, scaled, side, n in zip(coordinates, reversed(grid.unbind()), box, stacked.shape[2:], strict=True):
            scale = 2 / max(n - 1, 1)
            torch.add(line.new_full((), (beyond - side.start) * scale - 1), line, alpha=scale, out=scaled)
        grid = grid.movedim(0, -1)[None]
        read = F.grid_sample(stacked, grid, mode=mode, padding_mode=padding_mode, align_corners=True)[0]
        outs = list(read.split([len(source) for source in sources]))
    return [convert_to_dst_type(out, image, dtype=out.dtype)[0] for out, image in zip(outs, images, strict=True)]


def _mirrored(coordinates: Tensor, size: Sequence[int]) -> Tensor:
    """Mirror the coordinates beyond the outermost voxels about these, back into the image."""
    coordinates = coordinates.clone()
    for line, n in zip(coordinates, size, strict=True):
        last = n - 1
        if _waits(line.device) or _reach(line) >= 2 * last:  # beyond the first mirror image
            line.remainder_(2 * last) if last else line.zero_()
        line.abs_()
        torch.minimum(line, 2 * last - line, out=line)
    return coordinates


def _reach(line: Tensor) -> float:
    low, high = line.aminmax()
    return float(max(-low, high))


def _read_between(line: Tensor, n: int) -> slice:
    """The voxels, out of n, that any interpolation at the coordinates reads: a tile of a large image needs few."""
    if _waits(line.device):
        return slice(0, n)
    low, high = line.aminmax()
    start = min(max(int(low) - 2, 0), n - 1)
    return slice(start, max(min(int(high) + 4, n), start + 1))


def _nearest_index(coordinates: Tensor, size: Sequence[int]) -> Tensor:
    """Flat index of the nearest voxel in the image; exact for any label, unlike a float image."""
    exact = torch.float32 if math.prod(size) <= 2**24 else torch.float64
    index = torch.zeros(coordinates.shape[1:], dtype=exact, device=coordinates.device)
    for line, n in zip(coordinates.round(), size, strict=True):
        index.mul_(n).add_(line.clamp_(0, n - 1))
    return index.flatten().long()


def _plain(image: NdarrayOrTensor) -> Tensor:
    if isinstance(image, MetaTensor):
        return image.as_tensor().contiguous()
    return torch.as_tensor(image if isinstance(image, Tensor) else np.ascontiguousarray(image)).contiguous()


def _rank(image: NdarrayOrTensor) -> int:
    rank = image.ndim - 1
    if rank not in (2, 3):
        raise ValueError(f"got an array of shape {tuple(image.shape)}; it must be (C, H, W) or (C, H, W, D)")
    return rank


def _per_axis(name: str, value: float | Sequence[float], rank: int) -> np.ndarray:
    values = np.atleast_1d(value)
    if len(values) not in (1, rank):
        raise ValueError(f"{name} is {value!r}; use one number, or {rank} for this image")
    return np.broadcast_to(values, rank)
