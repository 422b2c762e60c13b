"""What is in label/ is no package: MONAI Label's app and the script that starts it find their modules by folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = map(str, (TESTS, TESTS / "bundles", TESTS.parent / "label", TESTS.parent / "label" / "app"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An empty `Archive`."""
    from orthanc import Archive

    server = Archive(tmp_path_factory.mktemp("orthanc"))
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)
