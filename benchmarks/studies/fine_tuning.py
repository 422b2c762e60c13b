"""Few images of one's own: training from weights beside training from scratch, on 1, 2, 5 and up to 10 of them.

    python -m benchmarks.studies.fine_tuning [--steps 300] [--base_steps 1500] [--work DIR]

HeLa cells start from the shipped weights for nuclei; U373 cells from weights that this trains on HeLa alone, because
the shipped ones for cells have seen U373. Either start has the same network, steps, frames (the first in time of
sequence 01) and random numbers; the last step is scored, so that no frame is needed to choose a checkpoint. Later
frames of the sequence are scored without averaging. Prints a table, and writes benchmarks/results/fine_tuning.json and
docs/pictures/fine_tuning.png. After an interruption, it resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.paper_tables import CELLS, ROOT, bundle_run
from benchmarks.peers import arguments, best_device, markdown, record
from monai_unet.datasets import datalist, prepare

PICTURE = ROOT / "docs" / "pictures" / "fine_tuning.png"
SIZES = (1, 2, 5, 10)
NUCLEI = "nuclei_segmentation"
#: of the nuclei weights; of the weights for cells
NETWORKS: dict[str, list[int]] = {"HeLa": [24, 48, 96, 192], "U373": [16, 32, 64, 128, 256]}
DATASETS = {"HeLa": "dic_c2dh_hela", "U373": "phc_c2dh_u373"}
STARTS = {"HeLa": "weights for nuclei", "U373": "weights for HeLa"}
SCRATCH = "from scratch"


def train(output: Path, data: Path, items: str, features: list[int], steps: int, init: Path | None) -> None:
    """Train the cells' compact recipe on tiles of 196 pixels, and keep the last step as ``output/model.pt``."""
    options: dict[str, Any] = {"dataset_dir": data, "output_dir": output, "training_items": items, "features": features}
    options |= {"held_out_items": [], "tile_size": 196, "dropout": 0, "resume": "auto"}
    options |= {"steps_per_epoch": steps // 3, "max_epochs": 3, "val_interval": 3}
    options |= {"init_weights": init} if init else {}
    bundle_run(CELLS, ["train", "compact"], options, output / "log.txt")


def score(output: Path, data: Path, bundle: str) -> dict[str, float]:
    """Score a training over all cells of the list "test"."""
    options = {"dataset_dir": data, "ckpt_path": output / "model.pt", "output_dir": output / "test"}
    bundle_run(bundle, ["inference", "evaluate"], {**options, "averaging": "none"}, output / "log.txt")
    scores: dict[str, float] = json.loads((output / "test" / "scores.json").read_text())["overall"]
    return scores


def one(cells: str, images: int, start: str, weights: Path, data: Path, steps: int, work: Path) -> dict[str, Any]:
    """Train on the first images, or take the weights as they are for none; return the scores."""
    output = work / f"{cells}_{images}_{start.replace(' ', '_')}"
    done = output / "done.json"
    if not done.exists():
        output.mkdir(parents=True, exist_ok=True)
        if images:
            init = None if start == SCRATCH else weights
            train(output, data, f"$@datalist[:{images}]", NETWORKS[cells], steps, init)
        else:
            shutil.copyfile(weights, output / "model.pt")
        bundle = CELLS if images or cells == "U373" else NUCLEI
        row = {"cells": cells, "images": images, "start": start, **score(output, data, bundle)}
        done.write_text(json.dumps(row))
    kept: dict[str, Any] = json.loads(done.read_text())
    print(kept, flush=True)
    return kept


def table(result: Mapping[str, Any]) -> str:
    found = {(row["cells"], row["images"], row["start"]): row for row in result["rows"]}
    lines = []
    for cells, images in dict.fromkeys((row["cells"], row["images"]) for row in result["rows"]):
        scores = [
            f"{found[key]['seg']:.3f} | {found[key]['ap50']:.3f}" if key in found else " | "
            for key in ((cells, images, STARTS[cells]), (cells, images, SCRATCH))
        ]
        lines.append([cells, images or "none", STARTS[cells], *scores])
    header = ["cells", "own images", "start", "SEG", "AP at IoU 0.5", "SEG from scratch", "AP from scratch"]
    return markdown(header, lines)


def draw(result: Mapping[str, Any]) -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axis, cells in zip(figure.subplots(1, 2, sharey=True), DATASETS, strict=True):
        for start, colour in ((STARTS[cells], "tab:blue"), (SCRATCH, "tab:gray")):
            rows = [row for row in result["rows"] if (row["cells"], row["start"]) == (cells, start)]
            axis.plot([row["images"] for row in rows], [row["seg"] for row in rows], "o-", color=colour, label=start)
        axis.set(title=cells, xlabel="own images", ylim=(0, 1))
        axis.legend(loc="center right")
    figure.axes[0].set_ylabel("SEG on later frames")
    figure.savefig(PICTURE, dpi=100)


def main() -> None:
    given = arguments(__doc__, steps=300, base_steps=1500, work=ROOT / "runs" / "fine_tuning")
    work = given.work.absolute()
    rows = []
    for cells, dataset in DATASETS.items():
        data = prepare(dataset, output=work / dataset).parent
        weights = ROOT / "bundles" / NUCLEI / "models" / "model.pt"
        if cells == "U373":
            base = work / "base"
            base.mkdir(exist_ok=True)
            weights = base / "model.pt"
            if not (base / "ended").exists():
                hela = work / DATASETS["HeLa"]
                train(base, hela, "@datalist", NETWORKS[cells], given.base_steps, None)
                (base / "ended").touch()
        sizes = sorted({min(size, len(datalist(data, "training"))) for size in SIZES})
        rows.append(one(cells, 0, STARTS[cells], weights, data, 0, work))
        for images in sizes:
            for start in (STARTS[cells], SCRATCH):
                rows.append(one(cells, images, start, weights, data, given.steps, work))
    facts = {"steps": given.steps, "base_steps": given.base_steps}
    result = record("fine_tuning", rows, device=best_device(), **facts)
    draw(result)
    print(table(result))


if __name__ == "__main__":
    main()
