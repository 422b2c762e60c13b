"""A bundle's options are the keys at the top of its configs; their meaning is in the comments there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from monai_unet.errors import InputError

__all__ = ["Option", "options"]

#: a key at the top, the start of its value, a comment
KEY = re.compile(r"\+?(\w+):(?: +([^# ].*?)| +\S)?(?: +# (.*))?$")
#: a value that the checkpoint's own replaces
GIVEN = re.compile(r"\$@task\.get\('\w+', (.+)\)")
HEADING = re.compile(r"# --- (.+?):? ---$")


class Option(NamedTuple):
    """An option as a config has it: its name, its default in YAML, and the comment that explains it.

    >>> Option("max_epochs", "60", "of 500 steps", "optimisation").default
    '60'
    """

    name: str
    default: str
    meaning: str
    heading: str


def options(config: str | os.PathLike[str]) -> list[Option]:
    """List the options of a config: the keys above its first block, with their comments.

    Options of the config that it says it extends come first, with its own defaults.

    Raises:
        InputError: there is no such file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "train.yaml")
    ...     _ = path.write_text("# --- optimisation ---\\nmax_epochs: 60   # of 500 steps\\nloss:\\n  _target_: L1")
    ...     options(path)
    [Option(name='max_epochs', default='60', meaning='of 500 steps', heading='optimisation')]
    """
    config = Path(config)
    if not config.is_file():
        known = ", ".join(sorted(path.stem for path in config.parent.glob("*.yaml"))) or "none"
        raise InputError(config, f"there is no such config, only {known}", "Choose one of these")
    lines = config.read_text(encoding="utf-8").splitlines()
    base = re.search(r"[Ii]t extends\s+(?:# )?(\w+\.yaml)", "\n".join(lines))
    found = {option.name: option for option in options(config.with_name(base[1]))} if base else {}
    heading, above = "", ""
    for line in lines:
        if title := HEADING.match(line):
            heading, above = title[1], ""
        elif line.startswith("#"):
            above = f"{above} {line[1:].strip()}".strip()
        elif key := KEY.match(line):
            name, default, comment = key[1], key[2] or "", key[3]
            if name != "imports":
                if not default or default[0] == "{":
                    break
                if default[0] in "\"'":  # of a value that continues on the next line, the first line is enough
                    default = default[1:].removesuffix(default[0])
                if given := GIVEN.fullmatch(default):
                    default = given[1].strip("'")
                before = found.get(name, Option(name, "", "", heading))
                meaning = comment or above or before.meaning
                found[name] = Option(name, default, meaning, before.heading)
            above = ""
        elif not line:
            above = ""
    return list(found.values())
