"""Fig. 1 of the paper: the U-Net of unpadded ("valid") convolutions.

Every 3×3 convolution loses one voxel per side, so the output is smaller than the input by a fixed margin: a 572² tile
gives 388². No output voxel depends on padding; `OverlapTileInferer` (Fig. 2) supplies the missing context.

Where voxels are longer along one axis, kernels and pooling of 1 along it spare that axis the context and the halving
until the voxels are about as long as wide; the margin and the valid sizes then differ from axis to axis.
"""

from __future__ import annotations

import hashlib
import math
import operator
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from monai.networks.layers.factories import Conv, Norm, Pool
from monai.utils.misc import ensure_tuple_rep
from torch import Tensor, nn

from monai_unet.errors import InputError

__all__ = ["ValidUNet", "load_network", "load_task"]


class ValidUNet(nn.Module):
    """The U-Net of Ronneberger, Fischer and Brox (MICCAI 2015), in 2-D or 3-D.

    Two unpadded 3×3 convolutions per level, each followed by a ReLU; 2×2 max pooling on the way down; on the way up a
    2×2 up-convolution of stride 2 that halves the channels, then the concatenation ``[up, skip]`` with the centre of
    the skip; finally a 1×1 convolution to the classes. Dropout follows the last two contracting levels, before pooling
    and skip branch off. As in Fig. 1, no ReLU follows an up-convolution (the authors' Caffe release has one).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        features: channels per level, top to bottom; the depth is one less than their number.
        dropout: probability at the end of the contracting path; 0 for none.
        kernel_size: of the convolutions, 3 as in the paper; or one per level, each a number or one per axis, 1 or 3.
        strides: of the pooling and the up-convolution below each level but the lowest, 2 as in the paper; or one entry
            per pooling, each a number or one per axis, 1 or 2.
        norm: None as in the paper, or "batch" for batch normalisation before each ReLU as in the 3-D U-Net (Çiçek et
            al. 2016). Normalisation by the statistics of the tile (instance, group, layer) is refused: an output voxel
            would depend on its tile.

    Shapes:
        input: ``(B, in_channels, *spatial)``, float, each spatial size valid at this depth (see `input_size`).
        output: ``(B, out_channels, *spatial)``, logits, each spatial size smaller by ``2 * margin``.

    Attributes:
        margin: voxels of context lost on each side, 92 in the paper; one number per axis if they differ.
        multiple: period of the valid input sizes and of tile offsets, the product of the strides, 16 in the paper; one
            number per axis if they differ.

    Raises:
        ValueError: a parameter is out of range, or an input size is not valid.

    Source: Ronneberger et al. 2015, Fig. 1 and section 2.

    >>> network = ValidUNet(2, in_channels=1, out_channels=2)
    >>> network.output_size(572), sum(p.numel() for p in network.parameters())
    (388, 31030658)
    >>> small = ValidUNet(2, in_channels=1, out_channels=2, features=(4, 8, 16, 32, 64))
    >>> small(torch.rand(1, 1, 188, 204)).shape
    torch.Size([1, 2, 4, 20])

    Voxels of 5 × 1 × 1 mm: the first level leaves the first axis alone.

    >>> flat = ValidUNet(3, 1, 2, features=(4, 8, 16), kernel_size=[(1, 3, 3), 3, 3], strides=[(1, 2, 2), 2])
    >>> flat.margin, flat.multiple
    ((8, 20, 20), (2, 4, 4))
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = (64, 128, 256, 512, 1024),
        dropout: float = 0.5,
        norm: str | None = None,
        kernel_size: int | Sequence[int | Sequence[int]] = 3,
        strides: int | Sequence[int | Sequence[int]] = 2,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {spatial_dims}; it must be 2 or 3")
        if len(features) < 2:
            raise ValueError(f"features is {tuple(features)}; it needs at least two levels, for example (16, 32)")
        if norm not in (None, "batch"):
            raise ValueError(f'norm is {norm!r}; it must be None or "batch": tile statistics would break overlap-tile')
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.features = tuple(features)
        self.depth = len(features) - 1
        self.kernel_size = _per_level("kernel_size", kernel_size, self.depth + 1, spatial_dims, (1, 3))
        self.norm = norm
        self.fixed_statistics = False
        self.strides = _per_level("strides", strides, self.depth, spatial_dims, (1, 2))
        self._axes = [
            _Axis.of([kernels[axis] for kernels in self.kernel_size], [strides[axis] for strides in self.strides])
            for axis in range(spatial_dims)
        ]
        self.margin = _one_or_each([axis.margin for axis in self._axes])
        self.multiple = _one_or_each([axis.multiple for axis in self._axes])

        self.encoder = nn.ModuleList()
        for level, (before, after) in enumerate(zip((in_channels, *features), features, strict=False)):
            p = dropout if level >= self.depth - 1 else 0.0
            self.encoder.append(_two_convolutions(self.kernel_size[level], before, after, norm, p))
        self.pool = nn.ModuleList([nn.Identity(), *(Pool["max", spatial_dims](s, stride=s) for s in self.strides)])
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, (above, below) in reversed(list(enumerate(pairwise(features)))):
            stride = self.strides[level]
            self.up.append(Conv["convtrans", spatial_dims](below, above, kernel_size=stride, stride=stride))
            self.decoder.append(_two_convolutions(self.kernel_size[level], 2 * above, above, norm, 0.0))
        self.head = Conv["conv", spatial_dims](features[0], out_channels, kernel_size=1)
        self.apply(_initialise)

    def train(self, mode: bool = True) -> ValidUNet:
        """Set training mode; with ``fixed_statistics`` batch norm stays as in prediction, see `FixedStatistics`."""
        super().train(mode)
        if self.fixed_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits ``(B, K, *spatial − 2 margin)`` of ``x`` ``(B, C, *spatial)``."""
        if not torch.jit.is_scripting() and not torch.jit.is_tracing() and not torch.compiler.is_compiling():
            for axis, n in enumerate(x.shape[2:]):
                self.output_size(n, axis)
        skips: list[Tensor] = []
        for pool, convolutions in zip(self.pool, self.encoder, strict=True):
            x = convolutions(pool(x))
            skips.append(x)
        skips.pop()
        for up, convolutions in zip(self.up, self.decoder, strict=True):
            x = up(x)
            x = convolutions(torch.cat([x, _centre_crop(skips.pop(), x)], dim=1))
        return self.head(x)

    def output_size(self, n: int, axis: int = 0) -> int:
        """Return the output size along a spatial axis of ``n`` input voxels.

        Raises:
            ValueError: ``n`` is not a valid input size; names the nearest ones.
        """
        smallest, multiple = self.input_size(1, axis), self._axes[axis].multiple
        if n >= smallest and (n - smallest) % multiple == 0:
            return n - 2 * self._axes[axis].margin
        above = max(smallest, n + (smallest - n) % multiple)
        below = above - multiple
        nearest = f"{below} or {above}" if below >= smallest else str(above)
        raise ValueError(f"{n} is not a valid input size at depth {self.depth}; use {nearest}")

    def input_size(self, n: int, axis: int = 0) -> int:
        """Return the smallest valid input size along a spatial axis whose output has at least ``n`` voxels."""
        multiple, loss, margin = self._axes[axis]
        bottom = math.ceil((max(n, 1) + loss) / multiple)
        return multiple * bottom - loss + 2 * margin

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], dropout: float = 0.5) -> ValidUNet:
        """Build the network of a state dict: its dimensions, channels, width and kernels follow from the shapes.

        Raises:
            ValueError: ``state`` is not the state dict of a `ValidUNet`.

        >>> wide = ValidUNet(3, in_channels=1, out_channels=3, features=(8, 16), norm="batch")
        >>> ValidUNet.from_state_dict(wide.state_dict()).features
        (8, 16)
        """
        try:
            depth = sum(name.startswith("up.") and name.endswith(".weight") for name in state)
            firsts = [state[f"encoder.{level}.conv1.weight"] for level in range(depth + 1)]
            network = cls(
                spatial_dims=firsts[0].ndim - 2,
                in_channels=firsts[0].shape[1],
                out_channels=state["head.weight"].shape[0],
                features=[weight.shape[0] for weight in firsts],
                dropout=dropout,
                norm="batch" if "encoder.0.norm1.weight" in state else None,
                kernel_size=[tuple(weight.shape[2:]) for weight in firsts],
                strides=[tuple(state[f"up.{i}.weight"].shape[2:]) for i in reversed(range(depth))],
            )
            network.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError, AttributeError) as e:
            raise ValueError(f"these weights are not those of a ValidUNet ({e})") from e
        return network


