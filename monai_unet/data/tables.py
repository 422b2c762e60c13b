"""Tables of results, CSV, that later runs into the same folder add to: whole files, no row lost and none twice."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unet.errors import InputError
from monai_unet.files import replacing

__all__ = ["read_table", "update_table"]


def read_table(path: str | os.PathLike[str], key: str) -> Iterator[dict[str, str]]:
    """Read the rows of a table one by one; none if there is no such file.

    Args:
        path: of the CSV file.
        key: the column that names what a row is about.

    Raises:
        InputError: it has no such column, as where a program has saved it with semicolons, or is not UTF-8.

    >>> list(read_table("no/such/summary.csv", "image"))
    []
    """
    if not Path(path).exists():
        return
    cure = "Save it as CSV, UTF-8 and with commas, or move it away: it is written anew, for the images of the run"
    with Path(path).open(encoding="utf-8-sig", newline="") as file:  # Excel adds a byte order mark
        rows = csv.DictReader(file)
        try:
            if key not in (columns := rows.fieldnames or ()):
                found = ", ".join(columns)[:60]
                raise InputError(path, f"a table without a column {key!r}; its first line is {found!r}", cure)
            yield from rows
        except UnicodeDecodeError as error:
            raise InputError(path, f"a table that is not UTF-8 (byte {error.start})", cure) from error


def update_table(
    path: str | os.PathLike[str],
    key: str,
    columns: Sequence[str],
    rows: Mapping[str, Iterable[Mapping[str, Any]]],
) -> None:
    """Replace the rows of some keys in a table, or add them; rows of others stay. The file is written as a whole.

    Args:
        path: of the CSV file.
        key: the column of the keys, the first one.
        columns: the others. Those that are in the file already stay where they are.
        rows: of each key, without it. Floats are written with 8 digits, NaN as nothing.

    Raises:
        InputError: as `read_table`, and for a full or read-only disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "summary.csv"
    ...     update_table(path, "image", ["cells"], {"a.tif": [{"cells": 3}], "b.tif": [{"cells": 1}]})
    ...     update_table(path, "image", ["cells", "area_um2"], {"a.tif": [{"cells": 4, "area_um2": 0.25}]})
    ...     print(path.read_text())
    image,cells,area_um2
    b.tif,1,
    a.tif,4,0.25
    """
    old = list(next(read_table(path, key), {}))
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        names = dict.fromkeys([key, *old, *columns])
        writer = csv.DictWriter(file, list(names), restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in read_table(path, key) if row[key] not in rows)
        for name, own in rows.items():
            writer.writerows({key: name, **{column: _text(value) for column, value in row.items()}} for row in own)


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.8g}"
    return value
