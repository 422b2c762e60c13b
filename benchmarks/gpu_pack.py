"""One folder with all that `benchmarks.gpu` needs on a machine without a network: code, packages, data, a script."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from monai_unet.datasets import cards, default_folder
from monai_unet.errors import InputError
from monai_unet.options import require
from monai_unet.provenance import code_version

ROOT = Path(__file__).parents[1]
#: what an image with torch, numpy, scipy, tifffile and matplotlib lacks; no MLflow: `benchmarks.untracked`
PACKAGES = ("monai", "pytorch-ignite", "fire", "termcolor", "nibabel", "PyYAML", "tqdm")
PACKAGES += ("zarr", "numcodecs", "donfig", "google-crc32c")  # larger than memory
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
CODE = ("monai_unet", "benchmarks", "bundles/*/configs/*", "datasets")
DATA = ("dic_c2dh_hela", "phc_c2dh_u373", "isbi2012")
COMMIT = "COMMIT"
START = """\
# bash start.sh [options of benchmarks.gpu]; results, and weights beside them: result/gpu.json, or --output FILE
set -e
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
if [ ! -e "$here/packages/done" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \\
    --target "$here/packages" "$here"/wheels/*.whl
  touch "$here/packages/done"
fi
export PYTHONPATH=$here/code:$here/packages${PYTHONPATH:+:$PYTHONPATH} MONAI_UNET_DATA=$here/data
exec "$python" -W ignore -m benchmarks.gpu --output "$here/result/gpu.json" "$@"
"""


def pack(folder: Path, python: str) -> None:
    """Write the folder, for Linux on x86-64 and this version of Python, and print what it weighs.

    Raises:
        InputError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(folder, "the folder is not empty", "Choose another for --pack, or remove it")
    pack_code(folder / "code")
    pack_wheels(folder / "wheels", python)
    for name in DATA:
        pack_data(name, folder / "data")
    (folder / "start.sh").write_text(START)
    for part in sorted(folder.iterdir()):
        print(f"{megabytes(part):6.1f} MB {part.name}")
    print(f"{megabytes(folder):6.1f} MB in all. There: bash {folder.name}/start.sh --minutes 10")


def pack_code(folder: Path) -> None:
    """Copy the files of the working tree, without weights and pictures, and note the commit."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *CODE]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    versions = code_version()
    (folder / COMMIT).write_text(versions["commit"])
    (about := folder / f"monai_unet-{versions['monai_unet']}.dist-info").mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: monai_unet\nVersion: {versions['monai_unet']}\n")


def pack_wheels(folder: Path, python: str) -> None:
    """Download the packages in the versions of constraints.txt."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", python]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run([*command, *PACKAGES], check=True)


def pack_data(name: str, root: Path) -> None:
    """Save the TIFFs of an archive again with deflate, which tifffile reads without imagecodecs."""
    tifffile = require("tifffile", "microscopy")
    archive = default_folder(name).with_name(Path(cards()[name]["folder"]).name)
    if not archive.is_dir():
        cure = f"Run python -m monai_unet.datasets prepare {name}"
        raise InputError(archive, "the data set is not there", cure)
    for file in sorted(archive.rglob("*.tif")):
        saved = root / cards()[name]["folder"] / file.relative_to(archive)
        saved.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(saved, tifffile.imread(file), compression="zlib", photometric="minisblack")


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6