def load_network(
    path: str | os.PathLike[str],
    in_channels: int | None = None,
    spatial_dims: int | None = None,
    sha256: str | None = None,
) -> ValidUNet:
    """Load the network of a checkpoint, in evaluation mode, in float32, on the CPU.

    Args:
        path: ``model.pt`` as `BestCheckpoint` writes it, or the bare state dict of a `ValidUNet`.
        in_channels: channels of the images; None to accept any.
        spatial_dims: dimensions of the images; None to accept any.
        sha256: checksum of the weights that the bundle was published with. Weights that say that they are a
            ``release`` must have it; the user's own do not say so, and may be any.

    Raises:
        InputError: the file is missing or damaged, is not a `ValidUNet`, or takes other images.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(ValidUNet(2, 1, 2, features=(8, 16)).state_dict(), f"{folder}/model.pt")
    ...     network = load_network(f"{folder}/model.pt", in_channels=1)
    >>> network.features, network.training
    ((8, 16), False)
    """
    path = Path(path)
    state, task = _read(path)
    if sha256 is not None and "release" in task:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != sha256:
            raise InputError(
                path,
                f"the file is not {task['release']} as published (its SHA-256 is {digest}, not {sha256})",
                "Install the package or fetch the file again: it is damaged, or of another version than the bundle",
            )
    try:
        network = ValidUNet.from_state_dict(state)
    except ValueError as e:
        raise InputError(path, str(e), "Name a model.pt written by a bundle of this package") from e
    for name, expected in (("in_channels", in_channels), ("spatial_dims", spatial_dims)):
        if expected is not None and getattr(network, name) != expected:
            raise InputError(
                path,
                f"the network has {name} = {getattr(network, name)}, and {expected} is needed",
                "Name a checkpoint trained on such images",
            )
    network.register_load_state_dict_post_hook(_refuse_other_weights)
    return network.eval()


