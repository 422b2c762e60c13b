"""Objects of several classes, such as live and dead cells, in one label image: an id says of which class its object is.

Of K classes, class c has the ids c, c + K, c + 2 K …: of two, the odd ids are of class 1, the even ones of class 2. So
one file holds objects and classes, and whatever copies, crops or corrects it keeps both. Of one class all ids are its.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from monai_unet.errors import InputError

__all__ = ["class_of", "id_of", "join_classes"]

Ids = TypeVar("Ids")


def class_of(ids: Ids, classes: int) -> Ids:
    """Return the class of each id: 1 … ``classes``, 0 of the background.

    Args:
        ids: whole numbers from 0 on, an array or a tensor of any shape.
        classes: how many there are, without the background.

    >>> import numpy as np
    >>> class_of(np.array([0, 1, 2, 3, 4]), classes=2)
    array([0, 1, 2, 1, 2])
    """
    found: Any = ids
    return ((found - 1) % classes + 1) * (found > 0)


def id_of(numbers: Ids, classes_of: Any, classes: int) -> Ids:
    """Return the ids of objects, numbered from 1 on, of these classes; 0 of the background, number 0.

    Args:
        numbers: of the objects, within a class or over all of them, an array or a tensor.
        classes_of: of each object, from 1 on; one for all, or as many as ``numbers``.
        classes: how many there are, without the background.

    >>> import numpy as np
    >>> id_of(np.array([0, 1, 2]), np.array([1, 2, 1]), classes=2)
    array([0, 2, 3])
    """
    found: Any = numbers
    return ((found - 1) * classes + classes_of) * (found > 0)


def join_classes(labels: Ids, files: Sequence[object] = ("labels",)) -> Ids:
    """Join the instance labels of K classes, ``(K, *spatial)``, in one, ``(1, *spatial)``, whose ids say the class.

    Args:
        labels: ids from 1 on in each channel, 0 = background; an array or a tensor of a signed integer type. One
            channel stays as it is: it has such ids already, or there is one class.
        files: to name in an error.

    Raises:
        InputError: a pixel is of two classes.

    >>> import numpy as np
    >>> join_classes(np.array([[[1, 2, 0, 0]], [[0, 0, 0, 1]]]))
    array([[[1, 3, 0, 2]]])
    """
    channels: Any = labels
    if (classes := len(channels)) == 1:
        return labels
    if several := int(((channels > 0).sum(0) > 1).sum()):
        place, problem = " and ".join(map(str, files)), f"pixels that belong to objects of two classes: {several}"
        raise InputError(place, problem, "Take each of them away from one of the two objects")
    joined: Any = sum(id_of(channels[c], c + 1, classes) for c in range(classes))
    return joined[None]
