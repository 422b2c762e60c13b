"""Marks for tests that need what not every operating system has."""

from __future__ import annotations

import sys

import pytest

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, signals, links or a POSIX shell")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /dev, or limits a process as Linux does")
