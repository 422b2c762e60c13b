"""The check of a run's options: no unknown ones, and no values of another kind."""

from __future__ import annotations

import ast
import difflib
import math
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from monai_unet.bundles.options import GIVEN
from monai_unet.errors import InputError

__all__ = ["check_options"]

#: whole numbers, and the least that each may be; other numbers are at least 0
COUNTS = {"max_epochs": 1, "steps_per_epoch": 1, "val_interval": 1, "batch_size": 1, "checkpoint_interval": 1}
COUNTS |= {"in_channels": 1, "num_workers": 0, "validation_items": 0, "seed": 0, "level": 0, "sw_batch_size": 1}
#: in Hounsfield units, which may be below 0
SIGNED = ("window", "mean")
#: at most 1
PROBABILITIES = ("flip_prob", "foreground_prob", "dropout", "core")
#: one number, or one for each axis; other options take a list only where the config has one
PER_AXIS = ("tile_size", "elastic_sigma", "rotate_range", "scale_range", "translate_range", "flip_prob")
#: what MONAI's own ``--tracking mlflow`` adds to a config
MONAI_KEYS = {*cast(Mapping, DEFAULT_MLFLOW_SETTINGS["configs"])}


def check_options() -> None:
    """Check the options of the run whose ``initialize`` calls this: no unknown ones, no values of another kind.

    A key is known if one of the bundle's configs from which the run is made has it, if MONAI itself adds it, or if
    another part of the config refers to it. Blocks and the keys inside them (``train#trainer#max_epochs``) are left to
    MONAI, and so are values that are expressions.

    Raises:
        InputError: names the option, and the one that was probably meant, or the kind of value that it takes.

    >>> check_options()  # nothing to check outside a bundle's run
    """
    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_stack(None))
    workflow = next((found for found in frames if isinstance(found, ConfigWorkflow)), None)
    if workflow is None:
        return
    config: dict[str, Any] = workflow.parser.get()
    used = [keys for keys in _configs(workflow.config_root_path) if keys.keys() <= config.keys()]
    defaults = {name: [keys[name] for keys in used if name in keys] for keys in used for name in keys}
    others = {workflow.run_id, workflow.init_id, workflow.final_id, *MONAI_KEYS}
    references = set(re.findall(r"[@%](\w+)", " ".join(_texts(config)))) if defaults else config.keys()
    for name in config.keys() - defaults.keys() - others - references:
        if name.startswith("_"):
            continue
        near = difflib.get_close_matches(name, defaults, n=1)
        problem = f"no option {name}" + (f"; did you mean {near[0]}?" if near else "")
        folder = workflow.config_root_path
        cure = f"python -m monai_unet.bundles options {folder.parent} lists the options"
        raise InputError(folder, problem, cure)
    for name, values in defaults.items():
        _check_value(name, config[name], values)


def _configs(folder: Path) -> Iterator[dict[str, Any]]:
    """The top-level keys of each config in a folder, with their values."""
    for path in sorted(folder.glob("*.yaml")):
        content = ConfigParser.load_config_file(path)
        yield {re.split("#|::", key.lstrip("+"))[0]: _default(value) for key, value in content.items()}


def _default(value: Any) -> Any:
    """The value of an option; of one that the checkpoint's own replaces, what counts without one."""
    given = GIVEN.fullmatch(value) if isinstance(value, str) else None
    return ast.literal_eval(given[1]) if given else value


def _texts(value: Any) -> Iterator[str]:
    """All strings in a config."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _check_value(name: str, value: Any, defaults: list[Any]) -> None:
    """Refuse a value of another kind than all defaults of an option have."""
    if value is None or (isinstance(value, str) and value[:1] in ("$", "@", "%")):
        return
    if value in ("null", "none") and None in defaults:
        raise InputError(f"--{name}", f"it is {value!r}, read as a word", "Write '$None', with the single quotes")
    if name == "device":
        try:
            torch.empty(0, device=value)
        except (RuntimeError, AssertionError, TypeError) as error:
            problem = f"there is no device {value!r} here"
            raise InputError("--device", problem, "Use cpu, or cuda:0 with an Nvidia GPU") from error
    if name.endswith(("_dir", "_path")) and type(value) in (int, float):
        raise InputError(f"--{name}", f"the name was read as {value!r}", 'Write it as a path, "./NAME"')
    many = any(isinstance(default, list) for default in defaults)
    if name in ("kernel_size", "strides", "averaging"):  # the network and the inferer say what is wrong with them
        return
    if not all(_numbers(default) for default in defaults):
        return
    least: float
    if name == "features":
        rule, right = "a list of whole numbers, such as [32, 64, 128]", isinstance(value, list | tuple)
        least, whole = 1, True
    else:
        least, whole = -math.inf if name in SIGNED else COUNTS.get(name, 0), name in COUNTS
        rule = "a number" if name in SIGNED else f"{'a whole number' if whole else 'a number'} of at least {least}"
        rule = "a number from 0 to 1" if name in PROBABILITIES else rule
        if many or name in PER_AXIS:
            rule += ", or a list with one for each axis" if name in PER_AXIS else ", several as a list"
        right = many or name in PER_AXIS or not isinstance(value, list | tuple)
    parts = value if isinstance(value, list | tuple) else [value]
    most = 1 if name in PROBABILITIES else math.inf
    if not (right and _numbers(value) and all(least <= n <= most and (not whole or n == int(n)) for n in parts)):
        raise InputError(f"--{name}", f"it is {value!r}", f"Use {rule}")


def _numbers(value: Any) -> bool:
    """Whether it is a finite number, or a list of them."""
    if isinstance(value, list | tuple):
        return bool(value) and all(_numbers(part) for part in value)
    return type(value) in (int, float) and math.isfinite(value)
