"""A training run that fails says why and what to do; the last good checkpoint is kept."""

from __future__ import annotations

import errno
import multiprocessing
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, MapTransform
from platforms import LINUX, POSIX
from tiny_training import SIZE, items, train

from monai_unet.data import InputError
from monai_unet.files import FolderLock
from monai_unet.networks import ValidUNet
from monai_unet.training import Guards, SeededDataset, SeededSampler, guards
from monai_unet.training.step_memory import largest_tile, step_bytes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def answer_of(work: Callable[..., None], *args) -> str | None:
    """Return what ``work(pipe, *args)`` sends from a process of its own, whose limits it may set."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=work, args=(there, *args))
    process.start()
    there.close()
    answer = here.recv()
    process.join()
    return answer


def guarded_engine(network: ValidUNet, step: Callable[..., Any]) -> Engine:
    engine = Engine(step)
    engine.optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    engine.state.device = torch.device("cpu")
    Guards(network).attach(engine)
    return engine


def guarded(network: torch.nn.Module) -> list[Guards]:
    return [Guards(network)]


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in (folder / "checkpoints").glob("step_*.pt"))


# --- a loss that is not finite ---


def test_nan_in_an_image_is_named_and_the_last_good_checkpoint_kept(tmp_path):
    sampler = SeededSampler(range(9), 4, seed=5)
    first = {index for index, _ in sampler.draws(1)}
    item = next(index for index, _ in sampler.draws(2) if index not in first)
    data = items(9)
    data[item]["image"][0, 20:24, 20:24] = float("nan")
    with pytest.raises(FloatingPointError) as error:
        train(tmp_path, data=data, handlers=guarded, batch_size=1)
    found = re.fullmatch(
        rf"the loss is nan at step (\d+) \(epoch (\d+)\) of training item {item}: the image holds NaN or Inf. "
        "The last good checkpoint is kept",
        str(error.value),
    )
    assert found
    assert found[2] == "2"
    assert list(error.value.curve) == list(range(1, int(found[1])))
    assert steps(tmp_path) == [0, 4]
    # with the data repaired the run resumes
    assert list(train(tmp_path, data=items(9), batch_size=1, resume=True)) == list(range(5, 13))


def test_the_files_of_a_step_are_named(tmp_path):
    sampler = SeededSampler(range(9), 4, seed=5)
    sampler.set_epoch(1)
    data = [{"image": f"/images/slice_{i}.png"} for i in range(9)]
    loader = DataLoader(SeededDataset(Dataset(data, Compose())), sampler=sampler, batch_size=2)
    (a, _), (b, _) = sampler.draws(3)[2:]

    def step(engine, batch):
        engine.state.batch = [{}, {}]  # MONAI's engines decollate it
        return [{"loss": float("inf")}]

    engine = Engine(step)
    engine.data_loader = loader
    engine.load_state_dict({"iteration": 5, "epoch_length": 2, "max_epochs": 3})
    Guards(ValidUNet(2, 1, 2, (2, 3))).attach(engine)
    with pytest.raises(
        FloatingPointError,
        match=rf"the loss is inf at step 6 \(epoch 3\) of training item {a} \(slice_{a}.png\), {b} \(slice_{b}.png\): ",
    ):
        engine.run(loader)


def test_divergence_is_distinguished_from_bad_data(tmp_path):
    with pytest.raises(FloatingPointError, match="all data are finite, so try a lower --learning_rate"):
        train(tmp_path, handlers=guarded, learning_rate=1e30, optimizer=torch.optim.SGD)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    def poison(engine):
        if engine.state.iteration == 8:
            engine.network.head.bias.data.fill_(float("inf"))

    with pytest.raises(FloatingPointError, match="after step 8 the weights are no longer finite; the last good"):
        train(tmp_path, on_step=poison, val_interval=5)
    assert steps(tmp_path) == [0, 4]


# --- memory ---


def test_the_suggested_tile_fits_and_the_next_larger_does_not():
    network = ValidUNet(2, 1, 2, (4, 8, 16))
    shape = (1, 1, network.input_size(300), network.input_size(300))
    (tile, _) = largest_tile(network, shape, step_bytes(network, shape) // 3)
    n = network.input_size(tile)
    assert step_bytes(network, (1, 1, n, n)) <= step_bytes(network, shape) // 3
    assert step_bytes(network, (1, 1, n + 4, n + 4)) > step_bytes(network, shape) // 3


def test_if_free_memory_is_unknown_half_of_what_the_step_needed_is_assumed():
    network = ValidUNet(3, 1, 2, (2, 4), norm="batch")
    shape = (2, 1, 60, 60, 44)
    tile = largest_tile(network, shape, None)
    need = step_bytes(network, (2, 1, *(network.input_size(n) for n in tile)))
    assert 0.4 < need / step_bytes(network, shape) <= 0.5
    assert largest_tile(network, shape, 1000) is None


def _under_a_limit(pipe, tile: int) -> None:
    """Make a step at this tile size with only 300 MiB more memory; send the advice, or None for success."""
    import resource

    torch.set_num_threads(1)
    network = ValidUNet(2, 1, 2, (8, 16, 32))
    size = network.input_size(tile)
    step_bytes(network, (1, 1, SIZE, SIZE))  # imports what the estimate needs
    network(torch.zeros(1, 1, SIZE, SIZE)).sum().backward()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (300 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def step(engine, batch):
        network(batch["image"]).sum().backward()
        return [{"loss": 0.0}]

    try:
        guarded_engine(network, step).run([{"image": torch.zeros(1, 1, size, size)}])
        pipe.send(None)
    except RuntimeError as e:
        pipe.send(str(e))


@LINUX
def test_the_tile_suggested_out_of_memory_then_fits():
    advice = answer_of(_under_a_limit, 1012)
    found = re.fullmatch(r"out of memory with a tile_size of \[1012, 1012\]; --tile_size (\d+) should fit", advice)
    assert found, advice
    assert 100 < int(found[1]) < 1012
    assert answer_of(_under_a_limit, int(found[1])) is None


def test_the_memory_of_the_failed_step_is_freed_before_free_memory_is_read(monkeypatch):
    held, at_counting = [], []

    def step(engine, batch):
        def forward():
            activations = torch.zeros(1000)
            held.append(weakref.ref(activations))
            raise MemoryError

        forward()

    def available(device):
        at_counting.append(held[0]())
        return 1 << 30

    monkeypatch.setattr(guards, "available_bytes", available)
    engine = guarded_engine(ValidUNet(2, 1, 2, (2, 3)), step)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run([{"image": torch.zeros(1, 1, SIZE, SIZE)}])
    assert at_counting == [None]


def test_a_network_too_wide_for_any_tile():
    def step(engine, batch):
        raise MemoryError

    network = ValidUNet(2, 1, 2, (2, 3, 4))
    engine = guarded_engine(network, step)
    with pytest.raises(RuntimeError, match=r"with a tile_size of \[4, 4\]; none fits, so choose fewer --features"):
        engine.run([{"image": torch.zeros(1, 1, SIZE, SIZE)}])


class Exhausted(MapTransform):
    def __call__(self, tile):
        raise MemoryError


@pytest.mark.parametrize("workers", [0, 1])
def test_out_of_memory_in_the_loader(workers):
    engine = guarded_engine(ValidUNet(2, 1, 2, (2, 3)), lambda engine, batch: None)
    with pytest.raises(RuntimeError, match="out of memory while an image was loaded; choose a smaller --tile_size or"):
        engine.run(DataLoader(Dataset([{}], Exhausted("image")), num_workers=workers))


# --- disk ---


def test_any_full_disk_says_what_to_do(tmp_path):
    def full(engine):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "picture.png"))

    with pytest.raises(OSError, match="No space left on device; make room, then continue with --resume true") as error:
        train(tmp_path, handlers=guarded, on_step=full)
    assert error.value.filename == str(tmp_path / "picture.png")


def _with_little_room(pipe, folder: Path, step: int) -> None:
    import resource

    def fill(engine):  # whatever is written from now on ends after 2 KiB
        if engine.state.iteration == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    try:
        train(folder, handlers=guarded, on_step=fill, val_interval=2)
        pipe.send(None)
    except Exception as e:
        pipe.send(f"{type(e).__name__}: {e}")


@POSIX
@pytest.mark.parametrize(
    ("step", "file", "kept"),
    [
        (9, "step_00000012.pt", "newest intact checkpoint is step_00000008.pt"),
        (5, "model.pt", "last checkpoint is kept"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_ones(step, file, kept, tmp_path):
    message = answer_of(_with_little_room, tmp_path, step)
    assert re.fullmatch(
        rf"InputError: .*{file}: it could not be written \(File too large; \d+ MiB are free\); the {kept}. "
        "Make room, then continue with --resume true.",
        message,
    )
    last = 8 if step == 9 else 4
    assert steps(tmp_path) == [last - 4, last]
    assert not list(tmp_path.rglob(".*.partial*"))
    assert list(train(tmp_path, resume=True)) == list(range(last + 1, 13))


# --- one training run per folder ---


def test_a_second_training_run_in_the_folder_is_refused(tmp_path):
    with FolderLock(tmp_path), pytest.raises(InputError, match="a training run is writing to this folder"):
        train(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
