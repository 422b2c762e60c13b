"""A bundle made by the command `new` beside nnU-Net: the same data, minutes and thread, scored by the same code.

    python -m venv nnunet_env
    nnunet_env/bin/pip install torch==2.13.0 nnunetv2==2.8.1
    python -m benchmarks.studies.nnunet --nnunet nnunet_env [--tasks NAME ...] [--minutes 15] [--work DIR]

Lays out the data set of a card as nnU-Net wants it and as a MONAI datalist, with the card's lists. nnU-Net plans and
trains, once with its plan and once with its smallest batch, 2; ours is `python -m monai_unet.bundles new --minutes N`
and the training, without an option. Each has N minutes of processor time on one thread, which count training steps
with their augmentation; start-up and validation do not count. Both predict the list test as they do by default. Of
instances, nnU-Net learns their union, and its connected components are scored. Prints a table and writes
benchmarks/results/nnunet.json. After an interruption, it resumes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import yaml
from PIL import Image
from scipy import ndimage

from benchmarks.paper_tables import ROOT
from benchmarks.peers import arguments, markdown, record
from benchmarks.studies.planning import METER
from monai_unet.data import MicroscopyReader
from monai_unet.datasets import datalist, prepare
from monai_unet.metrics import average_precision, seg_measure

SIDE = Path(__file__).with_name("nnunet_side.py")
LISTS = ("training", "validation", "test")


class Task(NamedTuple):
    title: str
    dataset: str
    configuration: str
    instances: bool
    ending: str
    channels: Sequence[str]
    #: with the background
    classes: Sequence[str]


TASKS = {
    "bbbc038": Task(
        "nuclei, BBBC038", "Dataset038_nuclei", "2d", True, ".png", ("red", "green", "blue"), ("background", "nucleus")
    ),
    "msd_hippocampus": Task(
        "hippocampus, MSD",
        "Dataset004_hippocampus",
        "3d_fullres",
        False,
        ".nii.gz",
        ("MRI",),
        ("background", "anterior", "posterior"),
    ),
}
#: nnU-Net's batch, 0 as planned; None is ours
CONTENDERS = {"ours": None, "nnU-Net": 0, "nnU-Net, batch of 2": 2}


def read(path: Path) -> np.ndarray:
    """A mask, (H, W) or of a volume."""
    if path.name.endswith(".nii.gz"):
        return np.asarray(nib.load(path).dataobj).astype(np.int64)
    return MicroscopyReader(1, label=True).get_data((path,))[0][0].astype(np.int64)


def lay_out(name: str, work: Path) -> None:
    """Write ``work/raw`` for nnU-Net, ``work/data`` for ours, and ``work/test``, the images to predict."""
    task, raw = TASKS[name], work / "raw" / TASKS[name].dataset
    prepared = prepare(name, output=work / "prepared").parent
    document: dict[str, Any] = {"name": task.dataset, "labels": {str(n): each for n, each in enumerate(task.classes)}}
    split: dict[str, list[str]] = {}
    for folder in (raw / "imagesTr", raw / "labelsTr", raw / "imagesTs", work / "test", work / "data"):
        folder.mkdir(parents=True)
    for part in LISTS:
        items = document[part] = [{key: item[key] for key in ("image", "label")} for item in datalist(prepared, part)]
        split[part] = [Path(item["image"]).name.removesuffix(task.ending) for item in items]
        for stem, item in zip(split[part], items, strict=True):
            image = raw / ("imagesTs" if part == "test" else "imagesTr") / f"{stem}_0000{task.ending}"
            label = raw / "labelsTr" / f"{stem}{task.ending}"
            if not task.instances:
                image.symlink_to(item["image"])
                if part != "test":
                    label.symlink_to(item["label"])
            else:
                pixels = MicroscopyReader(3, colour=True).get_data((Path(item["image"]),))[0]
                Image.fromarray(np.moveaxis(pixels, 0, -1).astype(np.uint8)).save(image)
                if part != "test":
                    Image.fromarray((read(Path(item["label"])) > 0).astype(np.uint8)).save(label)
            if part == "test":
                (work / "test" / f"{stem}{task.ending}").symlink_to(image)
    (work / "data" / "dataset.json").write_text(json.dumps(document))
    (raw / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {str(n): each for n, each in enumerate(task.channels)},
                "labels": {each: n for n, each in enumerate(task.classes)},
                "numTraining": len(split["training"] + split["validation"]),
                "file_ending": task.ending,
            }
        )
    )
    (work / "split.json").write_text(json.dumps(split))


def run(command: Sequence[object], log: Path, **environment: str) -> None:
    print("$", *command, flush=True)
    with log.open("a") as file:
        settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        subprocess.run(list(map(str, command)), check=True, stdout=file, stderr=subprocess.STDOUT, env=settings)


def nnunet(task: Task, batch: int, environment: Path, minutes: float, work: Path, output: Path) -> None:
    folders = {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}
    folders |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "PYTHONPATH": ""}
    preprocessed = work / "preprocessed" / task.dataset
    if not (preprocessed / "splits_final.json").exists():
        plan = [environment / "bin" / "nnUNetv2_plan_and_preprocess", "-d", int(task.dataset[7:10]), "-npfp", 1]
        run([*plan, "-np", 1, "-c", task.configuration], work / "nnunet.log", **folders)
        split = json.loads((work / "split.json").read_text())
        folds = [{"train": split["training"], "val": split["validation"]}]
        (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    side = [environment / "bin" / "python", SIDE, task.dataset, task.configuration, minutes, batch, output]
    run(side, work / "nnunet.log", **{**folders, "nnUNet_n_proc_DA": "0"})  # augmentation in the same process


def ours(instances: bool, minutes: float, work: Path, output: Path) -> None:
    bundle, log = work / "planned", work / "ours.log"
    if not bundle.exists():
        new = [sys.executable, "-W", "ignore", "-m", "monai_unet.bundles", "new", bundle.name]
        run([*new, "--dataset_dir", work / "data", "--output", work, "--minutes", minutes], log)
    configs, meter = bundle / "configs", output / "meter.yaml"
    meter.write_text(METER.format(file=output / "facts.json"))
    monai = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--bundle_root", bundle, "--config_file"]
    train = [*monai, str([str(configs / "train.yaml"), str(meter)]), "--tracking_uri", f"sqlite:///{work}/mlflow.db"]
    run([*train, "--output_dir", output / "models", "--resume", "auto"], log)
    predict = [*monai, configs / "inference.yaml", "--input", work / "test", "--output_dir", output]
    predict += ["--ckpt_path", output / "models" / "model.pt"]
    named = [] if instances else ["--keep_names", "true"]  # of volumes, which may be patients'
    run([*predict, *named], log)


def planned(bundle: Path) -> dict[str, Any]:
    """What the table says of our plan."""
    options = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())
    return {"batch": options["batch_size"], "tile": options["tile_size"], "features": options["features"]}


def scores(task: Task, work: Path, output: Path) -> dict[str, float]:
    """Score what was predicted of the list test: over all objects, and as means over the images."""
    split, items = json.loads((work / "split.json").read_text()), datalist(work / "data", "test")
    references, predictions, dice = [], [], []
    for stem, item in zip(split["test"], items, strict=True):
        # ours first; the name of a volume's mask has a hash of its identity
        files = [
            output / f"{stem}_instances.tif",
            *output.glob(f"{stem}_*_seg.nii.gz"),
            output / f"{stem}{task.ending}",
        ]
        found = next(file for file in files if file.exists())
        reference, prediction = read(Path(item["label"])), read(found)
        if task.instances:
            if found.name.endswith(task.ending):
                prediction = ndimage.label(prediction)[0]
            references.append(reference)
            predictions.append(prediction)
            reference, prediction = reference > 0, prediction > 0
        for value in range(1, len(task.classes)):
            a, b = reference == value, prediction == value
            if a.any():
                dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    result = {"dice": float(np.mean(dice))}
    if task.instances:
        for name, measure in (("seg", seg_measure), ("ap", average_precision)):
            each = [measure([a], [b]) for a, b in zip(references, predictions, strict=True)]
            result |= {name: measure(references, predictions), f"{name}_of_images": float(np.mean(each))}
    return result


def compare(name: str, contender: str, environment: Path, minutes: float, work: Path) -> dict[str, Any]:
    task, batch, output = TASKS[name], CONTENDERS[contender], work / contender.replace(", ", "_").replace(" ", "_")
    if not (work / "split.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        lay_out(name, work)
    done = output / "done.json"
    if not done.exists():
        output.mkdir(exist_ok=True)
        if batch is None:
            ours(task.instances, minutes, work, output)
        else:
            nnunet(task, batch, environment, minutes, work, output)
        facts = json.loads((output / "facts.json").read_text())
        facts |= planned(work / "planned") if batch is None else {}
        done.write_text(json.dumps({"task": task.title, "name": contender, **scores(task, work, output), **facts}))
    row: dict[str, Any] = json.loads(done.read_text())
    print(row, flush=True)
    return row


def table(result: dict[str, Any]) -> str:
    header = ["task", "", "Dice", "SEG", "mean of images", "AP at IoU 0.5", "mean of images"]
    header += ["steps", "images per step", "minutes"]
    scored = ("dice", "seg", "seg_of_images", "ap", "ap_of_images")
    rows = [
        [
            row["task"],
            row["name"],
            *(f"{row[key]:.3f}" if key in row else "" for key in scored),
            f"{row['steps']:,}",
            row["batch"],
            f"{row['training_s'] / 60:.1f}",
        ]
        for row in result["rows"]
    ]
    return f"{result['hardware']}, nnU-Net {result['nnunetv2']}.\n\n" + markdown(header, rows)


def main() -> None:
    given = arguments(
        __doc__,
        nnunet=Path("nnunet_env"),
        tasks=tuple(TASKS),
        contenders=tuple(CONTENDERS),
        minutes=15.0,
        work=ROOT / "runs" / "nnunet",
    )
    environment, work = given.nnunet.absolute(), given.work.absolute()
    version = [
        str(environment / "bin" / "python"),
        "-c",
        "import importlib.metadata as m; print(m.version('nnunetv2'))",
    ]
    installed = subprocess.run(version, check=True, capture_output=True, text=True).stdout.strip()
    rows = [
        compare(name, contender, environment, given.minutes, work / name)
        for name in given.tasks
        for contender in given.contenders
    ]
    if (*given.tasks, *given.contenders) == (*TASKS, *CONTENDERS):
        print(table(record("nnunet", rows, minutes=given.minutes, nnunetv2=installed)))


if __name__ == "__main__":
    main()
