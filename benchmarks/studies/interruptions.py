"""The cost of resumable training: checkpoints, guards and seeding, as a share of the time of the steps.

    python -m benchmarks.studies.interruptions [--folder DIR]

Per step: seeding torch, drawing and seeding an item, checking the loss, timed over 1,000 of each. Per epoch: one
checkpoint of the network and optimizer of the EM bundle, written and synced to the folder, median of 5, with the
paper's recipe (64 channels at the top, SGD, 500 steps) and the compact one (32, Adam, 100 steps). The time of the steps
is that in benchmarks/results/training_step.json, which must have been measured on the same machine. Results are written
to benchmarks/results/interruptions.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from monai.data import Dataset
from monai.transforms import Compose, RandScaleIntensityd, RandShiftIntensityd

from benchmarks.peers import RESULTS, channels, record
from monai_unet.networks import ValidUNet
from monai_unet.training import BestCheckpoint, Checkpoints, SeededDataset, SeededSampler
from monai_unet.training.seeding import seed_step
from monai_unet.transforms import RandElasticDeformationd

RECIPES = {
    "paper": (64, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.99}, 500),
    "compact": (32, torch.optim.Adam, {"lr": 1e-3}, 100),
}


def seconds(act: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def per_step() -> float:
    random = [RandElasticDeformationd("x"), RandScaleIntensityd("x", 0.2), RandShiftIntensityd("x", 0.2)]
    dataset = SeededDataset(Dataset([{}], Compose(random)))
    sampler = SeededSampler(dataset, 500, seed=0)
    loss = torch.tensor(0.7)
    return (
        seconds(lambda: seed_step(0, 1, 0), 1000)
        + seconds(lambda: dataset.dataset.transform.set_random_state(1), 1000)
        + seconds(lambda: math.isfinite(float(loss)), 1000)
        + seconds(lambda: sampler.draws(1), 100) / 500
    )


def per_checkpoint(top: int, kind: type[torch.optim.Optimizer], options: dict[str, float], folder: Path) -> float:
    network = ValidUNet(2, 1, 2, channels(top))
    optimizer = kind(network.parameters(), **options)
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()  # its state is as large as it gets
    keeper = Checkpoints(
        folder,
        network=network,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10),
        best=BestCheckpoint(network, folder / "model.pt", "error"),
        parameters={},
        seed=0,
    )
    state = SimpleNamespace(iteration=0, epoch=1, max_epochs=1, rank=0)
    keeper.trainer = SimpleNamespace(state=state, scaler=None)  # type: ignore[assignment]

    def save() -> None:
        state.iteration += 1
        keeper.save(epoch_ended=True)

    return seconds(save, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None)
    folder = parser.parse_args().folder
    step_s = per_step()
    print(f"per step {1e6 * step_s:.0f} µs")
    steps = json.loads((RESULTS / "training_step.json").read_text())["rows"]
    rows = []
    for recipe, (top, kind, options, length) in RECIPES.items():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            save_s = per_checkpoint(top, kind, options, Path(name))
        fastest = min(row["median_s"] for row in steps if row["features"][0] == top)
        share = (step_s + save_s / length) / fastest
        rows.append({"recipe": recipe, "checkpoint_s": save_s, "steps": length, "step_s": fastest, "share": share})
        print(f"{recipe:<8}: a checkpoint {save_s:.2f} s every {length} steps of {fastest:.2f} s: {100 * share:.2f} %")
    record("interruptions", rows, per_step_s=step_s)


if __name__ == "__main__":
    main()
