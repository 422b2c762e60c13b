"""Fig. 2 of the paper: overlap-tile inference with mirrored borders."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer, SimpleInferer
from monai.utils.misc import ensure_tuple_rep
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor, nn
from tqdm import tqdm

from monai_unet.errors import InputError
from monai_unet.memory import available_bytes, measured_bytes, out_of_memory
from monai_unet.options import parse_bool, parse_choice
from monai_unet.symmetries import symmetry_mean
from monai_unet.tile_plan import TilePlan, choose_tile, pass_bytes
from monai_unet.transfers import fetch, send

__all__ = ["OverlapTileInferer", "TileInferer"]

#: output voxels per axis of the paper's tiles (2-D: Fig. 1; 3-D: the first two axes of Çiçek et al. 2016)
PAPER_TILE = {2: 388, 3: 44}
#: fraction of the free memory that one pass may use; on a CPU, running out does not raise, it gets the process killed
MEMORY_FRACTION = {"cuda": 0.9, "cpu": 0.5}
#: memory of a pass relative to its activations, if it cannot be measured
OVERHEAD = 2.0


class TileInferer(SimpleInferer):
    """Run one forward pass over ready-made tiles, in bfloat16 if asked: the inferer for training.

    MONAI's ``amp`` means CUDA and float16 with loss scaling; bfloat16 needs no scaling and runs on CPUs too.

    Args:
        amp: autocast to bfloat16 on the device of the inputs; also "true" or "false", as ``--amp true`` on a bundle's
            command line arrives.

    >>> from monai_unet.networks import ValidUNet
    >>> network = ValidUNet(2, in_channels=1, out_channels=2, features=(4, 8))
    >>> logits = TileInferer(amp=True)(torch.rand(8, 1, 60, 60), network)
    >>> logits.shape, logits.dtype
    (torch.Size([8, 2, 44, 44]), torch.bfloat16)
    """

    def __init__(self, amp: bool | str = False) -> None:
        super().__init__()
        self.amp = parse_bool("amp", amp)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp):
            return network(inputs, *args, **kwargs)


class OverlapTileInferer(Inferer):
    """Segment images of any size with a valid-convolution network, tile by tile, without seams.

    The output of each tile needs ``margin`` more input voxels on every side; beyond the image they are mirrored,
    repeatedly if the image is small. Tile offsets are multiples of ``multiple``, because max pooling makes the network
    equivariant to such shifts only. Together the tiles therefore equal one pass over the whole mirrored image.

    Args:
        tile_size: **output** voxels per axis, one number or one per axis; 388 is the paper's 572² tile. None for the
            cheapest tile that fits into the free memory (`plan`), or 388 in 2-D and 44 in 3-D if the memory or the
            network's layers are unknown. A size that the network cannot produce is rounded up, with a warning; a tile
            is never larger than the image needs. If a pass runs out of memory, the tile size is halved, with a warning.
        sw_batch_size: tiles per forward pass.
        padding_mode: "reflect" mirrors about the edge voxel, as in the paper; "replicate" repeats it.
        averaging: "none"; "mirror" averages the network's outputs over the 2^d mirrorings of each tile; "all" over all
            mirrorings and right-angled rotations, 8 in 2-D and 48 in 3-D (for equal voxel sizes); a list of spatial
            axes, such as [0], over the mirrorings along these only. All are exact, without interpolation
            (`symmetry_mean`). Choose what the network was trained on. The paper averages 7 rotations.
        margin: context lost per side, one number or one per axis, if the network has no attribute ``margin`` as
            `ValidUNet` has. A network whose output is as large as its input, as MONAI's own are, is cropped by it:
            choose at least the radius of its receptive field, and there are no seams.
        multiple: period of the tile offsets, one number or one per axis, if the network has no attribute ``multiple``.
        sw_device: device for the tiles; None for that of the inputs.
        device: device for the stitched output; None for that of the inputs. With inputs and output on the CPU and
            tiles on the GPU, GPU memory does not grow with the image.
        amp: autocast to bfloat16 on the device of the tiles; also "true" or "false".
        progress: show a progress bar.
        uncertainty: append a channel: the variance of the probabilities over the symmetries of ``averaging``, as
            `symmetry_variance` of each tile; also "true" or "false".
        memory: GiB that one pass may use if ``tile_size`` is None; None for half of what is free on a CPU and 90 % of
            it on a GPU.

    Raises:
        ValueError: a parameter is out of range.

    Source: Ronneberger et al. 2015, Fig. 2.

    >>> from monai_unet.networks import ValidUNet
    >>> network = ValidUNet(2, in_channels=1, out_channels=2, features=(4, 8, 16)).eval()
    >>> image = torch.rand(1, 1, 300, 451)
    >>> with torch.no_grad():
    ...     logits = OverlapTileInferer(tile_size=100)(image, network)
    ...     whole = OverlapTileInferer(tile_size=452)(image, network)
    >>> logits.shape, torch.allclose(logits, whole, atol=1e-5)
    (torch.Size([1, 2, 300, 451]), True)
    """

    def __init__(
        self,
        tile_size: int | Sequence[int] | None = None,
        sw_batch_size: int = 1,
        padding_mode: str = "reflect",
        averaging: str | Sequence[int] = "none",
        margin: int | Sequence[int] | None = None,
        multiple: int | Sequence[int] | None = None,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        amp: bool | str = False,
        progress: bool = False,
        memory: float | None = None,
        uncertainty: bool | str = False,
    ) -> None:
        super().__init__()
        if sw_batch_size < 1:
            raise ValueError(f"sw_batch_size is {sw_batch_size}; it must be at least 1")
        if memory is not None and not memory > 0:
            raise ValueError(f"memory is {memory} GiB; it must be more than 0, or None for what is free")
        self.tile_size = tile_size
        self.sw_batch_size = sw_batch_size
        self.padding_mode = parse_choice("padding_mode", padding_mode, ("reflect", "replicate"))
        self.averaging = _averaging(averaging)
        self.margin = margin
        self.multiple = multiple
        self.sw_device = sw_device
        self.device = device
        self.infer = TileInferer(amp)
        self.progress = progress
        self.memory = memory
        self.uncertainty = parse_bool("uncertainty", uncertainty)
        if self.uncertainty and self.averaging == "none":
            problem = 'it is true, but with averaging "none" there is nothing that could differ'
            raise InputError("--uncertainty", problem, "Use --averaging all, or mirror")
        self._limit: int | None = None  # a larger tile has run out of memory
        self._overheads: dict[Any, float] = {}

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, out: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Segment ``inputs`` with ``network``.

        Args:
            inputs: ``(B, C, *spatial)``, each spatial size at least 1. For a 2-D network also a stack (B, C, Z, H, W),
                whose pages are segmented one by one.
            network: `ValidUNet`, also wrapped (DDP, compile), or a callable whose output is smaller than its input by
                ``2 * margin`` per axis, or as large. It is called as ``network(tiles, *args, **kwargs)``.
            out: if given, receives the result: ``(B, K, *spatial)`` on any device, for example
                ``torch.from_numpy(numpy.memmap(...))``; then nothing as large as the image is allocated.

        Returns:
            ``(B, K, *spatial)`` on ``device``, K + 1 channels with ``uncertainty``, float32 or the network's wider
            type; if the inputs are a `MetaTensor`, so is the result, with their metadata.

        Raises:
            ValueError: inputs without an image or a voxel, a tile size that does not fit the dimensions, a network
                without ``margin`` or ``multiple``, several outputs, or one of another size than the margin implies.
        """
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        dims = getattr(_unwrapped(network), "spatial_dims", plain.ndim - 2)
        if plain.ndim == dims + 3 == 5:
            if out is not None and len(out) > 1:
                raise ValueError("out of a stack must hold one image (B = 1): several cannot be written in place")
            pages = plain.transpose(1, 2)
            folded = None if out is None else out[0].transpose(0, 1)
            result = self._tiles(pages.flatten(0, 1), network, args, kwargs, folded)
            result = result.unflatten(0, pages.shape[:2]).transpose(1, 2)
        else:
            result = self._tiles(plain, network, args, kwargs, out)
        if out is not None or not isinstance(inputs, MetaTensor):
            return result if out is None else out
        return convert_to_dst_type(result, inputs, dtype=result.dtype, device=result.device)[0]

    def plan(self, shape: Sequence[int], network: Callable[..., Tensor], out: Tensor | None = None) -> TilePlan:
        """Plan how an image of ``shape`` ``(B, C, *spatial)`` is cut: tiles, redundant computation, memory.

        ``print(inferer.plan(image.shape, network))`` shows it in one line. If ``tile_size`` is None, the memory of one
        pass is measured on a tile of the paper's size, for the first image that may need several tiles; the same free
        memory and measurement give the same plan.

        Args:
            shape: also of a stack that is segmented page by page.
            network: as for ``__call__``.
            out: the tensor that receives the result, if any; otherwise memory is set aside for it.

        Raises:
            ValueError: as ``__call__``.
        """
        core = _unwrapped(network)
        dims = getattr(core, "spatial_dims", len(shape) - 2)
        size = tuple(shape[-dims:])
        if len(size) not in (2, 3) or min(size) < 1:
            raise ValueError(f"the inputs' spatial size is {size}; it must be 2-D or 3-D, each axis at least 1")
        if 0 in shape:
            raise ValueError(
                f"the inputs' shape is {tuple(shape)}; it must be (B, C, *spatial) with at least one image"
            )
        margins, multiples = self._attribute("margin", core, dims), self._attribute("multiple", core, dims)
        if self.averaging == "all" and len({*margins}) > 1:
            raise ValueError(f'averaging is "all", but margins of {margins} allow no rotation; use "mirror" or "none"')
        if isinstance(self.averaging, list) and max(self.averaging) >= dims:
            raise ValueError(f"averaging is {self.averaging}; the axes of this network are 0 to {dims - 1}")
        countable = isinstance(core, nn.Module) and all(hasattr(core, a) for a in ("features", "strides", "input_size"))
        if self.tile_size is None and countable:
            images = shape[0] * math.prod(shape[2:-dims])
            channels = core.out_channels + self.uncertainty
            reserved = 0 if out is not None else images * channels * math.prod(size) * 4
            cheapest = self._cheapest(size, network, core, reserved)
            if cheapest is not None:
                return cheapest
        asked = ensure_tuple_rep(PAPER_TILE[len(size)] if self.tile_size is None else self.tile_size, len(size))
        tile = []
        for axis, (n, t, multiple) in enumerate(zip(size, asked, multiples, strict=True)):
            if t < 1:
                raise ValueError(f"tile_size is {self.tile_size}; it must be at least 1")
            if hasattr(core, "input_size"):
                possible = core.output_size(core.input_size(max(t, multiple), axis), axis)
                if possible != t:
                    warnings.warn(
                        f"tile_size {t} is not an output size of the network; {possible} is used", stacklevel=4
                    )
                t = min(possible, core.output_size(core.input_size(max(n, multiple), axis), axis))
            elif t < multiple:
                raise ValueError(f"tile_size is {t}; tiles advance by multiples of {multiple}, so use at least that")
            tile.append(t)
        counted = self._activation_bytes(core, tile) if countable else None
        return TilePlan(size, tuple(tile), margins, multiples, counted)

    def logits(self, windows: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Compute the network's (averaged) output for ready-made windows, in smaller pieces if memory runs out.

        Args:
            windows: ``(B, C, *spatial)``, tiles with their margin, as `window` returns them; moved to ``sw_device``.
            network: as for ``__call__``.

        Returns:
            ``(B, K, *tile)``, smaller by twice the margin.

        Raises:
            torch.OutOfMemoryError, MemoryError or RuntimeError: not even the smallest tile fits.
        """
        core = _unwrapped(network)
        dims = windows.ndim - 2
        margins, multiples = self._attribute("margin", core, dims), self._attribute("multiple", core, dims)
        device = torch.device(self.sw_device or windows.device)
        tile = [n - 2 * margin for n, margin in zip(windows.shape[2:], margins, strict=True)]
        largest = max(tile)
        axis = tile.index(largest)
        margin, multiple = margins[axis], multiples[axis]
        piece = largest - largest // 2 // multiple * multiple  # offset by a multiple, and as valid a size as the tile
        if self._limit is None or largest <= self._limit:
            try:
                return self._averaged(send(windows, device), network, *args, **kwargs)
            except Exception as error:
                if not out_of_memory(error) or piece == largest:
                    raise
                problem = str(error).partition("\n")[0]  # not the error: its traceback holds what filled the memory
            self._limit = piece
            warnings.warn(f"out of memory with a tile of {tuple(tile)} ({problem}); halved to {piece}", stacklevel=3)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        axis += 2
        first, last = (
            self.logits(windows.narrow(axis, start, piece + 2 * margin), network, *args, **kwargs)
            for start in (0, largest - piece)
        )
        return torch.cat([first.narrow(axis, 0, largest - piece), last], dim=axis)  # the two overlap a little

    def window(self, read: Callable[[tuple[slice, ...]], Tensor], origin: Sequence[int], plan: TilePlan) -> Tensor:
        """Read the input of the tile at ``origin``, mirrored where it extends beyond the image.

        Args:
            read: returns the image's voxels ``(1, C, *spatial)`` in a box; called once, for no more than is needed.
            origin: first output voxel per axis, one of ``plan.origins()``.

        Returns:
            ``(1, C, *spatial)``, the tile with its margin.
        """
        box, indices = [], []
        for n, start, t, margin in zip(plan.size, origin, plan.tile, plan.margins, strict=True):
            index = torch.arange(start - margin, start + t + margin)
            index = _mirror(index, n) if self.padding_mode == "reflect" else index.clamp(0, n - 1)
            low, high = int(index.min()), int(index.max())
            box.append(slice(low, high + 1))
            indices.append(index - low)
        x = read(tuple(box))
        for axis, index in enumerate(indices, start=2):
            if not torch.equal(index, torch.arange(len(index))):  # this axis extends beyond the image
                x = x.index_select(axis, index.to(x.device))
        return x

    def _tiles(self, x: Tensor, network: Callable[..., Tensor], args: Any, kwargs: Any, out: Tensor | None) -> Tensor:
        plan = self.plan(x.shape, network, out)
        origins = list(product(range(len(x)), plan.origins()))
        waiting: list[Callable[[], None]] = []  # for the tiles that a GPU computes
        for first in tqdm(range(0, len(origins), self.sw_batch_size), disable=not self.progress, desc="tiles"):
            group = origins[first : first + self.sw_batch_size]
            windows = torch.cat([self.window(partial(_boxed, x[b : b + 1]), origin, plan) for b, origin in group])
            prediction = self.logits(windows, network, *args, **kwargs)
            if prediction.shape[2:] != torch.Size(plan.tile):
                raise ValueError(
                    f"the network gave {tuple(prediction.shape[2:])} for an input of {tuple(windows.shape[2:])}; "
                    f"with margins of {plan.margins} it must give {plan.tile}"
                )
            if out is None:
                dtype = torch.promote_types(prediction.dtype, torch.float32)
                shape = (len(x), prediction.shape[1], *plan.size)
                out = torch.empty(shape, dtype=dtype, device=self.device or x.device)
            arrived = fetch(prediction, out.device)
            waiting.append(partial(_stitch, out, group, arrived, plan))
            if len(waiting) > 1:  # the GPU has its next work
                waiting.pop(0)()
        for stitch in waiting:
            stitch()
        assert out is not None  # plan refuses empty inputs
        return out

    def _cheapest(self, size: tuple[int, ...], network: Any, core: Any, reserved: int) -> TilePlan | None:
        """The plan with the cheapest tile that fits into the free memory; None if that is unknown."""
        weights = next(core.parameters())
        device = torch.device(self.sw_device or weights.device)
        multiples = ensure_tuple_rep(core.multiple, len(size))
        whole = [
            core.output_size(core.input_size(max(n, multiple), axis), axis)
            for axis, (n, multiple) in enumerate(zip(size, multiples, strict=True))
        ]
        ample = 2 * OVERHEAD * self._activation_bytes(core, whole)  # enough for a single pass, without measuring
        if self.memory is not None:
            free = int(self.memory * 2**30)
        else:
            result = reserved if torch.device(self.device or device).type == device.type else 0
            fraction = MEMORY_FRACTION.get(device.type, MEMORY_FRACTION["cpu"])
            available = available_bytes(device, enough=result + ample / fraction)
            if available is None:
                return None
            free = int(fraction * max(available - result, 0))
        overhead = self._overhead(network, core, weights) if ample > free else OVERHEAD

        def bytes_of(tile: Sequence[int]) -> int:
            return int(overhead * self._activation_bytes(core, tile))

        tile = choose_tile(size, core, bytes_of, free)
        return TilePlan(size, tile, core.margin, core.multiple, bytes_of(tile), free)

    def _activation_bytes(self, core: Any, tile: Sequence[int]) -> int:
        """Bytes of the activations of a pass, without the working memory of the convolutions."""
        itemsize = 2 if self.infer.amp else next(core.parameters()).itemsize
        kept = 0 if self.averaging == "none" else 6 if self.uncertainty else 2  # outputs: the sum, and the next summand
        averaged = kept * self.sw_batch_size * core.out_channels * math.prod(tile) * 4
        return pass_bytes(core, tile, self.sw_batch_size, itemsize) + averaged

    def _overhead(self, network: Callable[..., Tensor], core: Any, weights: Tensor) -> float:
        """Memory of a pass relative to its activations, measured once on the paper's tile; rounded up to quarters, so
        that noise in the measurement does not change the plan."""
        device = torch.device(self.sw_device or weights.device)
        key = (
            core.features,
            *core.kernel_size,
            *core.strides,
            weights.dtype,
            device,
            self.infer.amp,
            self.sw_batch_size,
        )
        if key not in self._overheads:
            windows = [core.input_size(PAPER_TILE[core.spatial_dims], axis) for axis in range(core.spatial_dims)]
            tile = tuple(core.output_size(n, axis) for axis, n in enumerate(windows))
            shape = (self.sw_batch_size, core.in_channels, *windows)

            def work() -> None:
                with torch.no_grad():
                    self._averaged(torch.zeros(shape, dtype=weights.dtype, device=device), network)

            measured = measured_bytes(work, device)
            ratio = OVERHEAD if measured is None else measured / self._activation_bytes(core, tile)
            self._overheads[key] = max(1.25, math.ceil(4 * ratio) / 4)
        return self._overheads[key]

    def _attribute(self, name: str, core: Any, dims: int) -> tuple[int, ...]:
        value = getattr(self, name)
        if value is None:
            value = getattr(core, name, None)
        if value is None:
            raise ValueError(f"{type(core).__name__} has no {name}; give it as OverlapTileInferer({name}=...)")
        return ensure_tuple_rep(value, dims)

    def _averaged(self, x: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        infer = partial(self._pass, network=network, args=args, kwargs=kwargs)
        if self.averaging == "none":
            return infer(x)
        if not self.uncertainty:
            return symmetry_mean(x, infer, self.averaging)

        def moments(x: Tensor) -> Tensor:
            logits = infer(x).float()
            probability = logits.softmax(1)
            return torch.cat([logits, probability, probability.square()], 1)

        logits, mean, mean_square = symmetry_mean(x, moments, self.averaging).chunk(3, 1)
        variance = (mean_square - mean.square()).clamp_min(0).sum(1, keepdim=True)
        return torch.cat([logits, variance], 1)

    def _pass(self, x: Tensor, network: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        y = self.infer(x, network, *args, **kwargs)
        if not isinstance(y, Tensor):
            raise ValueError(
                f"the network returned a {type(y).__name__}; it must return one tensor (B, K, *spatial). Choose one of "
                "several outputs by a function: lambda x: network(x)[0]"
            )
        if y.shape[2:] == x.shape[2:]:
            margins = self._attribute("margin", _unwrapped(network), x.ndim - 2)
            return _boxed(y, [slice(margin, n - margin) for margin, n in zip(margins, y.shape[2:], strict=True)])
        return y


def _averaging(value: object) -> str | list[int]:
    """Read what to average over: a word, or spatial axes."""
    if not isinstance(value, list | tuple):
        return parse_choice("averaging", value, ("none", "mirror", "all"))
    if any(isinstance(axis, bool) or axis not in (0, 1, 2) for axis in value) or len({*value}) < len(value):
        raise ValueError(f"averaging is {value!r}; it must be none, mirror, all, or different axes from 0 to 2")
    return sorted(map(int, value)) or "none"


def _stitch(out: Tensor, group: list[Any], arrived: Callable[[], Tensor], plan: TilePlan) -> None:
    """Write the tiles of a group (image, origin) to their places, once they have arrived."""
    for (b, origin), piece in zip(group, arrived(), strict=True):
        box = [slice(start, start + t) for start, t in zip(origin, plan.tile, strict=True)]
        target = out[b][(slice(None), *box)]  # ends with the image
        target.copy_(piece[tuple(slice(n) for n in target.shape)])


def _boxed(x: Tensor, box: Sequence[slice]) -> Tensor:
    return x[(slice(None), slice(None), *box)]


def _mirror(index: Tensor, n: int) -> Tensor:
    """Map positions on the endless line to 0 … n − 1 by mirroring about the edge voxels, as often as needed."""
    if n == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (n - 1))
    return torch.minimum(index, 2 * (n - 1) - index)


def _unwrapped(network: Any) -> Any:
    """The network inside DistributedDataParallel, DataParallel or a compiled module."""
    while not hasattr(network, "margin"):
        inner = getattr(network, "module", None) or getattr(network, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner
    return network
