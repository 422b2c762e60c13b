"""Work on a Dask scheduler's workers: the same result as here, also when a worker is killed and another one joins."""

from __future__ import annotations

import signal
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
from monai_unet.data.large.distribute import each  # noqa: E402
from monai_unet.data.large.predict import predict_large_image  # noqa: E402
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


def test_the_result_of_two_workers_is_that_of_one_process_bit_for_bit(image):
    expected = predict(image, "here")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=40
    ) as cluster:
        found = predict(image, "there", cluster.scheduler_address)
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one, other)
    assert expected[2].max() > 20, "or no instances were compared"


def test_an_address_where_no_scheduler_answers_is_told():
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "300ms"}),
        pytest.raises(InputError, match="tcp://127.0.0.1:1: no Dask scheduler answers there.*`dask scheduler`"),
    ):
        each(print, [1], "tcp://127.0.0.1:1")
    with pytest.raises(InputError, match="nowhere.*no Dask scheduler answers"):
        each(print, [1], "nowhere://")


def test_what_the_work_raises_comes_back():
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50
        ) as cluster,
        pytest.raises(ZeroDivisionError),
    ):
        each(divmod_by, [1, 0], cluster.scheduler_address, number=1)


def divmod_by(item: int, number: int) -> None:
    divmod(number, item)


@pytest.mark.slow
def test_a_worker_dies_and_another_joins(image):
    expected = predict(image, "here", features=(32, 64, 128))
    address = "tcp://127.0.0.1:18786"
    command = [sys.executable, "-W", "ignore", "-m", "distributed.cli.dask_"]
    started = [
        subprocess.Popen(
            [
                *command[:-1],
                "distributed.cli.dask_scheduler",
                "--host",
                "127.0.0.1",
                "--port",
                "18786",
                "--no-dashboard",
            ]
        )
    ]

    def worker() -> subprocess.Popen:
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(image)]
        process = subprocess.Popen([*command[:-1], "distributed.cli.dask_worker", address, *options])
        started.append(process)
        return process

    first = worker()
    script = f"""
from pathlib import Path
from monai_unet.data.large import instances as large_instances
from tests.test_workers import predict
large_instances.BLOCK[2] = 40
predict(Path({str(image)!r}), "there", {address!r}, (32, 64, 128))
"""
    try:
        run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script])
        marks = image / "there.ome.zarr" / "progress" / "tiles"
        while len(list(marks.glob("c/*/*"))) < 5:
            assert run.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
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
