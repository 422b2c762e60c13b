"""A bundle that comes with the package is found by its name, and copied without what runs have left in its folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from monai_unet.bundles import copies
from monai_unet.bundles.__main__ import main

ROOT = Path(__file__).parents[2]
CELLS = ROOT / "bundles" / "cell_segmentation"
LEFT_BY_RUNS = (
    "models/checkpoints/step_1.pt",
    "models/previous_1/model.pt",
    "models/pictures/1.png",
    "eval/scores.csv",
)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package as a wheel lays it out, with one bundle that has been trained and evaluated."""
    monkeypatch.setattr(copies, "__file__", str(tmp_path / "package" / "copies.py"))
    bundle = tmp_path / "package" / "shipped" / "cells"
    shutil.copytree(CELLS / "configs", bundle / "configs")
    for name in ("LICENSE", "docs/a/b.png", "models/model.pt", "samples/1.png", *LEFT_BY_RUNS):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return bundle


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("folder", [None, "deeper/mine"])
def test_a_copy_is_what_the_package_brings(folder, package, tmp_path, capsys):
    assert main(["copy", "cells", *([folder] if folder else [])]) == 0
    copied = tmp_path / (folder or "cells")
    assert capsys.readouterr().out == f"{copied}\n"
    assert set(files(package)) - set(files(copied)) == set(LEFT_BY_RUNS)
    assert all((copied / name).read_bytes() == (package / name).read_bytes() for name in files(copied))


def test_a_folder_that_exists_is_left_alone(package, tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    assert main(["copy", "cells"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'cells'}: it exists. Name a new folder.\n"
    assert files(tmp_path / "cells") == []


def test_a_copy_that_fails_leaves_nothing(package, tmp_path, monkeypatch):
    def copyfile(source: Path, target: Path) -> None:
        if source.name == "model.pt":
            raise OSError("disk failed")
        target.touch()

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(OSError, match="disk failed"):
        copies.copy_bundle("cells")
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize("command", ["copy", "options"])
def test_an_unknown_name_lists_the_known_ones(command, package, tmp_path, capsys):
    assert main([command, "cell"]) == 1
    expected = "error: cell: no bundle of this name comes with the package. Choose one of cells.\n"
    assert capsys.readouterr().err == expected


def test_options_of_a_bundle_that_comes_with_the_package(package, capsys):
    assert main(["options", "cells"]) == 0
    assert "--max_epochs             60" in capsys.readouterr().out


def test_the_wheel_packs_what_is_copied():
    packed = re.search(r'"monai_unet.bundles.shipped" = (\[.*\])', (ROOT / "pyproject.toml").read_text())
    assert packed
    assert re.findall(r'"\*/([^"]+)"', packed[1]) == list(copies.SHIPPED)
