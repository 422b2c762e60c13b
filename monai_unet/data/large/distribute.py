"""The same work on more than one machine: each item to whichever worker of a Dask scheduler is free."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from monai_unet.errors import InputError
from monai_unet.options import require

__all__ = ["each"]

logger = logging.getLogger(__name__)
T = TypeVar("T")


def each(
    work: Callable[..., None], items: Iterable[T], scheduler: str | None = None, desc: str = "", **shared: Any
) -> None:
    """Do ``work(item, **shared)`` for each item: here, one after the other, or on the workers of a Dask scheduler.

    Workers may join and die meanwhile: what a dead one was at is done again by another, so ``work`` must bear being
    done twice. With no worker left it waits for one.

    Args:
        work: its results go to disk, where all workers see them under the same paths. It and what it is given must
            be picklable.
        items: independent of each other.
        scheduler: address, such as "tcp://10.0.0.1:8786"; None to do it here.
        desc: title of the progress bar.
        shared: sent once to each worker, rather than with every item.

    Raises:
        InputError: no scheduler answers at the address.
        Whatever ``work`` raises, once; the items not yet begun are dropped.
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
    # what is shared is a task too: so it comes back when all workers that held it have died
    with client, dask.config.set({"distributed.admin.large-graph-warning-threshold": "10GB"}):
        logger.info("%d items for %d workers at %s", len(items), len(client.scheduler_info()["workers"]), scheduler)
        sent = {name: client.submit(_same, value, pure=False) for name, value in shared.items()}
        futures = client.map(work, items, pure=False, **sent)
        for done in tqdm(
            distributed.as_completed(futures, loop=client.loop), total=len(futures), desc=desc, disable=None
        ):
            done.result()


def _same(value: T) -> T:
    return value
