"""Fig. 2: tiled equals whole for every size; mirroring repeats; memory does not grow with the image."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from torch.utils._python_dispatch import TorchDispatchMode

from monai_unet import inferers
from monai_unet.errors import InputError
from monai_unet.inferers import OverlapTileInferer, TileInferer
from monai_unet.networks import ValidUNet
from monai_unet.symmetries import symmetry_variance

torch.manual_seed(0)
NET2 = ValidUNet(2, 2, 3, (3, 4, 5, 6, 7)).eval()
NET3 = ValidUNet(3, 1, 2, (2, 3, 4)).eval()  # depth 2: margin 20, multiple 4


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def whole(x: torch.Tensor, network) -> torch.Tensor:
    """Slow oracle: numpy's multi-bounce mirror, one pass, cropped."""
    m, size = network.margin, x.shape[2:]
    pads = [(0, 0), (0, 0), *((m, network.input_size(n) - m - n) for n in size)]
    y = network(torch.from_numpy(np.pad(x.numpy(), pads, mode="reflect")))
    return y[(..., *(slice(0, n) for n in size))]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 300), (97, 64), (150, 133)])
@pytest.mark.parametrize("tile", [20, 68, (36, 132), None])
def test_tiled_equals_whole_in_2d(size, tile):
    x = torch.rand(2, 2, *size)
    y = OverlapTileInferer(tile, sw_batch_size=3)(x, NET2)
    assert y.shape == (2, 3, *size)
    torch.testing.assert_close(y, whole(x, NET2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 9, 30), (17, 24, 11)])
@pytest.mark.parametrize("tile", [8, (4, 12, 20), None])
def test_tiled_equals_whole_in_3d(size, tile):
    x = torch.rand(1, 1, *size)
    y = OverlapTileInferer(tile, sw_batch_size=2)(x, NET3)
    torch.testing.assert_close(y, whole(x, NET3), atol=1e-5, rtol=1e-5)


def test_abutting_tiles_off_the_multiple_would_differ():
    """The trap that the stride avoids: tiles of 36 side by side, 36 ≡ 4 mod 16, give another result."""
    x = torch.rand(1, 2, 72, 36)
    y = OverlapTileInferer(36)(x, NET2)
    padded = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (92, 92), (92, 92)], mode="reflect"))
    abutting = torch.cat([NET2(padded[:, :, :220]), NET2(padded[:, :, 36:256])], dim=2)
    torch.testing.assert_close(y[:, :, :36], abutting[:, :, :36], atol=1e-5, rtol=1e-5)
    assert (y[:, :, 36:] - abutting[:, :, 36:]).abs().max() > 1e-3


def test_a_tile_that_is_mirrored_as_a_whole():
    """The last tile of a pointwise network, without a margin, shows the image's last columns backwards."""
    x = torch.rand(1, 1, 20, 33)
    assert torch.equal(OverlapTileInferer(8, margin=0, multiple=1)(x, lambda tile: 2 * tile), 2 * x)


def test_replicate_padding_repeats_the_edge():
    x = torch.rand(1, 2, 12, 12)
    y = OverlapTileInferer(padding_mode="replicate")(x, NET2)
    expected = NET2(torch.nn.functional.pad(x, (92, 100, 92, 100), mode="replicate"))[..., :12, :12]
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("averaging", "count"), [("mirror", 4), ("all", 8)])
def test_averaging_over_the_symmetries_of_a_square(averaging, count):
    """One tile, so that the oracle can rotate the whole padded image."""
    x = torch.rand(1, 2, 20, 20)
    padded = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (92, 92), (92, 92)], mode="reflect"))
    outputs = []
    for turns, mirrored in product(range(4), (False, True)):
        if averaging == "mirror" and turns % 2:
            continue
        image = torch.rot90(padded.flip(3) if mirrored else padded, turns, (2, 3))
        y = torch.rot90(NET2(image), -turns, (2, 3))
        outputs.append(y.flip(3) if mirrored else y)
    assert len(outputs) == count
    y = OverlapTileInferer(averaging=averaging)(x, NET2)
    torch.testing.assert_close(y, torch.stack(outputs).mean(0), atol=1e-5, rtol=1e-5)


