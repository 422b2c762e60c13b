"""`make label` reports errors before it builds anything."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import serve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "my_segmentation"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.yaml").touch()
    image = {"spatial_shape": ["*", "*"], "modality": "EM"}
    metadata = {"network_data_format": {"inputs": {"image": image}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(b"weights")
    return folder


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "one.png").touch()
    return folder


def error_of(monkeypatch, capsys, *arguments: object) -> str:
    """Return the error that `make label` prints; it must stop before it builds the environment."""
    monkeypatch.setattr(serve, "environment", lambda: pytest.fail("did not stop"))
    monkeypatch.setattr(sys, "argv", ["serve.py", *map(str, arguments)])
    assert serve.main() == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "hart_segmentation", "docs"])
def test_an_unknown_bundle(name, studies, monkeypatch, capsys):
    text = error_of(monkeypatch, capsys, "--bundle", name, "--studies", studies)
    assert f"there is no bundle {name!r}; use BUNDLE=cell_segmentation, BUNDLE=em_membrane_segmentation" in text


def test_a_bundle_of_tiff_stacks(bundle, studies, monkeypatch, capsys):
    image = {"spatial_shape": ["*"] * 3, "modality": "microscopy"}
    metadata = {"data_type": "png or tiff", "network_data_format": {"inputs": {"image": image}}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    text = error_of(monkeypatch, capsys, "--bundle", bundle, "--studies", studies)
    assert "my_segmentation takes stacks in TIFF, and MONAI Label's clients annotate volumes in NIfTI or DICOM" in text


def test_missing_weights(bundle, studies, monkeypatch, capsys):
    weights = bundle / "models" / "model.pt"
    weights.unlink()
    text = error_of(monkeypatch, capsys, "--bundle", bundle, "--studies", studies)
    assert f"{weights} is missing: train the bundle first (see its docs/README.md), or use WEIGHTS=a/model.pt" in text


def test_given_weights_are_copied_but_never_overwrite(bundle, studies, tmp_path, monkeypatch, capsys):
    weights, given = bundle / "models" / "model.pt", tmp_path / "mine.pt"
    command = ("--bundle", bundle, "--studies", studies, "--weights", given)
    assert f"WEIGHTS={given}: no such file" in error_of(monkeypatch, capsys, *command)
    given.write_bytes(b"mine")
    assert f"{weights} exists and would be overwritten" in error_of(monkeypatch, capsys, *command)
    assert weights.read_bytes() == b"weights"
    weights.unlink()
    weights.parent.rmdir()
    serve.check_weights(bundle, str(given))
    assert weights.read_bytes() == b"mine"
    serve.check_weights(bundle, str(given))  # the same again changes nothing
    serve.check_weights(bundle, str(weights))


def test_given_weights_replace_those_that_the_bundle_was_published_with(bundle, tmp_path):
    weights, given, metadata = bundle / "models" / "model.pt", tmp_path / "mine.pt", bundle / "configs/metadata.json"
    published = hashlib.sha256(b"weights").hexdigest()
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "weights_sha256": published}))
    given.write_bytes(b"mine")
    serve.check_weights(bundle, str(given))
    assert weights.read_bytes() == b"mine"
    assert [path.name for path in weights.parent.iterdir()] == ["model.pt"]
    given.write_bytes(b"mine, trained on")
    with pytest.raises(serve.UsageError, match="exists and would be overwritten"):
        serve.check_weights(bundle, str(given))
    assert weights.read_bytes() == b"mine"


def test_studies_without_a_folder_or_images(bundle, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "studies"
    command = ("--bundle", bundle, "--studies", folder)
    assert f"STUDIES={folder}: no such folder" in error_of(monkeypatch, capsys, *command)
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "one.png").touch()
    (folder / "notes.txt").touch()
    text = error_of(monkeypatch, capsys, *command)
    assert f"STUDIES={folder} has no image *.png, *.tif, *.tiff, *.jpg, *.jpeg; move images out of" in text
    assert "use STUDIES=a/folder/of/images" in error_of(monkeypatch, capsys, "--bundle", bundle)


def test_a_folder_of_dicom_files_needs_a_server(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").touch()
    with pytest.raises(serve.UsageError, match="contains DICOM files, which MONAI Label only reads from a"):
        serve.check_studies(str(tmp_path), 3)
    assert serve.check_studies("http://127.0.0.1:8042/dicom-web", 3) == "http://127.0.0.1:8042/dicom-web"


def test_a_port_in_use_or_out_of_range(bundle, studies, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = ("--bundle", bundle, "--studies", studies)
        text = error_of(monkeypatch, capsys, *command, "--port", port)
        assert (
            f"port {port} is not free (Address already in use): stop the program that uses it, or use another PORT"
            in text
        )
        assert "PORT=99999 is not a port number; use 8000" in error_of(monkeypatch, capsys, *command, "--port", 99999)


def test_a_python_that_monai_label_does_not_support(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(serve.UsageError, match="needs Python 3.10 or 3.11, this is 3.13; use PYTHON=python3.11"):
        serve.check_python()


def test_the_makefile_passes_all_arguments(tmp_path):
    done = subprocess.run(
        ["make", "label", "BUNDLE=none", "STUDIES=none", "PORT=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("make label: there is no bundle 'none'; use BUNDLE=")


def test_processes_started_by_the_server_end_with_it(monkeypatch):
    """Its scoring and training are separate processes, which may ignore the signal that stops the server."""
    monkeypatch.setattr(serve.time, "sleep", lambda seconds: None)  # do not wait half a minute
    deaf = "trap '' INT; sleep 1000 & echo ready; wait"
    server = subprocess.Popen(["bash", "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdout is not None
    with server.stdout as out:
        out.readline()
        serve.end(server)
        assert out.read() == b"", "closed by all processes that had it open"
    assert server.returncode == -signal.SIGKILL
    serve.end(server)


def test_the_server_is_started(bundle, studies, monkeypatch, tmp_path):
    """The bundle is linked into a fresh copy of the app, and the server gets the options that keep it offline."""
    monkeypatch.setattr(serve, "WORK", tmp_path / "work")
    monkeypatch.setattr(serve, "environment", lambda: tmp_path / "env")
    monkeypatch.setattr(sys, "argv", ["serve.py", "--bundle", str(bundle), "--studies", str(studies), "--port", "8765"])
    started = {}

    class Server:
        pid = 1 << 30  # not in use

        def __init__(self, command, env, cwd, start_new_session):
            started.update(command=command, env=env)

        def wait(self):
            return 0

        terminate = wait

    monkeypatch.setattr(serve.subprocess, "Popen", Server)
    assert serve.main() == 0
    app = tmp_path / "work" / "app-8765"
    assert (app / "model" / "my_segmentation").resolve() == bundle
    assert (app / "main.py").is_file()
    command = " ".join(started["command"])
    assert f"--app {app} --studies {studies} --conf models my_segmentation --conf zoo_source local" in command
    assert command.endswith("--host 127.0.0.1 --port 8765")
    assert json.loads(started["env"]["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"]) == {"Modality": "EM"}
    assert started["env"]["MONAI_LABEL_DICOMWEB_CACHE_EXPIRY"] == "1"
    assert started["env"]["PATH"].startswith(str(tmp_path / "env" / "bin"))


@pytest.mark.parametrize(
    ("dims", "studies", "port", "words"),
    [
        (2, "/a", 8000, ["QuPath or 3D Slicer"]),
        (3, "/a", 8001, ["open:    3D Slicer, extension MONAI Label, server http://127.0.0.1:8001"]),
        (3, "http://x/dicom-web", 8000, ["http://127.0.0.1:8000/ohif/"]),
        (3, "http://x/dicom-web", 8001, ["http://127.0.0.1:8001/ohif/", "OHIF's panel assumes port 8000"]),
    ],
)
def test_the_greeting_names_the_clients(dims, studies, port, words):
    text = serve.greeting(Path("bundles/some_segmentation"), dims, studies, port)
    assert all(word in text for word in words)
    assert ("assumes" in text) == any("assumes" in word for word in words)
