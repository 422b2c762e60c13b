"""A bundle for any task, as planned and as set by hand: small synthetic data sets of eight kinds.

    python -m benchmarks.studies.any_task [--tasks NAME ...] [--work DIR]

For each task: writes the raw files, plans a bundle for them, trains and evaluates it twice, in equally many steps with
equally wide networks: with what was planned, and with the numbers that somebody would choose who knows how the data
were made. Prints a table and writes benchmarks/results/any_task.json. The scores, SEG of instances and Dice of classes,
are those of the list "test", or of "validation" where there is none. After an interruption, it resumes.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import monai.bundle

from benchmarks.paper_tables import ROOT
from benchmarks.peers import arguments, markdown, record
from monai_unet.bundles.new import new_bundle
from tests import tasks, volume_tasks


class Task(NamedTuple):
    title: str
    make: Callable[[Path], Path]
    #: of both trainings
    options: dict[str, Any]
    by_hand: dict[str, Any]


TINY_2D = {"features": [8, 16, 32], "tile_size": 100, "max_epochs": 6, "steps_per_epoch": 50, "val_interval": 1}
TINY_2D |= {"learning_rate": 0.003, "batch_size": 1}
TINY_3D = {"features": [8, 16, 32], "tile_size": [20, 20, 16], "max_epochs": 6, "steps_per_epoch": 40}
TINY_3D |= {"val_interval": 1, "learning_rate": 0.005}
TASKS = {
    "nuclei": Task(
        "nuclei of 160 px², 16-bit OME-TIFF, two pixel sizes",
        tasks.nuclei,
        TINY_2D,
        {"min_size": 80, "neck": 4, "sigma_border": 3, "class_weights": [1, 2]},
    ),
    "two_channels": Task(
        "two channels, the signal in the dim one",
        tasks.two_channels,
        TINY_2D,
        {"min_size": 120, "neck": 5, "sigma_border": 3, "class_weights": [1, 2]},
    ),
    "three_classes": Task(
        "three classes, some pixels not labelled",
        tasks.three_classes,
        TINY_2D | {"steps_per_epoch": 150},
        {"class_weights": [1, 3, 3, 3]},
    ),
    "histology": Task("RGB, masks of glands", tasks.histology, TINY_2D, {"class_weights": [1, 1], "scale_range": 0}),
    "organs_ct": Task(
        "five organs in CT at 0.7 × 0.7 × 5 mm",
        volume_tasks.organs_ct,
        TINY_3D | {"tile_size": [24, 20, 6], "steps_per_epoch": 100},
        {"window": [-100, 340], "mean": 120, "std": 110, "class_weights": [1, 2, 2, 2, 2, 4]},
    ),
    "two_sequences": Task(
        "two MR channels, T1 and T2", volume_tasks.two_sequences, TINY_3D, {"class_weights": [1, 2, 2]}
    ),
    "sparse_volumes": Task(
        "three labelled slices of each volume", volume_tasks.sparse_volumes, TINY_3D, {"class_weights": [1, 1, 1]}
    ),
    "nuclei_stacks": Task(
        "3-D instances: stacks of nuclei at 1.2 × 0.4 × 0.4 µm",
        volume_tasks.nuclei_stacks,
        TINY_3D | {"tile_size": [8, 28, 28]},
        {"min_size": 280, "neck": 4, "class_weights": [1, 1]},
    ),
}


def train_and_score(folder: Path, options: dict[str, Any], output: Path) -> tuple[str, float]:
    """SEG of instances, mean Dice of classes."""
    scores = output / "eval" / "scores.json"
    if not scores.exists():
        shutil.rmtree(output, ignore_errors=True)
        configs = folder / "configs"
        every = {"meta_file": str(configs / "metadata.json"), "logging_file": False, "bundle_root": str(folder)}
        every |= {"device": "cpu", "tracking_uri": f"sqlite:///{folder.parent}/mlflow.db"}
        monai.bundle.run(config_file=str(configs / "train.yaml"), output_dir=str(output), **every, **options)
        merged = [str(configs / f"{name}.yaml") for name in ("inference", "evaluate")]
        given = {"ckpt_path": str(output / "model.pt"), "output_dir": str(scores.parent), "averaging": "none"}
        monai.bundle.run(config_file=merged, **every, **given)
    overall: dict[str, float] = json.loads(scores.read_text())["overall"]
    name = "seg" if "seg" in overall else "dice"
    return name, overall[name]


def compare(name: str, work: Path) -> dict[str, Any]:
    title, make, options, by_hand = TASKS[name]
    folder = work / name
    if not folder.exists():
        shutil.rmtree(work / "data" / name, ignore_errors=True)
        new_bundle(name, make(work / "data" / name), work, minutes=1)
    score, planned = train_and_score(folder, options, folder / "planned")
    _, hand = train_and_score(folder, options | by_hand, folder / "by_hand")
    steps = options["max_epochs"] * options["steps_per_epoch"]
    row = {"task": title, "score": score, "steps": steps, "planned": planned, "by_hand": hand}
    row |= {"ratio": planned / hand, "options": by_hand}
    print(row, flush=True)
    return row


def table(result: dict[str, Any]) -> str:
    header = ["task", "steps", "score", "planned", "by hand", "ratio"]
    names, keys = {"seg": "SEG", "dice": "Dice"}, ("planned", "by_hand", "ratio")
    rows = (
        [row["task"], row["steps"], names[row["score"]], *(f"{row[key]:.3f}" for key in keys)] for row in result["rows"]
    )
    return markdown(header, rows)


def main() -> None:
    given = arguments(__doc__, tasks=tuple(TASKS), work=ROOT / "runs" / "any_task")
    warnings.simplefilter("ignore")
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    print(table(record("any_task", [compare(name, work) for name in given.tasks])))


if __name__ == "__main__":
    main()
