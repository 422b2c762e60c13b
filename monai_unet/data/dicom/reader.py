"""DICOM series in: ``DicomSeriesReader`` for MONAI's ``LoadImaged`` gives voxels and an exact affine, or an error.

highdicom decodes the pixels. Needs the extra ``dicom``: ``pip install "monai_unet[dicom]"``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_unet.data.dicom.files import DICOM_SUFFIXES, Source, modality_of
from monai_unet.data.dicom.series import Series, read_series
from monai_unet.data.dicom.silence import EXPORT_AGAIN, reading
from monai_unet.errors import InputError
from monai_unet.options import parse_bool

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["DicomSeriesReader", "read_volume"]

Volume = npt.NDArray[np.float32]


class DicomSeriesReader(ImageReader):
    """Read one DICOM series as a volume.

    ``LoadImaged(reader=DicomSeriesReader())`` accepts a folder (nested or not), a zip, a multi-frame file, or a
    list of files.

    Args:
        series: which to read if there are several: its SeriesDescription ("t1*"), SeriesNumber or UID.
        check_count: whether fewer slices than the header declares are an error.
        resample_tilt: whether slices of a tilted gantry or with an uneven spacing are resampled to a straight grid;
            "true" and "false" are understood.

    Raises:
        InputError: from ``get_data``, never from ``read``: ``LoadImage`` silently falls back to other readers when
            ``read`` fails.

    >>> from pydicom.data import get_testdata_file
    >>> reader = DicomSeriesReader()
    >>> volume, meta = reader.get_data(reader.read(get_testdata_file("CT_small.dcm")))
    >>> volume.shape, meta["modality"], meta["affine"].diagonal().round(2).tolist()
    ((128, 128, 1), 'CT', [-0.66, -0.66, 5.0, 1.0])
    """

    def __init__(self, series: str | None = None, check_count: bool = True, resample_tilt: bool | str = False) -> None:
        self.series = series
        self.check_count = check_count
        self.resample_tilt = parse_bool("resample_tilt", resample_tilt)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether each path is a folder, a DICOM file by its name, or a zip."""
        return all(
            Path(f).is_dir() or Path(f).suffix.lower() in (*DICOM_SUFFIXES, ".zip") for f in ensure_tuple(filename)
        )

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Note the paths; ``get_data`` opens them."""
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[Volume, dict[str, Any]]:
        """The volume, shape (columns, rows, slices), and its metadata, as `read_volume` gives them."""
        return read_volume(read_series(img, self.series, self.check_count, self.resample_tilt))


def read_volume(series: Series) -> tuple[Volume, dict[str, Any]]:
    """Decode the pixels of a series.

    The rescale (or modality lookup table) of each slice is applied, and MONOCHROME1 is inverted within the range of the
    stored bits (PS3.3 C.7.6.3.1.2); windows and real-world value maps are not applied. Pixels that only pad a slice to
    a rectangle (PixelPaddingValue, C.7.5.1.1.2) get a value a little below the darkest of the others.

    Returns:
        the volume, float32, indexed (column, row, slice) as ITK does, with the slices along rows × columns; and its
        metadata: ``affine`` and ``original_affine`` to RAS millimetres as nibabel's, ``spatial_shape``, ``space``,
        ``original_channel_dim``, ``modality`` (empty if it is not one that DICOM defines), ``series_uid``,
        ``study_uid``, ``frame_of_reference_uid``; where there is padding, ``padding``: voxels below this value are.

    Raises:
        InputError: the pixels of a file are damaged.

    >>> from pydicom.data import get_testdata_file
    >>> volume, meta = read_volume(read_series([get_testdata_file("CT_small.dcm")]))
    >>> int(volume.min()), int(volume.max())  # Hounsfield units
    (-896, 1167)
    """
    header = series.headers[0]
    with reading(series.sources[0]):
        frames = np.concatenate([_pixels(source, series) for source in series.sources])
        padding = _fill_padding(str(series.sources[0]), frames)
        return series.volume(frames), {
            MetaKeys.AFFINE: series.affine,
            MetaKeys.ORIGINAL_AFFINE: series.affine,
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(series.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
            "modality": modality_of(header),
            **padding,
            "series_uid": str(header.SeriesInstanceUID),
            "study_uid": str(header.get("StudyInstanceUID", "")),
            "frame_of_reference_uid": str(header.get("FrameOfReferenceUID", "")),
        }


def _pixels(source: Source, series: Series) -> Volume:
    """Frames of one file, shape (frames, rows, columns), rescaled."""
    from highdicom import Image
    from pydicom import dcmread

    with reading(source):
        dataset = dcmread(io.BytesIO(source.read_bytes()))  # as a whole: zip checks its CRC
        _check_stored(str(source), dataset)
        _clear_other_bits(dataset)
        try:
            image = Image.from_dataset(dataset, copy=False)
            pixels: Volume = image.get_frames(
                dtype=np.float32,
                apply_real_world_transform=False,
                apply_palette_color_lut=False,
                apply_icc_profile=False,
            )
        except MemoryError:
            raise
        except BaseException as error:  # of pylibjpeg's Rust decoder PanicException, which is not an Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            problem = f"the pixels do not decode ({type(error).__name__}: {error})"
            raise InputError(str(source), problem, EXPORT_AGAIN) from error
        expected = (len(series.planes) // len(series.sources), *series.planes[0].size)
        if pixels.shape != expected or not np.isfinite(pixels).all():
            raise InputError(str(source), f"the pixels decode to {pixels.shape}, or to NaN or Inf", EXPORT_AGAIN)
        if dataset.get("PixelPaddingValue") is not None:
            stored = image.get_frames(
                apply_real_world_transform=False,
                apply_modality_transform=False,
                apply_presentation_lut=False,
                apply_palette_color_lut=False,
                apply_icc_profile=False,
            )
            low, high = _padding_range(dataset)
            pixels[(stored >= low) & (stored <= high)] = np.nan
        return pixels


def _padding_range(dataset: Dataset) -> tuple[int, int]:
    """The lowest and highest stored value of padding; headers often have them with the sign of the other kind."""
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [int(dataset.PixelPaddingValue), int(dataset.PixelPaddingValue if limit is None else limit)]
    values = np.array(ends).astype(f"{'ui'[int(dataset.PixelRepresentation)]}{int(dataset.BitsAllocated) // 8}")
    return int(values.min()), int(values.max())


def _fill_padding(source: str, frames: Volume) -> dict[str, float]:
    """Replace NaN, in place, by a value just below all others; return the limit between the two."""
    is_padding = np.isnan(frames)
    if not is_padding.any():
        return {}
    if is_padding.all():
        raise InputError(source, "all pixels have the value that the header declares as padding", EXPORT_AGAIN)
    low, high = float(np.nanmin(frames)), float(np.nanmax(frames))
    step = (high - low) / 1000 or 1.0  # interpolation at the border must not invent values
    frames[is_padding] = low - step
    return {"padding": low - step / 2}


def _check_stored(source: str, dataset: Dataset) -> None:
    """Check that uncompressed pixels have the length that the header states; zeros may follow them."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_little_endian:
        raise InputError(source, "the retired big-endian transfer syntax", "Convert it, for example with dcmconv +te")
    if "PixelData" not in dataset or syntax.is_compressed:
        return
    pixels, allocated = dataset.PixelData, int(dataset.BitsAllocated)
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1)
    expected = (samples * allocated + 7) // 8
    if len(pixels) < expected or pixels[expected:].strip(b"\0"):
        problem = f"{len(pixels)} bytes of pixels where the header says {expected}: cut off or damaged"
        raise InputError(source, problem, EXPORT_AGAIN)


def _clear_other_bits(dataset: Dataset) -> None:
    """Take the stored bits of uncompressed pixels alone (PS3.5 8.1.1): scanners once put overlays into the others."""
    allocated, bits, high = int(dataset.BitsAllocated), int(dataset.BitsStored), int(dataset.HighBit)
    is_plain = "PixelData" in dataset and not dataset.file_meta.TransferSyntaxUID.is_compressed
    if not is_plain or bits == allocated or allocated not in (8, 16, 32):
        return
    if not bits - 1 <= high < allocated:
        raise ValueError(f"BitsStored {bits} and HighBit {high} of {allocated}")
    kind = f"<{'ui'[int(dataset.PixelRepresentation)]}{allocated // 8}"
    values = np.frombuffer(dataset.PixelData, kind, 8 * len(dataset.PixelData) // allocated)
    dataset.PixelData = (values << (allocated - 1 - high) >> (allocated - bits)).astype(kind).tobytes()
    dataset.HighBit = bits - 1
