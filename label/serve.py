"""`make label`: serve a bundle in MONAI Label.

Uses the standard library only, because it runs before the environment that it builds. All arguments are checked before
that, so that a typing error does not cost minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / ".label"  # the environment, and the app with its logs
IMAGES = {2: ("*.png", "*.tif", "*.tiff", "*.jpg", "*.jpeg"), 3: ("*.nii.gz", "*.nii", "*.nrrd")}
NO_DEPS = ("torchvision", "monailabel", "pydicom-seg")  # their pins contradict the others: see constraints.txt


class UsageError(Exception):
    """An argument that cannot be used; the message has the reason and the remedy."""


def bundle_folder(name: str) -> Path:
    """Find a bundle of this repository by its name, or any other one by its folder."""
    known = sorted(path.parents[1].name for path in (ROOT / "bundles").glob("*/configs/inference.yaml"))
    for folder in (ROOT / "bundles" / name, Path(name)):
        if name and (folder / "configs" / "inference.yaml").is_file():
            return folder.resolve()
    raise UsageError(f"there is no bundle {name!r}; use BUNDLE={', BUNDLE='.join(known)}, or the path of one")


def metadata_of(bundle: Path) -> dict:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def dimension(metadata: dict) -> int:
    return len(metadata["network_data_format"]["inputs"]["image"]["spatial_shape"])


def check_images(bundle: Path, metadata: dict) -> None:
    """Refuse bundles of TIFF stacks: 3-D clients place an image by its affine, and a TIFF has none."""
    if dimension(metadata) == 3 and "tiff" in metadata.get("data_type", ""):
        raise UsageError(
            f"{bundle.name} takes stacks in TIFF, and MONAI Label's clients annotate volumes in NIfTI or DICOM only: "
            "correct the masks of its configs/inference.yaml in Fiji or napari, and train on them (docs/new_bundle.md)"
        )


def check_weights(bundle: Path, given: str) -> None:
    """Check that the bundle has models/model.pt; copy the given file there, unless it would replace one of the user's.

    The weights that the bundle was published with come back with git, or with the package.
    """
    weights = bundle / "models" / "model.pt"
    if given:
        if not Path(given).is_file():
            raise UsageError(f"WEIGHTS={given}: no such file")
        wanted, present = (checksum(path) if path.is_file() else None for path in (Path(given), weights))
        if present not in (None, wanted, metadata_of(bundle).get("weights_sha256")):
            raise UsageError(f"{weights} exists and would be overwritten; move it away, or leave out WEIGHTS")
        if present != wanted:
            weights.parent.mkdir(exist_ok=True)
            partial = weights.with_name(".model.partial")
            shutil.copyfile(given, partial)
            partial.replace(weights)
    if not weights.is_file():
        raise UsageError(
            f"{weights} is missing: train the bundle first (see its docs/README.md), or use WEIGHTS=a/model.pt"
        )


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_studies(studies: str, dims: int) -> str:
    """Check for a folder with images of this dimension, or the address of a DICOMweb server."""
    if studies.startswith(("http://", "https://")):
        return studies
    if not studies:
        raise UsageError("use STUDIES=a/folder/of/images" + (", or STUDIES=http://.../dicom-web" if dims == 3 else ""))
    folder, kinds = Path(studies).expanduser().resolve(), ", ".join(IMAGES[dims])
    if not folder.is_dir():
        raise UsageError(f"STUDIES={studies}: no such folder")
    if not any(file for kind in IMAGES[dims] for file in folder.glob(kind)):
        if dims == 3 and any(folder.rglob("*.dcm")):
            raise UsageError(
                f"STUDIES={studies} contains DICOM files, which MONAI Label only reads from a DICOMweb server such as "
                "Orthanc: use STUDIES=http://127.0.0.1:8042/dicom-web (docs/annotate.md)"
            )
        raise UsageError(f"STUDIES={studies} has no image {kinds}; move images out of subfolders")
    return str(folder)


def check_port(port: int) -> None:
    if not 0 < port < 65536:
        raise UsageError(f"PORT={port} is not a port number; use 8000")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(
                f"port {port} is not free ({error.strerror}): stop the program that uses it, or use another PORT"
            ) from error


def check_python() -> None:
    if not (3, 10) <= sys.version_info < (3, 12):
        version = ".".join(map(str, sys.version_info[:2]))
        raise UsageError(f"MONAI Label needs Python 3.10 or 3.11, this is {version}; use PYTHON=python3.11")


def environment() -> Path:
    """Return the folder of MONAI Label's environment; build it if it is missing or its constraints have changed."""
    folder = Path(os.environ.get("MONAI_UNET_LABEL_ENV", WORK / "environment")).resolve()
    recipe = "".join((HERE / name).read_text() for name in ("constraints.txt", "requirements.txt"))
    stamp, digest = folder / "ready", hashlib.sha256((recipe + inspect.getsource(patch_packages)).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return folder
    print(f"Building MONAI Label's environment in {folder}: a few minutes, once.", flush=True)
    stamp.unlink(missing_ok=True)
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "-c", str(HERE / "constraints.txt")]
    subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
    subprocess.run([*pip, "--no-deps", *NO_DEPS], check=True)
    subprocess.run([*pip[:-2], "--no-deps", "--editable", str(ROOT)], check=True)
    packages = Path(
        subprocess.run(
            [folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
    )  # fmt: skip
    patch_packages(packages)
    stamp.write_text(digest)
    return folder


def patch_packages(packages: Path) -> None:
    """Apply the two patches without which the imports of MONAI Label fail (see constraints.txt)."""
    module = packages / "pydicom" / "_storage_sopclass_uids.py"  # in pydicom 2, and imported by pydicom-seg
    module.write_text("from pydicom.uid import SegmentationStorage\n")
    extension = packages / "torchvision" / "extension.py"
    text = extension.read_text()
    if "monai_unet" not in text:
        extension.write_text(
            text
            + "\n\nif not _has_ops():  # added by monai_unet: torchvision registers fakes of these two regardless\n"
            '    _library = torch.library.Library("torchvision", "DEF")\n'
            '    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
            '    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
        )


def app_folder(bundle: Path, port: int) -> Path:
    """Copy the app for this server, and link the bundle to where MONAI Label looks for it."""
    folder = WORK / f"app-{port}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "app", folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "model").mkdir()
    (folder / "model" / bundle.name).symlink_to(bundle, target_is_directory=True)
    return folder


def variables(env: Path, metadata: dict) -> dict[str, str]:
    """Environment variables for MONAI Label."""
    modality = metadata["network_data_format"]["inputs"]["image"].get("modality", "MR")
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{ROOT / 'mlflow.db'}",
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": modality}),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "1",  # seconds; by default new series and labels are seen after two hours
        **os.environ,
        "PATH": f"{env / 'bin'}{os.pathsep}{os.environ['PATH']}",  # its training runs the `python` found there
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(IMAGES[dimension(metadata)]),
    }


def greeting(bundle: Path, dims: int, studies: str, port: int) -> str:
    server = f"http://127.0.0.1:{port}"
    if dims == 2:
        clients = f"QuPath or 3D Slicer, extension MONAI Label, server {server}"
    elif studies.startswith("http"):
        clients = f"a browser: {server}/ohif/   or 3D Slicer, extension MONAI Label, server {server}"
        if port != 8000:
            clients += "\n  (OHIF's panel assumes port 8000: set its server by hand)"
    else:
        clients = f"3D Slicer, extension MONAI Label, server {server}"
    return (
        f"\n  {bundle.name} is served at {server}   (Ctrl-C stops it)\n"
        f"  images:  {studies}\n  open:    {clients}\n"
        f"  check:   {server}/info/\n  runs:    mlflow ui --backend-store-uri sqlite:///{ROOT / 'mlflow.db'}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make label")
    parser.add_argument("--bundle", default="")
    parser.add_argument("--studies", default="")
    parser.add_argument("--weights", default="")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--build", action="store_true", help="only build the environment")
    args = parser.parse_args()
    try:
        if args.build:
            check_python()
            environment()
            return 0
        bundle = bundle_folder(args.bundle)
        metadata = metadata_of(bundle)
        dims = dimension(metadata)
        check_images(bundle, metadata)
        check_weights(bundle, args.weights)
        studies = check_studies(args.studies, dims)
        check_port(args.port)
        check_python()
    except UsageError as error:
        print(f"make label: {error}", file=sys.stderr)
        return 2
    env = environment()
    app = app_folder(bundle, args.port)
    command = [str(env / "bin" / "python"), "-m", "monailabel.main", "start_server"]
    command += ["--app", str(app), "--studies", studies]
    for key, value in (("models", bundle.name), ("zoo_source", "local"), ("sam2", "false")):
        command += ["--conf", key, value]
    command += ["--host", "127.0.0.1", "--port", str(args.port)]
    print(greeting(bundle, dims, studies, args.port), flush=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit that it is ignored
    server = subprocess.Popen(command, env=variables(env, metadata), cwd=ROOT, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        end(server)


def end(server: subprocess.Popen[bytes]) -> None:
    """Interrupt the server, its scoring and its training, which saves its state; kill them half a minute later."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: kill at once
            os.killpg(server.pid, signal.SIGINT)
            for _ in range(300):
                server.poll()
                os.killpg(server.pid, 0)
                time.sleep(0.1)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(main())
