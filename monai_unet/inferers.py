"""Fig. 2 of the paper: overlap-tile inference with mirrored borders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import permutations, product
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer, SimpleInferer
from monai.utils.misc import ensure_tuple_rep
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor, nn
from tqdm import tqdm

__all__ = ["OverlapTileInferer", "TileInferer"]


class TileInferer(SimpleInferer):
    """One forward pass over ready-made tiles, in bfloat16 where asked: the inferer of training.

    MONAI's ``amp`` means CUDA and float16 with loss scaling; bfloat16 needs no scaling and runs on CPUs too.

    Args:
        amp: autocast to bfloat16 on the inputs' device; "true" and "false" are understood, because that is what
            ``--amp true`` on a bundle's command line becomes.
    """

    def __init__(self, amp: bool | str = False) -> None:
        super().__init__()
        if str(amp).lower() not in ("true", "false"):
            raise ValueError(f"amp is {amp!r}; it must be true or false")
        self.amp = str(amp).lower() == "true"

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
            388 in 2-D and 44 in 3-D. A size that the network cannot give is rounded up, with a warning; a tile is
            never larger than the image needs.
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
    ) -> None:
        super().__init__()
        if padding_mode not in ("reflect", "replicate"):
            raise ValueError(f'padding_mode is {padding_mode!r}; it must be "reflect" or "replicate"')
        if averaging not in ("none", "mirror", "all"):
            raise ValueError(f'averaging is {averaging!r}; it must be "none", "mirror" or "all"')
        if sw_batch_size < 1:
            raise ValueError(f"sw_batch_size is {sw_batch_size}; it must be at least 1")
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

    def _tiles(
        self, x: Tensor, network: Callable[..., Tensor], core: Any, args: Any, kwargs: Any, out: Tensor | None
    ) -> Tensor:
        size = x.shape[2:]
        margin = self._told("margin", core)
        tile, stride = self._plan(size, core)
        starts = [
            range(0, max(n - t, 0) + s, s)  # the last tile may reach beyond the image, and is cropped
            for n, t, s in zip(size, tile, stride, strict=True)
        ]
        places = [(b, place) for b in range(x.shape[0]) for place in product(*starts)]
        sw_device = torch.device(self.sw_device or x.device)
        for first in tqdm(range(0, len(places), self.sw_batch_size), disable=not self.progress, desc="tiles"):
            group = places[first : first + self.sw_batch_size]
            windows = torch.cat([self._window(x[b : b + 1], place, tile, margin) for b, place in group])
            prediction = self._averaged(network, windows.to(sw_device), args, kwargs)
            if prediction.shape[2:] != torch.Size(tile):
                raise ValueError(
                    f"the network gave {tuple(prediction.shape[2:])} for an input of {tuple(windows.shape[2:])}; "
                    f"with a margin of {margin} it must give {tuple(tile)}"
                )
            if out is None:
                dtype = torch.promote_types(prediction.dtype, torch.float32)
                shape = (x.shape[0], prediction.shape[1], *size)
                out = torch.empty(shape, dtype=dtype, device=self.device or x.device)
            for (b, place), piece in zip(group, prediction, strict=True):
                target = out[b]
                for axis, (start, n, t) in enumerate(zip(place, size, tile, strict=True), start=1):
                    target = target.narrow(axis, start, min(t, n - start))
                    piece = piece.narrow(axis, 0, min(t, n - start))
                target.copy_(piece)
        assert out is not None  # _plan refuses inputs without a voxel
        return out

    def _plan(self, size: torch.Size, core: Any) -> tuple[list[int], list[int]]:
        """Output size of a tile and the step between tiles, per axis."""
        if len(size) not in (2, 3) or min(size) < 1:
            raise ValueError(f"the inputs' spatial size is {tuple(size)}; it must be 2-D or 3-D, each axis at least 1")
        multiple = self._told("multiple", core)
        asked = ensure_tuple_rep({2: 388, 3: 44}[len(size)] if self.tile_size is None else self.tile_size, len(size))
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
        return tile, [t // multiple * multiple for t in tile]

    def _told(self, name: str, core: Any) -> int:
        told = getattr(self, name)
        if told is None:
            told = getattr(core, name, None)
        if told is None:
            raise ValueError(
                f"{type(core).__name__} does not tell its {name}; give it as OverlapTileInferer({name}=...)"
            )
        return int(told)

    def _window(self, x: Tensor, place: Sequence[int], tile: Sequence[int], margin: int) -> Tensor:
        """The tile's input, mirrored where it reaches beyond the image; only its own voxels are read."""
        indices = []
        for axis, (start, t) in enumerate(zip(place, tile, strict=True), start=2):
            n = x.shape[axis]
            index = torch.arange(start - margin, start + t + margin, device=x.device)
            index = _mirror(index, n) if self.padding_mode == "reflect" else index.clamp(0, n - 1)
            low, high = int(index.min()), int(index.max())
            x = x.narrow(axis, low, high - low + 1)
            indices.append(index - low)
        for axis, index in enumerate(indices, start=2):
            if x.shape[axis] != len(index):  # an axis wholly inside the image is as it should be
                x = x.index_select(axis, index)
        return x

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
