"""A bundle's network for other programs: ONNX, TorchScript, or a package of bioimage.io with both."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import ScaleIntensityRanged
from monai.utils.misc import ensure_tuple_rep
from torch import Tensor, nn

from monai_unet.bundles.bioimageio import OPSET, Sizes, draw_cover, write_description
from monai_unet.bundles.copies import shipped_bundle
from monai_unet.datasets.phantoms import cell_phantom, organ_phantom
from monai_unet.errors import InputError
from monai_unet.files import creating
from monai_unet.networks import ValidUNet
from monai_unet.options import parse_choice, require
from monai_unet.symmetries import symmetry_mean
from monai_unet.transforms.intensity import NormalizePagesd, NormalizeVolumed

__all__ = ["FORMATS", "Tile", "WholeImage", "export"]

#: how foreground becomes instances
RULES = ("min_size", "fill_holes", "grow", "neck", "core")
FORMATS = ("bioimageio", "onnx", "torchscript")
#: how a program takes the files
OPEN = {
    "onnx": """With `onnxruntime`, an image of any size, float32, (batch, channel, *spatial), gray values as they are:

    import numpy as np, onnxruntime
    image = np.load("test_input.npy")
    probability = onnxruntime.InferenceSession("weights.onnx").run(None, {"image": image})[0]
    mask = probability.argmax(1)
""",
    "torchscript": """With PyTorch alone, an image of any size, float32, gray values as they are:

    import numpy as np, torch
    image = torch.from_numpy(np.load("test_input.npy"))
    with torch.no_grad():
        probability = torch.jit.load("weights.pt")(image)
    mask = probability.argmax(1)
""",
    "bioimageio": """`rdf.yaml` says how images are prepared, and what sizes the network takes. With `bioimageio.core`:

    bioimageio test .

Without it, prepare the whole image, pad it by the halo, mirrored about the edge pixels, to a valid size, and crop the
halo from the result.
""",
}
#: of the images that the files are made with; they run on others
SEED = 2015


class Exported(NamedTuple):
    """What a bundle says about the network that is exported: from its inference.yaml, its metadata and its weights."""

    name: str
    network: ValidUNet
    task: dict[str, Any]
    averaging: str | Sequence[int]
    #: (a_min, a_max, b_min, b_max) of a fixed scale; None for statistics of the image
    scale: tuple[float, float, float, float] | None
    metadata: dict[str, Any]
    #: raw, (C, *spatial), large enough for one pass
    image: Tensor


class Tile(nn.Module):
    """Logits of a normalised tile with its margin; in place of the margin 0, to be cropped: bioimage.io's "halo".

    Shapes:
        input: ``(B, C, *spatial)`` of the sizes of `Sizes`, float32.
        output: ``(B, K, *spatial)``, of the same sizes.

    >>> tile = Tile(ValidUNet(2, 1, 2, features=(4, 8)).eval(), "none")
    >>> logits = tile(torch.rand(1, 1, 44, 46))
    >>> logits.shape, logits[:, :, :8].abs().max().item()
    (torch.Size([1, 2, 44, 46]), 0.0)
    """

    def __init__(self, network: ValidUNet, averaging: str | Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.averaging = averaging
        self.margins: tuple[int, ...] = ensure_tuple_rep(network.margin, network.spatial_dims)
        self.sizes = Sizes.of(network)

    def logits(self, x: Tensor) -> Tensor:
        """Compute the logits, smaller by the margins, averaged as the bundle does."""
        if self.averaging == "none":
            return self.network(x)
        return symmetry_mean(x, self.network, self.averaging)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of ``x``, framed by 0."""
        frame: list[int] = []
        for axis, size in enumerate(self.sizes):
            x = x.narrow(axis + 2, size.skipped, x.shape[axis + 2] - size.skipped)
            frame = [size.halo, self.margins[axis], *frame]  # the last axis first
        return nn.functional.pad(self.logits(x), frame)


