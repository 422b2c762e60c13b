"""What is in label/ is no package: MONAI Label's app and the script that starts it find their modules by folder."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = map(str, (TESTS, TESTS / "bundles", TESTS.parent / "label", TESTS.parent / "label" / "app"))
