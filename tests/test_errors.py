"""A program that ends with an InputError prints one sentence, however deep it is wrapped; other errors stay whole."""

from __future__ import annotations

import pickle
import subprocess
import sys

from monai_unet.errors import InputError

PROGRAM = """
from monai_unet.errors import InputError, plain_input_errors
plain_input_errors()
try:
    try:
        raise {error}
    except ValueError as e:
        raise RuntimeError("applying transform") from e
except RuntimeError as e:
    raise RuntimeError("Failed to instantiate") from e
"""


def end(error: str) -> list[str]:
    """The lines that a program prints when this error ends it, wrapped twice."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(error=error)], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr.splitlines()


def test_an_input_error_is_one_sentence():
    assert end('InputError("a.tif", "no pixels", "Remove it")') == ["error: a.tif: no pixels. Remove it."]


def test_any_other_error_keeps_its_traceback():
    lines = end('ValueError("no pixels")')
    assert lines[0] == "Traceback (most recent call last):"
    assert "ValueError: no pixels" in lines
    assert lines[-1] == "RuntimeError: Failed to instantiate"


def test_an_error_crosses_processes_with_its_parts():
    error = pickle.loads(pickle.dumps(InputError("a.tif", "no pixels.", "Remove it.")))
    assert (error.path, error.problem, error.cure) == ("a.tif", "no pixels", "Remove it")
    assert str(error) == "a.tif: no pixels. Remove it."
