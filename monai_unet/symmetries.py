"""The exact symmetries of an image: the mean and the variance of the predictions over them (section 4).

The paper averages the predictions for 7 rotated versions of the image. Mirrorings and right-angled rotations, 8 in 2-D
and 48 in 3-D, need no interpolation: where the predictions for these differ, the network alone is the cause. Their mean
is a better prediction; their variance ranks images by how much there is to learn from annotating them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import compress, permutations, product
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.utils.misc import ensure_tuple_rep
from torch import Tensor

__all__ = ["symmetry_mean", "symmetry_variance", "trained_symmetries"]


def symmetry_mean(x: Tensor, function: Callable[[Tensor], Tensor], symmetries: str | Sequence[int] = "all") -> Tensor:
    """Average ``g⁻¹(function(g(x)))`` over the exact symmetries g.

    Args:
        x: ``(B, C, *spatial)``, 2-D or 3-D.
        function: maps it to ``(B, K, *spatial)``, where each axis is shorter by a fixed margin or by nothing.
        symmetries: "all" for the mirrorings and right-angled rotations, 8 in 2-D and 48 in 3-D (for equal voxel
            sizes); "mirror" for the 2^d mirrorings; (0, 2) for those along these spatial axes only.

    Returns:
        ``(B, K, *spatial)``, float32, or float64 if the function's output is.

    Raises:
        ValueError: ``symmetries`` is none of these.

    >>> image = torch.tensor([[[[1.0, 2.0, 6.0]]]])
    >>> symmetry_mean(image, lambda x: x.cumsum(dim=3), (1,))  # (1, 3, 9) from the left, (9, 8, 6) from the right
    tensor([[[[5.0000, 5.5000, 7.5000]]]])
    """
    axes = tuple(range(2, x.ndim))
    if isinstance(symmetries, str):
        mirrored, known = axes, symmetries in ("all", "mirror")
    else:
        mirrored = tuple(axis + 2 for axis in symmetries)
        known = set(mirrored) <= set(axes)
    if not known:
        raise ValueError(f'symmetries is {symmetries!r}; it must be "all", "mirror" or axes from 0 to {len(axes) - 1}')
    orders = list(permutations(axes)) if symmetries == "all" else [axes]
    flips = [tuple(compress(mirrored, flags)) for flags in product((False, True), repeat=len(mirrored))]
    total = torch.zeros(())
    for order, flip in product(orders, flips):
        y = _mirrored(function(_mirrored(x.permute(0, 1, *order), flip)), flip)
        y = y.permute(0, 1, *(order.index(axis) + 2 for axis in axes))
        total = total + y.to(torch.promote_types(y.dtype, torch.float32))
    return total / (len(orders) * len(flips))


def symmetry_variance(
    image: Tensor,
    network: Callable[..., Tensor],
    inferer: Callable[..., Tensor],
    symmetries: str | Sequence[int] = "all",
) -> Tensor:
    """Compute the variance of the predicted probabilities over the exact symmetries of the image.

    Args:
        image: ``(B, C, *spatial)``, as the network takes it, 2-D or 3-D.
        network: returns logits ``(B, K, *spatial)``.
        inferer: ``inferer(image, network)`` returns the logits of the whole image, of any size. The ``averaging`` of an
            `OverlapTileInferer` is ignored here; the object itself stays as it is.
        symmetries: as for `symmetry_mean`. Choose those that the network was trained on: disagreement over others says
            little about the image.

    Returns:
        ``(B, *spatial)``, float32: the variance over the symmetries, summed over the classes; 0 where all agree, always
        below 1.

    Raises:
        ValueError: as for `symmetry_mean`.

    >>> from monai.inferers import SimpleInferer
    >>> def left_is_foreground(x):  # whatever the image shows
    ...     logit = torch.tensor([20.0, -20.0]).expand_as(x)
    ...     return torch.cat([-logit, logit], dim=1)
    >>> symmetry_variance(torch.zeros(1, 1, 2, 2), left_is_foreground, SimpleInferer())
    tensor([[[0.5000, 0.5000],
             [0.5000, 0.5000]]])
    """
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    once: Any = inferer
    if hasattr(inferer, "averaging"):
        once = copy.copy(inferer)  # others may be using it at the same time
        once.averaging = "none"

    def moments(x: Tensor) -> Tensor:
        probability = once(x, network).float().softmax(1).double()
        return torch.cat([probability, probability.square()], dim=1)

    with torch.no_grad():
        mean, mean_square = symmetry_mean(plain, moments, symmetries).chunk(2, dim=1)
    return (mean_square - mean.square()).clamp_min(0).sum(1).float()


def trained_symmetries(
    flip_prob: float | Sequence[float], rotate_range: float | Sequence[float], spatial_dims: int
) -> str | list[int]:
    """Find the exact symmetries that augmentation has shown to a network: what `symmetry_mean` may average over.

    Args:
        flip_prob: probability of mirroring, one number or one per spatial axis, as for `RandElasticDeformation`.
        rotate_range: radians; of angles up to this in either direction, one is drawn. Unused in 3-D, whose voxels are
            rarely as deep as wide.
        spatial_dims: 2 or 3.

    Returns:
        "all" in 2-D where both axes are mirrored and rotated by right angles too; else the axes that are mirrored.

    >>> trained_symmetries(0.5, math.pi, spatial_dims=2), trained_symmetries([0, 0.5], math.pi, spatial_dims=2)
    ('all', [1])
    >>> trained_symmetries([0.5, 0, 0], 0.26, spatial_dims=3)  # left and right
    [0]
    """
    axes = [axis for axis, prob in enumerate(ensure_tuple_rep(flip_prob, spatial_dims)) if prob]
    turned = spatial_dims == 2 and min(ensure_tuple_rep(rotate_range, 1)) >= math.pi / 2
    return "all" if turned and len(axes) == 2 else axes


def _mirrored(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.flip(axes) if axes else x  # ONNX has no mirroring along no axis
