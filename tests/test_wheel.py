"""The wheel is enough: a bundle is copied out of it and predicts, without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bright_network import save_bright_network
from PIL import Image

ROOT = Path(__file__).parents[1]
RUNS = ("models/checkpoints/step_1.pt", "models/previous_1/model.pt", "eval/scores.csv", "predictions/1.tif")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_alone_predicts(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    tree, wheels, installed, work = (tmp_path / name for name in ("tree", "wheels", "installed", "work"))
    work.mkdir()

    def python(*arguments: object) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed)}  # before the repository, if that is installed, too
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    for name in ("monai_unet", "datasets", "bundles"):
        left = shutil.ignore_patterns("__pycache__", "checkpoints", "previous_*", "mlflow", "eval", "predictions")
        shutil.copytree(ROOT / name, tree / name, ignore=left)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    cells = tree / "bundles" / "cell_segmentation"
    for name in ("models/model.pt", *RUNS):
        (cells / name).parent.mkdir(parents=True, exist_ok=True)
        (cells / name).touch()
    save_bright_network(cells / "models" / "model.pt")
    pip = ("-m", "pip", "--disable-pip-version-check")
    python(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, tree)
    (wheel,) = wheels.iterdir()
    assert wheel.stat().st_size < 60e6
    with zipfile.ZipFile(wheel) as archive:
        packed = [name for name in archive.namelist() if "/shipped/cell_segmentation/" in name]
    assert [name for name in packed if "/models/" in name or name.endswith(RUNS)] == [
        "monai_unet/bundles/shipped/cell_segmentation/models/model.pt"
    ]

    python(*pip, "install", "--no-deps", "--no-index", "--target", installed, wheel)
    assert Path(python("-c", "import monai_unet; print(monai_unet.__file__)")).is_relative_to(installed)
    assert python("-m", "monai_unet.bundles", "copy", "cell_segmentation") == str(work / "cell_segmentation")
    image = np.zeros((120, 150), np.uint8)
    image[20:60, 20:60] = image[70:110, 80:130] = 200
    Image.fromarray(image).save(work / "cells.png")
    python(
        *("-W", "ignore", "-m", "monai.bundle", "run", "--bundle_root", "cell_segmentation"),
        *("--config_file", "cell_segmentation/configs/inference.yaml", "--input", "cells.png"),
        *("--tile_size", 100, "--averaging", "none"),
    )
    found = np.asarray(Image.open(work / "cell_segmentation" / "predictions" / "cells_instances.tif"))
    assert (found > 0).tolist() == (image > 0).tolist()
    assert len(np.unique(found)) == 3