def load_task(
    path: str | os.PathLike[str], kind: str | None = None, spatial_dims: int | None = None, classes: int | None = None
) -> dict[str, Any]:
    """Load what a checkpoint says about its task: the classes, the pixel size, how it was trained, and so on.

    Args:
        path: as of `load_network`.
        kind: what the bundle predicts, "instances" or "classes"; None to accept both.
        spatial_dims: dimensions of the bundle's images; None to accept any.
        classes: how many classes the bundle has, background included; None to accept any number.

    Returns:
        ``task`` of the file, plain types; empty for a bare state dict.

    Raises:
        InputError: the file is missing or damaged, or was trained for another task than the bundle's.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     weights = ValidUNet(2, 1, 2, features=(8, 16)).state_dict()
    ...     torch.save({"model": weights, "task": {"kind": "instances", "min_size": 61}}, f"{folder}/model.pt")
    ...     load_task(f"{folder}/model.pt", kind="instances")["min_size"]
    61
    """
    path = Path(path)
    state, task = _read(path)
    head = state["head.weight"]
    found = task.get("kind", kind)
    wrong = ""
    if kind not in (None, found):
        wrong = f"it was trained for {found}, and the bundle predicts {kind}"
    elif spatial_dims not in (None, head.ndim - 2):
        wrong = f"it was trained on {head.ndim - 2}-D images, and the bundle takes {spatial_dims}-D images"
    elif classes not in (None, len(head)):
        names = f" ({', '.join(task['class_names'])})" if "class_names" in task else ""
        wrong = f"it has {len(head)} classes{names}, and the bundle has {classes}"
    if wrong:
        raise InputError(path, wrong, "Use it with the bundle that it was trained with, or name another checkpoint")
    if "neck" in task:
        task.setdefault("core", 0)  # of a network that was trained before there was this rule
    return task


