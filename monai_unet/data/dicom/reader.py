"""DICOM series in: ``DicomSeriesReader`` for MONAI's ``LoadImaged``, an exact affine or an ``InputError``.

pydicom parses, highdicom decodes the pixels and gives the affine, ``dicom_checks`` refuses what would be wrong.
Needs the extra ``dicom``: ``pip install "monai_unet[dicom]"``.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_unet.data.dicom.geometry import EXPORT_AGAIN, Plane, check_count, planes_of, stack
from monai_unet.errors import InputError
from monai_unet.options import require

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

#: SOP classes that accompany images (PS3.6): media directory, presentation states, reports and key objects, waveforms,
#: documents, segmentations and registrations, radiotherapy objects, protocols.
NO_IMAGES = ("1.2.840.10008.1.3.10", *(f"1.2.840.10008.5.1.4.1.1.{n}." for n in (9, 11, 66, 88, 104, 200, 481)))
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")


class DicomSeriesReader(ImageReader):
    """One DICOM series as a volume, or ``InputError``.

    ``LoadImaged(reader=DicomSeriesReader())`` takes a folder (nested or not), a zip of one, a multi-frame file, or a
    list of files. The array is float32 and indexed (column, row, slice) like ITK's, the slices running along rows ×
    columns; the affine maps these indices to RAS millimetres, as nibabel's. The rescale (or modality lookup table)
    of each slice is applied, MONOCHROME1 is inverted within the range of the stored bits (PS3.3 C.7.6.3.1.2), windows
    and real-world value maps are not applied. Files that are no images are skipped and counted in the log.

    Metadata: ``affine``, ``original_affine``, ``spatial_shape``, ``space``, ``original_channel_dim``, ``modality``,
    ``series_uid``, ``study_uid``, ``frame_of_reference_uid`` and ``source_files``: the files in the order of the
    slices, one a line (a string, since batches cannot hold lists of different lengths); ``read_dataset`` opens each.

    Args:
        series: SeriesInstanceUID to read where a folder holds several series.
        check_count: whether fewer slices than the header declares are an error.

    Raises:
        InputError: from ``get_data``, never from ``read``: ``LoadImage`` turns to other readers without a word when
            ``read`` fails.
    """

    def __init__(self, series: str | None = None, check_count: bool = True) -> None:
        self.series = series
        self.check_count = check_count

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether each path is a folder, a DICOM file by its name, or a zip."""
        return all(
            Path(f).is_dir() or Path(f).suffix.lower() in (*DICOM_SUFFIXES, ".zip") for f in ensure_tuple(filename)
        )

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Note the paths; ``get_data`` opens them."""
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """The volume, shape (columns, rows, slices), and its metadata."""
        require("highdicom", "dicom")
        path = img[0] if len(img) == 1 else str(Path(img[0]).parent)
        with _reading(path):
            return self._load(path, img)

    def _load(self, path: str, img: Sequence[str]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        from highdicom.spatial import convert_affine_to_convention, create_affine_matrix_from_attributes

        headers = _choose(path, _headers(path, img), self.series)
        planes: list[Plane] = []
        frames: list[tuple[str, int]] = []
        for source, header in headers.items():
            with _reading(source):
                found = planes_of(source, header)
            planes += found
            frames += [(source, i) for i in range(len(found))]
        if len(headers) > 1 and len(frames) > len(headers):
            raise InputError(path, f"{len(headers)} multi-frame files in one series", "Give one of the files")
        order, spacing = stack(path, planes)
        if self.check_count:
            check_count(path, len(planes), list(headers.values()))

        pixels = {source: _pixels(source, planes[0].size) for source in headers}
        volume = np.stack([pixels[frames[i][0]][frames[i][1]] for i in order])
        lps = create_affine_matrix_from_attributes(
            image_position=planes[order[0]].position.tolist(),
            image_orientation=planes[0].orientation.tolist(),
            pixel_spacing=planes[0].spacing.tolist(),
            spacing_between_slices=spacing,
            index_convention="RD",
        )
        affine = convert_affine_to_convention(lps, from_reference_convention="LPH", to_reference_convention="RAH")
        header = next(iter(headers.values()))
        meta = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(volume.shape[::-1]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
            "modality": str(header.get("Modality", "")),
            "series_uid": str(header.SeriesInstanceUID),
            "study_uid": str(header.get("StudyInstanceUID", "")),
            "frame_of_reference_uid": str(header.get("FrameOfReferenceUID", "")),
            "source_files": "\n".join(dict.fromkeys(frames[i][0] for i in order)),
        }
        return np.ascontiguousarray(volume.transpose(2, 1, 0)), meta


def read_dataset(source: str, stop_before_pixels: bool = False) -> Dataset:
    """Open one of ``source_files``: a path, or "archive.zip/member".

    Raises:
        InputError: it is no readable DICOM.
    """
    from pydicom import dcmread

    with _reading(source):
        return dcmread(io.BytesIO(_bytes(source)), stop_before_pixels=stop_before_pixels)


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """What a damaged file makes the libraries raise becomes an InputError, without their text: it may quote names."""
    log = logging.getLogger("pydicom")
    enabled, log.disabled = not log.disabled, True  # its words on odd values quote them, here and in the warnings
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(source, f"not readable as DICOM ({type(error).__name__})", EXPORT_AGAIN) from error
    finally:
        log.disabled = not enabled


def _bytes(source: str) -> bytes:
    if Path(source).is_file():
        return Path(source).read_bytes()
    archive = next(p for p in Path(source).parents if p.is_file())
    with zipfile.ZipFile(archive) as opened:  # checks the member's CRC
        return opened.read(source[len(str(archive)) + 1 :])


def _sources(path: str) -> list[str]:
    root = Path(path)
    if root.is_dir():
        found = [str(p) for p in sorted(root.rglob("*")) if p.is_file()]
    elif not root.is_file():
        raise InputError(path, "no such file or folder", "Check the path")
    elif zipfile.is_zipfile(root):
        with zipfile.ZipFile(root) as archive:
            found = [f"{path}/{name}" for name in sorted(archive.namelist()) if not name.endswith("/")]
    else:
        found = [path]
    return [f for f in found if not Path(f).name.startswith(".") and "__MACOSX" not in f]


def _headers(path: str, paths: Sequence[str]) -> dict[str, Dataset]:
    """Headers of the images below the paths. A file among the slices that is broken or no DICOM is an error."""
    images: dict[str, Dataset] = {}
    others: list[tuple[str, bytes]] = []
    companions: list[str] = []
    for p in paths:
        with _reading(p):
            sources = _sources(p)
        for source in sources:
            with _reading(source):
                content = _bytes(source)
            if content[128:132] != b"DICM":
                others.append((source, content))
                continue
            header = read_dataset(source, stop_before_pixels=True)
            with _reading(source):
                sop_class = (
                    header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID
                )  # a DICOMDIR has no first
                if f"{sop_class}.".startswith(NO_IMAGES):
                    companions.append(str(header.get("Modality", "?")))
                elif not header.get("SeriesInstanceUID"):
                    raise InputError(source, "no SeriesInstanceUID: the header is damaged", EXPORT_AGAIN)
                else:
                    images[source] = header
    for source, content in others:
        if _like_a_slice(source, content, images) or [source] == list(paths):
            raise InputError(
                source,
                f"not a DICOM file ({len(content)} bytes, without the DICM mark)" if content else "empty file",
                "Fetch it again, or take it out of the folder if it is no slice",
            )
    if others or companions:
        logger.warning(
            "skipped %d files that are not DICOM and %d DICOM objects without images %s",
            len(others),
            len(companions),
            sorted(set(companions)),
        )
    if not images:
        found = f"{len(others)} other files, {len(companions)} DICOM objects without images {sorted(set(companions))}"
        raise InputError(path, f"no DICOM images ({found})", "Give the folder of one image series")
    return images


def _like_a_slice(source: str, content: bytes, images: dict[str, Dataset]) -> bool:
    """By its name or nature: a .dcm, or in a folder of slices one named as they are but for the digits, or binary."""
    path = Path(source)
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    slices = [Path(i).name for i in images if Path(i).parent == path.parent]
    if re.sub(r"\d+", "#", path.name) in {re.sub(r"\d+", "#", name) for name in slices}:
        return True
    plain = [name for name in (path.name, *slices) if re.search(r"\.[A-Za-z]\w*$", name)]  # names with a suffix
    return bool(slices) and not plain and (not content or b"\0" in content)


def _choose(path: str, images: dict[str, Dataset], series: str | None) -> dict[str, Dataset]:
    groups: dict[str, dict[str, Dataset]] = {}
    for source, header in images.items():
        groups.setdefault(str(header.SeriesInstanceUID), {})[source] = header
    if series in groups:
        return groups[series]
    if len(groups) == 1 and series is None:
        return next(iter(groups.values()))
    listed = "; ".join(
        f"{uid} ({next(iter(g.values())).get('SeriesDescription') or 'no description'}, {len(g)} files)"
        for uid, g in groups.items()
    )
    problem = f"{len(groups)} series" if series is None else f"no series {series}; found"
    raise InputError(path, f"{problem}: {listed}", f'Choose one with series="{next(iter(groups))}" or its folder')


def _pixels(source: str, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Frames of one file, shape (frames, rows, columns), rescaled."""
    from highdicom import Image

    dataset = read_dataset(source)
    _check_stored(source, dataset)
    try:
        pixels: npt.NDArray[np.float32] = Image.from_dataset(dataset, copy=False).get_frames(
            dtype=np.float32,
            apply_real_world_transform=False,
            apply_palette_color_lut=False,
            apply_icc_profile=False,
        )
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of pylibjpeg's Rust decoder
            raise
        raise InputError(source, f"the pixels do not decode ({type(error).__name__}: {error})", EXPORT_AGAIN) from error
    if pixels.shape[1:] != size or not np.isfinite(pixels).all():
        raise InputError(source, f"the pixels decode to {pixels.shape[1:]}, or to NaN or Inf", EXPORT_AGAIN)
    return pixels


def _check_stored(source: str, dataset: Dataset) -> None:
    """Uncompressed pixels have the length and the range that the header says; only zeros may follow them."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_little_endian:
        raise InputError(source, "the retired big-endian transfer syntax", "Convert it, for example with dcmconv +te")
    if "PixelData" not in dataset or syntax.is_compressed:
        return
    pixels, allocated, bits = dataset.PixelData, int(dataset.BitsAllocated), int(dataset.BitsStored)
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1)
    expected = (samples * allocated + 7) // 8
    if len(pixels) < expected or pixels[expected:].strip(b"\0"):
        raise InputError(
            source, f"{len(pixels)} bytes of pixels where the header says {expected}: cut off or damaged", EXPORT_AGAIN
        )
    if bits < allocated:  # what else lies in the other bits, libraries take for intensities
        signed = int(dataset.PixelRepresentation)
        values = np.frombuffer(pixels, f"<{'ui'[signed]}{allocated // 8}", samples)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        if values.min() < low or values.max() > high:
            problem = f"pixels from {values.min()} to {values.max()}, BitsStored {bits} allows {low} to {high}"
            raise InputError(source, problem, EXPORT_AGAIN)
