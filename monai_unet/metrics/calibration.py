"""Whether probabilities are what they say: reliability, expected calibration error, and a temperature that mends both.

Guo, Pleiss, Sun, Weinberger 2017, On Calibration of Modern Neural Networks. Here the probability is that of foreground.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from monai_unet.doubt import NEAREST, temper

__all__ = ["Bin", "calibration_error", "fit_temperature", "reliability"]

#: of equal width
BINS = 10
#: of temperatures that are searched
LOWEST, HIGHEST = 0.1, 10.0


class Bin(NamedTuple):
    """The pixels with probabilities of one tenth of 0 … 1.

    >>> Bin(100, 0.93, 0.85).found
    0.85
    """

    pixels: int
    #: mean probability
    predicted: float
    #: share of them that are foreground
    found: float


def reliability(probability: np.ndarray, truth: np.ndarray) -> list[Bin]:
    """Compare probabilities with the shares found, in ten bins; those without a pixel are left out.

    Args:
        probability: of foreground, (pixels,).
        truth: whether it is foreground, (pixels,).

    >>> reliability(np.array([0.02, 0.04, 0.95, 1.0]), np.array([False, False, True, False]))
    [Bin(pixels=2, predicted=0.03, found=0.0), Bin(pixels=2, predicted=0.975, found=0.5)]
    """
    number = np.minimum((probability * BINS).astype(int), BINS - 1)
    pixels, predicted, found = (
        np.bincount(number, weights, minlength=BINS).tolist() for weights in (None, probability, truth.astype(float))
    )
    return [Bin(n, p / n, f / n) for n, p, f in zip(pixels, predicted, found, strict=True) if n]


def calibration_error(bins: list[Bin]) -> float:
    """Compute the expected calibration error: the mean over all pixels of their bin's \\|predicted − found\\|.

    >>> calibration_error([Bin(30, 0.1, 0.1), Bin(10, 0.9, 0.5)])
    0.1
    """
    return sum(n * abs(predicted - found) for n, predicted, found in bins) / sum(n for n, *_ in bins)


def fit_temperature(probability: np.ndarray, truth: np.ndarray) -> float:
    """Find the temperature that makes the probabilities most likely; no mask changes by it, 0.5 stays 0.5.

    Args:
        probability: of foreground, (pixels,).
        truth: whether it is foreground, (pixels,).

    Returns:
        What `temper` divides the logits by, between 0.1 and 10: above 1 where the network is too sure.

    >>> sure = np.array([0.99] * 10)
    >>> temperature = fit_temperature(sure, np.array([True] * 9 + [False]))
    >>> round(float(temper(sure, temperature)[0]), 3)
    0.9
    """

    def loss(log_temperature: float) -> float:
        p = np.clip(temper(probability, np.exp(log_temperature)), NEAREST**2, 1 - NEAREST)
        return float(-np.log(np.where(truth, p, 1 - p)).mean())

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))