def test_averaging_over_one_axis():
    x = torch.rand(1, 2, 20, 20)  # one tile, as above
    one = OverlapTileInferer()
    expected = (one(x, NET2) + one(x.flip(3), NET2).flip(3)) / 2
    torch.testing.assert_close(OverlapTileInferer(averaging=[1])(x, NET2), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(OverlapTileInferer(averaging=[0])(x, NET2), expected, atol=1e-3)
    assert OverlapTileInferer(averaging=[]).averaging == "none"
    with pytest.raises(ValueError, match=re.escape("averaging is [2]; the axes of this network are 0 to 1")):
        OverlapTileInferer(averaging=[2])(x, NET2)


def test_averaging_over_two_axes_of_three():
    calls = []

    def counted(x):
        calls.append(x.shape)
        return NET3(x)

    x, one = torch.rand(1, 1, 8, 8, 8), OverlapTileInferer(8)
    versions = [one(x.flip(axes), NET3).flip(axes) for axes in ((), (2,), (4,), (2, 4))]
    averaged = OverlapTileInferer(8, averaging=[2, 0], uncertainty=True)
    y = averaged(x, NET3)
    torch.testing.assert_close(y[:, :-1], torch.stack(versions).mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[:, -1], symmetry_variance(x, NET3, one, (0, 2)), atol=1e-5, rtol=1e-5)
    tiled = OverlapTileInferer(4, averaging=(0, 2), margin=20, multiple=4)(x, counted)
    torch.testing.assert_close(tiled, y[:, :-1], atol=1e-5, rtol=1e-5)
    assert len(calls) == 4 * 8
    assert averaged.averaging == [0, 2]


def test_averaging_is_seamless_and_counts_48_in_3d():
    calls = []

    def counted(x):
        calls.append(x.shape)
        return NET3(x)

    x = torch.rand(1, 1, 9, 12, 7)
    tiled = OverlapTileInferer((4, 8, 4), averaging="all")(x, NET3)
    one = OverlapTileInferer(16, averaging="all")(x, NET3)
    OverlapTileInferer(8, averaging="all", margin=20, multiple=4)(torch.rand(1, 1, 8, 8, 8), counted)
    torch.testing.assert_close(tiled, one, atol=1e-5, rtol=1e-5)
    assert len(calls) == 48


def test_a_stack_is_segmented_page_by_page():
    x = torch.rand(2, 2, 3, 21, 30)
    y = OverlapTileInferer(20)(x, NET2)
    pages = [OverlapTileInferer(20)(x[:, :, z], NET2) for z in range(3)]
    torch.testing.assert_close(y, torch.stack(pages, dim=2))


def test_the_output_may_be_a_file(tmp_path):
    x = torch.rand(1, 2, 3, 50, 40)
    file = np.memmap(tmp_path / "out.raw", np.float32, "w+", shape=(1, 3, 3, 50, 40))
    result = OverlapTileInferer(20)(x, NET2, out=torch.from_numpy(file))
    expected = OverlapTileInferer(20)(x, NET2)
    assert result.data_ptr() == torch.from_numpy(file).data_ptr()
    file.flush()
    assert np.array_equal(np.fromfile(tmp_path / "out.raw", np.float32).reshape(expected.shape), expected.numpy())


def test_memory_besides_input_and_output_does_not_grow_with_the_image():
    class Largest(TorchDispatchMode):
        def __init__(self, *known: torch.Tensor) -> None:
            super().__init__()
            self.known = {t.untyped_storage().data_ptr() for t in known}
            self.bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            if isinstance(y, torch.Tensor) and y.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, y.untyped_storage().nbytes())
            return y

    peaks = []
    for n in (80, 400):
        x, out = torch.rand(1, 1, n, n), torch.empty(1, 2, n, n)
        with Largest(x, out) as watch:
            OverlapTileInferer(20)(x, ValidUNet(2, 1, 2, (1, 1, 1)).eval(), out=out)
        peaks.append(watch.bytes)
    assert peaks[0] == peaks[1] < 80 * 80 * 4


