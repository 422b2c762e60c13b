"""Fig. 1: the numbers of the figure, where reimplementations go wrong, and export and precision."""

from __future__ import annotations

import hashlib
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from monai_unet.errors import InputError
from monai_unet.networks import ValidUNet, load_network, load_task

SMALL = (4, 6, 8, 10, 12)


def small(**kwargs) -> ValidUNet:
    torch.manual_seed(0)
    return ValidUNet(2, 1, 2, SMALL, **kwargs).eval()


def shapes_of(network: ValidUNet, size: int) -> dict[str, tuple[int, ...]]:
    """Output sizes of every convolution, by name, for one input."""
    seen: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.MaxPool2d):
            module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, tuple(o.shape[1:3])))
    network(torch.zeros(1, 1, size, size))
    return seen


def test_figure_1():
    network = ValidUNet(2, 1, 2)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(p.numel() for p in network.parameters()) == 31_030_658
    assert len(convolutions) == 23
    assert not any("Norm" in type(m).__name__ for m in network.modules())
    assert (network.margin, network.multiple, network.output_size(572), network.input_size(388)) == (92, 16, 388, 572)


def test_every_arrow_of_figure_1_has_its_size():
    seen = shapes_of(small(), 572)
    down = [seen[f"encoder.{level}.conv2"] for level in range(5)]
    up = [seen[f"up.{i}"] for i in range(4)]
    decoded = [seen[f"decoder.{i}.conv2"] for i in range(4)]
    assert down == list(zip(SMALL, (568, 280, 136, 64, 28), strict=True))
    assert up == list(zip(SMALL[-2::-1], (56, 104, 200, 392), strict=True))
    assert decoded == list(zip(SMALL[-2::-1], (52, 100, 196, 388), strict=True))
    assert seen["head"] == (2, 388)


def test_the_3d_papers_sizes():
    network = ValidUNet(3, 1, 3, (2, 2, 2, 2), norm="batch").eval()
    assert network.margin == 44
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 132, 132, 116)).shape == (1, 3, 44, 44, 28)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_sizes_at_every_depth_agree_with_the_layers(depth):
    """Slow oracle: apply the layers' own arithmetic to every n."""

    def walk(n: int) -> int | None:
        for level in range(depth + 1):
            n -= 4
            if level < depth:
                if n < 2 or n % 2:
                    return None
                n //= 2
        for _ in range(depth):
            n = 2 * n - 4
        return n if n > 0 else None

    network = ValidUNet(2, 1, 2, [1] * (depth + 1))
    valid = {}
    for n in range(1, 700):
        expected = walk(n)
        if expected is None:
            with pytest.raises(ValueError, match=f"^{n} is not a valid input size at depth {depth}; use "):
                network.output_size(n)
        else:
            valid[n] = expected
            assert network.output_size(n) == expected == n - 2 * network.margin
    for wanted in range(1, max(valid.values())):
        assert network.input_size(wanted) == min(n for n, out in valid.items() if out >= wanted)


@pytest.mark.parametrize(("n", "cure"), [(571, "556 or 572"), (573, "572 or 588"), (100, "188"), (187, "188")])
def test_a_wrong_size_names_the_nearest(n, cure):
    with pytest.raises(ValueError, match=f"^{n} is not a valid input size at depth 4; use {cure}$"):
        small()(torch.zeros(1, 1, n, n))


def test_concatenation_is_up_then_skip_centre_cropped():
    """An impulse in a skip arrives at its centre-cropped position, in the second half of the channels."""
    network = small()
    crops = dict(zip(range(4), (4, 16, 40, 88), strict=True))  # PAPER: per side, from the deepest skip up
    for i, crop in crops.items():
        level = 3 - i
        row, column = crop + 7, crop + 2
        seen = {}

        def impulse(module, inputs, output, row=row, column=column):
            output = torch.zeros_like(output)
            output[:, 1, row, column] = 1
            return output

        hooks = [
            network.encoder[level].register_forward_hook(impulse),
            network.decoder[i].register_forward_pre_hook(lambda m, x, seen=seen: seen.update(x=x[0].clone())),
            network.up[i].register_forward_hook(lambda m, x, y: torch.zeros_like(y)),
        ]
        with torch.no_grad():
            network(torch.zeros(1, 1, 572, 572))
        for hook in hooks:
            hook.remove()
        positions = seen["x"].nonzero().tolist()
        assert positions == [[0, SMALL[level] + 1, 7, 2]]


