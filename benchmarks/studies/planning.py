"""What the command `new` promises: 500 images planned within a minute, and the cost of a step within 30 %.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.planning [--images 500] [--steps 12] [--work DIR]

Plans two synthetic data sets, nuclei in 16-bit TIFF of 512² and volumes of 64 × 56 × 40, and takes the processor time
apart. Then plans bundles for ten images of each, for two amounts of memory, trains each for some steps in a process of
its own, and compares processor seconds and memory of a step with those that the plan states. The first three steps do
not count for time. Prints two tables and writes benchmarks/results/planning.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import tifffile
import torch
from ignite.engine import Engine, Events
from scipy import ndimage

from benchmarks.paper_tables import ROOT
from benchmarks.peers import arguments, markdown, record
from benchmarks.untracked import OPTIONS
from monai_unet.bundles import new
from monai_unet.bundles.plan import Plan
from monai_unet.memory import PROC, available_bytes

#: to add to train.yaml
METER = """
+train#handlers:
- {{_target_: benchmarks.studies.planning.Meter, file: {file}}}
"""
WARM_UP = 3
#: GiB of memory, 0 for the default, by which bundles are planned
MEMORY = {"nuclei": (0.0, 0.5), "volumes": (0.0, 1.0)}


class Meter:
    """Measures the steps of a training, augmentation included and validation not, into a file.

    Memory is the peak while they run, beyond what the process has before the first.
    """

    def __init__(self, file: str) -> None:
        self.file, self.seconds, self.start, self.before = Path(file), list[float](), 0.0, 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end)

    def begin(self, engine: Engine) -> None:
        if not self.seconds:
            available_bytes(torch.device("cpu"))  # returns what was freed before
            (PROC / "self/clear_refs").write_text("5")  # the high-water mark is what is resident now
            self.before = resident("VmRSS")
        self.start = time.process_time()

    def end(self, engine: Engine) -> None:
        self.seconds.append(time.process_time() - self.start)
        facts = {"steps": len(self.seconds), "training_s": sum(self.seconds)}
        rest = self.seconds[WARM_UP:] or self.seconds
        facts |= {"step_s": float(np.mean(rest)), "bytes": resident("VmHWM") - self.before}
        self.file.write_text(json.dumps(facts))


def resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (PROC / "self/status").read_text())
    return int(found[1]) << 10 if found else 0


def nuclei(folder: Path, count: int) -> Path:
    """About 60 nuclei per image, 16-bit TIFF of 512², as `images` and `labels`."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    grid = np.indices((512, 512))
    for number in range(count):
        random, ids = np.random.default_rng(number), np.zeros((512, 512), np.uint16)
        for row, column in np.ndindex(8, 8):
            centre, radius = 64 * np.array([row, column]) + random.uniform(20, 44, 2), random.uniform(8, 18)
            rows, columns = (slice(int(n - 20), int(n + 20)) for n in centre)
            inside = np.hypot(*(grid[:, rows, columns] - centre[:, None, None])) < radius
            ids[rows, columns][inside] = 1 + 8 * row + column
        image = 400 + 1500 * ndimage.gaussian_filter((ids > 0).astype(np.float32), 1) + random.normal(0, 60, ids.shape)
        tifffile.imwrite(folder / "images" / f"{number}.tif", image.clip(0).astype(np.uint16))
        tifffile.imwrite(folder / "labels" / f"{number}.tif", ids)
    return folder


