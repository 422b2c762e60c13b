"""Files are whole or absent, also on Windows; a folder is one process's at a time, and free when that process dies."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monai_unet.errors import InputError
from monai_unet.files import FolderLock, creating, replacing

# --- whole files ---


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
        raise OSError("disk full")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    assert path.read_text() == "old"
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows itself is the test")
def test_a_file_is_saved_where_only_files_open_for_writing_can_be_synced(tmp_path, monkeypatch):
    import fcntl

    synced = []

    def windows_fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", windows_fsync)
    with replacing(tmp_path / "model.pt") as partial:
        partial.write_text("weights")
    assert (tmp_path / "model.pt").read_text() == "weights"
    assert len(synced) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be synced there")
def test_the_folder_is_synced_after_the_move(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor)))
    synced: list[os.stat_result] = []
    with replacing(tmp_path / "model.pt") as partial:
        partial.write_text("weights")
    assert [stat.st_ino for stat in synced] == [(tmp_path / "model.pt").stat().st_ino, tmp_path.stat().st_ino]


def test_a_folder_is_whole_or_absent(tmp_path):
    folder = tmp_path / "deeper" / "bundle"
    with pytest.raises(ZeroDivisionError), creating(folder) as built:
        (built / "configs").mkdir()
        _ = 1 / 0
    assert list(folder.parent.iterdir()) == []
    with creating(folder) as built:
        (built / "configs").mkdir()
        assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert [path.name for path in folder.iterdir()] == ["configs"]
    with pytest.raises(InputError, match="bundle: it exists. Name a new folder."), creating(folder):
        pass


def test_a_full_disk_is_said_of_the_folder_and_of_no_other_file(tmp_path):
    def fill(file: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    folder = tmp_path / "bundle"
    said = r"bundle: it could not be written \(No space left on device; "
    with pytest.raises(InputError, match=said), creating(folder) as built:
        fill(built / "configs" / "train.yaml")
    with pytest.raises(OSError, match="No space left on device"), creating(folder):
        fill(tmp_path / "another")
    assert list(tmp_path.iterdir()) == []


# --- folders ---

HOLD = """
import sys
from monai_unet.files import FolderLock
with FolderLock(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path, name: str) -> subprocess.Popen[str]:
    """A process that holds the folder until it is killed or its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("name", [".training.lock", "lock"])
def test_a_folder_is_refused_until_the_process_that_holds_it_dies(name, tmp_path):
    with hold(tmp_path / "new", name) as process:
        lock = FolderLock(tmp_path / "new", name)
        assert not lock.acquire()
        with pytest.raises(InputError, match=rf"is writing to this folder \(process {process.pid} on .+\). Wait until"):
            lock.__enter__()
        process.kill()
    assert lock.acquire()
    lock.release()
    with hold(tmp_path / "new", name) as process:  # it was released
        process.kill()


def test_refusing_a_second_lock_of_this_process_keeps_the_first(tmp_path):
    with FolderLock(tmp_path) as first:
        assert not first.acquire()
        with pytest.raises(InputError, match=r"is writing to this folder \(this process\)"):
            FolderLock(tmp_path / ".." / tmp_path.name).__enter__()
        with FolderLock(tmp_path, "another"):
            pass
        refused = subprocess.run(
            [sys.executable, "-c", HOLD, tmp_path, first.path.name], capture_output=True, text=True, check=False
        )
        assert f"process {os.getpid()} on" in refused.stderr
    with FolderLock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_not_called_taken(tmp_path):
    (tmp_path / ".training.lock").mkdir()
    lock = FolderLock(tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match=r"\.training\.lock"):
            lock.acquire()
