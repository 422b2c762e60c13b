"""What is in label/ is no package: MONAI Label's app and the script that starts it find their modules by folder."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "label"), str(TESTS.parent / "label" / "app")]
