"""The variance over exact rotations and mirrorings, against networks whose answer is known by hand."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from monai_unet.inferers import OverlapTileInferer
from monai_unet.networks import ValidUNet
from monai_unet.symmetries import symmetry_variance, trained_symmetries


def plain(image, network):
    return network(image)


def two_classes(logit):
    return lambda image: torch.cat([torch.zeros_like(image), logit(image)], dim=1)


@pytest.mark.parametrize("shape", [(2, 1, 7, 5), (1, 1, 4, 5, 3)])
def test_a_network_that_sees_single_voxels_never_disagrees(shape):
    image = torch.randn(shape)
    for symmetries in ("all", "mirror"):
        variance = symmetry_variance(image, two_classes(lambda x: 3 * x), plain, symmetries)
        assert variance.shape == (shape[0], *shape[2:])
        assert torch.allclose(variance, torch.zeros(()), atol=1e-7)


def test_a_logit_that_depends_on_the_axis_by_hand():
    """Bright rows vote 1, bright columns 0: over the 8 symmetries a pixel's p is σ(its row) or σ(its column)."""
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0] = 2.0

    def rows(x):
        return x.mean(dim=-1, keepdim=True).expand_as(x)

    variance = symmetry_variance(image, two_classes(rows), plain)
    row, column = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-2 / 3))
    assert variance[0, 0, 1].item() == pytest.approx(2 * ((row - column) / 2) ** 2, rel=1e-5)
    assert variance[0, 2, 1].item() == pytest.approx(2 * ((0.5 - column) / 2) ** 2, rel=1e-5)


@pytest.mark.parametrize(("dims", "size"), [(2, (31, 44)), (3, (9, 12, 7))])
def test_it_follows_the_image_and_matches_a_slow_mean_over_the_symmetries(dims, size):
    torch.manual_seed(0)
    network = ValidUNet(dims, 1, 2, (2, 3), dropout=0.0).eval()
    image, inferer = torch.randn(1, 1, *size), OverlapTileInferer(tile_size=16)
    variance = symmetry_variance(image, network, inferer, "mirror")
    assert variance.max() > 1e-4
    flipped = symmetry_variance(image.flip(-1), network, inferer, "mirror").flip(-1)
    assert torch.allclose(variance, flipped, atol=1e-6)
    seen = []
    for number in range(2**dims):
        axes = [axis + 2 for axis in range(dims) if number >> axis & 1]
        with torch.no_grad():
            seen.append(inferer(image.flip(axes), network).softmax(1).flip(axes).numpy())
    assert np.allclose(variance.numpy(), np.var(seen, axis=0).sum(1), atol=1e-6)


def test_only_the_given_axes_are_mirrored():
    torch.manual_seed(0)
    network, image = ValidUNet(3, 1, 2, (2, 3), dropout=0.0).eval(), torch.randn(1, 1, 9, 12, 7)
    inferer = OverlapTileInferer(tile_size=16)
    with torch.no_grad():
        straight = inferer(image, network).softmax(1)
        mirrored = inferer(image.flip(2), network).softmax(1).flip(2)
    expected = ((straight - mirrored) / 2).square().sum(1)
    assert torch.allclose(symmetry_variance(image, network, inferer, (0,)), expected, atol=1e-6)
    assert symmetry_variance(image, network, inferer, ()).max() < 1e-7
    every = symmetry_variance(image, network, inferer, (0, 1, 2))
    assert torch.equal(every, symmetry_variance(image, network, inferer, "mirror"))


def test_the_averaging_of_an_inferer_is_left_out_and_left_alone():
    """Averaged predictions would agree with each other; others may be using the inferer meanwhile."""
    torch.manual_seed(0)
    network, image = ValidUNet(2, 1, 2, (2, 3), dropout=0.0).eval(), torch.randn(1, 1, 16, 16)
    averaging = OverlapTileInferer(tile_size=16, averaging="all")
    expected = symmetry_variance(image, network, OverlapTileInferer(tile_size=16))
    assert torch.equal(symmetry_variance(image, network, averaging), expected)
    assert averaging.averaging == "all"


@pytest.mark.parametrize("symmetries", ["some", (2,), (-1,)])
def test_unknown_symmetries_are_refused(symmetries):
    with pytest.raises(
        ValueError, match=f'symmetries is {re.escape(repr(symmetries))}; it must be "all", "mirror" or axes'
    ):
        symmetry_variance(torch.zeros(1, 1, 4, 4), two_classes(lambda x: x), plain, symmetries)


@pytest.mark.parametrize(
    ("flip_prob", "rotate_range", "dims", "expected"),
    [
        (0.5, math.pi, 2, "all"),
        ([0.1, 1], [math.pi / 2], 2, "all"),
        (0.5, 0.26, 2, [0, 1]),  # never turned as far as by a right angle
        ([0, 0.5], math.pi, 2, [1]),
        (0, math.pi, 2, []),
        ([0.5, 0, 0], [0.26, 0, 0], 3, [0]),
        (0.5, math.pi, 3, [0, 1, 2]),  # voxels need not be as deep as wide
    ],
)
def test_what_augmentation_has_shown(flip_prob, rotate_range, dims, expected):
    assert trained_symmetries(flip_prob, rotate_range, dims) == expected
