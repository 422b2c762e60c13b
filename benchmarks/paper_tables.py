"""The paper's two tables: one command trains, evaluates, and adds one row next to the paper's.

    python -m benchmarks.paper_tables isbi2012|hela|u373 [--width 64|32] [--minutes N] [--seed N] [--fold 01|02]
        [--work DIR]

Prepares the data, trains the bundle for the given minutes (for as many steps as the measured time of one allows),
scores the held-out images averaged over the 8 exact rotations and mirrorings, writes the numbers with protocol,
versions and hardware to benchmarks/results/paper_tables/*.json, and all of them as tables to docs/results.md: over all
cells or slices, and as the mean of frames or slices with its 95 % bootstrap interval. Width 64 is the paper's network
and optimiser; 32 is the compact recipe of the bundle. Where both sequences of the cells are at hand, ``--fold 01``
trains on all of sequence 01 and scores 02, ``--fold 02`` the reverse. After an interruption, the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers import best_device, channels, fast_bfloat16
from benchmarks.training_step import seconds_per_step
from monai_unet.datasets import cards, prepare
from monai_unet.provenance import code_version, hardware
from monai_unet.tracking.scores import mean_over_images

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "paper_tables"
DOCS = ROOT / "docs" / "results.md"
STEPS_PER_EPOCH = 100  # at least; of a fast GPU as many as take EPOCH_SECONDS
EPOCH_SECONDS = 15  # to write a checkpoint and to validate takes a second or two
VAL_INTERVAL = 2  # divides the number of epochs: the last, with the smallest learning rate, is validated too
#: factor for augmentation, validation and checkpoints, relative to the bare step that is measured
OVERHEAD = 1.15

CELLS = "cell_segmentation"
TABLES: dict[str, dict[str, Any]] = {
    "isbi2012": {
        "card": "isbi2012",
        "bundle": "em_membrane_segmentation",
        "scores": ("warping_error", "rand_error", "pixel_error"),
        "others": {
            "U-Net in the paper, 7 rotations, challenge's test set": (0.000353, 0.0382, 0.0611),
            "best of the challenge in the paper, each column (DIVE-SCI)": (0.000355, 0.0305, 0.0584),
            "human values in the paper": (0.000005, 0.0021, 0.0010),
        },
        "protocol": "trained on slices 0-21 (20 and 21 choose the checkpoint), scored on 24-29 of the training stack",
    },
    "hela": {
        "card": "dic_c2dh_hela",
        "bundle": CELLS,
        "scores": ("seg",),
        "others": {
            "U-Net in the paper, challenge's test set": (0.7756,),
            "best before the paper": (0.46,),
            "best known (CALT-US, board of 2024)": (0.887,),
        },
        "protocol": "trained on sequence 01 up to frame 034 (which chooses the checkpoint), scored on 039, 054, 067",
    },
    "u373": {
        "card": "phc_c2dh_u373",
        "bundle": CELLS,
        "scores": ("seg",),
        "others": {
            "U-Net in the paper, challenge's test set": (0.9203,),
            "best before the paper": (0.83,),
            "best known (CALT-US, board of 2024)": (0.931,),
        },
        "protocol": "trained on 10 gold frames of sequence 01 (the last chooses the checkpoint), scored on the 5 after",
    },
}


def bundle_run(bundle: str, configs: list[str], options: dict[str, Any], log: Path) -> float:
    """Run `python -m monai.bundle run`; return the seconds it took."""
    folder = ROOT / "bundles" / bundle
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--bundle_root", str(folder)]
    command += ["--config_file", str([str(folder / "configs" / f"{name}.yaml") for name in configs])]
    command += ["--logging_file", str(folder / "configs" / "logging.conf")]
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    start = time.perf_counter()
    print("$", " ".join(command), flush=True)
    with log.open("a") as file:
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=True)
    return time.perf_counter() - start


def plan(width: int, minutes: float, seed: int, file: Path) -> dict[str, Any]:
    """Decide the number of epochs once, so that a resumed training run keeps its learning rates."""
    if file.exists():
        kept: dict[str, Any] = {"steps_per_epoch": STEPS_PER_EPOCH, **json.loads(file.read_text())}
        asked = {"width": width, "minutes": minutes, "seed": seed}
        if {key: kept[key] for key in asked} != asked:
            raise SystemExit(f"{file} belongs to another training run, {kept}. Choose another --work, or remove it")
        return kept
    device = best_device()
    cost = statistics.median(seconds_per_step(channels(width), fast_bfloat16(device), 5, device))
    steps = STEPS_PER_EPOCH * max(int(EPOCH_SECONDS / (cost * STEPS_PER_EPOCH)), 1)
    epochs = max(int(minutes * 60 / (cost * OVERHEAD) / steps) // VAL_INTERVAL, 1) * VAL_INTERVAL
    made = {"width": width, "minutes": minutes, "seed": seed, "epochs": epochs, "steps_per_epoch": steps}
    made |= {"seconds_per_step": cost, "spent": []}
    file.write_text(json.dumps(made))
    return made


def reproduce(
    name: str,
    width: int,
    minutes: float,
    seed: int,
    work: Path,
    table: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    fold: str | None = None,
) -> dict[str, Any]:
    """Train, and score what was held out; return the record.

    Args:
        name: of the data set, a key of TABLES unless ``table`` is given.
        width: channels of the first level; 32 takes the compact recipe.
        minutes: of training.
        seed: of the training.
        work: folder of the training and the evaluations; data are prepared beside it.
        table: card, bundle and protocol, as in TABLES.
        options: of the bundle, for training and evaluation alike.
        training: options for the training alone.
        fold: "01" or "02", the sequence to train on; the other one is scored.
    """
    table = table or TABLES[name]
    work.mkdir(parents=True, exist_ok=True)
    data = prepare(table["card"], output=work.parent / f"{name}_data").parent
    scored_lists = {"held out": data, "sequence 02": data / "fold_01"}  # sequence 02 is never trained on
    protocol = table["protocol"]
    if fold:
        data = data / f"fold_{fold}"
        other = {"01": "02", "02": "01"}[fold]
        scored_lists, protocol = {f"sequence {other}": data}, f"trained on sequence {fold}, scored on sequence {other}"
        if not (data / "dataset.json").exists():
            raise SystemExit(f"no --fold {fold} of {table['card']}: a fold needs both sequences of cells")
    file = work / "plan.json"
    settled = plan(width, minutes, seed, file)
    device = best_device()
    settings = {
        "dataset_dir": data,
        "output_dir": work / "model",
        "max_epochs": settled["epochs"],
        "steps_per_epoch": settled["steps_per_epoch"],
        "val_interval": min(VAL_INTERVAL, settled["epochs"]),
        "seed": seed,
        "resume": "auto",
        **({"amp": fast_bfloat16(device)} if width == 64 else {}),
        **(options or {}),
        **(training or {}),
    }
    log = work / "log.txt"
    if not settled.get("trained"):
        start = time.perf_counter()
        try:
            bundle_run(table["bundle"], ["train"] + ["compact"] * (width == 32), settings, log)
            settled["trained"] = True
        finally:  # the time of an interrupted attempt counts, because its steps are not repeated
            settled["spent"].append(time.perf_counter() - start)
            file.write_text(json.dumps(settled))
    record = {
        "dataset": name,
        "width": width,
        "seed": seed,
        "protocol": protocol,
        **({"fold": fold} if fold else {}),
        "optimizer": "Adam" if width == 32 else "SGD, momentum 0.99",
        "dtype": "bfloat16" if fast_bfloat16(device) else "float32",
        "steps": settings["max_epochs"] * settings["steps_per_epoch"],
        "minutes_asked": minutes,
        "training_s": sum(settled["spent"]),
        "bare_step_s": settled["seconds_per_step"],
        "hardware": hardware(device),
        "versions": code_version(),
        "scores": {},
    }
    for title, folder in scored_lists.items():
        if (folder / "dataset.json").exists():
            scored = {"dataset_dir": folder, "ckpt_path": work / "model" / "model.pt", **(options or {})}
            bundle_run(
                table["bundle"],
                ["inference", "evaluate"],
                {**scored, "output_dir": work / title.replace(" ", "_")},
                log,
            )
            scores = json.loads((work / title.replace(" ", "_") / "scores.json").read_text())
            record["scores"][title] = {key: scores[key] for key in ("overall", "images")}
    return record


def keep(record: dict[str, Any]) -> None:
    """Write a record to where `document` finds it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    fold = f"_fold{record['fold']}" if "fold" in record else ""
    name = f"{record['dataset']}_{record['width']}{fold}_seed{record['seed']}.json"
    (RESULTS / name).write_text(json.dumps(record, indent=1) + "\n")


