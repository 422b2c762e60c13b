"""Cost of MLflow tracking per training step, in the training thread and in the thread that sends.

    python -m benchmarks.studies.tracking_cost

Processor time is measured, which unlike wall time does not depend on other load. Loss and learning rate of 1,000 steps
are logged by `monai_unet.tracking.Tracking` to an SQLite store (the most expensive one: the training process does the
work of the store), and by MONAI's MLFlowHandler to the same store. Then the sender, which wakes every 10 seconds, sends
the metrics of 10 seconds ten times, system metrics included. Shares are given for the shortest step in
training_step.json and for one of 0.1 s. Results are printed and written to benchmarks/results/tracking_cost.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from monai.handlers import MLFlowHandler

from benchmarks.peers import RESULTS, record
from monai_unet.tracking import Tracking
from monai_unet.tracking.journal import Journal
from monai_unet.tracking.sending import Sender

STEPS = 1000


def engine() -> Any:
    """A stand-in for a trainer, with the attributes that handlers use."""
    weights = torch.nn.Parameter(torch.zeros(1))
    state = SimpleNamespace(
        iteration=0, epoch=0, max_epochs=1, epoch_length=STEPS, output=[{"loss": torch.tensor(0.5)}]
    )
    return SimpleNamespace(state=state, optimizer=torch.optim.SGD([weights], lr=0.1))


def per_step(log: Callable[[Any], None], trainer: Any, steps: int) -> float:
    """Seconds of this thread's processor time."""
    start = time.thread_time()
    for _ in range(steps):
        trainer.state.iteration += 1
        log(trainer)
    return (time.thread_time() - start) / steps


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        trainer, tracking = engine(), Tracking("cost", {}, f"{folder}/spool")
        with mock.patch.object(Journal, "start"):  # its thread's work is done here, where it is measured
            tracking._start(trainer)
        training = per_step(tracking._log_step, trainer, STEPS)
        sender = Sender(tracking.journal.folder)
        sender.send()
        steps = json.loads((RESULTS / "training_step.json").read_text())["rows"]
        compact = min(row["median_s"] for row in steps)
        shares, sending = {}, {}
        for seconds in (compact, 0.1):
            times = []
            for _ in range(10):
                tracking._system_metrics._next = 0.0  # CPU, memory and GPU are measured every 10 seconds
                per_step(tracking._log_step, trainer, round(10 / seconds))
                start = time.thread_time()
                sender.send()
                times.append(time.thread_time() - start)
            sending[seconds] = statistics.median(times[1:])
            shares[seconds] = training / seconds + sending[seconds] / 10

        plain = MLFlowHandler(experiment_name="plain", output_transform=lambda output: output[0]["loss"])
        plain.start(trainer)
        monai = per_step(plain.iteration_completed, trainer, 50)
        plain.close()

    print(f"the training's thread: {training * 1e6:.0f} µs per step (MONAI's MLFlowHandler: {monai * 1e3:.1f} ms)")
    for seconds, share in shares.items():
        sent = f"{sending[seconds] * 1e3:.0f} ms per 10 s in the sending thread"
        print(f"steps of {seconds:.2f} s: {sent}, {share:.2%} of the time in all")
    rows = [
        {"step_s": seconds, "sending_thread_s_per_10_s": sending[seconds], "share": share}
        for seconds, share in shares.items()
    ]
    record("tracking_cost", rows, training_thread_s_per_step=training, monai_handler_s_per_step=monai)


if __name__ == "__main__":
    main()
