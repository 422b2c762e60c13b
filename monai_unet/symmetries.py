"""How sure the network is of an image: whether it says the same of its rotations and mirror images (section 4).

The paper averages the predictions of 7 rotated versions of the image. Right-angled rotations and mirrorings are exact,
so where the predictions of these differ, the network is to blame and no interpolation. Their variance ranks images by
what an annotation of them would teach.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations, product

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

__all__ = ["symmetry_variance"]


def symmetry_variance(
    image: Tensor,
    network: Callable[..., Tensor],
    inferer: Callable[..., Tensor],
    symmetries: str | Sequence[int] = "all",
) -> Tensor:
    """Variance of the predicted probabilities over the exact symmetries of the image.

    Args:
        image: (B, C, *spatial), as the network takes it, 2-D or 3-D.
        network: gives logits (B, K, *spatial).
        inferer: ``inferer(image, network)`` gives the logits of the whole image, any size; without averaging.
        symmetries: "all" the 8 mirrorings and right-angled rotations in 2-D, 48 in 3-D (for equal voxel sizes);
            "mirror" the 2^d mirrorings; (0, 2) those along these spatial axes only. Take what the training did:
            what it has not shown the network says little of an image.

    Returns:
        (B, *spatial), float32: the variance over the symmetries, summed over the classes; from 0, where all agree, to
        less than 1.

    Raises:
        ValueError: ``symmetries`` is none of these.
    """
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    axes = tuple(range(2, plain.ndim))
    orders = list(permutations(axes)) if symmetries == "all" else [axes]
    if isinstance(symmetries, str):
        mirrored, known = axes, symmetries in ("all", "mirror")
    else:
        mirrored = tuple(axis + 2 for axis in symmetries)
        known = set(mirrored) <= set(axes)
    if not known:
        raise ValueError(
            f'symmetries is {symmetries!r}; it must be "all", "mirror" or of the axes 0 to {len(axes) - 1}'
        )
    total = squares = torch.zeros(())
    count = 0
    with torch.no_grad():
        for order, flags in product(orders, product((False, True), repeat=len(mirrored))):
            flipped = tuple(axis for axis, flip in zip(mirrored, flags, strict=True) if flip)
            seen = plain.permute(0, 1, *order).flip(flipped)
            probability = inferer(seen, network).float().softmax(1).flip(flipped)
            probability = probability.permute(0, 1, *(order.index(axis) + 2 for axis in axes)).double()
            total, squares, count = total + probability, squares + probability.square(), count + 1
    variance = squares / count - (total / count).square()
    return variance.clamp_min(0).sum(1).float()