class WholeImage(Tile):
    """Probabilities of a raw image, in one pass: normalised, mirrored at its borders, as the bundle does.

    Shapes:
        input: ``(B, C, *spatial)`` of any size, float32.
        output: ``(B, K, *spatial)``, probabilities, of the same size.

    >>> whole = WholeImage(ValidUNet(2, 1, 2, features=(4, 8)).eval(), "none", None)
    >>> whole(torch.rand(1, 1, 5, 31)).sum(1).mean().round(decimals=4)
    tensor(1., grad_fn=...)
    """

    def __init__(
        self, network: ValidUNet, averaging: str | Sequence[int], scale: tuple[float, float, float, float] | None
    ) -> None:
        super().__init__(network, averaging)
        self.scale = scale
        self.multiples: tuple[int, ...] = ensure_tuple_rep(network.multiple, network.spatial_dims)
        self.smallest = [network.input_size(1, axis) for axis in range(network.spatial_dims)]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the probabilities of ``x``."""
        shape = x.shape[2:]
        x = self.normalized(x)
        for axis, (n, margin) in enumerate(zip(shape, self.margins, strict=True)):
            multiple, smallest = self.multiples[axis], self.smallest[axis]
            size = smallest + (n + 2 * margin - smallest + multiple - 1) // multiple * multiple
            last = x.new_ones(n).sum().long() - 1  # not arange: it would keep the device on which the file is made
            index = (x.new_ones(size).cumsum(0).long() - 1 - margin).remainder((2 * last).clamp(min=1))
            x = x.index_select(axis + 2, torch.minimum(index, 2 * last - index))
        y = self.logits(x)
        for axis in range(len(shape)):
            y = y.narrow(axis + 2, 0, shape[axis])
        return y.softmax(1)

    def normalized(self, x: Tensor) -> Tensor:
        """Normalise the gray values of each image and channel, as `Intensities` does, or by the fixed scale."""
        x = self.clipped(x)
        if self.scale is not None:
            low, high, darkest, brightest = self.scale
            return (x - low) * ((brightest - darkest) / (high - low)) + darkest
        axes = list(range(2, x.ndim))
        x = x - x.mean(axes, keepdim=True)
        deviation = x.square().mean(axes, keepdim=True).sqrt()
        return x / torch.where(deviation > 0, deviation, 1.0)

    def clipped(self, x: Tensor) -> Tensor:
        """Clip the gray values at their percentiles 0.1 and 99.9, or at the ends of the fixed scale."""
        if self.scale is not None:
            return x.clamp(*self.scale[:2])
        values = x.flatten(2).sort(dim=2).values
        steps = values.shape[2] - 1
        each = (*x.shape[:2], *[1] * (x.ndim - 2))
        first = values.narrow(2, (steps + 999) // 1000, 1).reshape(each)
        second = values.narrow(2, steps * 999 // 1000, 1).reshape(each)
        return x.maximum(torch.minimum(first, second)).minimum(torch.maximum(first, second))  # of two pixels


def export(bundle: str | os.PathLike[str], format: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Write a bundle's network for other programs: with a test image, its result and instructions, into a new folder.

    Args:
        bundle: its folder, or the name of one that comes with the package.
        format: "onnx" or "torchscript": one file, from a raw image of any size to its probabilities (`WholeImage`).
            "bioimageio": a package of the bioimage.io specification with both kinds of weights, which programs give
            tiles (`Tile`).
        output: the new folder; None for ``<bundle>_<format>`` in the working folder.

    Returns:
        The new folder.

    Raises:
        InputError: no such bundle, it has no weights or images are prepared in a way that cannot be exported; the
            folder exists or cannot be written.
        ValueError: another format.
        ImportError: a package of the extra ``export`` is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export("cell_segmentation", "gif", folder)
    Traceback (most recent call last):
    ValueError: format is 'gif'; it must be bioimageio, onnx or torchscript
    """
    format = parse_choice("format", format, FORMATS)
    folder = Path(bundle) if Path(bundle).is_dir() else shipped_bundle(str(bundle))
    target = Path(output or f"{folder.resolve().name}_{format}").absolute()
    with creating(target) as built, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript and torch's ONNX are deprecated in turns, and both in demand
        exported = _read(folder)
        image = exported.image[None]
        if format == "bioimageio":
            module: nn.Module = Tile(exported.network, exported.averaging).eval()
            whole = WholeImage(exported.network, exported.averaging, exported.scale)
            image = whole.clipped(image)  # bioimageio.core would measure mean and deviation before it clips
            x = whole.normalized(image)
            probability = module(x).softmax(1)
        else:
            module = WholeImage(exported.network, exported.averaging, exported.scale)
            x, probability = image, module.eval()(image)
        if format != "onnx":
            save_torchscript(module, x, built / "weights.pt")
        if format != "torchscript":
            save_onnx(module, x, built / "weights.onnx")
        np.save(built / "test_input.npy", image.numpy())
        np.save(built / "test_output.npy", probability.numpy())
        shutil.copyfile(folder / "LICENSE", built / "LICENSE")
        (built / "README.md").write_text(readme(exported, OPEN[format]), encoding="utf-8")
        if format == "bioimageio":
            write_description(exported, built)
            draw_cover(exported.image, probability[0], built / "cover.png")
    return target


def save_torchscript(module: nn.Module, x: Tensor, path: Path) -> None:
    """Trace a module with an example; the file takes other sizes, too."""
    torch.jit.trace(module, x, check_trace=False).save(str(path))


def save_onnx(module: nn.Module, x: Tensor, path: Path) -> None:
    """Write a module as ONNX by an example; the file takes other sizes and batches, too."""
    require("onnx", "export")
    sizes = {0: "batch", **{axis: f"size_{axis - 2}" for axis in range(2, x.ndim)}}
    torch.onnx.export(
        module,
        (x,),
        path,
        dynamo=False,  # the other exporter takes minutes for 8 passes
        opset_version=OPSET,
        input_names=["image"],
        output_names=["probability"],
        dynamic_axes={"image": sizes, "probability": sizes},
    )