def test_the_margin_is_found_through_wrappers():
    x = torch.rand(1, 2, 30, 30)
    expected = OverlapTileInferer(20)(x, NET2)
    for wrapped in (torch.nn.DataParallel(NET2), torch.compile(NET2, backend="eager")):
        torch.testing.assert_close(OverlapTileInferer(20)(x, wrapped), expected, atol=1e-5, rtol=1e-5)


def test_the_margin_of_a_plain_callable_is_an_argument():
    x = torch.rand(1, 1, 20, 33)

    def valid_box(tile):  # a 5 × 5 box mean without padding
        return torch.nn.functional.avg_pool2d(tile, 5, stride=1)

    y = OverlapTileInferer(8, margin=2, multiple=1)(x, valid_box)
    expected = valid_box(torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect"))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("averaging", ["none", "mirror"])
def test_a_network_of_monai_is_cropped_to_the_margin(averaging):
    """Its output is as large as its input; with its receptive field as margin, tiles equal one pass over the image."""
    network = UNet(2, 1, 2, channels=(2, 4, 8), strides=(2, 2), norm=None).eval()
    x = torch.rand(1, 1, 84, 100)
    tiled = OverlapTileInferer(48, margin=40, multiple=4, averaging=averaging)(x, network)
    padded = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (40, 40), (40, 40)], mode="reflect"))
    wide = OverlapTileInferer(100, margin=60, multiple=4, averaging=averaging)(x, network)
    torch.testing.assert_close(tiled, wide, atol=1e-5, rtol=1e-5)
    if averaging == "none":
        torch.testing.assert_close(tiled, network(padded)[..., 40:-40, 40:-40], atol=1e-5, rtol=1e-5)


def test_dtypes_and_meta_data_survive():
    x = torch.rand(1, 2, 20, 20)
    double = ValidUNet(2, 2, 3, (2, 3)).double().eval()
    meta = MetaTensor(x, affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])), meta={"filename_or_obj": "cell.tif"})
    assert OverlapTileInferer()(x.double(), double).dtype == torch.float64
    half = OverlapTileInferer(amp=True)(x, NET2)
    y = OverlapTileInferer()(meta, NET2)
    assert half.dtype == torch.float32
    assert half.sub(y.as_tensor()).abs().max() < 0.1 * y.abs().max()
    assert y.meta["filename_or_obj"] == "cell.tif"
    assert y.affine[1, 1] == 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_a_meta_tensor_s_result_has_the_dtype_and_device_of_the_logits(dtype):
    image = MetaTensor((torch.rand(1, 1, 20, 33) * 9).to(dtype), meta={"filename_or_obj": "cell.tif"})

    def logits(tile):
        return -0.5 * tile.float()

    y = OverlapTileInferer(8, margin=0, multiple=1, device="meta")(image, logits)
    assert (y.dtype, y.device.type) == (torch.float32, "meta")
    y = OverlapTileInferer(8, margin=0, multiple=1)(image, logits)
    torch.testing.assert_close(y.as_tensor(), -0.5 * image.as_tensor().float())
    assert y.meta["filename_or_obj"] == "cell.tif"


def test_training_tiles_pass_once_in_bfloat16_if_asked():
    x = torch.rand(1, 2, 188, 188)
    assert TileInferer(amp=True)(x, NET2).dtype == torch.bfloat16
    assert TileInferer(amp="True")(x, NET2).dtype == torch.bfloat16, "from a command line"
    assert TileInferer(amp="false")(x, NET2).dtype == torch.float32
    assert TileInferer()(x, NET2).dtype == torch.float32


def test_progress_is_shown_when_asked(capfd):
    OverlapTileInferer(20, progress=True)(torch.rand(1, 2, 40, 40), NET2)
    shown = capfd.readouterr().err
    OverlapTileInferer(20)(torch.rand(1, 2, 40, 40), NET2)
    assert "tiles: 100%" in shown
    assert capfd.readouterr().err == ""


# --- errors ---


def test_a_tile_size_the_network_cannot_produce_is_rounded_up_with_a_warning():
    x = torch.rand(1, 2, 40, 40)
    with pytest.warns(UserWarning, match="tile_size 24 is not an output size of the network; 36 is used"):
        y = OverlapTileInferer(24)(x, NET2)
    torch.testing.assert_close(y, whole(x, NET2), atol=1e-5, rtol=1e-5)


