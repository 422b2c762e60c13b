"""A bundle's files from its plan: the templates filled in."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from monai_unet.bundles.metadata import metadata
from monai_unet.bundles.plan import Plan

__all__ = ["bundle_files"]

TEMPLATES = Path(__file__).parent / "templates"
#: columns of a config: where comments start, and where lines end
COMMENT, WIDTH = 40, 120


def flow(value: Any) -> str:
    """Write a value in YAML's one-line form.

    >>> flow([1, 0.5, None]), flow("$np.pi"), flow({"a": "@b"})
    ('[1, 0.5, null]', '$np.pi', "{a: '@b'}")
    """
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _line(name: str, value: Any, why: str) -> str:
    start = f"{name}: {flow(value)}"
    if len(line := f"{start:<{COMMENT - 1}} # {why}".rstrip(" #")) <= WIDTH:
        return line
    above = textwrap.fill(why, WIDTH, initial_indent="# ", subsequent_indent="# ")
    return f"{above}\n{start}"


def _helpers(plan: Plan) -> dict[str, Callable[..., str]]:
    """The functions that templates call."""
    settings = plan.settings

    def options(names: str, given: bool = False) -> str:
        lines = []
        for name in names.split():
            if name in settings:
                value, why = settings[name]
                if given:  # by the checkpoint; else as in train.yaml
                    value = f"$@task.get({name!r}, {value!r})"
                lines.append(_line(name, value, why))
        return "\n".join(lines)

    def compact() -> str:
        return "\n".join(_line(name, *setting) for name, setting in plan.compact.items())

    def task(names: str) -> str:
        return "\n".join(f"  {name}: '@{name}'" for name in names.split() if name in settings)

    def parameters(always: str, names: str = "") -> str:
        runs = ("validation_items", "max_epochs", "val_interval")  # how long, not how
        chosen = names.split() or [name for name in settings if name not in runs]
        return "\n".join(
            f"    {name}: '@{name}'" for name in [*always.split(), *chosen] if name in always or name in settings
        )

    def numbered(names: list[str]) -> str:
        return ", ".join(f"{number} {name}" for number, name in enumerate(names))

    return {
        "line": _line,
        "options": options,
        "compact": compact,
        "task": task,
        "parameters": parameters,
        "numbered": numbered,
        "flow": flow,
    }


def bundle_files(plan: Plan) -> dict[str, str]:
    """Fill in the templates: the text of each file of the bundle, by its path in the bundle's folder.

    >>> from monai_unet.bundles.plan import PAPER_2D
    >>> plan = Plan("mine", "instances", 2, False, ["image"], ["background", "cell"], "microscopy", PAPER_2D)
    >>> sorted(bundle_files(plan))[:3]
    ['LICENSE', 'configs/evaluate.yaml', 'configs/inference.yaml']
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
    )
    environment.globals.update(plan=plan, **_helpers(plan))
    blocks = environment.get_template("configs/blocks.yaml").module
    environment.globals.update({name: _stripped(getattr(blocks, name)) for name in vars(blocks) if name[0] != "_"})
    names = [path.relative_to(TEMPLATES).as_posix() for path in sorted(TEMPLATES.rglob("*")) if path.is_file()]
    names.remove("configs/blocks.yaml")
    if plan.dims == 3:
        names.remove("configs/inference_large.yaml")
    if not plan.compact:
        names.remove("configs/compact.yaml")
    files = {name: environment.get_template(name).render() for name in names}
    files = {name: _tidied(text) if name[:7] == "configs" else text for name, text in files.items()}
    return {**files, "configs/metadata.json": json.dumps(metadata(plan), indent=2, ensure_ascii=False) + "\n"}


def _tidied(text: str) -> str:
    """A block without content leaves no empty line; a comment that would make its line too long stands above it."""
    text = re.sub(r"\n{2,}(?=[ -]|\n)", "\n", text)
    return re.sub(
        r"^( *)(\S.*?) +# (.*)$",
        lambda line: line[0] if len(line[0]) <= WIDTH else f"{line[1]}# {line[3]}\n{line[1]}{line[2]}",
        text,
        flags=re.MULTILINE,
    )


def _stripped(macro: Callable[..., str]) -> Callable[..., str]:
    return lambda *args, **kwargs: macro(*args, **kwargs).strip("\n")
