"""Active learning with MONAI Label, simulated with real labels: the next case by uncertainty, or at random.

    python -m benchmarks.studies.active_learning --dataset_dir DIR [--seeds 0 1 2] [--rounds 5] [--steps 100]

For each seed, a model is trained on 5 annotated cases of the hippocampus set for four times the steps. In each round,
each of the two strategies chooses the next of 30 cases, its label is added, and training continues. The Dice on the
test list is computed after each round. The uncertainty is that of the app: the variance over what training mirrors,
left and right. Results are written to benchmarks/results/active_learning.json after every round, next to those of other
seeds with the same settings (so that seeds can run in parallel), and drawn to docs/pictures/active_learning.png.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
from monai.bundle import ConfigParser

from benchmarks.peers import RESULTS, best_device
from monai_unet.datasets import datalist
from monai_unet.networks import load_network
from monai_unet.provenance import code_version, hardware
from monai_unet.symmetries import symmetry_variance

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_segmentation"
RESULT = RESULTS / "active_learning.json"
PICTURE = BUNDLE.parents[1] / "docs" / "pictures" / "active_learning.png"
START = 5
STRATEGIES = ("uncertainty", "random")
LEFT_RIGHT = (0,)
#: a whole volume in one tile, in bfloat16 if the processor supports it: up to rounding, the result is the same
FAST = {"tile_size": "$None", "averaging": "none", "amp": "$torch.ops.mkldnn._is_mkldnn_bf16_supported()"}


def train(folder: Path, items: list[dict[str, Any]], steps: int, seed: int) -> None:
    """Train one round as MONAI Label does: start from folder/model.pt if it exists, and replace it."""
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
            "steps_per_epoch": steps,
            "train#trainer#max_epochs": 1,
            "train#dataset#data": [{key: item[key] for key in ("image", "label")} for item in items],
            "validate#dataset#data": [],
            "train#handlers": handlers,
            "seed": seed,
        },
    )


def dice(folder: Path, options: argparse.Namespace) -> float:
    """Run the evaluation of the bundle, without distances and pictures, which take longer than the Dice."""
    configs = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("inference", "evaluate")]
    parser = ConfigParser()
    parser.read_config(configs)
    handlers = [handler for handler in parser["handlers"] if "Pictures" not in str(handler)]
    monai.bundle.run(
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        config_file=configs,
        bundle_root=str(BUNDLE),
        dataset_dir=options.dataset_dir,
        ckpt_path=str(folder / "model.pt"),
        output_dir=str(folder / "eval"),
        **FAST,
        **{"additional_metrics": {}, "handlers": handlers},
    )
    return float(json.loads((folder / "eval" / "scores.json").read_text())["overall"]["dice"])


def least_sure(folder: Path, pool: list[dict[str, Any]]) -> dict[str, Any]:
    """Score cases as label/app/lib/uncertainty.py does."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    parser.update(FAST)
    network = load_network(folder / "model.pt", in_channels=1, spatial_dims=3)
    prepare, inferer = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("inferer")
    scores = [
        float(symmetry_variance(prepare({"image": item["image"]})["image"][None], network, inferer, LEFT_RIGHT).mean())
        for item in pool
    ]
    return pool[scores.index(max(scores))]


def learn(seed: int, options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, float]]:
    """Yield (strategy, Dice) of one seed, round by round; both strategies start from the same first model."""
    cases = datalist(options.dataset_dir, "training")
    random.Random(seed).shuffle(cases)
    first, candidates = cases[:START], cases[START : START + options.pool]
    start = scratch / f"{seed}"
    train(start, first, 4 * options.steps, seed)
    at_start = dice(start, options)
    for strategy in STRATEGIES:
        folder = scratch / f"{seed}-{strategy}"
        folder.mkdir()
        shutil.copyfile(start / "model.pt", folder / "model.pt")
        yield strategy, at_start
        annotated, pool, chance = first, candidates, random.Random(seed)
        for number in range(options.rounds):
            chosen = least_sure(folder, pool) if strategy == "uncertainty" else chance.choice(pool)
            pool, annotated = [item for item in pool if item is not chosen], [*annotated, chosen]
            train(folder, annotated, options.steps, seed * 100 + number)
            yield strategy, dice(folder, options)


def draw(curves: dict[str, dict[str, list[float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for strategy, colour in zip(STRATEGIES, ("tab:red", "tab:gray"), strict=True):
        for of_seed in curves.values():
            axis.plot(range(START, START + len(of_seed[strategy])), of_seed[strategy], colour, alpha=0.3)
        mean = means(curves, strategy)
        axis.plot(range(START, START + len(mean)), mean, colour, label=f"{strategy}, mean of {len(curves)}")
    axis.set(xlabel="annotated cases", ylabel="Dice on the test list")
    axis.legend()
    figure.savefig(PICTURE, dpi=100)


def means(curves: dict[str, dict[str, list[float]]], strategy: str) -> list[float]:
    """Over the seeds, round by round."""
    return [statistics.mean(values) for values in zip(*(of_seed[strategy] for of_seed in curves.values()), strict=True)]


def keep(seed: int, curves: dict[str, list[float]], settings: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Write the curves of a seed next to those of other seeds, and return all that are complete."""
    held = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    others = held["dice"] if held.get("settings") == settings else {}
    dice = dict(sorted({**others, f"{seed}": curves}.items()))
    record = {"settings": settings, "dice": dice, "hardware": hardware(best_device()), "versions": code_version()}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    length = settings["rounds"] + 1
    return {key: of_seed for key, of_seed in dice.items() if all(len(curve) == length for curve in of_seed.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="training steps per round")
    parser.add_argument("--pool", type=int, default=30, help="cases to choose from")
    options = parser.parse_args()
    settings = {key: value for key, value in vars(options).items() if key not in ("dataset_dir", "seeds")}
    ended: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        for seed in options.seeds:
            curves: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
            for strategy, score in learn(seed, options, Path(scratch)):
                curves[strategy].append(score)
                cases = START + len(curves[strategy]) - 1
                print(f"seed {seed}, {strategy}, {cases} cases: {score:.4f}", flush=True)
                ended = keep(seed, curves, settings)
    draw(ended)
    for strategy in STRATEGIES:
        print(strategy, [f"{mean:.4f}" for mean in means(ended, strategy)], f"mean of {len(ended)} seeds")


if __name__ == "__main__":
    main()
