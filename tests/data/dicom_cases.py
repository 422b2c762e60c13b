"""Synthetic DICOM series whose pixels encode their position: value = (slice · rows + row) · columns + column."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS, SLICES = 16, 20, 6
SPACING = (0.8, 0.7)  # between rows, between columns
STEP = 2.5
ORIGIN = np.array([-12.5, 31.25, -40.0])
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))

#: Directions of rows and columns: all 24 along the axes, and an oblique one.
AXES = [sign * np.eye(3)[i] for i in range(3) for sign in (1, -1)]
ALIGNED = [(a, b) for a, b in itertools.product(AXES, AXES) if a @ b == 0]
OBLIQUE = tuple(np.linalg.qr(np.array([[3.0, 1, -1], [0.4, 2, 0.7], [-0.2, 0.9, 1.5]]))[0][:2])

Edit = Callable[[Dataset, int], Any]


def uid(name: str) -> str:
    return str(generate_uid(entropy_srcs=[name]))


def stored(k: int) -> np.ndarray:
    return (np.arange(ROWS * COLUMNS, dtype=np.uint16) + k * ROWS * COLUMNS).reshape(ROWS, COLUMNS)


def world(index: np.ndarray, orientation: Any = AXIAL, step: float = STEP) -> np.ndarray:
    """RAS millimetres of (slice, row, column), by the equation of PS3.3 C.7.6.2.1.1, written out."""
    row, column = np.array(orientation)
    k, r, c = np.moveaxis(np.asarray(index, dtype=float), -1, 0)[..., None]
    lps = ORIGIN + c * SPACING[1] * row + r * SPACING[0] * column + k * step * np.cross(row, column)
    return lps * [-1, -1, 1]


def file_dataset(sop_class: str, name: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid(name)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uid(name)
    dataset.PatientName, dataset.PatientID = "Geheim^Paula", "4711"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series")
    dataset.FrameOfReferenceUID = uid("frame of reference")
    dataset.SeriesDescription = "phantom"
    return dataset


def pixels(dataset: Dataset, values: np.ndarray, bits: int = 16) -> None:
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()


def slice_dataset(k: int, orientation: Any = AXIAL, step: float = STEP) -> FileDataset:
    row, column = np.array(orientation)
    dataset = file_dataset(CTImageStorage, f"slice {k}")
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber, dataset.AcquisitionNumber, dataset.ImagesInAcquisition = k + 1, 1, None
    dataset.SliceThickness = 3.0
    dataset.PixelSpacing = list(SPACING)
    dataset.ImageOrientationPatient = [float(f"{v:.10g}") for v in (*row, *column)]
    dataset.ImagePositionPatient = [float(f"{v:.10g}") for v in ORIGIN + k * step * np.cross(row, column)]
    pixels(dataset, stored(k))
    return dataset


def write_series(
    folder: Path,
    edit: Edit = lambda dataset, k: None,
    slices: Sequence[int] = range(SLICES),
    name: str = "IM{:04d}.dcm",
    **geometry: Any,
) -> list[Path]:
    """One file per slice. ``edit`` changes each dataset; where it returns False the slice is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in slices:
        dataset = slice_dataset(k, **geometry)
        if edit(dataset, k) is False:
            continue
        paths.append(folder / name.format(k))
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def enhanced(order: Sequence[int] = range(SLICES), step: float = STEP) -> FileDataset:
    """Enhanced MR: the frames in any order, positions in the functional groups, slice k has the slope k + 1."""

    def item(**values: Any) -> Items:
        dataset = Dataset()
        for key, value in values.items():
            setattr(dataset, key, value)
        return Items([dataset])

    dataset = file_dataset(EnhancedMRImageStorage, "enhanced")
    dataset.Modality, dataset.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "NONE"]
    dataset.NumberOfFrames = len(order)
    dataset.SharedFunctionalGroupsSequence = item(
        PixelMeasuresSequence=item(PixelSpacing=list(SPACING), SliceThickness=3.0),
        PlaneOrientationSequence=item(ImageOrientationPatient=[*AXIAL[0], *AXIAL[1]]),
    )
    dataset.PerFrameFunctionalGroupsSequence = Items(
        item(
            PlanePositionSequence=item(ImagePositionPatient=(ORIGIN + np.array([0, 0, k * step])).tolist()),
            PixelValueTransformationSequence=item(RescaleSlope=k + 1.0, RescaleIntercept=-5.0, RescaleType="US"),
        )[0]
        for k in order
    )
    pixels(dataset, np.stack([stored(k) for k in order]))
    return dataset


def real(name: str) -> Path:
    if "MONAI_UNET_DATA" not in os.environ:
        pytest.skip("MONAI_UNET_DATA is not set: the real files are not here")
    return Path(os.environ["MONAI_UNET_DATA"]) / "dicom" / name


def out_of_memory(*args: Any, **kwargs: Any) -> None:
    raise MemoryError


@contextmanager
def memory_below(limit: float) -> Iterator[None]:
    """Fails if the block has allocated more bytes at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
