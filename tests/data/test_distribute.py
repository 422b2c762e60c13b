"""The workers of a Dask scheduler give the same result as one process, also when one is killed and another joins."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

zarr = pytest.importorskip("zarr")
dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

from monai_unet.data.large import instances as large_instances  # noqa: E402
from monai_unet.data.large import predict_large_image  # noqa: E402
from monai_unet.data.large.distribute import map_items  # noqa: E402
from monai_unet.errors import InputError  # noqa: E402
from monai_unet.inferers import OverlapTileInferer  # noqa: E402
from monai_unet.networks import ValidUNet  # noqa: E402
from monai_unet.transforms import LabelInstances  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:Creating scratch directories"
)
ARRAYS = ("0", "labels/classes/0", "labels/instances/0")


def predict(folder: Path, name: str, scheduler: str | None = None, features=(3, 4, 5)) -> list[np.ndarray]:
    torch.manual_seed(0)
    network = ValidUNet(2, 1, 2, features).eval()
    with torch.no_grad():
        size = network.input_size(30)
        network.head.bias -= network(torch.randn(1, 1, size, size)).mean((0, 2, 3))
    output = folder / f"{name}.ome.zarr"
    rule = LabelInstances(min_size=4, grow=2)
    predict_large_image(folder / "in.npy", output, network, OverlapTileInferer(20), rule, reach=24, scheduler=scheduler)
    group = zarr.open_group(output, mode="r")
    return [group[array][:] for array in ARRAYS]


@pytest.fixture
def image(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(large_instances.BLOCK, 2, 40)
    np.save(tmp_path / "in.npy", np.random.default_rng(0).random((150, 170), dtype=np.float32))
    return tmp_path


def test_two_workers_give_the_bits_of_one_process(image):
    expected = predict(image, "here")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=40
    ) as cluster:
        found = predict(image, "there", cluster.scheduler_address)
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one, other)
    assert expected[2].max() > 20, "or no instances were compared"


def test_an_address_without_a_scheduler():
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "300ms"}),
        pytest.raises(InputError, match="tcp://127.0.0.1:1: no Dask scheduler answers there.*`dask scheduler`"),
    ):
        map_items(print, [1], "tcp://127.0.0.1:1")
    with pytest.raises(InputError, match="nowhere.*no Dask scheduler answers"):
        map_items(print, [1], "nowhere://")


def test_exceptions_of_the_work_are_raised_here():
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50
        ) as cluster,
        pytest.raises(ZeroDivisionError),
    ):
        map_items(divmod_by, [1, 0], cluster.scheduler_address, number=1)


def divmod_by(item: int, number: int) -> None:
    divmod(number, item)


@pytest.mark.slow
def test_a_worker_dies_and_another_joins(image):
    expected = predict(image, "here", features=(32, 64, 128))
    address = "tcp://127.0.0.1:18786"
    started = []

    def start(program: str, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-W", "ignore", "-m", f"distributed.cli.{program}", "--no-dashboard", *options]
        started.append(subprocess.Popen(command))
        return started[-1]

    def worker() -> subprocess.Popen:
        return start("dask_worker", address, "--nthreads", "1", "--no-nanny", "--local-directory", str(image))

    start("dask_scheduler", "--host", "127.0.0.1", "--port", "18786")
    first = worker()
    script = f"""
from pathlib import Path
from monai_unet.data.large import instances as large_instances
from tests.data.test_distribute import predict
large_instances.BLOCK[2] = 40
predict(Path({str(image)!r}), "there", {address!r}, (32, 64, 128))
"""
    try:
        run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script])
        marks = image / "there.ome.zarr" / "progress" / "tiles"
        while len(list(marks.glob("c/*/*"))) < 5:
            assert run.poll() is None
            time.sleep(0.01)
        first.kill()
        first.wait()
        left = len(list(marks.glob("c/*/*")))
        worker()
        assert run.wait(240) == 0
    finally:
        for process in started:
            process.kill()
            process.wait()
    group = zarr.open_group(image / "there.ome.zarr", mode="r")
    for one, array in zip(expected, ARRAYS, strict=True):
        assert np.array_equal(one, group[array][:])
    assert left < 60, "or the first worker had done it all"
