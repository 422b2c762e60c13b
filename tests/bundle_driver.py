"""Run a bundle as `python -m monai.bundle run` does, within the test process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_unet.data import InputError

#: the configs of an evaluation, in the order in which they are merged
EVALUATE = ["inference", "evaluate"]
#: a config's name, or several to merge; and the keys to override
Driver = Callable[..., ConfigWorkflow]


def driver(bundle: Path) -> tuple[Driver, Driver, Callable[..., list[ConfigParser]]]:
    """Return ``build``, which checks the bundle's properties, ``run``, and ``configs``, which reads single files."""
    return partial(_build, bundle), partial(_run, bundle), partial(_configs, bundle)


def _build(bundle: Path, config: str | list[str], **override: Any) -> ConfigWorkflow:
    names = [config] if isinstance(config, str) else config
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / f"{name}.yaml") for name in names],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train" if names[0] == "train" else "infer",
        bundle_root=str(bundle),
        **override,
    )
    workflow.initialize()
    assert not workflow.check_properties()
    return workflow


def _run(bundle: Path, config: str | list[str], **override: Any) -> ConfigWorkflow:
    workflow = _build(bundle, config, **override)
    workflow.run()
    return workflow


def _configs(bundle: Path, *names: str) -> list[ConfigParser]:
    parsers = [ConfigParser() for _ in names]
    for parser, name in zip(parsers, names, strict=True):
        parser.read_config(bundle / "configs" / f"{name}.yaml")
    return parsers


def cause(error: pytest.ExceptionInfo) -> InputError:
    """Find the `InputError` at the bottom: MONAI wraps the errors that occur while a config is built."""
    found: BaseException | None = error.value
    while found is not None and not isinstance(found, InputError):
        found = found.__cause__
    assert isinstance(found, InputError), error.value
    return found
