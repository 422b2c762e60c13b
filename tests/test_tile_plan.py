"""Which tile is cheapest: counted memory against the living tensors, choices against all possible ones."""

from __future__ import annotations

import subprocess
import sys
import weakref
from itertools import product
from math import prod

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_unet import inferers
from monai_unet.inferers import OverlapTileInferer
from monai_unet.networks import ValidUNet
from monai_unet.tile_plan import TilePlan, choose_tile, pass_bytes

torch.manual_seed(0)
NET = ValidUNet(2, 1, 2, (3, 4, 5)).eval()  # margin 20, multiple 4
PAPER = ValidUNet(2, 1, 2, (1, 1, 1, 1, 1)).eval()  # margin 92, multiple 16, as the paper's


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


class Living(TorchDispatchMode):
    """Slow oracle: the bytes of all tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.known:
                    self.known[key] = weakref.ref(storage, lambda _, key=key, size=size: self.drop(key, size))
                    self.now += size
                    self.peak = max(self.peak, self.now)
        return result

    def drop(self, key, size):
        del self.known[key]
        self.now -= size


@pytest.mark.parametrize(
    ("network", "tile"),
    [
        (ValidUNet(2, 3, 2, (4, 8, 16)), (4, 4)),
        (ValidUNet(2, 1, 2, (4, 8, 16)), (36, 100)),
        (ValidUNet(2, 1, 20, (4, 5)), (60, 60)),
        (ValidUNet(3, 1, 3, (2, 4, 8)), (4, 8, 12)),
        (ValidUNet(2, 2, 2, (2, 3, 4, 5, 6)), (132, 132)),
        (ValidUNet(3, 1, 3, (2, 4, 8), kernel_size=[(1, 3, 3), 3, 3], strides=[(1, 2, 2), 2]), (6, 8, 12)),
    ],
)
def test_counted_memory_is_that_of_the_living_tensors(network, tile):
    network.eval()
    x = torch.rand(2, network.in_channels, *TilePlan(tile, tile, network.margin, network.multiple).window)
    with Living() as living:
        network(x)
    assert pass_bytes(network, tile, batch=2) == living.peak + x.nbytes
    assert pass_bytes(network, tile, batch=2, itemsize=2) == pass_bytes(network, tile, batch=2) // 2


def test_a_plan_by_hand():
    """572 → 388 on 1000²: strides of 384, three tiles per axis, the last one from 768 on."""
    plan = TilePlan((1000, 1000), (388, 388), 92, 16, bytes=2**29, available=2**30)
    assert (plan.stride, plan.grid, plan.tiles) == ((384, 384), (3, 3), 9)
    assert list(plan.origins())[:4] == [(0, 0), (0, 384), (0, 768), (384, 0)]
    assert plan.computed_voxels == 9 * 572**2
    assert plan.redundant_fraction == pytest.approx(1 - 1184**2 / (9 * 572**2))
    assert plan.exclusive_box((384, 768)) == (slice(384, 768), slice(768, 1000))
    assert str(plan) == ("9 tiles of 388 x 388 (input 572 x 572), 52% computed twice, 0.50 GiB per pass of 1.00 GiB")
    assert str(TilePlan((5, 5), (20, 20), 92, 16)) == "1 tile of 20 x 20 (input 204 x 204), 14% computed twice"


@pytest.mark.parametrize("size", [(1, 1), (100, 37), (388, 388), (389, 1000)])
def test_exclusive_boxes_partition_the_image(size):
    plan = TilePlan(size, (36, 20), 92, 16)
    seen = torch.zeros(size)
    for place in plan.origins():
        seen[plan.exclusive_box(place)] += 1
        assert all(s.stop - s.start <= t for s, t in zip(plan.exclusive_box(place), plan.tile, strict=True))
    assert (seen == 1).all()


def all_tiles(size, network):
    each = [[t for t in range(1, n + network.multiple) if _possible(network, t)] for n in size]
    return product(*each)


def _possible(network, t):
    return network.output_size(network.input_size(t)) == t


@pytest.mark.parametrize("size", [(60, 60), (33, 90), (120, 20)])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.3, 0.25])
def test_no_tile_that_fits_costs_clearly_less(size, share):
    """Against every possible tile."""
    whole = pass_bytes(NET, [NET.output_size(NET.input_size(n)) for n in size])
    free = int(share * whole)
    tile = choose_tile(size, NET, lambda t: pass_bytes(NET, t), free)
    assert pass_bytes(NET, tile) <= free
    cost = TilePlan(size, tile, 20, 4).computed_voxels
    best = min(TilePlan(size, t, 20, 4).computed_voxels for t in all_tiles(size, NET) if pass_bytes(NET, t) <= free)
    assert cost <= 1.02 * best
    assert (share < 1) or TilePlan(size, tile, 20, 4).tiles == 1


def test_more_memory_never_costs_more_and_finally_saves_little():
    costs, bytes_ = [], []
    for free in (2**20, 2**22, 2**24, 2**26, 2**28, 2**40):
        tile = choose_tile((40_000, 40_000), PAPER, lambda t: pass_bytes(PAPER, t), free)
        costs.append(TilePlan((40_000, 40_000), tile, 92, 16).computed_voxels)
        bytes_.append(pass_bytes(PAPER, tile))
    assert costs[:-1] == sorted(costs[:-1], reverse=True)
    assert costs[0] > 2 * costs[-1]
    assert bytes_[-1] < pass_bytes(PAPER, (40_004, 40_004)) / 2, "not everything, for 2 %"


def test_the_smallest_tile_if_nothing_fits():
    assert choose_tile((500, 300), PAPER, lambda t: pass_bytes(PAPER, t), 0) == (20, 20)


# --- in the inferer ---


def test_the_inferer_follows_its_plan(monkeypatch):
    monkeypatch.setattr(inferers, "measured_bytes", lambda work, device: work())  # None: not measurable
    shapes = []
    spy = ValidUNet(2, 1, 2, (3, 4, 5)).eval()
    spy.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[2:])))
    inferer = OverlapTileInferer(memory=3e-4)
    x = torch.rand(1, 1, 100, 150)
    plan = inferer.plan(x.shape, spy)
    shapes.clear()  # a pass has been measured
    y = inferer(x, spy)
    given = OverlapTileInferer(plan.tile)(x, spy)
    expected = OverlapTileInferer(152)(x, spy)
    assert plan.tiles > 1
    assert shapes[: plan.tiles] == [tuple(t + 40 for t in plan.tile)] * plan.tiles
    assert torch.equal(y, given), "bit for bit"
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert plan.bytes <= plan.available == int(3e-4 * 2**30)
    assert inferer.plan(x.shape, spy) == plan
    assert inferer.plan((2, 1, 7, 100, 150), spy).tile == plan.tile, "a stack, page by page"


def test_small_images_pass_at_once_and_unmeasured(monkeypatch):
    def refuse(*args):
        raise AssertionError("measured")

    monkeypatch.setattr(inferers, "measured_bytes", refuse)
    monkeypatch.setattr(inferers, "available_bytes", lambda device, enough: 2**30)
    plan = OverlapTileInferer().plan((1, 1, 200, 300), NET)
    assert (plan.tiles, plan.tile) == (1, (200, 300))
    assert plan.available == 2**29 - 200 * 300 * 2 * 4 // 2, "half of what the result leaves"


def test_the_paper_s_tile_if_the_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(inferers, "available_bytes", lambda device, enough: None)
    assert OverlapTileInferer().plan((1, 1, 1000, 1000), NET).tile == (388, 388)
    assert OverlapTileInferer(margin=2, multiple=1).plan((1, 1, 1000, 1000), lambda x: x).tile == (388, 388)


def test_a_measurement_is_taken_once_and_rounded_up(monkeypatch):
    taken = []

    def measured(work, device):
        taken.append(work())
        return int(1.6 * pass_bytes(NET, (388, 388)))

    monkeypatch.setattr(inferers, "measured_bytes", measured)
    inferer = OverlapTileInferer(memory=0.01)
    plan = inferer.plan((1, 1, 3000, 3000), NET)
    assert plan == inferer.plan((1, 1, 3000, 3000), NET)
    assert len(taken) == 1
    assert plan.bytes == int(1.75 * pass_bytes(NET, plan.tile))


# --- out of memory ---


class Small(torch.nn.Module):
    """A network on a device that only has room for inputs of up to ``room`` voxels."""

    def __init__(self, network, room, error) -> None:
        super().__init__()
        self.module, self.room, self.error, self.shapes = network, room, error, []

    def forward(self, x):
        self.shapes.append(tuple(x.shape[2:]))
        if prod(x.shape[2:]) > self.room:
            raise self.error
        return self.module(x)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: CUDA out of memory. Tried to allocate 2.00 GiB."),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("tile", [100, None])
def test_a_tile_is_halved_once_and_the_rest_continues(error, tile):
    x = torch.rand(2, 1, 130, 97)
    small = Small(NET, 110**2, error)
    inferer = OverlapTileInferer(tile, sw_batch_size=2, memory=1)
    expected = OverlapTileInferer(132)(x, NET)
    with pytest.warns(UserWarning, match=r"out of memory with a tile of \(\d+, 100\) \(.*2.00 GiB\.\); halved to"):
        y = inferer(x, small)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert sum(prod(shape) > 110**2 for shape in small.shapes) == 1, "a size that failed is not tried again"


@pytest.mark.parametrize(
    ("network", "size", "tile", "room", "limits"),
    [
        (ValidUNet(3, 1, 2, (2, 3)).eval(), (20, 17, 25), 26, 24**3, "14|8"),  # multiple 2, margin 8
        (PAPER, (100, 60), 100, 205**2, "52|36|20"),  # down to the smallest piece: 20 + 2 · 92 passes, 36 does not
    ],
)
def test_halved_more_than_once(network, size, tile, room, limits):
    x = torch.rand(1, 1, *size)
    with pytest.warns(UserWarning, match=f"halved to ({limits})$"):
        y = OverlapTileInferer(tile)(x, Small(network, room, MemoryError("none")))
    torch.testing.assert_close(y, OverlapTileInferer(tile)(x, network), atol=1e-5, rtol=1e-5)


def test_the_error_is_raised_if_halving_does_not_help():
    x = torch.rand(1, 1, 60, 60)
    with pytest.warns(UserWarning, match="halved"), pytest.raises(MemoryError, match="none at all"):
        OverlapTileInferer(60)(x, Small(NET, 0, MemoryError("none at all")))
    with pytest.raises(RuntimeError, match="another matter"):
        OverlapTileInferer(60)(x, Small(NET, 0, RuntimeError("another matter")))


LIMITED = """
import resource, torch
from monai_unet.inferers import OverlapTileInferer
from monai_unet.networks import ValidUNet
network = ValidUNet(2, 1, 2, (32, 64)).eval()
x, out = torch.rand(1, 1, 2000, 2000), torch.empty(1, 2, 2000, 2000)
with torch.no_grad():
    OverlapTileInferer(100)(x[..., :100, :100], network)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, -1))
    OverlapTileInferer(2000)(x, network, out=out)
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    assert (out - OverlapTileInferer(500)(x, network)).abs().max() < 1e-5
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="uses a limit of Linux")
def test_really_out_of_memory():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "halved to 1000" in done.stderr


def test_an_image_that_passes_at_once_leaves_kept_memory_alone(monkeypatch):
    monkeypatch.setattr(
        "monai_unet.memory._trim", lambda: pytest.fail("the next pass would have to get it again, page by page")
    )
    network = ValidUNet(2, 1, 2, (2, 3))
    assert OverlapTileInferer().plan((1, 1, 40, 40), network).tiles == 1


def test_memory_must_be_positive():
    with pytest.raises(ValueError, match="memory is 0 GiB; it must be more than 0, or None for what is free"):
        OverlapTileInferer(memory=0)
