"""The archive of a card: the folder already there, the file already there, or a download that can be resumed."""

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


def find_archive(card: dict[str, Any], folder: Path) -> Path:
    """The unpacked archive of a card.

    Args:
        card: its ``url`` names the archive file; its ``folder`` ends in the name of the unpacked folder.
        folder: where the unpacked folder is expected; the archive file is looked for, and downloaded to, beside it.

    Raises:
        InputError: no network, a cut connection, a damaged or unsafe archive, a folder that cannot be written.
    """
    if folder.is_dir():
        return folder
    file = folder.with_name(PurePosixPath(urllib.parse.urlsplit(card["url"]).path).name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            _download(card["url"], file)
        _unpack(file, folder)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise InputError(folder, problem, "Choose a folder for archives with --root DIR") from error
    return folder


def _download(url: str, file: Path) -> None:
    """Fetch to `<file>.part`, from where a former try ended, and move when complete."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(file, f"{url} is not an http(s) address", "Correct the card")
    part = file.with_name(file.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    cure = f"Run again to go on from there, or download {url} yourself and put it here as {file}"
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
        if error.code == 416:  # the part is as long as the file, or longer: it cannot be trusted
            part.unlink()
            return _download(url, file)
        raise InputError(file, f"{url} answers {error.code} {error.reason}", cure) from error
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise InputError(file, f"could not be downloaded from {url} ({error})", cure) from error
    if have < total:
        raise InputError(file, f"the connection was cut after {have} of {total} bytes", cure)
    part.replace(file)


def _unpack(file: Path, folder: Path) -> None:
    """Unpack beside the target and move: a killed run leaves no folder that looks complete."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(file) if file.suffix == ".zip" else tarfile.open(file) as archive:
            names = archive.namelist() if isinstance(archive, zipfile.ZipFile) else archive.getnames()
            for name in names:
                if PurePosixPath(name).is_absolute() or {"..", ":"} & {*PurePosixPath(name).parts, name[1:2]}:
                    raise InputError(file, f"the archive wants to write outside its folder: {name!r}", "Do not use it")
            if isinstance(archive, zipfile.ZipFile):
                archive.extractall(part)
            else:
                archive.extractall(part, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(file, f"damaged archive ({error})", "Delete it and run again") from error
    inner = part
    while True:  # archives differ in the folders they wrap around the data
        entries = [entry for entry in inner.iterdir() if entry.name != "__MACOSX" and entry.name[0] != "."]
        if len(entries) != 1 or not entries[0].is_dir():
            break
        inner = entries[0]
    inner.replace(folder)
    shutil.rmtree(part, ignore_errors=True)
