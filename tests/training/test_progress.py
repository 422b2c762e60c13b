"""What a training run says on its way and at its end."""

from __future__ import annotations

import logging

import torch
from ignite.engine import Engine, Events

from monai_unet.training import BestCheckpoint, Progress


def test_each_epoch_has_a_line_and_the_end_the_next_command(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    best = BestCheckpoint(torch.nn.Linear(1, 1), tmp_path / "model.pt", "seg", better=float.__gt__)
    evaluator = Engine(lambda engine, batch: engine.state.metrics.update(seg=batch))
    best.attach(evaluator)
    trainer = Engine(lambda engine, batch: [{"loss": batch}])
    scores = iter((0.5, 0.4))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([next(scores)]))
    Progress(best, "bundles/cells").attach(trainer)
    trainer.run([0.25, 0.125], max_epochs=2)
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("progress")]
    assert lines[0].startswith("epoch 1 of 2: loss 0.1250, seg 0.5000 (best 0.5000), 00:00 left")
    assert lines[1].startswith("epoch 2 of 2: loss 0.1250, seg 0.4000 (best 0.5000), 00:00 left")
    assert lines[2].endswith(f"seg 0.5000 in epoch 1: {tmp_path}/model.pt")
    assert lines[3].endswith(f"{tmp_path}/pictures")
    assert f"configs/inference.yaml --ckpt_path {tmp_path}/model.pt --input" in lines[4]