def test_invalid_inputs_and_networks():
    x = torch.rand(1, 2, 30, 30)
    with pytest.raises(ValueError, match=r"the inputs' spatial size is \(30, 0\); it must be 2-D or 3-D, each axis at"):
        OverlapTileInferer()(x[..., :0], NET2)
    with pytest.raises(ValueError, match="tile_size is 0; it must be at least 1"):
        OverlapTileInferer(0)(x, NET2)
    with pytest.raises(ValueError, match=r"function has no margin; give it as OverlapTileInferer\(margin="):
        OverlapTileInferer()(x, lambda tile: tile)
    with pytest.raises(ValueError, match="tile_size is 8; tiles advance by multiples of 16, so use at least that"):
        OverlapTileInferer(8, margin=2, multiple=16)(x, lambda tile: tile)
    with pytest.raises(
        ValueError, match=r"gave \(34, 34\) for an input of \(36, 36\); with margins of \(2, 2\) it must give"
    ):
        OverlapTileInferer(32, margin=2, multiple=16)(x, lambda tile: tile[..., 1:-1, 1:-1])
    with pytest.raises(ValueError, match=r"out of a stack must hold one image \(B = 1\)"):
        OverlapTileInferer()(torch.rand(2, 2, 3, 30, 30), NET2, out=torch.empty(2, 3, 3, 30, 30))


@pytest.mark.parametrize("shape", [(0, 2, 30, 30), (1, 2, 0, 30, 30), (0, 2, 3, 30, 30)])
@pytest.mark.parametrize("tile_size", [20, None])
def test_no_image(shape, tile_size):
    with pytest.raises(ValueError, match=r"the inputs' shape is \(.*30, 30\); .* with at least one image"):
        OverlapTileInferer(tile_size)(torch.rand(shape), NET2)