def _read(path: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The state dict and the task of a checkpoint."""
    if not path.is_file():
        raise InputError(path, "there is no checkpoint", "Train first, or name one with --ckpt_path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises whatever its unpickler meets
        raise InputError(path, f"the checkpoint cannot be read ({e})", "Train again, or use another one") from e
    content = content if isinstance(content, Mapping) else {}
    state = content.get("model", content)
    if "head.weight" not in state:
        problem = "these weights are not those of a ValidUNet"
        if "optimizer" in content:
            problem = "this is the whole state of a training run, to resume from"
        raise InputError(path, problem, "Name a model.pt written by a bundle of this package")
    return state, dict(content.get("task", {}))


class _Axis(NamedTuple):
    """Sizes along an axis: b voxels at the bottom of the U give ``multiple · b − loss``, of ``2 margin`` more."""

    multiple: int
    loss: int
    margin: int

    @classmethod
    def of(cls, kernels: Sequence[int], strides: Sequence[int]) -> _Axis:
        scales = list(accumulate(strides, operator.mul, initial=1))  # voxels of the image to one of each level
        loss = sum(2 * (kernel - 1) * scale for kernel, scale in zip(kernels[:-1], scales[:-1], strict=True))
        return cls(scales[-1], loss, loss + (kernels[-1] - 1) * scales[-1])


def _one_or_each(values: Sequence[int]) -> int | tuple[int, ...]:
    return values[0] if len(set(values)) == 1 else tuple(values)


def _per_level(
    name: str, values: int | Sequence[int | Sequence[int]], levels: int, dims: int, allowed: tuple[int, int]
) -> list[tuple[int, ...]]:
    """One number for all, or one entry per level, as numbers per level and axis."""
    entries = ensure_tuple_rep(values, levels) if isinstance(values, int) else tuple(values)
    each = [ensure_tuple_rep(entry, dims) if isinstance(entry, int) else tuple(entry) for entry in entries]
    if len(each) != levels or any(len(entry) != dims or not {*entry} <= {*allowed} for entry in each):
        rule = f"{levels} entries, each a number or {dims}, {allowed[0]} or {allowed[1]}"
        raise ValueError(f"{name} is {values}; it must be {allowed[1]}, or {rule}")
    return each


def _two_convolutions(
    kernel_size: tuple[int, ...], before: int, after: int, norm: str | None, p: float
) -> nn.Sequential:
    layers, spatial_dims = nn.Sequential(), len(kernel_size)
    for i, channels in enumerate((before, after), start=1):
        layers.add_module(f"conv{i}", Conv["conv", spatial_dims](channels, after, kernel_size=kernel_size))
        if norm:
            layers.add_module(f"norm{i}", Norm[norm, spatial_dims](after))
        layers.add_module(f"relu{i}", nn.ReLU(inplace=True))
    if p:
        layers.add_module("dropout", nn.Dropout(p))
    return layers


def _centre_crop(skip: Tensor, like: Tensor) -> Tensor:
    for dim in range(2, skip.dim()):
        skip = skip.narrow(dim, (skip.size(dim) - like.size(dim)) // 2, like.size(dim))
    return skip


def _initialise(module: nn.Module) -> None:
    """Gaussian weights with std √(2/N), N being the incoming nodes of one neuron; zero biases (section 3)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        incoming = module.weight[0].numel()
    elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        incoming = module.in_channels  # kernel = stride: one voxel of every channel per output voxel
    else:
        return
    nn.init.normal_(module.weight, std=math.sqrt(2 / incoming))
    nn.init.zeros_(cast(Tensor, module.bias))


def _refuse_other_weights(network: nn.Module, keys: Any) -> None:
    """MONAI Label reloads the weights with ``strict=False``, which would silently skip those that do not match."""
    if keys.missing_keys or keys.unexpected_keys:
        wrong = [*keys.missing_keys, *keys.unexpected_keys]
        raise RuntimeError(f"these weights are not those of the network: {len(wrong)} names differ, such as {wrong[0]}")
