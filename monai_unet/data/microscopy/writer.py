"""Microscopy images out: TIFF that Fiji opens with the right axes and the source's pixel size."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_writer import ImageWriter
from monai.data.utils import affine_to_spacing
from monai.utils.type_conversion import convert_data_type

from monai_unet.files import replacing
from monai_unet.options import parse_bool, require

__all__ = ["MicroscopyWriter"]


class MicroscopyWriter(ImageWriter):
    """MONAI writer for ``SaveImaged(writer=MicroscopyWriter, output_ext=".tif", resample=False, output_dtype=...)``.

    Writes ``(C, H, W)``, ``(C, Z, H, W)``, or the same without the channel, as a TIFF that Fiji opens with the right
    axes: ImageJ layout for uint8, uint16 and float32, OME for uint32; deflate; the pixel size of the source where it is
    known; pages over time stay frames. A single channel or page is not kept as an axis. A killed run
    leaves nothing unfinished under the final name.

    Args:
        output_dtype: uint8, uint16, uint32 or float32; None for the array's own, signed integers as uint32 (so up to
            65,535 instances are uint16). Values that do not fit are an error, never wrapped.
        scale: 255 or 65535 to stretch [0, 1] to integers; None writes the values.
        overwrite: whether an existing file is replaced, else it is left alone; "true" and "false" are understood.

    Raises:
        ValueError: a dtype or shape that is none of these, values that do not fit, ``resample=True`` for an array that
            left the grid of its source (invert the transforms instead).

    >>> import tempfile
    >>> import numpy as np, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = MicroscopyWriter(output_dtype=np.uint8, scale=255)
    ...     writer.set_data_array(np.full((1, 40, 30), 0.5))
    ...     writer.set_metadata({"affine": np.diag([0.25, 0.25, 1]), "pixel_size_um": [0.25, 0.25]})
    ...     writer.write(Path(folder) / "probability.tif")
    ...     tifffile.imread(Path(folder) / "probability.tif").max()
    np.uint8(128)
    """

    def __init__(
        self,
        output_dtype: Any = np.float32,
        scale: int | None = None,
        overwrite: bool | str = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.overwrite = parse_bool("overwrite", overwrite)
        self.dtype = None if output_dtype is None else _writable(np.dtype(output_dtype))
        self.scale, self.pixel_size = scale, dict[str, float]()
        self.interval: float | None = None  # seconds per frame, NaN where they are unknown

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Take the array; ``channel_dim`` is None where there is no channel axis."""
        array: np.ndarray = np.asarray(convert_data_type(data_array, np.ndarray)[0])
        array = array[None] if channel_dim is None else np.moveaxis(array, channel_dim, 0)
        if array.ndim not in (3, 4) or array.size == 0:
            raise ValueError(f"shape {array.shape} is neither (C, H, W) nor (C, Z, H, W)")
        if self.scale is not None:
            array = np.rint(np.clip(array, 0, 1) * self.scale)
        own = np.dtype(np.uint32) if array.dtype.kind == "i" else array.dtype
        dtype = _writable(own) if self.dtype is None else self.dtype
        with np.errstate(invalid="ignore", over="ignore"):
            data = array.astype(dtype)
        if (dtype.kind == "u" or array.dtype.kind in "iu") and not np.array_equal(data, array):
            problem = f"values from {array.min()} to {array.max()} do not fit {dtype} exactly"
            raise ValueError(f"{problem}; choose a wider output_dtype, or round them first")
        self.data_obj = data

    def set_metadata(self, meta_dict: Mapping[str, Any] | None = None, resample: bool = False, **options: Any) -> None:
        """Take the pixel size, if known, from the affine, which has followed all flips and turns; and the time."""
        meta = meta_dict or {}
        affine = np.asarray(meta.get("affine", np.eye(3)), dtype=float)
        source = np.asarray(meta.get("original_affine", affine), dtype=float)
        if resample and not np.allclose(affine, source):
            raise ValueError("the array is not on its source's grid: apply Invertd first, or save with resample=False")
        known = np.asarray(meta.get("pixel_size_um", ()), dtype=float)
        spacing = affine_to_spacing(affine)[: len(known)]
        self.interval = meta.get("frame_interval_s")
        self.pixel_size = {a: float(s) for a, s, k in zip("XYZ", spacing[::-1], known[::-1], strict=False) if k > 0}

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **kwargs: Any) -> None:
        if Path(filename).exists() and not self.overwrite:
            return
        super().write(filename, verbose=verbose)
        tifffile = require("tifffile", "microscopy")
        array: np.ndarray = np.moveaxis(np.asarray(self.data_obj), 0, -3)  # pages before channels, as ImageJ wants
        keep = [i for i, n in enumerate(array.shape) if n > 1 or i >= array.ndim - 2]
        array = array.reshape([array.shape[i] for i in keep])
        pages = "Z" if self.interval is None else "T"
        axes = "".join(f"{pages}CYX"[-self.data_obj.ndim :][i] for i in keep)
        seconds = math.nan if self.interval is None else float(self.interval)
        size, imagej, resolution = self.pixel_size, self.data_obj.dtype != np.uint32, None
        metadata: dict[str, Any] = {"axes": axes, **{f"PhysicalSize{axis}": s for axis, s in size.items()}}
        metadata |= {"TimeIncrement": seconds} if seconds > 0 else {}
        if imagej:
            array = array[..., None]
            metadata = {"axes": axes + "S"}  # stated, so that a width of 1 is not taken for samples
            metadata |= {"unit": "um"} if "X" in size else {}
            metadata |= {"spacing": size["Z"]} if "Z" in size else {}
            metadata |= {"finterval": seconds, "fps": 1 / seconds} if seconds > 0 else {}
            resolution = (1 / size["X"], 1 / size["Y"]) if "X" in size and "Y" in size else None
        with replacing(filename) as part:
            tifffile.imwrite(
                part,
                array,
                imagej=imagej,
                ome=not imagej,
                photometric="minisblack",
                compression="zlib",
                resolution=resolution,
                metadata=metadata,
            )


def _writable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype not in (np.uint8, np.uint16, np.uint32, np.float32):
        raise ValueError(f"output_dtype {dtype} cannot be written; use uint8, uint16, uint32 or float32")
    return dtype