def volumes(folder: Path, count: int) -> Path:
    """Two classes in NIfTI volumes of 1 mm, as `images` and `labels`."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    grid = np.indices((64, 56, 40))
    for number in range(count):
        random, classes = np.random.default_rng(number), np.zeros(grid.shape[1:], np.uint8)
        for value in (1, 2):
            centre = np.array([20 + 24 * (value - 1), 28, 20]) + random.uniform(-6, 6, 3)
            classes[np.square(grid - centre[:, None, None, None]).sum(0) < random.uniform(60, 120)] = value
        image = 100.0 * classes + random.normal(0, 20, classes.shape)
        for part, array in (("images", image.astype(np.int16)), ("labels", classes)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / part / f"{number}.nii.gz")
    return folder


def timed(module: ModuleType, name: str, spent: dict[str, float]) -> None:
    """Replace a function of a module by one that adds its processor seconds to ``spent``."""
    work = getattr(module, name)

    def measured(*args: Any) -> Any:
        start = time.process_time()
        result = work(*args)
        spent[name] = time.process_time() - start
        return result

    setattr(module, name, measured)


def promised(plan: Plan) -> dict[str, float]:
    """What the plan states of a step, in the comments of train.yaml."""
    reasons = {"step_s": ("max_epochs", r"steps of (\S+) s:"), "GiB": ("tile_size", r"takes (\S+) GiB")}
    found = {name: re.search(pattern, plan.settings[key].why) for name, (key, pattern) in reasons.items()}
    return {name: float(match[1]) for name, match in found.items() if match}


def train(folder: Path, steps: int) -> dict[str, float]:
    """Train a bundle for some steps; return what was measured."""
    meter, facts = folder / "meter.yaml", folder / "facts.json"
    meter.write_text(METER.format(file=facts))
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--bundle_root", str(folder)]
    command += ["--config_file", str([str(folder / "configs" / "train.yaml"), str(meter)])]
    command += ["--max_epochs", "1", *(part for name, value in OPTIONS.items() for part in (f"--{name}", value))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log.txt").open("w") as log:
        subprocess.run([*command, "--steps_per_epoch", str(steps)], check=True, stdout=log, stderr=log, env=environment)
    measured = json.loads(facts.read_text())
    return {"step_s": measured["step_s"], "GiB": measured["bytes"] / 2**30}


def main() -> None:
    given = arguments(__doc__, images=500, steps=12, work=ROOT / "runs" / "planning")
    startup, spent, work = time.process_time(), dict[str, float](), given.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    for name in ("take_fingerprint", "decide"):
        timed(new, name, spent)
    planning, steps = [], []
    for make in (nuclei, volumes):
        name = make.__name__
        data, few = make(work / "many" / name, given.images), make(work / "few" / name, 10)
        start = time.process_time()
        new.new_bundle(f"all_{name}", data, work)
        total = startup + time.process_time() - start
        planning.append({"data": name, "images": given.images, "startup": startup, **spent, "total": total})
        print(planning[-1], flush=True)
        for memory in MEMORY[name]:
            folder, plan = new.new_bundle(f"{name}_{memory:g}".replace(".", "_"), few, work, memory=memory or None)
            row: dict[str, Any] = {"data": name, "memory": memory, "features": plan.settings["features"].value}
            row |= {"tile": plan.settings["tile_size"].value, "promised": promised(plan)}
            steps.append(row | {"measured": train(folder, given.steps)})
            print(steps[-1], flush=True)
    print(table(record("planning", planning, steps=steps, threads=torch.get_num_threads())))


def table(result: dict[str, Any]) -> str:
    header = ["data", "start-up", "reading and measuring the images", "measuring a step", "with files and pictures"]
    keys = ("startup", "take_fingerprint", "decide", "total")
    rows = [[f"{row['images']} {row['data']}", *(f"{row[key]:.0f} s" for key in keys)] for row in result["rows"]]
    parts = [f"Processor time, {result['hardware']}.", markdown(header, rows)]
    header = ["data", "`--memory`", "features", "tile", "s per step, planned", "measured", "GiB, planned", "measured"]
    rows = []
    for row in result["steps"]:
        cells = [row["data"], row["memory"] or "default", row["features"][0], row["tile"]]
        for key in ("step_s", "GiB"):
            plan, found = row["promised"][key], row["measured"][key]
            cells += [f"{plan:.2g}", f"{found:.2g} ({found / plan - 1:+.0%})"]
        rows.append(cells)
    return "\n\n".join([*parts, markdown(header, rows)])


if __name__ == "__main__":
    main()
