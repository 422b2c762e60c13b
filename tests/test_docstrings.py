"""Every public class and function says in one line what it does, and shows it in an example that runs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import monai_unet


def public() -> list[Any]:
    """What the modules' ``__all__`` names, each where it is written."""
    found = []
    for module in pkgutil.walk_packages(monai_unet.__path__, "monai_unet."):
        if module.ispkg or module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", ()):
            thing = getattr(loaded, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found.append(pytest.param(thing, id=f"{module.name.removeprefix('monai_unet.')}.{name}"))
    return found


@pytest.mark.parametrize("thing", public())
def test_docstring(thing):
    text = inspect.getdoc(thing) or ""
    first, _, rest = text.partition("\n")
    assert first.endswith((".", ":")), f"the first line is not a sentence: {first!r}"
    assert not rest or rest.startswith("\n"), "the summary takes more than one line"
    assert ">>>" in text, "no example"
