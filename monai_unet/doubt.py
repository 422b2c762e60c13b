"""Which masks to look at: the share of its own mask that a network expects to be wrong, and a flag.

A pixel with probability p of foreground is background with probability 1 − p, if probabilities are calibrated. The mean
of 1 − p over a mask is therefore the share of its pixels that is expected to be wrong: the confidence of Hendrycks and
Gimpel (2017), seen from the other side. A temperature (Guo et al. 2017), fitted on the validation set, calibrates the
probabilities. What is missing from a mask does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from monai.config import NdarrayOrTensor
from monai.utils import convert_to_numpy
from scipy.special import expit, logit

__all__ = ["NO_FLAG", "Doubt", "doubt", "temper"]

#: said once, where there are numbers but no flag
NO_FLAG = 'doubt has no flag: "python -m monai_unet.bundles doubt" sets the checkpoint\'s threshold (docs/doubt.md)'
#: float32 has no probability between this and 1
NEAREST = 1e-7


class Doubt(NamedTuple):
    """How doubtful a mask is, from 0 to 1, and whether somebody should look at it.

    >>> Doubt(0.31, True, {}, {}).text
    'doubt 0.31: look at it'
    """

    image: float
    #: None without a threshold
    look: bool | None
    #: of each id
    objects: dict[int, float]
    objects_look: dict[int, bool | None]

    @property
    def text(self) -> str:
        """The number and the flag."""
        return f"doubt {self.image:.2f}{': look at it' if self.look else ''}"


def doubt(mask: NdarrayOrTensor, probability: NdarrayOrTensor, rule: Mapping[str, Any] | None = None) -> Doubt:
    """Compute the expected share of wrong pixels of a mask, and of each of its objects.

    Args:
        mask: ids or classes, whole numbers, 0 = background, of any shape.
        probability: of foreground, of the same shape.
        rule: the entry "doubt" of a checkpoint's task: ``temperature``, and the thresholds ``threshold`` and
            ``object_threshold``, above which the flag is set; None: 1, and no flag.

    Returns:
        The mean over all of the mask, 1 where it is empty: nothing was found that speaks for it. For each id that
        occurs, in ascending order, the mean over its pixels.

    Raises:
        ValueError: other shapes.

    >>> import numpy as np
    >>> ids, probability = np.array([[0, 1, 1, 2]]), np.array([[0.4, 0.9, 0.8, 0.6]])
    >>> found = doubt(ids, probability, {"temperature": 1, "threshold": 0.2, "object_threshold": 0.35})
    >>> round(found.image, 3), found.look, found.objects_look
    (0.233, True, {1: False, 2: True})
    """
    rule = rule or {}
    ids: np.ndarray = np.asarray(convert_to_numpy(mask)).astype(np.int64)
    p: np.ndarray = np.asarray(convert_to_numpy(probability)).astype(np.float64)
    if ids.shape != p.shape:
        raise ValueError(f"the mask has shape {ids.shape}, the probability {p.shape}")
    inside = ids > 0
    names, numbers, sizes = np.unique(ids[inside], return_inverse=True, return_counts=True)
    sums = np.bincount(numbers.ravel(), 1 - temper(p[inside], rule.get("temperature", 1.0)), minlength=len(names))
    image = float(sums.sum() / sizes.sum()) if len(names) else 1.0
    objects = dict(zip(names.tolist(), (sums / sizes).tolist(), strict=True))
    looks = {name: _above(value, rule.get("object_threshold")) for name, value in objects.items()}
    return Doubt(image, _above(image, rule.get("threshold")), objects, looks)


def temper(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits of probabilities by a temperature: above 1 they become less certain.

    >>> temper(np.array([0.5, 0.9]), 2.0).round(3).tolist()
    [0.5, 0.75]
    """
    within: np.ndarray = np.clip(probability, NEAREST, 1 - NEAREST)
    tempered: np.ndarray = expit(logit(within) / temperature)
    return tempered


def _above(value: float, threshold: float | None) -> bool | None:
    return None if threshold is None else value > threshold
