"""The rule of imports in ARCHITECTURE.md: a folder may use what stands below it, and the top files use no folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import monai_unet

PACKAGE = Path(monai_unet.__file__).parent
#: which rooms each room may import, besides itself and the top files
BELOW = {
    "metrics": set(),
    "transforms": set(),
    "data": {"transforms"},
    "datasets": {"data"},
    "training": {"data"},
    "tracking": {"data", "training"},
    "bundles": {"data", "datasets", "metrics", "training", "tracking", "transforms"},
}
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())


def imported(file: Path) -> set[str]:
    """The modules of this package that a file imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("monai_unet.")}


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names} & set(ROOMS)


def test_every_room_has_its_rule():
    assert set(ROOMS) == set(BELOW)


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_top_files_import_no_room(file):
    assert not rooms_of(imported(file))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_stands_below_them(room):
    allowed = BELOW[room] | {room}
    for file in (PACKAGE / room).rglob("*.py"):
        assert rooms_of(imported(file)) <= allowed, file.relative_to(PACKAGE)
