"""What the weight map buys: the same training on DIC-HeLa with w0 = 0 and with w0 = 10, three seeds each.

    python -m benchmarks.border_weights [--seeds N] [--epochs N] [--width N] [--work DIR]

Trains the cell bundle's compact recipe, at half its width on tiles of 196 pixels for 800 steps, twice per seed, so that
the two differ in w0 alone: the same draws, the same steps. Scores the held-out frames without averaging, by the
bundle's rules, and without parting at necks, so that what separates touching cells is the network alone. Prints merged
cells and SEG side by side and writes benchmarks/results/border_weights.json. Interrupted, it goes on with the next
training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper_tables import CELLS, ROOT, STEPS_PER_EPOCH, VAL_INTERVAL, bundle_run
from benchmarks.training_step import hardware
from monai_unet.datasets import prepare
from monai_unet.tracking.provenance import code_version

RESULT = Path(__file__).parent / "results" / "border_weights.json"
TILE_SIZE = 196
RULES = {"components": {"neck": 0}, "bundle": {}}


def train_and_score(w0: int, seed: int, epochs: int, width: int, data: Path, work: Path) -> dict[str, Any]:
    features = [width * 2**level for level in range(5)]
    work.mkdir(parents=True, exist_ok=True)
    log, done = work / "log.txt", work / "done.json"
    if not done.exists():
        options = {"dataset_dir": data, "output_dir": work, "features": features, "w0": w0, "seed": seed}
        options |= {"tile_size": TILE_SIZE}
        options |= {"max_epochs": epochs, "steps_per_epoch": STEPS_PER_EPOCH, "val_interval": VAL_INTERVAL}
        seconds = bundle_run(CELLS, ["train", "compact"], {**options, "resume": "auto"}, log)
        row: dict[str, Any] = {"w0": w0, "seed": seed, "training_s": seconds}
        for rule, rules in RULES.items():
            output = work / rule
            scored = {"dataset_dir": data, "ckpt_path": work / "model.pt", "output_dir": output, "averaging": "none"}
            scored |= rules
            bundle_run(CELLS, ["evaluate"], scored, log)
            row[rule] = json.loads((output / "scores.json").read_text())["overall"]
        done.write_text(json.dumps(row))
    return dict(json.loads(done.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "border_weights")
    given = parser.parse_args()
    work = given.work.absolute()
    data = prepare("dic_c2dh_hela", output=work / "data").parent
    rows = []
    print(
        "| seed | w0 | merged cells, components | SEG, components | merged cells, bundle | SEG, bundle |\n"
        + "|---" * 6
        + "|"
    )
    for seed in range(given.seeds):
        for w0 in (0, 10):
            row = train_and_score(w0, seed, given.epochs, given.width, data, work / f"seed{seed}_w{w0}")
            rows.append(row)
            cells = [f"{row[rule]['merged_cells']:.0f} | {row[rule]['seg']:.4f}" for rule in RULES]
            print(f"| {seed} | {w0} | " + " | ".join(cells) + " |", flush=True)
    record = {
        "steps": given.epochs * STEPS_PER_EPOCH,
        "width": given.width,
        "tile_size": TILE_SIZE,
        "protocol": "the 6 gold frames of DIC-C2DH-HeLa sequence 01 up to 034 train, 039, 054 and 067 are scored",
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "versions": code_version(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
