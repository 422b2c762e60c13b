"""A store, and an experiment of its own for each test."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from monai_unet.tracking import journal


@pytest.fixture(scope="module")
def client(store) -> MlflowClient:
    return MlflowClient(store)


@pytest.fixture
def experiment(request, monkeypatch) -> str:
    monkeypatch.setattr(journal, "INTERVAL", 0.05)
    return request.node.name