def _read(folder: Path) -> Exported:
    config, weights = folder / "configs" / "inference.yaml", folder / "models" / "model.pt"
    if not config.is_file():
        raise InputError(folder, "it has no configs/inference.yaml", "Name the folder of a bundle")
    if not weights.is_file():
        raise InputError(weights, "the bundle has no weights", "Train it first, or choose a bundle with weights")
    parser = ConfigParser()
    parser.read_config(config)
    parser.read_meta(folder / "configs" / "metadata.json")
    parser["bundle_root"] = str(folder)
    network: ValidUNet = parser.get_parsed_content("network_def")
    count = len(parser["image_transforms"])
    normalize = parser.get_parsed_content(f"image_transforms#{count - 1}")
    scale = None
    if isinstance(normalize, ScaleIntensityRanged):
        fixed: Any = normalize.scaler
        scale = (float(fixed.a_min), float(fixed.a_max), float(fixed.b_min), float(fixed.b_max))
    elif not isinstance(normalize, NormalizePagesd | NormalizeVolumed):
        problem = f"image_transforms ends with {type(normalize).__name__}"
        raise InputError(config, problem, "Let it end with NormalizePagesd, NormalizeVolumed or ScaleIntensityRanged")
    image = _sample(folder, parser, network)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    task = dict(parser.get_parsed_content("task"))
    if "spacing" in parser:
        task["spacing"] = parser.get_parsed_content("spacing")
    return Exported(
        folder.resolve().name, network, task, parser.get_parsed_content("inferer").averaging, scale, metadata, image
    )


def _sample(folder: Path, parser: ConfigParser, network: ValidUNet) -> Tensor:
    """The first of the bundle's samples, as large as the network takes it, or a phantom."""
    samples = sorted((folder / "samples").glob("*"))
    sizes = Sizes.of(network)
    image = None
    if samples:
        image = parser.get_parsed_content("image_transforms#0")({"image": samples[0]})["image"].as_tensor().float()
        if any(n < size.min for n, size in zip(image.shape[1:], sizes, strict=True)):
            image = None
    if image is None:
        shape = [size.min + (64 if network.spatial_dims == 2 else 24) // size.step * size.step for size in sizes]
        if network.spatial_dims == 2:
            drawn = cell_phantom(max(shape), 12, SEED, 0)[0][: shape[0], : shape[1]]
        else:
            drawn = organ_phantom(shape, (1, 1, 1), SEED, 0)[0]
        image = torch.from_numpy(drawn.astype(np.float32)).expand(network.in_channels, *shape)
    for axis, (n, size) in enumerate(zip(image.shape[1:], sizes, strict=True)):
        image = image.narrow(axis + 1, 0, n - (n - size.min) % size.step)
    return image.contiguous()


def readme(exported: Exported, how: str) -> str:
    """Explain an exported folder to those who find it: what goes in and comes out, and what the numbers are worth."""
    about, task, network = exported.metadata, exported.task, exported.network
    channels = ", ".join(task.get("channel_names") or ["image"] * network.in_channels)
    classes = ", ".join(task.get("class_names") or [f"class {number}" for number in range(network.out_channels)])
    size = ""
    if "spacing" in task:
        size = f" Voxels of {' × '.join(map(str, task['spacing']))} mm; axes to the right, anterior, superior."
    elif "pixel_size_um" in task:
        size = f" Pixels of {task['pixel_size_um']} µm: rescale other images first."
    instances = ""
    if task.get("kind") == "instances":
        rules = ", ".join(f"{name}={task[name]}" for name in RULES if name in task)
        if network.spatial_dims == 3 and (sides := task.get("pixel_size_um")):
            rules += f", spacing={[round(side / min(sides), 4) for side in sides]}"
        mask, where = "mask", ""
        if "core" in task:
            mask, where = "mask * probability", "\n`probability` is 1 − that of the background.\n"
        instances = (
            "\nObjects are the connected parts of the foreground. The bundle itself parts them where they are narrow "
            "or joined by doubtful pixels, and gives back the ridge between them:\n\n"
            f"    monai_unet.transforms.LabelInstances({rules})({mask})\n{where}"
        )
        if network.out_channels > 2:
            instances += "\nThe class of an object is that of the highest mean probability over its pixels.\n"
    passes = {"none": "one pass", "all": "averaged over rotations and mirrorings"}
    averaging = passes.get(str(exported.averaging), "averaged over mirrorings")
    references = "\n".join(f"- {reference}" for reference in about["references"])
    return f"""# {about["name"]}

{about["description"]}

In: {channels}.{size} Out: the probabilities of {classes} ({averaging}).

{how}{instances}
## Validation

`test_output.npy` is the result for `test_input.npy`. How well the network does on images that it has not seen stands in
the README of the bundle `{exported.name}`; on yours, compare masks with some drawn by hand. {about["intended_use"]}

## Data and references

{about["data_source"]}

{references}
"""
