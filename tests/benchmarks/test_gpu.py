"""What is to run on a GPU runs on the CPU: every piece, the trainings, the packed folder."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
import zlib
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_pack, gpu_pieces, paper_tables, whole_step
from monai_unet.errors import InputError
from monai_unet.networks import ValidUNet
from monai_unet.provenance import code_version

CPU = torch.device("cpu")
ABOUT = {"hardware": "a card", "tiny": True, "versions": {"torch": "2"}}


@pytest.mark.filterwarnings("ignore")
def test_every_piece_gives_numbers_on_the_cpu(tmp_path):
    results = gpu.Results(tmp_path / "gpu.json", ABOUT)
    for name, work in gpu_pieces.pieces(CPU, gpu_pieces.TINY).items():
        results.add(name, work)
    held = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: piece["failed"] for name, piece in held["pieces"].items() if "failed" in piece} == {}
    assert next(iter(held["pieces"])) == "matrix rate"
    step = held["pieces"]["training step, width 2, batch 2"]["rows"]
    assert set(step) == {whole_step.WHOLE, whole_step.PLAIN}
    assert all(math.isfinite(number) and number > 0 for row in step.values() for number in row.values())
    text = gpu.table(held)
    assert "| training step, the bundle's whole step | 2 | 2 | 204² | " in text
    assert "| forward pass, batch 8 | 2 | 8 | 204² | " in text
    assert "larger than memory: 300² in " in text


def test_operations_by_hand():
    network = torch.nn.Conv2d(3, 5, 3)
    count = gpu_pieces._operations(lambda: network(torch.zeros(2, 3, 10, 12)), images=2)
    assert count == 2 * 3 * 5 * 9 * 8 * 10


def test_time_that_is_covered_twice_counts_once():
    assert gpu_pieces.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert gpu_pieces.covered([]) == 0


def test_busy_seconds_are_those_of_the_operators():
    one = torch.zeros(10)
    assert gpu_pieces.busy_seconds(lambda: (one + 1, time.sleep(0.3)), CPU) < 0.2
    assert gpu_pieces.busy_seconds(lambda: None, CPU) == 0

    def annotated() -> None:
        with torch.profiler.record_function("a step"):
            time.sleep(0.3)

    assert gpu_pieces.busy_seconds(annotated, CPU) < 0.2


def test_work_between_two_waits_is_about_as_much_for_any_batch():
    assert [gpu_pieces.FULL.steps_of(batch) for batch in (1, 2, 8, 32)] == [100, 100, 25, 6]
    assert gpu_pieces.TINY.steps_of(8) == 1


def test_what_is_measured_stays_and_what_failed_is_tried_again(tmp_path):
    file = tmp_path / "gpu.json"

    def fail() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    first = gpu.Results(file, ABOUT)
    first.add("one", lambda: {"a": 1})
    first.add("two", fail)
    again = gpu.Results(file, ABOUT)
    assert [again.missing(name) for name in ("one", "two", "three")] == [False, True, True]
    assert again.held["pieces"]["two"]["failed"] == "RuntimeError: out of memory"
    with pytest.raises(SystemExit, match="hardware is a card there, and another here. Choose another --output"):
        gpu.Results(file, {**ABOUT, "hardware": "another"})


def test_a_stop_in_a_piece_loses_nothing(tmp_path):
    results = gpu.Results(tmp_path / "gpu.json", ABOUT)
    results.add("one", lambda: {"a": 1})

    def stop() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.add("two", stop)
    assert list(json.loads((tmp_path / "gpu.json").read_text())["pieces"]) == ["one"]


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int, float]]:
    """Stands for `paper_tables.reproduce`: (name, width, minutes) of each call."""
    calls: list[tuple[str, int, float]] = []

    def reproduce(name: str, width: int, minutes: float, seed: int, work: Path, **given: Any) -> dict[str, Any]:
        calls.append((name, width, minutes))
        (work / "model").mkdir(parents=True, exist_ok=True)
        (work / "model" / "model.pt").write_text("weights")
        if name == "u373":
            raise RuntimeError("stopped")
        return {"steps": 10, "training_s": 60 * minutes, "scores": {"held out": {"overall": {"seg": 0.5}}}}

    monkeypatch.setattr(paper_tables, "reproduce", reproduce)
    return calls


def test_the_trainings_share_the_minutes_that_are_left(tmp_path, trained):
    results = gpu.Results(tmp_path / "gpu.json", ABOUT)
    gpu.train(results, lambda: 10.0, tiny=False)
    assert [call[:2] for call in trained] == [(name, width) for name, width, _ in gpu.TRAININGS]
    assert [call[2] for call in trained] == [10 / left - gpu.BESIDE for left in (5, 4, 3, 2, 1)]
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["cells_32.pt", "isbi2012_32.pt"]
    trained.clear()
    gpu.train(gpu.Results(tmp_path / "gpu.json", ABOUT), lambda: 3.0, tiny=False)
    assert trained == [("u373", 64, 3 - gpu.BESIDE)]


def test_no_training_begins_when_the_time_is_over(tmp_path, trained, capsys):
    gpu.train(gpu.Results(tmp_path / "gpu.json", ABOUT), lambda: 0.1, tiny=False)
    assert not trained
    assert "hela, width 64: no time left" in capsys.readouterr().out


def test_a_training_that_has_begun_keeps_its_length(tmp_path, trained):
    work = tmp_path / "gpu" / "hela_64"
    work.mkdir(parents=True)
    (work / "plan.json").write_text('{"minutes": 1.5}')
    gpu.train(gpu.Results(tmp_path / "gpu.json", ABOUT), lambda: -1.0, tiny=False)
    assert trained == [("hela", 64, 1.5)]


def test_the_paper_s_width_has_the_operations_of_fig_1():
    """By hand: 2 · 9 · channels in · channels out · pixels of each convolution, forwards."""
    network = ValidUNet(2, 1, 2)
    with torch.device("meta"):
        network = network.to("meta")
        count = gpu_pieces._operations(lambda: network(torch.zeros(1, 1, 572, 572)), images=1)
    down = [(1, 64, 570), (64, 64, 568), (64, 128, 282), (128, 128, 280), (128, 256, 138), (256, 256, 136)]
    down += [(256, 512, 66), (512, 512, 64), (512, 1024, 30), (1024, 1024, 28)]
    up = [(1024, 512, 54), (512, 512, 52), (512, 256, 102), (256, 256, 100), (256, 128, 198), (128, 128, 196)]
    up += [(128, 64, 390), (64, 64, 388)]
    convolutions = sum(2 * 9 * a * b * n**2 for a, b, n in down + up)
    upwards = sum(2 * 4 * a * a // 2 * n**2 for a, n in ((1024, 28), (512, 52), (256, 100), (128, 196)))
    assert count == convolutions + upwards + 2 * 64 * 2 * 388**2


def test_data_are_packed_with_a_compression_that_needs_no_codecs(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setenv("MONAI_UNET_DATA", str(tmp_path / "mine"))
    frame = tmp_path / "mine" / "ctc" / "DIC-C2DH-HeLa" / "01" / "t000.tif"
    frame.parent.mkdir(parents=True)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tifffile.imwrite(frame, pixels, compression="lzw")
    gpu_pack.pack_data("dic_c2dh_hela", tmp_path / "packed")
    saved = tmp_path / "packed" / "ctc" / "DIC-C2DH-HeLa" / "01" / "t000.tif"
    with tifffile.TiffFile(saved) as file:
        page = file.pages[0]
        (offset,), (count,) = page.dataoffsets, page.databytecounts
        assert zlib.decompress(saved.read_bytes()[offset : offset + count]) == pixels.tobytes()
    with pytest.raises(InputError, match="the data set is not there. Run python -m monai_unet.datasets prepare isbi"):
        gpu_pack.pack_data("isbi2012", tmp_path / "packed")


def test_the_packed_code_is_whole(tmp_path):
    gpu_pack.pack_code(tmp_path)
    for bundle in ("cell_segmentation", "em_membrane_segmentation"):
        packed = {file.name for file in (tmp_path / "bundles" / bundle / "configs").iterdir()}
        assert packed == {file.name for file in (gpu.ROOT / "bundles" / bundle / "configs").iterdir()}
    assert (tmp_path / "monai_unet" / "bundles" / "templates" / "configs" / "train.yaml").exists()
    assert (tmp_path / "datasets" / "ctc_cells.yaml").exists()
    (about,) = tmp_path.glob("*.dist-info")
    assert Distribution.at(about).version == code_version()["monai_unet"]
    assert not list(tmp_path.rglob("*.pt"))


def test_a_folder_with_something_in_it_is_not_packed_into(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="the folder is not empty. Choose another for --pack"):
        gpu_pack.pack(tmp_path, "3.12")


def test_full_and_tiny_differ_in_size_alone():
    full, tiny = dataclasses.asdict(gpu_pieces.FULL), dataclasses.asdict(gpu_pieces.TINY)
    assert {name: type(value) for name, value in full.items()} == {name: type(value) for name, value in tiny.items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_command_runs_on_the_cpu(tmp_path):
    """With the trainings and their scores, from a packed folder's code alone."""
    if not (Path(os.environ.get("MONAI_UNET_DATA", "")) / "isbi2012").is_dir():
        pytest.skip("MONAI_UNET_DATA has no data")
    gpu_pack.pack_code(tmp_path / "code")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--device", "cpu", "--tiny"]
    command += ["--output", str(tmp_path / "result" / "gpu.json")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "code")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    held = json.loads((tmp_path / "result" / "gpu.json").read_text())
    assert {name: piece["failed"] for name, piece in held["pieces"].items() if "failed" in piece} == {}
    assert len(held["pieces"]["hela, width 64"]["scores"]["held out"]["images"]) == 3
    assert (tmp_path / "result" / "cells_32.pt").exists()
