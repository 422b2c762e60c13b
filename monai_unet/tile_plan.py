"""Planning for Fig. 2: how an image is cut into tiles, at which cost, and which tile is cheapest in the free memory.

Each tile of a valid-convolution network is computed with a margin around it, and neighbouring tiles compute the same
margin again. Larger tiles repeat less and need more memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from monai.utils.misc import ensure_tuple_rep

__all__ = ["TilePlan", "choose_tile", "pass_bytes"]

#: among tiles that cost at most 2 % more than the cheapest one, the one that needs least memory is chosen
TOLERANCE = 1.02


@dataclass(frozen=True)
class TilePlan:
    """The tiles of an image; prints as one line.

    Args:
        size: voxels of the image, per axis.
        tile: output voxels of a tile, per axis.
        margin: voxels of context that a tile needs on each side; one number, or one per axis.
        multiple: tile offsets are multiples of this many voxels; one number, or one per axis.
        bytes: peak memory of one pass, apart from the weights, the image and the result; None if unknown.
        available: bytes of memory that the tile was chosen for; None if the tile was given.

    >>> plan = TilePlan(size=(1000, 1000), tile=(388, 388), margin=92, multiple=16)
    >>> print(plan)
    9 tiles of 388 x 388 (input 572 x 572), 52% computed twice
    >>> plan.stride, list(plan.origins())[:4]
    ((384, 384), [(0, 0), (0, 384), (0, 768), (384, 0)])
    """

    size: tuple[int, ...]
    tile: tuple[int, ...]
    margin: int | tuple[int, ...]
    multiple: int | tuple[int, ...]
    bytes: int | None = None
    available: int | None = None

    @property
    def margins(self) -> tuple[int, ...]:
        """The margin, per axis."""
        return ensure_tuple_rep(self.margin, len(self.size))

    @property
    def stride(self) -> tuple[int, ...]:
        """Step from tile to tile, per axis."""
        multiples = ensure_tuple_rep(self.multiple, len(self.size))
        return tuple(t // multiple * multiple for t, multiple in zip(self.tile, multiples, strict=True))

    @property
    def window(self) -> tuple[int, ...]:
        """Input voxels of a tile, its margin included, per axis."""
        return tuple(t + 2 * margin for t, margin in zip(self.tile, self.margins, strict=True))

    @property
    def starts(self) -> list[range]:
        """First output voxels of the tiles, per axis; the last tile may reach beyond the image."""
        return [range(0, max(n - t, 0) + s, s) for n, t, s in zip(self.size, self.tile, self.stride, strict=True)]

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tiles, per axis."""
        return tuple(len(starts) for starts in self.starts)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return math.prod(self.grid)

    @property
    def computed_voxels(self) -> int:
        """Input voxels of all passes together, margins included."""
        return self.tiles * math.prod(self.window)

    @property
    def redundant_fraction(self) -> float:
        """Fraction of the computed voxels that a single pass over the whole image would save."""
        single = math.prod(n + 2 * margin for n, margin in zip(self.size, self.margins, strict=True))
        return max(0.0, 1 - single / self.computed_voxels)

    def origins(self) -> Iterator[tuple[int, ...]]:
        """Iterate over the first output voxel of each tile, in array order."""
        return product(*self.starts)

    def exclusive_box(self, origin: Sequence[int]) -> tuple[slice, ...]:
        """Return the voxels that the tile at ``origin`` alone provides: tiles overlap a little, these boxes do not."""
        ends = (
            n if start == starts[-1] else start + s
            for start, starts, s, n in zip(origin, self.starts, self.stride, self.size, strict=True)
        )
        return tuple(slice(start, end) for start, end in zip(origin, ends, strict=True))

    def __str__(self) -> str:
        shape, window = (" x ".join(map(str, n)) for n in (self.tile, self.window))
        text = f"{self.tiles} tile{'s' * (self.tiles > 1)} of {shape} (input {window})"
        text += f", {self.redundant_fraction:.0%} computed twice"
        if self.bytes is not None:
            text += f", {self.bytes / 2**30:.2f} GiB per pass"
        if self.available is not None:
            text += f" of {self.available / 2**30:.2f} GiB"
        return text