def document() -> str:
    """All results as Markdown, next to the paper's."""
    lines = []
    for name, table in TABLES.items():
        records = [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"{name}_*.json"))]
        if not records:
            continue
        counts = ("merged_cells", "split_cells") if table["bundle"] == CELLS else ()
        unit = "frames" if table["bundle"] == CELLS else "slices"
        heads = [f"{head}{of}" for head in table["scores"] for of in ("", f", mean of {unit} (95 %)")] + list(counts)
        lines += [f"### {cards()[table['card']]['description'].split(';')[0]}", ""]
        lines += ["| | " + " | ".join(head.replace("_", " ") for head in heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for record in records:
            ran = f"{record['steps']:,} steps in {record['training_s'] / 60:.0f} min on {record['hardware']}"
            for title, scores in record["scores"].items():
                cells = []
                for head in table["scores"]:
                    of_images = mean_over_images([image.get(head, math.nan) for image in scores["images"]])
                    low, high = of_images["interval"]
                    digits = 5 if head == "warping_error" else 4
                    overall, *means = (
                        f"{value:.{digits}f}" for value in (scores["overall"][head], of_images["mean"], low, high)
                    )
                    cells += [overall, "{} ({}–{})".format(*means)]
                cells += [f"{scores['overall'][head]:.0f}" for head in counts]
                label = f"**width {record['width']}, seed {record['seed']}**, {title}; {ran}"
                lines.append(f"| {label} | " + " | ".join(cells) + " |")
        for other, numbers in table["others"].items():
            cells = [cell for number in numbers for cell in (f"{number:.6f}".rstrip("0"), "")] + [""] * len(counts)
            lines.append(f"| {other} | " + " | ".join(cells) + " |")
        protocols = "; ".join(dict.fromkeys(record["protocol"] for record in records))
        lines += ["", f"Ours: {protocols}; averaged over the 8 exact rotations and mirrorings.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=TABLES)
    parser.add_argument("--width", type=int, choices=(64, 32), default=32)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", choices=("01", "02"), help="of the cells: the sequence to train on")
    parser.add_argument("--work", type=Path, help="default: runs/paper_tables/DATASET_WIDTH[_foldF]_seedN")
    given = parser.parse_args()
    fold = f"_fold{given.fold}" if given.fold else ""
    work = given.work or ROOT / "runs" / "paper_tables" / f"{given.dataset}_{given.width}{fold}_seed{given.seed}"
    record = reproduce(given.dataset, given.width, given.minutes, given.seed, work.absolute(), fold=given.fold)
    keep(record)
    before, begin, rest = DOCS.read_text().partition("<!-- paper tables: written by benchmarks.paper_tables -->\n")
    _, end, after = rest.partition("<!-- end of the paper tables -->\n")
    DOCS.write_text(before + begin + document() + "\n" + end + after if begin and end else before + rest)
    print(json.dumps({title: scores["overall"] for title, scores in record["scores"].items()}, indent=1))


if __name__ == "__main__":
    main()
