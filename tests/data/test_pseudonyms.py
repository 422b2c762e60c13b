"""Pseudonyms: the same in every run of one user, meaningless to others."""

from __future__ import annotations

import csv
import hashlib
import hmac
import inspect
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import pytest

from monai_unet.data.studies.pseudonyms import Pseudonyms
from monai_unet.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MONAI_UNET_PSEUDONYM_KEY", raising=False)
    return tmp_path / "config" / "monai_unet"


def test_same_key_same_pseudonym_and_it_is_the_hmac(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Pseudonyms()("1.2.3")
    assert first == Pseudonyms()("1.2.3") != Pseudonyms()("1.2.4")
    key = (folder / "pseudonyms.key").read_bytes()
    assert first == hmac.digest(key, b"1.2.3", hashlib.sha256).hex()[:16]
    assert (folder / "pseudonyms.key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "pseudonyms.key").unlink()
    assert Pseudonyms()("1.2.3") != first
    monkeypatch.setenv("MONAI_UNET_PSEUDONYM_KEY", "one for all sites")
    shared = Pseudonyms()("1.2.3")
    (folder / "pseudonyms.key").unlink()
    assert shared == Pseudonyms()("1.2.3") == hmac.digest(b"one for all sites", b"1.2.3", "sha256").hex()[:16]
    assert not (folder / "pseudonyms.key").exists()


def test_the_table_leads_back_and_repeats_nothing(folder: Path) -> None:
    pseudonyms = Pseudonyms()
    pseudonyms.remember([("b", "/data/Müller, Paula", "1.2"), ("a", "/data/x", "")])
    pseudonyms.remember([("a", "/data/x", ""), ("a", "/data/y", "")])
    with pseudonyms.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["pseudonym", "path", "series_uid"],
        ["a", "/data/x", ""],
        ["b", "/data/Müller, Paula", "1.2"],
        ["a", "/data/y", ""],
    ]
    assert pseudonyms.table == folder / "pseudonyms.csv"
    assert pseudonyms.table.stat().st_mode & 0o777 == 0o600


def test_first_runs_at_once_share_one_key_and_one_table(folder: Path) -> None:
    code = "import runpy, sys; module = runpy.run_path(sys.argv[1]); sys.stdin.read(); p = module['Pseudonyms']();"
    code += "p.remember([(sys.argv[2] + str(n), '/data', '') for n in range(2000)]); print(p('1.2.3'))"
    command = [sys.executable, "-c", code, inspect.getfile(Pseudonyms)]
    with ExitStack() as stack:
        processes = [Popen([*command, run], stdin=PIPE, stdout=PIPE, stderr=STDOUT, text=True) for run in "abc"]
        for process in map(stack.enter_context, processes):
            process.stdin.close()  # all are started: go
        assert [process.stdout.read() for process in processes] == [f"{Pseudonyms()('1.2.3')}\n"] * 3
    with (folder / "pseudonyms.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["pseudonym", "path", "series_uid"]
    assert sorted(rows[1:]) == sorted([f"{run}{n}", "/data", ""] for run in "abc" for n in range(2000))


def test_two_runs_that_find_no_key_agree_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that there is none before either writes: the worst case of the race."""
    barrier = threading.Barrier(2)
    exists = Path.exists

    def together(path: Path) -> bool:
        found = exists(path)
        if path.name == "pseudonyms.key":
            barrier.wait(60)
        return found

    monkeypatch.setattr(Path, "exists", together)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: Pseudonyms()("1.2.3"), range(2))
    assert first == second


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    folder.parent.write_text("a file")
    with pytest.raises(InputError, match="cannot be kept there .* Set XDG_CONFIG_HOME to a folder of your own"):
        Pseudonyms()


def test_a_damaged_key(folder: Path) -> None:
    Pseudonyms()
    (folder / "pseudonyms.key").write_text("")
    with pytest.raises(InputError, match=r"pseudonyms.key: not the key that was written there. Delete it"):
        Pseudonyms()
