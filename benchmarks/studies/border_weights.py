"""The gain from the weight map: the same training on DIC-HeLa with w0 = 0 and with w0 = 10, five seeds each.

    python -m benchmarks.studies.border_weights [--seeds N] [--epochs N] [--width N] [--work DIR]

Trains the compact recipe of the cell bundle, at half its width on tiles of 196 pixels for 800 steps, twice per seed:
the two runs have the same random numbers and steps, and differ in w0 alone. Scores the held-out frames without
averaging, by the rules of the bundle, and without splitting components, so that the network alone separates touching
cells. Prints merged cells and SEG, and the mean gain of the pairs with its 95 % interval (Student's t); writes
benchmarks/results/border_weights.json. After an interruption, it resumes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from benchmarks.paper_tables import CELLS, ROOT, STEPS_PER_EPOCH, VAL_INTERVAL, bundle_run
from benchmarks.peers import arguments, best_device, channels, markdown, record
from monai_unet.datasets import prepare

TILE_SIZE = 196
RULES = {"components": {"neck": 0, "core": 0}, "bundle": {}}


def train_and_score(w0: int, seed: int, epochs: int, width: int, data: Path, work: Path) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    log, done = work / "log.txt", work / "done.json"
    if not done.exists():
        options = {"dataset_dir": data, "output_dir": work, "features": list(channels(width)), "w0": w0, "seed": seed}
        options |= {"tile_size": TILE_SIZE}
        options |= {"max_epochs": epochs, "steps_per_epoch": STEPS_PER_EPOCH, "val_interval": VAL_INTERVAL}
        seconds = bundle_run(CELLS, ["train", "compact"], {**options, "resume": "auto"}, log)
        row: dict[str, Any] = {"w0": w0, "seed": seed, "training_s": seconds}
        for rule, rules in RULES.items():
            output = work / rule
            scored = {"dataset_dir": data, "ckpt_path": work / "model.pt", "output_dir": output, "averaging": "none"}
            scored |= rules
            bundle_run(CELLS, ["inference", "evaluate"], scored, log)
            row[rule] = json.loads((output / "scores.json").read_text())["overall"]
        done.write_text(json.dumps(row))
    return dict(json.loads(done.read_text()))


def table(result: Mapping[str, Any]) -> str:
    rows = result["rows"]
    header = ["seed", "w0"]
    lines = [[row["seed"], row["w0"]] for row in rows]
    gain = ["gain", "95 %"]
    for rule in RULES:
        for what, score, digits in (("merged", "merged_cells", 0), ("SEG", "seg", 3)):
            header.append(f"{what}, {rule}")
            for line, row in zip(lines, rows, strict=True):
                line.append(f"{row[rule][score]:.{digits}f}")
            without, weighted = ([row[rule][score] for row in rows if row["w0"] == w0] for w0 in (0, 10))
            low, high = ttest_rel(weighted, without).confidence_interval(0.95)  # about the mean difference
            mean, low, high = (f"{value:+.{digits or 1}f}" for value in ((low + high) / 2, low, high))
            gain.append(f"{mean} ({low} to {high})")
    return markdown(header, [*lines, gain])


def main() -> None:
    given = arguments(__doc__, seeds=5, epochs=8, width=16, work=ROOT / "runs" / "border_weights")
    work = given.work.absolute()
    data = prepare("dic_c2dh_hela", output=work / "data").parent
    rows = []
    for seed in range(given.seeds):
        for w0 in (0, 10):
            row = train_and_score(w0, seed, given.epochs, given.width, data, work / f"seed{seed}_w{w0}")
            rows.append(row)
    protocol = "the 6 gold frames of DIC-C2DH-HeLa sequence 01 up to 034 train, the last of which chooses the "
    protocol += "checkpoint, 039, 054 and 067 are scored"
    facts = {"steps": given.epochs * STEPS_PER_EPOCH, "width": given.width, "tile_size": TILE_SIZE}
    result = record("border_weights", rows, device=best_device(), protocol=protocol, **facts)
    print(table(result))


if __name__ == "__main__":
    main()
