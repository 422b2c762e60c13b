"""Two processes train as one: the same data, one set of weights, one checkpoint; if one dies, the other ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from tiny_training import train
from torch.nn.parallel import DistributedDataParallel

from monai_unet.training import Guards

if sys.platform == "win32":
    pytest.skip("each training run is a forked process", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

FORK = multiprocessing.get_context("fork")


def _process(pipe, rank: int, port: int, folder: Path, kwargs: dict, die_at: int | None) -> None:
    logging.disable(logging.CRITICAL)
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", timedelta(minutes=5), world_size=2, rank=rank
    )

    def on_step(engine):
        if rank == 1 and engine.state.iteration == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        curve = train(
            folder,
            wrap=DistributedDataParallel,
            handlers=lambda network: [Guards(network)],
            on_step=on_step,
            batch_size=1,
            **kwargs,
        )
        pipe.send(curve)
    except Exception as e:
        pipe.send(f"{type(e).__name__}: {e}")
    os._exit(0)


def together(folder: Path, die_at: int | None = None, **kwargs) -> list:
    """Return the answer of each of two processes: its loss curve, or its error; None if it was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(2):
        here, there = FORK.Pipe()
        processes.append(FORK.Process(target=_process, args=(there, rank, port, folder, kwargs, die_at)))
        processes[-1].start()
        there.close()
        pipes.append(here)
    answers = []
    for pipe, process in zip(pipes, processes, strict=True):
        try:
            answers.append(pipe.recv() if pipe.poll(60) else "hangs")
        except EOFError:
            answers.append(None)
        process.kill()
        process.join()
    return answers


def last(folder: Path) -> dict:
    return torch.load(max((folder / "checkpoints").glob("step_*.pt")), weights_only=True)


def test_the_bundles_start_several_processes_alike():
    configs = Path(__file__).parents[2].glob("bundles/*/configs/multi_gpu_train.yaml")
    texts = [path.read_text().replace("channels_last_3d", "channels_last") for path in configs]
    assert len(texts) == 4
    assert len(set(texts)) == 1


def test_two_processes_train_the_network_that_one_trains_on_both_their_tiles(tmp_path):
    first, second = together(tmp_path / "two", dropout=0.0, epochs=2)
    alone = train(tmp_path / "one", dropout=0.0, epochs=2, batch_size=2)
    assert alone == pytest.approx({step: (first[step] + second[step]) / 2 for step in alone}, rel=1e-3)
    a, b = last(tmp_path / "one"), last(tmp_path / "two")
    for name, weight in a["network"].items():
        assert torch.allclose(weight, b["network"][name], atol=1e-4), name
    assert a["step"] == b["step"] == 8


def test_two_processes_resume_bit_for_bit(tmp_path):
    whole = together(tmp_path / "whole")
    assert whole[0] != whole[1]
    first = together(tmp_path / "parts", die_at=7)
    assert first[1] is None
    second = together(tmp_path / "parts", resume=True)
    assert [list(curve) for curve in second] == [[5, 6, 7, 8, 9, 10, 11, 12]] * 2
    assert all(curve[step] == loss for curve, part in zip(whole, second, strict=True) for step, loss in part.items())
    a, b = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert all(torch.equal(a["network"][name], b["network"][name]) for name in a["network"])


def test_a_dead_process_ends_the_other_with_the_reason(tmp_path):
    first, second = together(tmp_path, die_at=3)
    assert second is None
    assert first.startswith("RuntimeError: another process of this training run has died (")
    assert first.endswith("--resume true continues")
