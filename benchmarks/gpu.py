"""Everything that is to be measured on a GPU, in one command and one file, which a stop in the middle does not lose.

    python -m benchmarks.gpu --minutes 10 [--output runs/gpu/gpu.json] [--device cpu --tiny]
    python -m benchmarks.gpu --pack FOLDER [--python 3.12]

First the pieces of `benchmarks.gpu_pieces`, from the matrix rate of the card, its limit, to images larger than memory.
The minutes that remain are shared by trainings: HeLa, U373 and EM at the paper's width, then the half-width weights of
the bundles, each trained and scored as `benchmarks.paper_tables` does it. Every result is written as soon as it is
known. The same command continues with what is missing, and tries again what failed. Weights lie beside the file.

--pack collects code, data and those Python packages that an image with torch, numpy, scipy, tifffile and matplotlib
lacks, for a machine without a network: copy the folder to there, and run `bash FOLDER/start.sh` with the options above.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import paper_tables
from benchmarks.gpu_pack import COMMIT, pack
from benchmarks.gpu_pieces import FULL, TINY, pieces
from benchmarks.peers import channels, markdown
from benchmarks.untracked import OPTIONS
from monai_unet.files import replacing
from monai_unet.memory import keep_freed_memory
from monai_unet.provenance import code_version, hardware

ROOT = Path(__file__).parents[1]
#: HeLa and U373 together, for weights that serve both
CELLS: dict[str, Any] = {
    "card": "ctc_cells",
    "bundle": paper_tables.CELLS,
    "scores": ("seg",),
    "protocol": "trained on hela's and u373's frames together, whose last ones choose the checkpoint; scored on theirs",
}
#: data set, width, what differs from `paper_tables`
TRAININGS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("hela", 64, {}),
    ("u373", 64, {}),
    ("isbi2012", 64, {}),
    ("cells", 32, {"table": CELLS, "training": {"validation_items": 2}}),
    ("isbi2012", 32, {}),
)
#: minutes of a training that are not steps: start-up, and two evaluations
BESIDE = 0.75
TINY_TRAINING = {"features": list(channels(2)), "tile_size": 20}
TINY_PLAN = {"minutes": 0, "seed": 0, "epochs": 1, "steps_per_epoch": 2, "seconds_per_step": 0, "spent": []}


class Results:
    """The result file: what is measured, name by name, and on what."""

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file = file
        self.held: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"about": about, "pieces": {}}
        for name in ("hardware", "tiny"):
            if self.held["about"][name] != about[name]:
                raise SystemExit(
                    f"{file} holds results of another run: {name} is {self.held['about'][name]} there, and "
                    f"{about[name]} here. Choose another --output"
                )

    def missing(self, name: str) -> bool:
        return "failed" in self.held["pieces"].get(name, {"failed": "not yet"})

    def add(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do the work, and keep its result, or why it failed."""
        start = time.perf_counter()
        try:
            result = work()
        except Exception as error:
            traceback.print_exc()
            result = {"failed": f"{type(error).__name__}: {error}"[:500]}
        result["took_s"] = time.perf_counter() - start
        self.held["pieces"][name] = result
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as part:
            part.write_text(json.dumps(self.held, indent=1) + "\n")
        print(f"{name}: {json.dumps(result)}", flush=True)


def train(results: Results, left: Callable[[], float], tiny: bool) -> None:
    """Share the minutes that are ``left`` among the trainings that are missing."""
    titles = [f"{name}, width {width}" for name, width, _ in TRAININGS]
    for number, (title, (name, width, differs)) in enumerate(zip(titles, TRAININGS, strict=True)):
        if not results.missing(title):
            continue
        work = results.file.with_suffix("") / f"{name}_{width}"
        share = left() / sum(results.missing(other) for other in titles[number:]) - BESIDE
        plan = work / "plan.json"
        if tiny and not plan.exists():
            work.mkdir(parents=True, exist_ok=True)
            plan.write_text(json.dumps({"width": width, **TINY_PLAN}))
        if plan.exists():  # begun before: the learning rates depend on its length
            share = json.loads(plan.read_text())["minutes"]
        elif share <= 0:
            print(f"{title}: no time left", flush=True)
            continue

        training = {**differs.get("training", {}), **(TINY_TRAINING if tiny else {})}
        given = {"table": differs.get("table"), "options": OPTIONS, "training": training}
        results.add(title, partial(paper_tables.reproduce, name, width, share, 0, work.absolute(), **given))
        if width == 32 and not results.missing(title):
            shutil.copy(work / "model" / "model.pt", results.file.with_name(f"{name}_{width}.pt"))


