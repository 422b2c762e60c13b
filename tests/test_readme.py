"""The README does what it says: its python and bash blocks run, in order, in one folder.

Trainings are cut to two steps of a tiny network by options put after the command; nothing else is changed. What the
README fetches is prepared from MONAI_UNET_DATA where that is set, and is a phantom otherwise.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_unet.datasets import prepare

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
TINY = shlex.split('--features "[2, 3]" --tile_size 100 --max_epochs 1 --steps_per_epoch 2 --val_interval 1')


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
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
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


def test_no_link_is_dead():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