def choose_tile(
    size: Sequence[int], core: Any, bytes_of: Callable[[Sequence[int]], int], available: int
) -> tuple[int, ...]:
    """Choose the tile with the fewest computed voxels among those whose pass fits into the available memory.

    Of the tiles within 2 % of the cheapest, the one that needs least memory is taken; if none fits, the smallest there
    is. The choice is deterministic.

    Args:
        size: voxels of the image, per axis.
        core: network with ``margin``, ``multiple``, ``input_size`` and ``output_size``, such as `ValidUNet`.
        bytes_of: peak memory of a pass, as a function of the tile's output size.
        available: in bytes.

    Returns:
        output voxels of the tile, per axis.

    >>> from functools import partial
    >>> from monai_unet.networks import ValidUNet
    >>> network = ValidUNet(2, in_channels=1, out_channels=2, features=(8, 16, 32))
    >>> choose_tile((4000, 4000), network, partial(pass_bytes, network), available=200 * 2**20)
    (800, 800)
    """
    axes = []
    margins, multiples = (ensure_tuple_rep(value, len(size)) for value in (core.margin, core.multiple))
    for axis, (n, margin, multiple) in enumerate(zip(size, margins, multiples, strict=True)):
        plans = [TilePlan((n,), (t,), margin, multiple) for t in _candidates(n, core, axis, multiple)]
        axes.append([(plan.computed_voxels, plan.tile[0]) for plan in plans])
    tiles = [tuple(zip(*along, strict=True)) for along in product(*axes)]
    limit, fitting = math.inf, list[tuple[int, tuple[int, ...]]]()
    for cost, tile in sorted((math.prod(costs), tile) for costs, tile in tiles):
        if cost > limit:
            break
        if (needed := bytes_of(tile)) <= available:
            limit = min(limit, TOLERANCE * cost)
            fitting.append((needed, tile))
    return min(fitting or [(bytes_of(tile), tile) for _, tile in tiles])[1]


def _candidates(n: int, core: Any, axis: int, multiple: int) -> list[int]:
    """For each number of tiles along an axis of n voxels, the smallest output size that covers it; largest first."""
    smallest = core.output_size(core.input_size(multiple, axis), axis)
    rest = smallest % multiple  # k tiles reach to k · stride + rest
    sizes, count = [core.output_size(core.input_size(max(n, multiple), axis), axis)], 1
    while sizes[-1] > smallest:
        count = max(count + 1, math.ceil((n - rest) / (sizes[-1] - rest - multiple)))
        sizes.append(max(math.ceil((n - rest) / count / multiple) * multiple + rest, smallest))
    return sizes


def pass_bytes(network: Any, tile: Sequence[int], batch: int = 1, itemsize: int = 4) -> int:
    """Return the peak size in bytes of the activations in a `ValidUNet` pass without gradients, its input included.

    Args:
        network: with ``features``, ``kernel_size``, ``strides``, ``in_channels``, ``out_channels`` and ``margin``, as
            `ValidUNet` has them.
        tile: output voxels, per axis.
        batch: tiles per pass.
        itemsize: bytes per value.

    >>> from monai_unet.networks import ValidUNet
    >>> network = ValidUNet(2, in_channels=1, out_channels=2, features=(8, 16, 32))
    >>> pass_bytes(network, (388, 388)) / 2**20  # MiB
    24.0...
    """
    n = list(TilePlan(tuple(tile), tuple(tile), network.margin, network.multiple).window)
    kept = peak = network.in_channels * math.prod(n)  # kept for later: the input, then the skips too
    skips: list[int] = []
    current, bottom = 0, len(network.features) - 1  # current: the input of the next convolutions
    for level, features in enumerate((*network.features, *network.features[-2::-1])):
        here = min(level, 2 * bottom - level)
        if level > bottom:
            n = [i * stride for i, stride in zip(n, network.strides[here], strict=True)]
            up = features * math.prod(n)
            peak = max(peak, kept + current + up, kept + 3 * up)  # the concatenation [up, skip] besides up
            kept -= skips.pop()
            current = 3 * up
        elif level:
            n = [i // stride for i, stride in zip(n, network.strides[here - 1], strict=True)]
            current = network.features[level - 1] * math.prod(n)
        before = after = 0
        for _ in range(2):
            n = [i - kernel + 1 for i, kernel in zip(n, network.kernel_size[here], strict=True)]
            before, after = after, features * math.prod(n)
            peak = max(peak, kept + current + before + after)
        current = after
        if level < bottom:
            skips.append(current)
            kept += current
    peak = max(peak, kept + current + network.out_channels * math.prod(n))
    return batch * itemsize * peak