def test_initial_weights_are_gaussian_with_he_std():
    torch.manual_seed(0)
    for name, module in ValidUNet(2, 1, 2).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            incoming = 9 * module.in_channels
        elif isinstance(module, nn.ConvTranspose2d):
            incoming = module.in_channels  # stride = kernel: one voxel of each channel reaches an output voxel
        else:
            continue
        assert module.weight.std().item() == pytest.approx(math.sqrt(2 / incoming), rel=0.02), name
        kurtosis = ((module.weight / module.weight.std()) ** 4).mean().item()
        assert kurtosis == pytest.approx(3, abs=0.1), f"{name} is not Gaussian"
        assert module.bias.abs().max() == 0


def test_dropout_ends_the_contracting_path_and_skip_and_pooling_both_see_it():
    network = small(dropout=0.5)
    places = [name for name, module in network.named_modules() if isinstance(module, nn.Dropout)]
    assert places == ["encoder.3.dropout", "encoder.4.dropout"]
    assert all(network.get_submodule(place).p == 0.5 for place in places)
    network.train()
    seen = {}
    network.encoder[3].register_forward_hook(lambda m, i, o: seen.update(out=o))
    network.encoder[4].register_forward_pre_hook(lambda m, i: seen.update(pooled=i[0]))
    network.decoder[0].register_forward_pre_hook(lambda m, i: seen.update(skip=i[0][:, SMALL[3] :]))
    network(torch.rand(1, 1, 188, 188))
    assert torch.equal(seen["pooled"], nn.functional.max_pool2d(seen["out"], 2))
    assert torch.equal(seen["skip"], seen["out"][:, :, 4:-4, 4:-4])
    assert (seen["out"] == 0).float().mean() > 0.5, "half is dropped, and ReLU zeroes more"


@pytest.mark.parametrize("size", [188, 204])
def test_an_output_voxel_depends_on_its_context_only(size):
    network = small()
    x = torch.rand(1, 1, size, size, requires_grad=True)
    y = network(x)
    y[0, :, 0, 0].sum().backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert rows.min() == 0
    assert rows.max() <= 2 * network.margin + network.multiple - 1


def test_shifts_by_the_multiple_shift_the_output_and_others_do_not():
    network = small()
    x = torch.rand(1, 1, 252, 188)
    with torch.no_grad():
        a, b, c = network(x[:, :, :236]), network(x[:, :, 16:]), network(x[:, :, 4:240])
    assert torch.equal(a[:, :, 16:], b[:, :, :-16])
    assert not torch.allclose(a[:, :, 4:], c[:, :, :-4], atol=1e-3)


# --- precision, compilation, export ---


def test_bfloat16_autocast_and_channels_last_stay_close():
    network, x = small(), torch.rand(1, 1, 204, 188)
    with torch.no_grad():
        expected = network(x)
        last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1 * expected.abs().max().item(), rtol=0)


@pytest.mark.slow
def test_compiled_whole_without_a_graph_break():
    network, x = small(), torch.rand(1, 1, 188, 188)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))


