"""The README and the tutorials do what they say: their python and bash blocks run, in order, in one folder.

Trainings are cut to two steps of a tiny network by options put after the command; nothing else is changed. What the
README fetches is prepared from MONAI_UNET_DATA where that is set, and is a phantom otherwise.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bright_network import save_bright_network
from PIL import Image
from platforms import POSIX

from monai_unet.datasets import prepare

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
TINY = shlex.split('--features "[2, 3]" --tile_size 100 --max_epochs 1 --steps_per_epoch 2 --val_interval 1')


@POSIX
@pytest.mark.timeout(900)
def test_every_block_runs(tmp_path):
    assert len(BLOCKS) >= 7
    data = os.environ.get("MONAI_UNET_DATA", "")
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    (tmp_path / "my" / "images").mkdir(parents=True)
    (tmp_path / "my" / "labels").mkdir()
    phantom = prepare("em_phantom", output=tmp_path / "phantom").parent / "slices"
    for i in range(5):
        for kind, folder in (("volume", "images"), ("labels", "labels")):
            page = np.asarray(Image.open(phantom / f"train-{kind}-{i:02d}.png"))
            Image.fromarray(page[:128, :120]).save(tmp_path / "my" / folder / f"{i}.png")
    model = tmp_path / "first_model"
    organs = prepare("organ_phantom", output=tmp_path / "organs").parent
    first = json.loads((organs / "dataset.json").read_text())["test"][0]["image"]
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "case.nii.gz").symlink_to(organs / first)
    save_bright_network(tmp_path / "volumes.pt", 3, 1, 3)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    environment["XDG_CONFIG_HOME"] = str(tmp_path)  # pseudonyms
    for language, code in BLOCKS:
        if language == "python":
            command = [sys.executable, "-c", code]
        else:
            (line,) = code.strip().splitlines()
            command = [sys.executable, *shlex.split(line)[1:]]
            if "prepare" in command and not data:
                command[command.index("isbi2012")] = "em_phantom"
            if "train.yaml" in line:
                command += TINY
            if "hippocampus" in line:
                command += ["--ckpt_path", str(tmp_path / "volumes.pt")]
            # the bundle's own models/ is not the place for a test's network
            if "evaluate.yaml" in line:
                command += ["--ckpt_path", str(model / "model.pt"), "--output_dir", str(tmp_path / "eval")]
                command += ["--averaging", "none"]
            elif "train.yaml" in line and "--output_dir" not in line:
                command += ["--output_dir", str(model)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        if language == "python":
            for expected in re.findall(r"print\(.*\)  # (.*)", code):
                assert expected in done.stdout
    assert len(list((tmp_path / "my" / "predictions").glob("*_label.tif"))) == 5
    assert len(list((tmp_path / "results").glob("*_seg.nii.gz"))) == 1


@POSIX
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tutorial", ["your_own_images.md", "your_own_studies.md"])
def test_every_line_of_a_tutorial_runs(tutorial, tmp_path):
    cells = prepare("cell_phantom", output=tmp_path / "cells").parent
    for number, item in enumerate(json.loads((cells / "dataset.json").read_text())["training"][:4]):
        for part, target in (("image", "images"), ("label", "labels"), ("image", "new_images")):
            copy = tmp_path / "my" / target / f"{number}{Path(item[part]).suffix}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(item[part], copy)
    series = Path(os.environ.get("MONAI_UNET_DATA", "")) / "dicom" / "hippocampus_mr"
    if series.is_dir():
        (tmp_path / "studies").symlink_to(series)
    else:
        organs = prepare("organ_phantom", output=tmp_path / "organs").parent
        (tmp_path / "studies").mkdir()
        shutil.copy(
            organs / json.loads((organs / "dataset.json").read_text())["test"][0]["image"], tmp_path / "studies"
        )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    environment["XDG_CONFIG_HOME"] = str(tmp_path)  # pseudonyms
    lines = re.findall(r"```bash\n(.*)\n```", (ROOT / "docs" / tutorial).read_text())
    assert len(lines) >= 3
    for line in lines:
        command = [sys.executable, *shlex.split(line)[1:]]
        if "train.yaml" in line:
            command += shlex.split("--tile_size 100 --max_epochs 1 --steps_per_epoch 2 --val_interval 1")
        elif "my/new_images" in line:
            command += ["--averaging", "none"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_every_room_is_in_the_reference():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.rst"))
    package = ROOT / "monai_unet"
    rooms = [path.parent for path in package.glob("*/__init__.py")]
    rooms += [path for path in package.glob("*.py") if "__all__ = [" in path.read_text()]
    for room in rooms:
        assert f"automodule:: monai_unet.{room.stem}" in pages, f"docs/api has no page of {room.stem}"


def test_no_link_is_dead():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