def table(held: dict[str, Any]) -> str:
    """Markdown of a result file, for docs/benchmarks.md."""
    about, found = held["about"], {name: piece for name, piece in held["pieces"].items() if "failed" not in piece}
    limit = max(found["matrix rate"]["tera_per_s"].values()) if "matrix rate" in found else None
    rows = []
    for name, piece in found.items():
        for row, numbers in piece["rows"].items() if isinstance(piece.get("rows"), dict) else ():
            share = f"{numbers['tera_per_s'] / limit:.0%}" if limit else ""
            what = f"{name.split(',')[0]}, {row}" if not row.isdigit() else f"forward pass, batch {row}"
            cells = [what, piece["width"], piece.get("batch", row), f"{piece['size']}²"]
            rows.append([*cells, f"{numbers['images_per_s']:.1f}", share, f"{numbers['busy']:.0%}"])
    parts = [f"{about['hardware']}, torch {about['versions']['torch']}."]
    if limit:
        rates = ", ".join(f"{rate:.0f} in {name}" for name, rate in found["matrix rate"]["tera_per_s"].items())
        parts.append(f"Matrix products: {rates} (10¹² operations per second).")
    head = ["", "width", "batch", "size", "images per second", "of the matrix rate", "device busy"]
    parts.append(markdown(head, rows))
    for name, piece in found.items():
        if isinstance(piece.get("rows"), list):
            lines = [(row["name"], f"{row['median_s']:.4f}", f"{row['over_monai_half']:.2f}") for row in piece["rows"]]
            parts.append(f"{name}:\n\n{markdown(['', 's', 'times MONAI at an overlap of 0.5'], lines)}")
        elif "images_per_s" in piece:
            size = "×".join(map(str, piece["size"]))
            text = f"{name} of {size}, width {piece['width']}, from CPU to CPU: {1 / piece['images_per_s']:.2f} s"
            parts.append(f"{text}, device busy {piece['busy']:.0%}.")
        elif "median_s" in piece:
            parts.append(f"{name}, seconds: {json.dumps(piece['median_s'])}.")
        elif "megapixels_per_s" in piece:
            parts.append(f"{name}: {piece['size']}² in {piece['seconds']:.1f} s.")
        elif "scores" in piece:
            scores = {title: scored["overall"] for title, scored in piece["scores"].items()}
            ran = f"{piece['steps']:,} steps in {piece['training_s'] / 60:.1f} min"
            parts.append(f"{name}: {ran}; {json.dumps(scores)}.")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="everything small, to see that it runs")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu" / "gpu.json")
    parser.add_argument("--pack", type=Path, metavar="FOLDER")
    parser.add_argument("--python", default="3.12", help="of the machine without a network")
    given = parser.parse_args()
    if given.pack:
        return pack(given.pack, given.python)
    end = time.monotonic() + 60 * given.minutes
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the bundles' runs, too
    elif not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no GPU; try it with --device cpu --tiny")
    device = torch.device(given.device)
    keep_freed_memory()  # as in the bundles
    commit = {"commit": (ROOT / COMMIT).read_text()} if (ROOT / COMMIT).exists() else {}  # of a packed folder
    about = {"hardware": hardware(device), "tiny": given.tiny, "versions": {**code_version(), **commit}}
    results = Results(given.output, about)
    for name, work in pieces(device, TINY if given.tiny else FULL).items():
        if results.missing(name) and (time.monotonic() < end or given.tiny):
            results.add(name, work)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    train(results, lambda: (end - time.monotonic()) / 60, given.tiny)
    print(table(results.held))
    if failed := [name for name in results.held["pieces"] if results.missing(name)]:
        raise SystemExit(f"failed, and tried again by the same command: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