def test_torchscript_by_script_and_by_trace(tmp_path: Path):
    network, x = small(), torch.rand(1, 1, 188, 188)
    other = torch.rand(1, 1, 204, 220)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, and still in demand
        for module in (torch.jit.script(network), torch.jit.trace(network, x)):
            torch.jit.save(module, tmp_path / "unet.ts")
            loaded = torch.jit.load(tmp_path / "unet.ts")
            torch.testing.assert_close(loaded(x), network(x))
        scripted = torch.jit.script(network)
        torch.testing.assert_close(scripted(other), network(other))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_runs_on_other_sizes_too(tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, x, other = small(), torch.rand(1, 1, 188, 188), torch.rand(1, 1, 204, 220)
    file = tmp_path / "unet.onnx"
    k = torch.export.Dim.AUTO
    torch.onnx.export(network, (x,), file, dynamo=True, dynamic_shapes=({2: k, 3: k},), verbose=False)
    session = onnxruntime.InferenceSession(file)
    for image in (x, other):
        (y,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), network(image), atol=1e-4, rtol=1e-4)


# --- state dicts ---


@pytest.mark.parametrize(
    "network",
    [
        ValidUNet(2, 1, 2, (3, 5, 7)),
        ValidUNet(2, 3, 4, (3, 5), dropout=0.1),
        ValidUNet(3, 2, 3, (2, 3, 4), norm="batch"),
    ],
)
def test_a_state_dict_determines_its_network(network):
    twin = ValidUNet.from_state_dict(network.state_dict())
    names = ("spatial_dims", "in_channels", "out_channels", "features", "depth")
    assert [getattr(twin, name) for name in names] == [getattr(network, name) for name in names]
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_a_foreign_state_dict_is_refused():
    state = small().state_dict()
    del state["head.bias"]
    for foreign in (nn.Conv2d(1, 2, 3).state_dict(), state):
        with pytest.raises(ValueError, match="these weights are not those of a ValidUNet"):
            ValidUNet.from_state_dict(foreign)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 4; it must be 2 or 3"),
        ({"features": (8,)}, r"features is \(8,\); it needs at least two levels"),
        ({"norm": "instance"}, "norm is 'instance'; it must be None or \"batch\": tile statistics would break"),
    ],
)
def test_invalid_parameters(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ValidUNet(**{"spatial_dims": 2, "in_channels": 1, "out_channels": 2, **kwargs})


def test_a_network_for_other_images_is_refused(tmp_path):
    torch.save(ValidUNet(3, 1, 2, (2, 3)).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="the network has spatial_dims = 3, and 2 is needed. Name a checkpoint"):
        load_network(tmp_path / "model.pt", spatial_dims=2)
    assert load_network(tmp_path / "model.pt", spatial_dims=3).training is False
    assert load_network(tmp_path / "model.pt").training is False, "any"


def saved(path: Path, network: ValidUNet, **task) -> Path:
    torch.save({"model": network.state_dict(), "task": task}, path)
    return path


def test_a_checkpoint_brings_its_task_and_a_bare_state_dict_has_none(tmp_path):
    network = small()
    path = saved(tmp_path / "model.pt", network, kind="instances", min_size=61)
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    assert load_task(path, kind="instances", spatial_dims=2, classes=2) == {"kind": "instances", "min_size": 61}
    assert load_task(tmp_path / "bare.pt", kind="classes", spatial_dims=2, classes=2) == {}
    assert load_task(saved(tmp_path / "older.pt", network, neck=12)) == {"neck": 12, "core": 0}
    assert load_task(saved(tmp_path / "newer.pt", network, neck=0, core=0.7)) == {"neck": 0, "core": 0.7}
    for file in (path, tmp_path / "bare.pt"):
        assert torch.equal(load_network(file).head.weight, network.head.weight)


def test_weights_in_half_precision_come_back_in_float32(tmp_path):
    network = small()
    torch.save({"model": {name: weight.half() for name, weight in network.state_dict().items()}}, tmp_path / "model.pt")
    loaded = load_network(tmp_path / "model.pt")
    assert {weight.dtype for weight in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.head.weight, network.head.weight.half().float())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"kind": "classes"}, "it was trained for instances, and the bundle predicts classes. Use it with the bundle"),
        ({"spatial_dims": 3}, "it was trained on 2-D images, and the bundle takes 3-D images. Use it"),
        ({"classes": 3}, r"it has 2 classes \(background, liver\), and the bundle has 3. Use it"),
    ],
)
def test_a_checkpoint_of_another_task_is_refused(wanted, message, tmp_path):
    path = saved(tmp_path / "model.pt", small(), kind="instances", class_names=["background", "liver"])
    with pytest.raises(InputError, match=message):
        load_task(path, **wanted)


