"""Correction loop of MONAI Label, simulated with real labels: the next case by uncertainty, or at random.

    python -m benchmarks.active_learning --dataset_dir DIR [--seeds 3] [--rounds 5] [--per_round 1] [--steps 200]

For each seed: 5 annotated cases of the hippocampus set, a model trained on them, then in each round the next case by
each of the two strategies, its label added, training continued. After each round the Dice on the set's test list.
Written to benchmarks/results/active_learning.json after every round, and drawn to docs/pictures/active_learning.png.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser

from benchmarks.training_step import hardware
from monai_unet.datasets import datalist
from monai_unet.handlers import load_network
from monai_unet.handlers.tracking import code_version
from monai_unet.uncertainty import symmetry_variance

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_segmentation"
RESULT = Path(__file__).parent / "results" / "active_learning.json"
PICTURE = BUNDLE.parents[1] / "docs" / "pictures" / "active_learning.png"
START = 5
STRATEGIES = ("uncertainty", "random")


def train(folder: Path, items: list[dict[str, Any]], options: argparse.Namespace, seed: int) -> None:
    """One round as MONAI Label's: on from folder/model.pt where there is one, which is then replaced."""
    configs = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "compact")]
    parser = ConfigParser()
    parser.read_config(configs)
    handlers, model = parser["train#handlers"], folder / "model.pt"
    if model.is_file():
        load = {"_target_": "CheckpointLoader", "load_path": str(model), "load_dict": {"model": "$@network"}}
        handlers = [load, *handlers]
    monai.bundle.run(
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        config_file=configs,
        **{
            "bundle_root": str(BUNDLE),
            "output_dir": str(folder),
            "steps_per_epoch": options.steps,
            "train#trainer#max_epochs": 1,
            "train#dataset#data": [{key: item[key] for key in ("image", "label")} for item in items],
            "validate#dataset#data": [],
            "train#handlers": handlers,
            "seed": seed,
        },
    )


def dice(folder: Path, options: argparse.Namespace) -> float:
    monai.bundle.run(
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        config_file=str(BUNDLE / "configs" / "evaluate.yaml"),
        bundle_root=str(BUNDLE),
        dataset_dir=options.dataset_dir,
        ckpt_path=str(folder / "model.pt"),
        output_dir=str(folder / "eval"),
    )
    return float(json.loads((folder / "eval" / "scores.json").read_text())["overall"]["dice"])


def least_sure(folder: Path, pool: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """As label/app/lib/uncertainty.py scores them."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    network = load_network(folder / "model.pt", in_channels=1, spatial_dims=3)
    prepare, inferer = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("inferer")
    scores = [
        float(symmetry_variance(prepare({"image": item["image"]})["image"][None], network, inferer, "mirror").mean())
        for item in pool
    ]
    return [pool[i] for i in sorted(range(len(pool)), key=lambda i: -scores[i])[:count]]


def draw(curves: dict[str, list[list[float]]], per_round: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for strategy, colour in zip(STRATEGIES, ("tab:red", "tab:gray"), strict=True):
        for curve in curves[strategy]:
            axis.plot([START + per_round * i for i in range(len(curve))], curve, colour, alpha=0.3)
        whole = [curve for curve in curves[strategy] if len(curve) == max(map(len, curves[strategy]))]
        mean = [statistics.mean(values) for values in zip(*whole, strict=True)]
        axis.plot([START + per_round * i for i in range(len(mean))], mean, colour, label=f"{strategy}, mean of seeds")
    axis.set(xlabel="annotated cases", ylabel="Dice on the test list")
    axis.legend()
    figure.savefig(PICTURE, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per_round", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200, help="training steps per round")
    parser.add_argument("--pool", type=int, default=60, help="cases to choose from")
    options = parser.parse_args()
    curves: dict[str, list[list[float]]] = {strategy: [] for strategy in STRATEGIES}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        for seed in range(options.seeds):
            cases = datalist(options.dataset_dir, "training")
            random.Random(seed).shuffle(cases)
            first, cases = cases[:START], cases[START : START + options.pool]
            start = Path(scratch) / f"{seed}"
            train(start, first, options, seed)
            at_start = dice(start, options)
            for strategy in STRATEGIES:
                folder, pool, annotated, chance = (
                    start.with_name(f"{seed}-{strategy}"),
                    cases,
                    first,
                    random.Random(seed),
                )
                folder.mkdir()
                shutil.copyfile(start / "model.pt", folder / "model.pt")
                curves[strategy].append([at_start])
                for number in range(options.rounds):
                    by_score = strategy == "uncertainty"
                    chosen = (
                        least_sure(folder, pool, options.per_round)
                        if by_score
                        else chance.sample(pool, options.per_round)
                    )
                    pool, annotated = [item for item in pool if item not in chosen], annotated + chosen
                    train(folder, annotated, options, seed * 100 + number)
                    curves[strategy][-1].append(dice(folder, options))
                    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
                    record = {"options": vars(options), "dice": curves, "hardware": hardware(where), **code_version()}
                    RESULT.write_text(json.dumps(record, indent=1) + "\n")
            draw(curves, options.per_round)
    for strategy in STRATEGIES:
        print(strategy, [f"{statistics.mean(values):.4f}" for values in zip(*curves[strategy], strict=True)])


if __name__ == "__main__":
    main()
