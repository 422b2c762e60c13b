"""One scene or position of a file that holds several, by its number: plate#2.lif is the second of plate.lif."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_unet.errors import InputError

__all__ = ["choose_scene", "name_scene", "scene_of"]


def name_scene(path: Path, scene: int) -> Path:
    """Name a scene of a file.

    >>> name_scene(Path("plate.ome.tif"), 2).name
    'plate.ome#2.tif'
    """
    return path.with_name(f"{path.stem}#{scene}{path.suffix}")


def scene_of(path: Path) -> tuple[Path, int | None]:
    """Find the file and the number of a scene from its name; a file of this name is itself.

    >>> [(file.name, scene) for file, scene in map(scene_of, (Path("plate#2.lif"), Path("plate#x.lif")))]
    [('plate.lif', 2), ('plate#x.lif', None)]
    """
    name, _, number = path.stem.rpartition("#")
    if not name or not number.isdecimal() or path.is_symlink() or path.exists():
        return path, None
    return path.with_name(name + path.suffix), int(number)


def choose_scene(path: Path, scenes: Sequence[str], chosen: int | None) -> int:
    """Return the index of the only scene, or of the chosen one.

    Args:
        path: of the file.
        scenes: what tells each from the others, such as its name.
        chosen: its number, from 1 on; None if there should be only one.

    Raises:
        InputError: there are several, and none is chosen; or there is no such one.

    >>> choose_scene(Path("plate.lif"), ["Overview", "Series 1"], 2)
    1
    """
    if chosen is None and len(scenes) == 1:
        return 0
    if chosen is not None and 1 <= chosen <= len(scenes):
        return chosen - 1
    listed = ", ".join(f"{number} ({scene})" if scene else str(number) for number, scene in enumerate(scenes[:9], 1))
    listed += ", …" if len(scenes) > 9 else ""
    if chosen is not None:
        raise InputError(path, f"it has no scene {chosen}, only {listed}", "Choose one of these")
    problem = f"{len(scenes)} scenes or positions: {listed}"
    cure = f"Choose one, in a prediction with --scene 1, in a datalist as {name_scene(path, 1).name}"
    raise InputError(path, problem, cure)