def test_a_bare_state_dict_is_refused_for_what_its_shapes_say(tmp_path):
    torch.save(small().state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="it has 2 classes, and the bundle has 3"):
        load_task(tmp_path / "model.pt", kind="classes", classes=3)


def test_published_weights_must_be_those_published_and_own_ones_may_be_any(tmp_path):
    path = saved(tmp_path / "model.pt", small(), release="nuclei_segmentation 0.2.0")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_network(path, sha256=digest).in_channels == 1
    problem = rf"not nuclei_segmentation 0.2.0 as published \(its SHA-256 is {digest}, not 2f1e\). Install the package"
    with pytest.raises(InputError, match=problem):
        load_network(path, sha256="2f1e")
    load_network(saved(tmp_path / "own.pt", small()), sha256="2f1e")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"network": {}, "optimizer": {}},
            "this is the whole state of a training run, to resume from. Name a",
        ),
        ({"model": {"conv.weight": torch.zeros(1)}}, "these weights are not those of a ValidUNet. Name a model.pt"),
        (torch.zeros(1), "these weights are not those of a ValidUNet"),
    ],
)
def test_other_files_of_torch_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    for load in (load_network, load_task):
        with pytest.raises(InputError, match=message):
            load(tmp_path / "model.pt")


# --- anisotropic voxels ---

FLAT = {"kernel_size": [(1, 3, 3), 3, 3], "strides": [(1, 2, 2), 2]}


def test_kernels_and_strides_of_one_spare_an_axis_its_context():
    """By hand, along the first axis: level 0 takes and halves nothing, levels 1 and 2 are a U-Net of depth 1."""
    network = ValidUNet(3, 1, 2, (2, 3, 4), **FLAT)
    assert network.margin == (ValidUNet(3, 1, 2, (3, 4)).margin, *[ValidUNet(3, 1, 2, (2, 3, 4)).margin] * 2)
    assert network.multiple == (2, 4, 4)
    assert [network.input_size(1, axis) for axis in range(3)] == [18, 44, 44]
    assert network(torch.rand(1, 1, 20, 44, 48)).shape[2:] == (4, 4, 8)
    with pytest.raises(ValueError, match="19 is not a valid input size at depth 2; use 18 or 20"):
        network(torch.rand(1, 1, 19, 44, 44))


def test_slices_of_a_network_that_is_flat_throughout_do_not_see_each_other():
    flat = ValidUNet(3, 1, 2, (2, 3), kernel_size=[(1, 3, 3)] * 2, strides=[(1, 2, 2)]).eval()
    plane = ValidUNet(2, 1, 2, (2, 3)).eval()
    plane.load_state_dict({k: v.squeeze(2) if v.ndim == 5 else v for k, v in flat.state_dict().items()})
    x = torch.rand(1, 1, 3, 24, 28)
    with torch.no_grad():
        pages = torch.stack([plane(x[:, :, z]) for z in range(3)], dim=2)
        torch.testing.assert_close(flat(x), pages)


def test_kernels_and_strides_follow_from_the_weights():
    network = ValidUNet(3, 1, 2, (2, 3, 4), **FLAT)
    again = ValidUNet.from_state_dict(network.state_dict())
    assert (again.kernel_size, again.strides) == (network.kernel_size, network.strides)


@pytest.mark.parametrize("size", [{"kernel_size": [3, 3]}, {"kernel_size": 5}, {"kernel_size": [(1, 3), 3, 3]}])
def test_kernels_that_are_refused(size):
    rule = r"kernel_size is .*; it must be 3, or 3 entries, each a number or 3, 1 or 3"
    with pytest.raises(ValueError, match=rule):
        ValidUNet(3, 1, 2, (2, 3, 4), **size)
