"""Independent pieces of work, done here or by the workers of a Dask scheduler on several machines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from monai_unet.errors import InputError
from monai_unet.options import require

__all__ = ["map_items"]

logger = logging.getLogger(__name__)
T = TypeVar("T")


def map_items(
    work: Callable[..., None], items: Iterable[T], scheduler: str | None = None, desc: str = "", **shared: Any
) -> None:
    """Call ``work(item, **shared)`` for each item: one after the other here, or on the workers of a Dask scheduler.

    Workers may join and die meanwhile. The items of a dead worker are given to another one, so it must be harmless to
    do an item twice. If no worker is left, the call waits for one.

    Args:
        work: writes its results to disk, where all workers find them under the same paths. It and its arguments must
            be picklable.
        items: independent of each other.
        scheduler: its address, such as "tcp://10.0.0.1:8786"; None to do the work in this process.
        desc: title of the progress bar.
        shared: sent to each worker once instead of with every item.

    Raises:
        InputError: no scheduler answers at the address.
        Exception: the first one that ``work`` raises; items not yet begun are dropped.

    >>> map_items(print, ["one tile", "another"], end=" done\\n")
    one tile done
    another done
    """
    items = list(items)
    if scheduler is None:
        for item in tqdm(items, desc=desc, disable=True if len(items) == 1 else None):
            work(item, **shared)
        return
    dask, distributed = require("dask", "cluster"), require("distributed", "cluster")
    try:
        client = distributed.Client(scheduler, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(scheduler, "no Dask scheduler answers there", "Start one with `dask scheduler`") from error
    with client, dask.config.set({"distributed.admin.large-graph-warning-threshold": "10GB"}):
        logger.info("%d items for %d workers at %s", len(items), len(client.scheduler_info()["workers"]), scheduler)
        # a task per shared value: Dask computes it again after all workers that held it have died
        sent = {name: client.submit(_identity, value, pure=False) for name, value in shared.items()}
        futures = client.map(work, items, pure=False, **sent)
        done = distributed.as_completed(futures, loop=client.loop)
        for future in tqdm(done, total=len(futures), desc=desc, disable=None):
            future.result()


def _identity(value: T) -> T:
    return value
