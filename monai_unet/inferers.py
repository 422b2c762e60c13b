"""Fig. 2 of the paper: overlap-tile inference with mirrored borders."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations, product
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer, SimpleInferer
from monai.utils.misc import ensure_tuple_rep
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor, nn
from tqdm import tqdm

from monai_unet.memory import available_bytes, measured_bytes, out_of_memory
from monai_unet.options import parse_bool
from monai_unet.tile_plan import TilePlan, choose_tile, pass_bytes

__all__ = ["OverlapTileInferer", "TileInferer"]

#: output voxels per axis of the paper's tiles (2-D: Fig. 1; 3-D: the 3-D paper's first two axes)
PAPER = {2: 388, 3: 44}
#: of the memory that is free, what a pass may take: a CPU without memory is no error but a killed process
SHARE = {"cuda": 0.9, "cpu": 0.5}
#: what a pass takes of memory, over its activations, where it cannot be measured
OVERHEAD = 2.0


class TileInferer(SimpleInferer):
    """One forward pass over ready-made tiles, in bfloat16 where asked: the inferer of training.

    MONAI's ``amp`` means CUDA and float16 with loss scaling; bfloat16 needs no scaling and runs on CPUs too.

    Args:
        amp: autocast to bfloat16 on the inputs' device; "true" and "false" are understood, because that is what
            ``--amp true`` on a bundle's command line becomes.
    """

    def __init__(self, amp: bool | str = False) -> None:
        super().__init__()
        self.amp = parse_bool("amp", amp)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp):
            return network(inputs, *args, **kwargs)


class OverlapTileInferer(Inferer):
    """Segments images of any size with a valid-convolution network, tile by tile, without seams.

    Each tile's output needs ``margin`` more input voxels on every side; beyond the image they come from mirroring,
    with as many bounces as a small image takes. Tile offsets are multiples of ``multiple``, because max pooling makes
    the network equivariant to such shifts only: so the tiles together equal one pass over the whole mirrored image.

    Args:
        tile_size: **output** voxels per axis, one number or one per axis; 388 is the paper's 572² tile. None takes
            the tile that costs least in the memory at hand (`plan`); 388 in 2-D and 44 in 3-D where the memory or the
            network's layers are not known. A size that the network cannot give is rounded up, with a warning; a tile
            is never larger than the image needs. After a lack of memory a tile is halved, with a warning.
        sw_batch_size: tiles per forward pass.
        padding_mode: "reflect" mirrors about the edge voxel, as the paper does; "replicate" repeats it.
        averaging: "none"; "mirror" averages the network's outputs over the 2^d mirrorings of each tile; "all" over all
            mirrorings and right-angled rotations, 8 in 2-D and 48 in 3-D (for equal voxel sizes). All are exact: no
            interpolation. The paper averages 7 rotations.
        margin: context lost per side, where the network does not tell (`ValidUNet.margin`).
        multiple: period of the tile offsets, where the network does not tell (`ValidUNet.multiple`).
        sw_device: device for the tiles, that of the inputs unless given.
        device: device for the stitched output, that of the inputs unless given. With the inputs and the output on the
            CPU and tiles on the GPU, the GPU's memory does not grow with the image.
        amp: autocast to bfloat16 on the tiles' device.
        progress: show a progress bar.
        memory: GiB that a pass may take where ``tile_size`` is None; None for half of what is free on a CPU and 0.9
            of it on a GPU.
    """

    def __init__(
        self,
        tile_size: int | Sequence[int] | None = None,
        sw_batch_size: int = 1,
        padding_mode: str = "reflect",
        averaging: str = "none",
        margin: int | None = None,
        multiple: int | None = None,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        amp: bool | str = False,
        progress: bool = False,
        memory: float | None = None,
    ) -> None:
        super().__init__()
        if padding_mode not in ("reflect", "replicate"):
            raise ValueError(f'padding_mode is {padding_mode!r}; it must be "reflect" or "replicate"')
        if averaging not in ("none", "mirror", "all"):
            raise ValueError(f'averaging is {averaging!r}; it must be "none", "mirror" or "all"')
        if sw_batch_size < 1:
            raise ValueError(f"sw_batch_size is {sw_batch_size}; it must be at least 1")
        if memory is not None and not memory > 0:
            raise ValueError(f"memory is {memory} GiB; it must be more than 0, or None for what is free")
        self.tile_size = tile_size
        self.sw_batch_size = sw_batch_size
        self.padding_mode = padding_mode
        self.averaging = averaging
        self.margin = margin
        self.multiple = multiple
        self.sw_device = sw_device
        self.device = device
        self.infer = TileInferer(amp)
        self.progress = progress
        self.memory = memory
        self._limit: int | None = None  # a larger tile has found no memory
        self._overheads: dict[Any, float] = {}

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        out: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Segment ``inputs`` with ``network``.

        Args:
            inputs: (B, C, *spatial), each spatial size at least 1. With one spatial axis more than the network has, a
                stack (B, C, Z, H, W) for a 2-D network: its pages are segmented one by one.
            network: `ValidUNet`, wrapped (DDP, compile) or not, or a callable whose output is smaller than its input
                by ``2 * margin`` per axis. It is called as ``network(tiles, *args, **kwargs)``.
            out: receives the result if given, (B, K, *spatial) on any device, for example
                ``torch.from_numpy(numpy.memmap(...))``; then nothing of the size of the image is allocated.

        Returns:
            (B, K, *spatial), float32 or the network's wider type; a `MetaTensor` where the inputs are one.

        Raises:
            ValueError: for inputs without a voxel, a tile size that does not fit the dimensions, a network that does
                not tell its margin, or outputs of another size than the margin promises.
        """
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        core = _unwrapped(network)
        dims = getattr(core, "spatial_dims", plain.ndim - 2)
        if plain.ndim == dims + 3 == 5:
            pages = plain.transpose(1, 2)
            folded = None if out is None else out.transpose(1, 2).flatten(0, 1)
            if out is not None and folded is not None and folded.data_ptr() != out.data_ptr():
                raise ValueError("out of a stack must hold one image (B = 1): several cannot be written in place")
            result = self._tiles(pages.flatten(0, 1), network, core, args, kwargs, folded)
            result = result.unflatten(0, pages.shape[:2]).transpose(1, 2)
        else:
            result = self._tiles(plain, network, core, args, kwargs, out)
        if out is not None:
            return out
        return convert_to_dst_type(result, inputs)[0] if isinstance(inputs, MetaTensor) else result

    def plan(self, shape: Sequence[int], network: Callable[..., Tensor], out: Tensor | None = None) -> TilePlan:
        """How an image of ``shape`` (B, C, *spatial) is going to be cut: tiles, wasted computation, memory.

        ``print(inferer.plan(image.shape, network))`` tells it in a line. Where ``tile_size`` is None, the first image
        that may need several tiles has the memory of one pass measured on a tile of the paper; the same free memory
        and measurement give the same plan.

        Args:
            shape: with one spatial axis more than the network has, of a stack that is segmented page by page.
            network: as for ``__call__``.
            out: where the result goes, if given; else room for it is set aside.

        Raises:
            ValueError: as ``__call__``.
        """
        core = _unwrapped(network)
        dims = getattr(core, "spatial_dims", len(shape) - 2)
        pages = math.prod(shape[2:-dims])
        return self._plan(shape[0] * pages, tuple(shape[-dims:]), network, core, out)

    def logits(self, windows: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The network's (averaged) output for ready-made windows; in smaller pieces where the memory does not suffice.

        Args:
            windows: (B, C, *spatial), tiles with their margin, as `window` gives them; moved to ``sw_device``.
            network: as for ``__call__``.

        Returns:
            (B, K, *tile), smaller by twice the margin.

        Raises:
            torch.OutOfMemoryError, MemoryError or RuntimeError: not even the smallest tile fits.
        """
        core = _unwrapped(network)
        margin, multiple = self._told("margin", core), self._told("multiple", core)
        device = torch.device(self.sw_device or windows.device)
        tile = [n - 2 * margin for n in windows.shape[2:]]
        if self._limit is None or max(tile) <= self._limit:
            try:
                return self._averaged(network, windows.to(device), args, kwargs)
            except Exception as error:
                if not out_of_memory(error) or max(tile) <= 2 * multiple:
                    raise
                problem = str(error).partition("\n")[0]  # not the error: its traceback holds what filled the memory
            self._limit = max(max(tile) // 2, 2 * multiple)  # a piece that can be shifted is smaller than that
            warnings.warn(
                f"out of memory with a tile of {tuple(tile)} ({problem}); halved to {self._limit}", stacklevel=3
            )
            if device.type == "cuda":
                torch.cuda.empty_cache()
        # pieces lie at multiples as tiles do, and differ from the tile by multiples: so the last ends with the tile
        pieces = [t - math.ceil(max(t - self._limit, 0) / multiple) * multiple for t in tile]
        pieces = [min(t, max(p, t % multiple + multiple)) for p, t in zip(pieces, tile, strict=True)]
        steps = [max(p // multiple, 1) * multiple for p in pieces]
        starts = [[*range(0, t - p, s), t - p] for t, p, s in zip(tile, pieces, steps, strict=True)]
        whole: Tensor | None = None
        for place in product(*starts):
            box = [slice(s, s + p + 2 * margin) for s, p in zip(place, pieces, strict=True)]
            part = self.logits(_boxed(windows, box), network, *args, **kwargs)
            if whole is None:
                whole = part.new_empty((*part.shape[:2], *tile))
            _boxed(whole, [slice(s, s + p) for s, p in zip(place, pieces, strict=True)]).copy_(part)
        assert whole is not None
        return whole

    def window(self, read: Callable[[tuple[slice, ...]], Tensor], place: Sequence[int], plan: TilePlan) -> Tensor:
        """The input of the tile at ``place``, mirrored where it reaches beyond the image.

        Args:
            read: gives the image's voxels (1, C, *spatial) in a box; called once, for no more than is needed.
            place: first output voxel per axis, one of ``plan.places()``.

        Returns:
            (1, C, *spatial), the tile with its margin.
        """
        box, indices = [], []
        for n, start, t in zip(plan.size, place, plan.tile, strict=True):
            index = torch.arange(start - plan.margin, start + t + plan.margin)
            index = _mirror(index, n) if self.padding_mode == "reflect" else index.clamp(0, n - 1)
            low, high = int(index.min()), int(index.max())
            box.append(slice(low, high + 1))
            indices.append(index - low)
        x = read(tuple(box))
        for axis, index in enumerate(indices, start=2):
            if x.shape[axis] != len(index):  # an axis wholly inside the image is as it should be
                x = x.index_select(axis, index.to(x.device))
        return x

    def _tiles(
        self, x: Tensor, network: Callable[..., Tensor], core: Any, args: Any, kwargs: Any, out: Tensor | None
    ) -> Tensor:
        plan = self._plan(x.shape[0], x.shape[2:], network, core, out)
        places = [(b, place) for b in range(x.shape[0]) for place in plan.places()]
        for first in tqdm(range(0, len(places), self.sw_batch_size), disable=not self.progress, desc="tiles"):
            group = places[first : first + self.sw_batch_size]
            windows = torch.cat([self.window(partial(_boxed, x[b : b + 1]), place, plan) for b, place in group])
            prediction = self.logits(windows, network, *args, **kwargs)
            if prediction.shape[2:] != torch.Size(plan.tile):
                raise ValueError(
                    f"the network gave {tuple(prediction.shape[2:])} for an input of {tuple(windows.shape[2:])}; "
                    f"with a margin of {plan.margin} it must give {plan.tile}"
                )
            if out is None:
                dtype = torch.promote_types(prediction.dtype, torch.float32)
                shape = (x.shape[0], prediction.shape[1], *plan.size)
                out = torch.empty(shape, dtype=dtype, device=self.device or x.device)
            for (b, place), piece in zip(group, prediction, strict=True):
                target = out[b]
                for axis, (start, n, t) in enumerate(zip(place, plan.size, plan.tile, strict=True), start=1):
                    target = target.narrow(axis, start, min(t, n - start))
                    piece = piece.narrow(axis, 0, min(t, n - start))
                target.copy_(piece)
        assert out is not None  # _plan refuses inputs without a voxel
        return out

    def _plan(
        self, images: int, size: Sequence[int], network: Callable[..., Tensor], core: Any, out: Tensor | None
    ) -> TilePlan:
        if len(size) not in (2, 3) or min(size) < 1:
            raise ValueError(f"the inputs' spatial size is {tuple(size)}; it must be 2-D or 3-D, each axis at least 1")
        margin, multiple = self._told("margin", core), self._told("multiple", core)
        countable = isinstance(core, nn.Module) and all(hasattr(core, a) for a in ("features", "input_size"))
        if self.tile_size is None and countable:
            reserved = 0 if out is not None else images * core.out_channels * math.prod(size) * 4
            chosen = self._chosen(size, network, core, reserved)
            if chosen is not None:
                return chosen
        asked = ensure_tuple_rep(PAPER[len(size)] if self.tile_size is None else self.tile_size, len(size))
        tile = []
        for n, t in zip(size, asked, strict=True):
            if t < 1:
                raise ValueError(f"tile_size is {self.tile_size}; it must be at least 1")
            if hasattr(core, "input_size"):
                possible = core.output_size(core.input_size(max(t, multiple)))
                if possible != t:
                    warnings.warn(
                        f"tile_size {t} is not an output size of the network; {possible} is used", stacklevel=4
                    )
                t = min(possible, core.output_size(core.input_size(max(n, multiple))))
            elif t < multiple:
                raise ValueError(f"tile_size is {t}; tiles advance by multiples of {multiple}, so use at least that")
            tile.append(t)
        counted = self._counted(core, tile) if countable else None
        return TilePlan(tuple(size), tuple(tile), margin, multiple, counted)

    def _chosen(self, size: Sequence[int], network: Callable[..., Tensor], core: Any, reserved: int) -> TilePlan | None:
        """The plan of the tile that costs least; None where the memory at hand is not known."""
        weights = next(core.parameters())
        device = torch.device(self.sw_device or weights.device)
        whole = [core.output_size(core.input_size(max(n, core.multiple))) for n in size]
        ample = 2 * OVERHEAD * self._counted(core, whole)  # with it the image passes at once, without measuring
        if self.memory is not None:
            free = int(self.memory * 2**30)
        else:
            beside = reserved if torch.device(self.device or device).type == device.type else 0
            share = SHARE.get(device.type, SHARE["cpu"])
            at_hand = available_bytes(device, enough=beside + ample / share)
            if at_hand is None:
                return None
            free = int(share * max(at_hand - beside, 0))
        overhead = self._overhead(network, core, weights) if ample > free else OVERHEAD
        tile = choose_tile(size, core, lambda t: int(overhead * self._counted(core, t)), free)
        taken = int(overhead * self._counted(core, tile))
        return TilePlan(tuple(size), tile, core.margin, core.multiple, taken, free)

    def _counted(self, core: Any, tile: Sequence[int]) -> int:
        """Bytes of the activations of a pass, before what the convolutions need beside them."""
        itemsize = 2 if self.infer.amp else next(core.parameters()).itemsize
        averaged = 0 if self.averaging == "none" else 2 * self.sw_batch_size * core.out_channels * math.prod(tile) * 4
        return pass_bytes(core, tile, self.sw_batch_size, itemsize) + averaged

    def _overhead(self, network: Callable[..., Tensor], core: Any, weights: Tensor) -> float:
        """What a pass takes of memory over what is counted, measured once on the paper's tile; in quarters, so that
        the choice does not hang on the measurement's noise."""
        device = torch.device(self.sw_device or weights.device)
        key = (core.features, core.spatial_dims, weights.dtype, device, self.infer.amp, self.sw_batch_size)
        if key not in self._overheads:
            t = core.output_size(core.input_size(PAPER[core.spatial_dims]))
            tile = (t,) * core.spatial_dims
            shape = (self.sw_batch_size, core.in_channels, *(n + 2 * core.margin for n in tile))

            def work() -> None:
                with torch.no_grad():
                    self._averaged(network, torch.zeros(shape, dtype=weights.dtype, device=device), (), {})

            measured = measured_bytes(work, device)
            ratio = OVERHEAD if measured is None else measured / self._counted(core, tile)
            self._overheads[key] = max(1.25, math.ceil(4 * ratio) / 4)
        return self._overheads[key]

    def _told(self, name: str, core: Any) -> int:
        told = getattr(self, name)
        if told is None:
            told = getattr(core, name, None)
        if told is None:
            raise ValueError(
                f"{type(core).__name__} does not tell its {name}; give it as OverlapTileInferer({name}=...)"
            )
        return int(told)

    def _averaged(self, network: Callable[..., Tensor], x: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Mean over the symmetries g of g⁻¹(network(g x)): a function of the tile as good as the network itself."""
        if self.averaging == "none":
            return self.infer(x, network, *args, **kwargs)
        axes = tuple(range(2, x.ndim))
        orders = [axes] if self.averaging == "mirror" else list(permutations(axes))
        flips = [
            tuple(a for a, flip in zip(axes, flags, strict=True) if flip) for flags in product((0, 1), repeat=len(axes))
        ]
        total = torch.zeros(())
        for order, flip in product(orders, flips):
            y = self.infer(x.permute(0, 1, *order).flip(flip), network, *args, **kwargs).flip(flip)
            back = [order.index(a) + 2 for a in axes]
            total = total.to(y.device) + y.permute(0, 1, *back).to(torch.promote_types(y.dtype, torch.float32))
        return total / (len(orders) * len(flips))


def _boxed(x: Tensor, box: Sequence[slice]) -> Tensor:
    return x[(slice(None), slice(None), *box)]


def _mirror(index: Tensor, n: int) -> Tensor:
    """Positions on the endless line → positions in 0 … n − 1, mirrored about the edge voxels, any number of bounces."""
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
