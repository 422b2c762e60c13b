"""A training run wired as in the bundles that takes a tenth of a second, for the tests that interrupt it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import CenterSpatialCropd, Compose, RandScaleIntensityd
from monai.utils import set_determinism

from monai_unet.networks import ValidUNet
from monai_unet.tracking import Tracking
from monai_unet.training import BestCheckpoint, Checkpoints, SeededDataset, SeededSampler, shield_worker
from monai_unet.transforms import RandElasticDeformationd

SIZE = 44  # the smallest valid input at depth 2 is 44, and gives 4


def items(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 1, SIZE, SIZE)).astype(np.float32)
    return [{"image": image, "label": (image > 0).astype(np.float32)} for image in images]


def train(
    folder: Path,
    *,
    epochs: int = 3,
    steps: int = 4,
    batch_size: int = 2,
    workers: int = 0,
    val_interval: int = 1,
    learning_rate: float = 0.01,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    data: list[dict[str, np.ndarray]] | None = None,
    features: tuple[int, ...] = (2, 3, 4),
    dropout: float = 0.5,
    on_step: Callable[[Engine], None] = lambda engine: None,
    on_validation: Callable[[Engine], None] = lambda engine: None,
    handlers: Callable[[torch.nn.Module], list[Any]] = lambda network: [],
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network,
    tracking: Any = None,
    **checkpoints: Any,
) -> dict[int, float]:
    """Train, and return the loss of each step by its number."""
    torch.set_num_threads(1)
    set_determinism(0)
    network = wrap(ValidUNet(2, 1, 2, features, dropout=dropout))
    chosen = optimizer(network.parameters(), lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, T_max=epochs * steps)
    best = BestCheckpoint(network, folder / "model.pt", "loss")
    keeper = Checkpoints(
        folder,
        network=network,
        optimizer=chosen,
        lr_scheduler=scheduler,
        best=best,
        parameters={"learning_rate": learning_rate, "optimizer": optimizer.__name__, "features": features},
        seed=5,
        tracking=tracking,
        **checkpoints,
    )
    crop = CenterSpatialCropd("label", 4)
    transform = Compose(
        [
            RandElasticDeformationd(
                ["image", "label"], prob=1.0, sigma=3.0, rotate_range=math.pi, mode=["bilinear", "nearest"]
            ),
            RandScaleIntensityd("image", 0.2, prob=1.0),
            crop,
        ]
    )
    dataset = CacheDataset(data or items(), transform, progress=False)
    loader = DataLoader(
        SeededDataset(dataset),
        sampler=SeededSampler(dataset, steps * batch_size, seed=5),
        batch_size=batch_size,
        num_workers=workers,
        worker_init_fn=shield_worker,
    )
    loss = torch.nn.CrossEntropyLoss()

    def energy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return loss(logits, target[:, 0].long())

    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(CacheDataset(items(2), crop, progress=False), batch_size=1),
        network=getattr(network, "module", network),
        key_val_metric={"loss": Average(lambda out: float(energy(out[0]["pred"][None], out[0]["label"][None])))},
        metric_cmp_fn=float.__lt__,
        val_handlers=[best, keeper],
    )
    evaluator.add_event_handler(Events.ITERATION_STARTED, on_validation)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        loss_function=energy,
        optimizer=chosen,
        train_handlers=[
            *handlers(network),
            LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
            ValidationHandler(val_interval, evaluator),
        ],
    )
    curve: dict[int, float] = {}

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Engine) -> None:
        assert engine.state.iteration not in curve
        curve[engine.state.iteration] = engine.state.output[0]["loss"]

    trainer.add_event_handler(Events.ITERATION_COMPLETED, on_step)
    if isinstance(tracking, Tracking):
        tracking.attach(trainer)
    try:
        keeper.run(trainer)
    except BaseException as e:
        e.curve = curve  # type: ignore[attr-defined]
        raise
    return curve
