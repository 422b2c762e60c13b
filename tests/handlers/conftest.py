"""One MLflow store for the tests of this folder: to make its tables takes seconds."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """Its URI. Each test has an experiment of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
        MlflowClient(uri).search_experiments()
    return uri
