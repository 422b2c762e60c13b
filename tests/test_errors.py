"""A program that ends with an error for its user prints one sentence, however deep it is wrapped; others stay whole."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from monai_unet.data import MicroscopyWriter
from monai_unet.errors import InputError, explain, plain_input_errors, raise_problems
from monai_unet.files import replacing
from monai_unet.networks import ValidUNet
from monai_unet.options import parse_bool, require

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


def test_of_many_problems_twenty_are_listed_and_the_rest_is_counted():
    problems = [InputError(f"{number}.tif", "no pixels", "Remove it") for number in range(23)]
    raise_problems("list", [])
    assert str(raised(lambda: raise_problems("list", problems[:1]))) == "0.tif: no pixels. Remove it."
    first, *lines, rest, last = str(raised(lambda: raise_problems("list", problems))).splitlines()
    assert (first, rest, last) == ("list: 23 problems:", "and 3 more.", "Correct them, and start again.")
    assert lines == [str(problem) for problem in problems[:20]]


def raised(raising: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as error:
        raising()
    return error.value


def caught(raising: Callable[[], object]) -> str | None:
    try:
        try:
            raising()
        except Exception as error:
            raise RuntimeError("Failed to instantiate") from error
    except RuntimeError as error:
        return explain(error)
    return None


def test_what_the_package_refuses_is_a_sentence():
    assert caught(lambda: parse_bool("amp", "yes")) == "amp is 'yes'; it must be true or false"
    assert caught(lambda: ValidUNet(2, 1, 2, norm="bacth")).startswith("norm is 'bacth'; it must be None")
    assert caught(lambda: require("no_such_package", "dicom")).endswith('pip install "monai_unet[dicom]"')
    assert caught(lambda: int("one")) is None  # nobody has written a cure


def test_full_and_read_only_disks_are_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.png", tmp_path / ("a" * 300)):
        assert caught(lambda path=path: write(path)).startswith(f"{path}: it could not be written (")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert caught(lambda: write(tmp_path / "a.png", full)).startswith(
        f"{tmp_path}/a.png: it could not be written (No sp"
    )
    read_only = OSError(errno.EROFS, "Read-only file system", "/out")
    assert caught(lambda: throw(read_only)).startswith("/out: Read-only file system. Choose another output folder")
    assert caught(lambda: write(tmp_path / "a.png", OSError(errno.EACCES, "Permission denied", "/in"))) == (
        "/in: Permission denied. Choose another output folder, or correct the folder's permissions."
    )


def write(path: Path, error: OSError | None = None) -> None:
    with replacing(path) as partial:
        if error:
            raise error
        partial.touch()


def throw(error: BaseException) -> None:
    raise error


def test_a_writer_of_monai_s_that_fails_is_a_sentence(tmp_path):
    """MONAI's SaveImage keeps no cause, only the text of the traceback."""
    (tmp_path / "file").touch()
    save = SaveImage(str(tmp_path / "file"), writer=MicroscopyWriter, output_ext=".tif", separate_folder=False)
    item = MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": "a"})
    assert "file/: File exists. Choose another output folder" in caught(lambda: save(item))
    save = SaveImage(str(tmp_path), writer=MicroscopyWriter, output_ext=".tif", separate_folder=False)
    item.meta["filename_or_obj"] = "a" * 300
    assert "File name too long" in caught(lambda: save(item))


def test_memory_and_ctrl_c_are_a_sentence():
    assert caught(lambda: throw(torch.OutOfMemoryError("CUDA out of memory."))).startswith("out of memory. Choose")
    assert explain(KeyboardInterrupt()) == "stopped by Ctrl-C"


def test_in_a_notebook_too(monkeypatch, capsys):
    """Where IPython shows errors itself and calls no hook."""
    shown = []

    class Shell:
        def set_custom_exc(self, kinds, handler):
            self.kinds, self.handler = kinds, handler

        def showtraceback(self, error, tb_offset=None):
            shown.append(error[1])

    shell = Shell()
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    plain_input_errors()
    for error in (InputError("a.tif", "no pixels", "Remove it"), other := KeyError("image")):
        assert isinstance(error, shell.kinds)
        shell.handler(shell, type(error), error, None, tb_offset=1)
    assert capsys.readouterr().err == "error: a.tif: no pixels. Remove it.\n"
    assert shown == [other]
