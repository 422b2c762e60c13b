"""A bundle as a package of bioimage.io, the model collection that deepImageJ, ilastik and others open.

Sizes in its terms: an input of ``min + k·step`` gives an output as large, whose "halo", the margin of the valid
convolutions and a little more, is to be cropped. A program that pads an image by the halo, mirrored, and crops it thus
does what `OverlapTileInferer` does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import yaml
from monai.utils.misc import ensure_tuple_rep
from torch import Tensor

from monai_unet.networks import ValidUNet
from monai_unet.options import require

if TYPE_CHECKING:
    from monai_unet.bundles.export import Exported

__all__ = ["Sizes", "description", "draw_cover"]

#: of the specification: the first with padding by mirroring
FORMAT = "0.5.12"
#: version of the operators in the ONNX file
OPSET = 18
AXES = {(2, False): "yx", (3, False): "zyx", (3, True): "xyz"}


class Sizes(NamedTuple):
    """Sizes along an axis: ``min + k·step`` are taken; of as much, ``halo`` at either end is not to be used.

    Without the halo, sizes are multiples of the step, so that tiles side by side lie at offsets which are, too: max
    pooling is equivariant to such shifts only. The network leaves out the first ``skipped`` voxels of the input.

    >>> Sizes.of(ValidUNet(2, 1, 2))
    [Sizes(min=208, step=16, halo=96, skipped=4), Sizes(min=208, step=16, halo=96, skipped=4)]
    """

    min: int
    step: int
    halo: int
    skipped: int

    @classmethod
    def of(cls, network: ValidUNet) -> list[Sizes]:
        """Derive the sizes of each axis of a network."""
        sizes = []
        margins = ensure_tuple_rep(network.margin, network.spatial_dims)
        for axis, (margin, step) in enumerate(
            zip(margins, ensure_tuple_rep(network.multiple, network.spatial_dims), strict=True)
        ):
            skipped = network.output_size(network.input_size(1, axis), axis) % step
            sizes.append(cls(step + 2 * (margin + skipped), step, margin + skipped, skipped))
        return sizes


def description(exported: Exported) -> dict[str, Any]:
    """Describe a bundle's network by the model specification: the content of ``rdf.yaml``.

    Axes are those of the network: channel, then y, x; z, y, x of a stack; or x, y, z of a volume, in millimetres.

    >>> from monai_unet.bundles.export import Exported
    >>> from monai_unet.networks import ValidUNet
    >>> about = {"name": "Cells", "description": "", "version": "0.1.0", "references": []}
    >>> network = ValidUNet(2, 1, 2, features=(4, 8))
    >>> cells = Exported("cells", network, {}, "none", None, about, torch.zeros(1, 18, 18))
    >>> description(cells)["inputs"][0]["axes"][2]
    {'type': 'space', 'id': 'y', 'size': {'min': 18, 'step': 2}}
    """
    network, task, about = exported.network, exported.task, exported.metadata
    space = AXES[network.spatial_dims, "spacing" in task]
    scales, unit = {}, {}
    if spacing := task.get("spacing") or task.get("pixel_size_um"):
        unit = {"unit": "millimeter" if "spacing" in task else "micrometer"}
        scales = {
            axis: {"scale": float(mm)} for axis, mm in zip(space, ensure_tuple_rep(spacing, len(space)), strict=True)
        }
    inputs: list[dict[str, Any]] = [{"type": "batch"}]
    outputs: list[dict[str, Any]] = [{"type": "batch"}]
    inputs.append({"type": "channel", "channel_names": _names(task, "channel_names", "channel", network.in_channels)})
    outputs.append({"type": "channel", "channel_names": _names(task, "class_names", "class", network.out_channels)})
    for axis, size in zip(space, Sizes.of(network), strict=True):
        same = {"type": "space", "id": axis, **scales.get(axis, {}), **unit}
        inputs.append({**same, "size": {"min": size.min, "step": size.step}})
        outputs.append({**same, "size": {"tensor_id": "image", "axis_id": axis}, "halo": size.halo})
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": re.sub(r"[^\w\- ().]", " ", about["name"]),
        "description": about["description"][:1024],
        "version": about["version"],
        "authors": [{"name": "The developers of monai_unet"}],
        "license": "Apache-2.0",
        "cite": [entry for reference in about["references"] if (entry := _citation(reference))],
        "tags": ["unet", "segmentation", f"{network.spatial_dims}d", "monai"],
        "documentation": {"source": "README.md"},
        "covers": [{"source": "cover.png"}],
        "attachments": [{"source": "LICENSE"}],
        "inputs": [
            {
                "id": "image",
                "axes": inputs,
                "test_tensor": {"source": "test_input.npy"},
                "data": {"type": "float32"},
                "pad": {"mode": "reflect"},
                "preprocessing": _preprocessing(exported, list(space)),
            }
        ],
        "outputs": [
            {
                "id": "probability",
                "axes": outputs,
                "test_tensor": {"source": "test_output.npy"},
                "data": {"type": "float32"},
                "postprocessing": [{"id": "softmax", "kwargs": {"axis": "channel"}}],
            }
        ],
        "weights": {
            "torchscript": {
                "source": "weights.pt",
                "pytorch_version": torch.__version__.partition("+")[0],
            },
            "onnx": {"source": "weights.onnx", "opset_version": OPSET, "parent": "torchscript"},
        },
    }


def _names(task: dict[str, Any], key: str, each: str, count: int) -> list[str]:
    names = task.get(key) or []
    return list(names) if len(names) == count else [f"{each} {number}" for number in range(count)]


def _citation(reference: str) -> dict[str, str] | None:
    """A citation with the DOI that the reference ends with; None without one."""
    if found := re.search(r"doi:(\S+)", reference):
        return {"text": reference[: found.start()].strip(), "doi": found[1].rstrip(".")}
    if found := re.search(r"arXiv:([\d.]+\d)", reference):
        return {"text": reference, "doi": f"10.48550/arXiv.{found[1]}"}
    return None


def _preprocessing(exported: Exported, axes: list[str]) -> list[dict[str, Any]]:
    if exported.scale is not None:
        low, high, darkest, brightest = exported.scale
        gain = (brightest - darkest) / (high - low)
        return [
            {"id": "clip", "kwargs": {"min": low, "max": high}},
            {"id": "scale_linear", "kwargs": {"gain": gain, "offset": darkest - low * gain}},
        ]
    return [
        {"id": "clip", "kwargs": {"axes": [*axes], "min_percentile": 0.1, "max_percentile": 99.9}},
        {"id": "zero_mean_unit_variance", "kwargs": {"axes": [*axes]}},
    ]


def draw_cover(image: Tensor, probability: Tensor, path: Path) -> None:
    """Draw an image beside the probability of its foreground: a PNG twice as wide as high.

    Args:
        image: ``(C, *spatial)``, raw; of a volume the middle slice is drawn.
        probability: ``(K, *spatial)``, class 0 is the background.
        path: of the PNG.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_cover(torch.rand(1, 30, 40), torch.rand(2, 30, 40), Path(folder, "cover.png"))
    ...     (Path(folder) / "cover.png").is_file()
    True
    """
    pictures = []
    for values in (image.mean(0), 1 - probability[0]):
        if values.ndim == 3:
            values = values[..., values.shape[2] // 2].T.flip(0)
        n = min(values.shape)
        low, high = values.min(), values.max()
        pictures.append(((values[:n, :n] - low) / (high - low).clamp(min=1e-6) * 255).byte().numpy())
    pillow = require("PIL.Image", "microscopy")
    picture = pillow.fromarray(np.concatenate(pictures, axis=1))
    picture.resize((512, 256)).save(path)


def write_description(exported: Exported, folder: Path) -> None:
    """Write ``rdf.yaml`` into a folder."""
    text = yaml.safe_dump(description(exported), sort_keys=False, allow_unicode=True, width=120)
    (folder / "rdf.yaml").write_text(text, encoding="utf-8")
