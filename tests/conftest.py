"""What the tests of trainings share: a store of MLflow's, and a bundle's training to look at."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def pseudonyms_elsewhere(tmp_path_factory) -> Iterator[None]:
    """No test writes to the pseudonyms of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_memory_kept() -> Iterator[None]:
    """What a test has freed is no other test's, whose process may have limits."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("memory", "bundles.cost", "data.large.predict"):
            patch.setattr(f"monai_unet.{module}.keep_freed_memory", lambda: None)
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An SQLite file with MLflow's tables, to be copied: to make them takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        file = tmp_path_factory.mktemp("empty_store") / "mlflow.db"
        MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="module")
def store(empty_store, tmp_path_factory) -> str:
    """The URI of the module's own store."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, store) -> None:
    """Nothing is written to the folder that pytest was called in."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(request, data, store, tmp_path_factory) -> Path:
    """The output folder of a training as the module has it: its ``run``, its ``data``, its ``TINY`` options."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        patch.chdir(folder)
        request.module.run("train", dataset_dir=str(data), output_dir=str(folder), **request.module.TINY)
    return folder