@pytest.mark.parametrize("outputs", [tuple, list, lambda tensors: dict(enumerate(tensors))])
@pytest.mark.parametrize("averaging", ["none", "mirror"])
def test_several_outputs(outputs, averaging):
    kind = type(outputs([])).__name__
    with pytest.raises(ValueError, match=f"the network returned a {kind}; it must return one tensor .*network.x..0."):
        OverlapTileInferer(8, margin=0, multiple=1, averaging=averaging)(
            torch.rand(1, 1, 8, 8), lambda tile: outputs([tile, tile])
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"padding_mode": "zeros"}, "padding_mode is 'zeros'; it must be reflect or replicate"),
        ({"averaging": "rotate"}, "averaging is 'rotate'; it must be none, mirror or all"),
        ({"averaging": [3]}, r"averaging is \[3\]; it must be none, mirror, all, or different axes from 0 to 2"),
        ({"averaging": [0, 0]}, r"averaging is \[0, 0\]; it must be"),
        ({"averaging": [True]}, r"averaging is \[True\]; it must be"),
        ({"amp": "half"}, "amp is 'half'; it must be true or false"),
        ({"sw_batch_size": 0}, "sw_batch_size is 0; it must be at least 1"),
    ],
)
def test_invalid_parameters(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OverlapTileInferer(**kwargs)


# --- anisotropic voxels ---


@pytest.mark.parametrize(
    ("kernels", "strides"),
    [
        ([(1, 3, 3), 3, 3], [(1, 2, 2), 2]),
        ([(1, 3, 3), (1, 3, 3), 3], [(1, 2, 2), (1, 2, 2)]),
        ([(3, 1, 3), (3, 3, 3), 3], [(2, 1, 2), 2]),
    ],
)
@pytest.mark.parametrize("tile", [4, (3, 8, 12), (6, 4, 20)])
@pytest.mark.filterwarnings("ignore:tile_size:UserWarning")
def test_tiles_of_an_anisotropic_network_equal_the_whole_image(kernels, strides, tile):
    torch.manual_seed(0)
    network = ValidUNet(3, 1, 2, (2, 3, 4), kernel_size=kernels, strides=strides).eval()
    x = torch.rand(1, 1, 9, 21, 30)
    with torch.no_grad():
        whole = OverlapTileInferer((40, 40, 40))(x, network)
        tiles = OverlapTileInferer(tile, sw_batch_size=3)(x, network)
    assert whole.shape == (1, 2, 9, 21, 30)
    torch.testing.assert_close(tiles, whole, rtol=0, atol=1e-5)


def test_a_planned_tile_of_an_anisotropic_network_takes_the_memory_that_was_planned():
    network = ValidUNet(3, 1, 2, (2, 3, 4), kernel_size=[(1, 3, 3), 3, 3], strides=[(1, 2, 2), 2]).eval()
    inferer = OverlapTileInferer(memory=0.02)
    plan = inferer.plan((1, 1, 30, 60, 60), network)
    assert plan.tiles > 1
    assert plan.bytes <= plan.available
    assert plan.stride[0] % 2 == 0
    assert plan.stride[1] % 4 == 0
    x = torch.rand(1, 1, 30, 60, 60)
    with torch.no_grad():
        torch.testing.assert_close(inferer(x, network), OverlapTileInferer(64)(x, network), rtol=0, atol=1e-5)


def test_rotations_do_not_fit_an_anisotropic_network():
    network = ValidUNet(3, 1, 2, (2, 3), kernel_size=[(1, 3, 3), 3]).eval()
    with pytest.raises(ValueError, match=r"margins of \(4, 8, 8\) allow no rotation; use .mirror. or .none."):
        OverlapTileInferer(4, averaging="all")(torch.rand(1, 1, 4, 4, 4), network)


@pytest.mark.parametrize(("averaging", "dims"), [("all", 2), ("mirror", 2), ("mirror", 3)])
def test_uncertainty_is_the_variance_over_the_symmetries_beside_the_same_logits(averaging: str, dims: int) -> None:
    torch.manual_seed(0)
    network = ValidUNet(dims, 1, 3, features=(4, 8), dropout=0).eval()
    image = torch.rand(2, 1, *(24,) * dims)
    for tile in (24, 12):
        with torch.no_grad():
            result = OverlapTileInferer(tile, averaging=averaging, uncertainty="true")(image, network)
            plain = OverlapTileInferer(tile, averaging=averaging)(image, network)
        assert torch.equal(result[:, :-1], plain)
        expected = symmetry_variance(image, network, OverlapTileInferer(tile), averaging)
        assert expected.max() > 1e-4
        torch.testing.assert_close(result[:, -1], expected, atol=1e-6, rtol=1e-3)


def test_uncertainty_needs_something_to_differ() -> None:
    with pytest.raises(
        InputError, match=re.escape('with averaging "none" there is nothing that could differ. Use --ave')
    ):
        OverlapTileInferer(uncertainty=True)


def test_a_group_of_tiles_is_stitched_while_the_next_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a pass returns before it is done: to wait for one before the next has begun would leave the GPU idle."""
    log: list[str] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        log.append("compute")
        return NET2(x)

    def fetch(tensor: torch.Tensor, device: torch.device):
        log.append("fetch")
        return lambda: log.append("wait") or tensor

    monkeypatch.setattr(inferers, "fetch", fetch)
    x = torch.rand(1, 2, 40, 100)
    y = OverlapTileInferer((52, 36), margin=NET2.margin, multiple=NET2.multiple, sw_batch_size=2)(x, network)
    torch.testing.assert_close(y, whole(x, NET2), atol=1e-5, rtol=1e-5)
    assert log == ["compute", "fetch", "compute", "fetch", "wait", "wait"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tiles_on_a_gpu_are_fetched_as_they_were_computed() -> None:
    x, network = torch.rand(1, 2, 150, 133), NET2.to("cuda")
    try:
        y = OverlapTileInferer(36, sw_batch_size=3, sw_device="cuda")(x, network)
        kept = OverlapTileInferer(36, sw_batch_size=3)(x.cuda(), network)
    finally:
        NET2.to("cpu")
    assert y.device.type == "cpu"
    assert kept.is_cuda
    torch.testing.assert_close(y, kept.cpu(), atol=0, rtol=0)
    torch.testing.assert_close(y, whole(x, NET2), atol=1e-3, rtol=1e-3)
