"""Fig. 2, planned: how an image is cut into tiles, what that costs, and which tile costs least in the memory at hand.

A tile of a valid-convolution network computes its margin beside its output, and neighbours compute the same margin
again: the larger the tile, the less is computed twice, and the more memory a pass takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

__all__ = ["TilePlan", "choose_tile", "pass_bytes"]

#: a smaller tile is taken where it costs at most so much more than the cheapest one
TOLERANCE = 1.02


@dataclass(frozen=True)
class TilePlan:
    """The tiles of an image; prints as one line.

    Args:
        size: voxels of the image per axis.
        tile: output voxels of a tile per axis.
        margin: context that a tile needs on each side.
        multiple: tiles are offset by multiples of it.
        bytes: most memory that a pass takes, beside the weights, the image and the result; None where not known.
        available: memory that the choice was made for, in bytes; None where the tile was given.
    """

    size: tuple[int, ...]
    tile: tuple[int, ...]
    margin: int
    multiple: int
    bytes: int | None = None
    available: int | None = None

    @property
    def stride(self) -> tuple[int, ...]:
        """Step from tile to tile, per axis."""
        return tuple(t // self.multiple * self.multiple for t in self.tile)

    @property
    def starts(self) -> list[range]:
        """First output voxels of the tiles, per axis; the last tile may reach beyond the image."""
        return [range(0, max(n - t, 0) + s, s) for n, t, s in zip(self.size, self.tile, self.stride, strict=True)]

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tiles per axis."""
        return tuple(len(starts) for starts in self.starts)

    @property
    def tiles(self) -> int:
        return math.prod(self.grid)

    @property
    def computed_voxels(self) -> int:
        """Input voxels of all passes together, margins included."""
        return self.tiles * math.prod(t + 2 * self.margin for t in self.tile)

    @property
    def waste(self) -> float:
        """Share of the computed voxels that one pass over the whole image would not compute."""
        return max(0.0, 1 - math.prod(n + 2 * self.margin for n in self.size) / self.computed_voxels)

    def places(self) -> Iterator[tuple[int, ...]]:
        """First output voxel of each tile, in array order."""
        return product(*self.starts)

    def owned(self, place: Sequence[int]) -> tuple[slice, ...]:
        """The image's voxels that the tile at ``place`` has the last word on: neighbouring tiles overlap a little."""
        ends = (
            n if start == starts[-1] else start + s
            for start, starts, s, n in zip(place, self.starts, self.stride, self.size, strict=True)
        )
        return tuple(slice(start, end) for start, end in zip(place, ends, strict=True))

    def __str__(self) -> str:
        shape, seen = (" x ".join(map(str, sizes)) for sizes in (self.tile, [t + 2 * self.margin for t in self.tile]))
        text = f"{self.tiles} tile{'s' * (self.tiles > 1)} of {shape} (input {seen}), {self.waste:.0%} computed twice"
        if self.bytes is not None:
            text += f", {self.bytes / 2**30:.2f} GiB per pass"
        if self.available is not None:
            text += f" of {self.available / 2**30:.2f} GiB"
        return text


def choose_tile(
    size: Sequence[int], core: Any, bytes_of: Callable[[Sequence[int]], int], available: int
) -> tuple[int, ...]:
    """Output size of the tile that costs least, in computed voxels, of those whose pass fits into ``available`` bytes.

    Of tiles within 2 % of that the one of the smallest pass; where none fits, the smallest there is. The same
    arguments give the same tile.

    Args:
        size: voxels of the image per axis.
        core: network that tells ``margin``, ``multiple``, ``input_size`` and ``output_size``, as `ValidUNet` does.
        bytes_of: memory of a pass by the output size of its tile.
        available: in bytes.
    """
    axes = []
    for n in size:
        plans = [TilePlan((n,), (t,), core.margin, core.multiple) for t in _axis(n, core)]
        axes.append([(plan.computed_voxels, plan.tile[0]) for plan in plans])
    tiles = [tuple(zip(*along, strict=True)) for along in product(*axes)]
    most, fitting = math.inf, list[tuple[int, tuple[int, ...]]]()
    for cost, tile in sorted((math.prod(costs), tile) for costs, tile in tiles):
        if cost > most:
            break
        if (taken := bytes_of(tile)) <= available:
            most = min(most, TOLERANCE * cost)
            fitting.append((taken, tile))
    return min(fitting)[1] if fitting else min((bytes_of(tile), tile) for _, tile in tiles)[1]


def _axis(n: int, core: Any) -> list[int]:
    """For each number of tiles along an axis of n voxels, the smallest output size that covers it; largest first."""
    smallest = core.output_size(core.input_size(core.multiple))
    rest = smallest % core.multiple  # k tiles reach to k · stride + rest
    sizes, count = [core.output_size(core.input_size(max(n, core.multiple)))], 1
    while sizes[-1] > smallest:
        count = max(count + 1, math.ceil((n - rest) / (sizes[-1] - rest - core.multiple)))
        sizes.append(max(math.ceil((n - rest) / count / core.multiple) * core.multiple + rest, smallest))
    return sizes


def pass_bytes(network: Any, tile: Sequence[int], batch: int = 1, itemsize: int = 4) -> int:
    """Bytes of the activations that are alive at once in a pass of `ValidUNet` without gradients, its input included.

    Args:
        network: tells ``features``, ``in_channels``, ``out_channels`` and ``margin``.
        tile: output voxels per axis.
        batch: tiles per pass.
        itemsize: bytes of a number.
    """
    n = [t + 2 * network.margin for t in tile]
    alive = most = network.in_channels * math.prod(n)  # alive: what is kept for later, here the input
    skips: list[int] = []

    def convolutions(features: int, block: int) -> int:
        """Two convolutions beside ``block``, their input and what else is kept until they have passed."""
        nonlocal n, most
        before = 0
        for _ in range(2):
            n = [i - 2 for i in n]
            after = features * math.prod(n)
            most = max(most, alive + block + before + after)
            before = after
        return before

    current = 0
    for level, features in enumerate(network.features):
        if level:
            n = [i // 2 for i in n]
            current = network.features[level - 1] * math.prod(n)
        current = convolutions(features, current)
        skips.append(current)
        alive += current
    alive -= skips.pop()
    for features, _ in reversed(list(pairwise(network.features))):
        n = [2 * i for i in n]
        up = features * math.prod(n)
        most = max(most, alive + current + up, alive + 3 * up)  # the concatenation beside its parts
        alive -= skips.pop()
        current = convolutions(features, 3 * up)
    most = max(most, alive + current + network.out_channels * math.prod(n))
    return batch * itemsize * most
