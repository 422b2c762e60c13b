"""nnU-Net's side of `benchmarks.studies.nnunet`, run by the Python of nnU-Net's own environment.

    python benchmarks/studies/nnunet_side.py DATASET CONFIGURATION MINUTES BATCH OUTPUT

Trains fold 0 with nnU-Net's network, loss, optimiser, augmentation and "poly" learning rate, which falls to 0 when so
many minutes of processor time are spent in training steps, and predicts ``imagesTs`` as nnU-Net does by default:
overlapping tiles, mirrored. ``BATCH`` 0 is the plan's batch size. Writes the masks and facts.json to ``OUTPUT``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def train(trainer: nnUNetTrainer, minutes: float) -> dict[str, float]:
    """Train until the minutes are spent; return what was measured."""
    trainer.on_train_start()
    trainer.network.train()
    spent, steps, losses = 0.0, 0, []
    while (share := spent / 60 / minutes) < 1:
        start = time.process_time()
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** 0.9
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        spent, steps = spent + time.process_time() - start, steps + 1
        if steps % 10 == 0:
            print(f"step {steps}, {spent:.0f} s, loss {sum(losses[-10:]) / 10:.3f}", flush=True)
    return {"steps": steps, "training_s": spent}


def predict(trainer: nnUNetTrainer, images: Path, output: Path) -> float:
    """Predict all images of a folder; return the processor seconds."""
    start = time.process_time()
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=trainer.device, perform_everything_on_device=False, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    predictor.predict_from_files_sequential(str(images), str(output))
    return time.process_time() - start


def main() -> None:
    dataset, configuration, minutes, batch, output = sys.argv[1:]
    torch.manual_seed(0)
    preprocessed = Path(str(nnUNet_preprocessed)) / dataset
    plans: dict[str, Any] = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    planned = plans["configurations"][configuration]
    planned["batch_size"] = int(batch) or planned["batch_size"]
    document = json.loads((preprocessed / "dataset.json").read_text())
    trainer = nnUNetTrainer({**plans, "continue_training": False}, configuration, 0, document, torch.device("cpu"))
    trainer.initialize()
    folder, weights = Path(output), Path(output) / "network.pt"
    folder.mkdir(parents=True, exist_ok=True)
    if not weights.exists():
        measured = train(trainer, float(minutes))
        torch.save({"network": trainer.network.state_dict(), "measured": measured}, weights)
    trained = torch.load(weights)
    trainer.network.load_state_dict(trained["network"])
    facts: dict[str, Any] = {**trained["measured"], "batch": planned["batch_size"], "tile": planned["patch_size"]}
    facts["prediction_s"] = predict(trainer, Path(str(nnUNet_raw)) / dataset / "imagesTs", folder)
    facts["features"] = planned["architecture"]["arch_kwargs"]["features_per_stage"]
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
