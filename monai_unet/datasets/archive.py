"""The archive of a card: an unpacked folder, a file, or a download that can be resumed.

The download is not MONAI's `download_url`: that one cannot resume, waits for a stalled server for ever, and passes over
a folder that it may not write to. Unpacking is MONAI's.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from monai_unet.errors import InputError

__all__ = ["find_archive"]


def find_archive(card: dict[str, Any], folder: Path) -> None:
    """Make sure that the unpacked archive of a card is there: unpack it, and download it, if needed.

    Args:
        card: its ``url`` ends in the name of the archive file.
        folder: of the unpacked archive; the archive file is looked for next to it, and downloaded to there.

    Raises:
        InputError: no network, an interrupted connection, a damaged or unsafe archive, a folder that cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     with zipfile.ZipFile(f"{name}/Cells.zip", "w") as file:
    ...         file.writestr("Cells/t000.tif", b"")
    ...     find_archive({"url": "https://example.org/Cells.zip"}, Path(name, "Cells"))
    ...     Path(name, "Cells", "t000.tif").is_file()
    True
    """
    if folder.is_dir():
        return
    file = folder.with_name(PurePosixPath(urllib.parse.urlsplit(card["url"]).path).name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            _download(card["url"], file)
        _unpack(file, folder)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise InputError(folder, problem, "Choose a folder for archives with --root DIR") from error


def _download(url: str, file: Path) -> None:
    """Download to `<file>.part`, continuing an earlier attempt, and rename when complete."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(file, f"{url} is not an http(s) address", "Correct the card")
    part = file.with_name(file.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    cure = f"Run again to resume, or download {url} yourself and save it as {file}"
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            have = have if answer.status == 206 else 0  # 200: the server starts over
            total = have + int(answer.headers.get("Content-Length") or 0)
            bar = tqdm(desc=file.name, initial=have, total=total or None, unit="B", unit_scale=True)
            with bar, part.open("ab" if have else "wb") as out:
                while chunk := answer.read(1 << 18):
                    out.write(chunk)
                    have += len(chunk)
                    bar.update(len(chunk))
                out.flush()
                os.fsync(out.fileno())
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is as long as the file or longer, so it cannot be trusted
            part.unlink()
            return _download(url, file)
        raise InputError(file, f"{url} answers {error.code} {error.reason}", cure) from error
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise InputError(file, f"could not be downloaded from {url} ({error})", cure) from error
    if have < total:
        raise InputError(file, f"the connection was interrupted after {have} of {total} bytes", cure)
    part.replace(file)


def _unpack(file: Path, folder: Path) -> None:
    """Unpack next to the target and rename: a killed run leaves no folder that looks complete."""
    from monai.apps.utils import extractall

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        extractall(file, part, has_base=False)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(file, f"damaged or unsafe archive ({error})", "Delete it and run again") from error
    inner = part
    while True:  # archives differ in the folders around the data
        entries = [entry for entry in inner.iterdir() if entry.name != "__MACOSX" and entry.name[0] != "."]
        if len(entries) != 1 or not entries[0].is_dir():
            break
        inner = entries[0]
    inner.replace(folder)
    shutil.rmtree(part, ignore_errors=True)
