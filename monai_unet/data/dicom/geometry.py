"""Is a DICOM series one straight, complete, evenly spaced volume?

A series is a list of ``Plane``, one per file or frame of a multi-frame file; ``stack`` puts them in order and raises
``InputError`` with the values found. Position and orientation are those of the Image Plane Module (DICOM PS3.3 C.7.6.2)
or of the functional groups (C.7.6.16.2); all lengths are millimetres in LPS patient coordinates.

``highdicom.spatial.get_series_volume_positions`` makes like checks, but returns None where a user needs the reason.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import polar

from monai_unet.data.dicom.silence import EXPORT_AGAIN
from monai_unet.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

Floats = npt.NDArray[np.float64]

#: Attributes that distinguish images of one position; they are numbers, never dates or names.
DISTINGUISHING = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "InversionTime",
    "TriggerTime",
)
#: Cosines rounded to 3 decimals, as some archives store them, turn a plane by up to 0.09 degrees.
ROUNDING = 1.5e-3
#: Image counts in headers (PS3.3 C.7.3.1, C.8.9.1). They may cover other series too, hence ``check_count=False``.
DECLARED = ("ImagesInAcquisition", "NumberOfSlices", "NumberOfSeriesRelatedInstances")


@dataclass(frozen=True)
class Plane:
    """One image plane; spacing is (between rows, between columns), orientation the cosines of row and column."""

    name: str
    size: tuple[int, int]
    spacing: Floats
    orientation: Floats
    position: Floats
    rescale: tuple[float, float]
    thickness: float | None
    common: dict[str, Any]
    distinguishing: dict[str, str]
    localizer: bool


def planes_of(name: str, dataset: Dataset) -> list[Plane]:
    """List the planes of a single-frame or enhanced multi-frame dataset, in the order of its frames.

    Raises:
        InputError: a value that geometry needs is missing or not numeric; colour; frames without functional groups.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    groups: Sequence[Dataset] = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if not groups and frames == 1:
        return [_plane(name, dataset, [dataset])]
    if not groups:
        problem = f"{frames} frames without functional groups: their positions are unknown"
        cure = "Convert it to enhanced multi-frame or to single-frame DICOM, or export it as such"
        raise InputError(name, problem, cure)
    if len(groups) != frames:
        raise InputError(name, f"NumberOfFrames is {frames}, but {len(groups)} frames are described", EXPORT_AGAIN)
    total = int(dataset.get("InConcatenationTotalNumber") or 1)
    if total > 1:
        raise InputError(name, f"one of {total} parts of a concatenation", "Join the parts to one multi-frame file")
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    return [_plane(f"{name} frame {i}", dataset, [g, *shared, dataset]) for i, g in enumerate(groups, start=1)]


def _plane(name: str, dataset: Dataset, groups: list[Dataset]) -> Plane:
    photometric = str(dataset.get("PhotometricInterpretation", "missing"))
    if dataset.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        known = photometric.startswith(("RGB", "YBR", "PALETTE", "MONOCHROME", "missing"))
        problem = f"PhotometricInterpretation is {photometric if known else 'unknown'}, not grayscale"
        raise InputError(name, problem, "Give a grayscale series")
    shape = dataset.get("PresentationLUTShape") or None
    if shape and (shape == "INVERSE") != (photometric == "MONOCHROME1"):
        raise InputError(name, f"{photometric} contradicts its PresentationLUTShape", EXPORT_AGAIN)
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise InputError(name, "no Rows and Columns: not an image, or cut off", EXPORT_AGAIN)
    if _is_mosaic(dataset):
        problem = "a Siemens mosaic: all slices of the volume as panels of one image"
        raise InputError(name, problem, "Convert it, for example with dcm2niix, or export it as enhanced DICOM")
    spacing = _numbers(name, groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    if (spacing <= 0).any():
        raise InputError(name, f"PixelSpacing is {_text(spacing)}, not above 0 mm", EXPORT_AGAIN)
    orientation = _numbers(name, groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    row, column = orientation[:3], orientation[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 2e-3:  # what ROUNDING explains
        problem = f"ImageOrientationPatient {_text(orientation)} is not two unit vectors at right angles"
        raise InputError(name, problem, EXPORT_AGAIN)
    slope = _find(groups, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _find(groups, "PixelValueTransformationSequence", "RescaleIntercept")
    rescale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    if rescale[0] == 0 or not np.isfinite(rescale).all():
        raise InputError(name, f"RescaleSlope {slope}, RescaleIntercept {intercept} give no values", EXPORT_AGAIN)
    thickness = _find(groups, "PixelMeasuresSequence", "SliceThickness")
    return Plane(
        name=name,
        size=(int(dataset.Rows), int(dataset.Columns)),
        spacing=spacing,
        orientation=polar(orientation.reshape(2, 3))[0].ravel(),  # the closest unit vectors at right angles
        position=_numbers(name, groups, "PlanePositionSequence", "ImagePositionPatient", 3),
        rescale=rescale,
        thickness=None if thickness is None else float(thickness),
        common={
            **{k: _uid(dataset.get(k)) for k in ("StudyInstanceUID", "FrameOfReferenceUID")},
            "PhotometricInterpretation": photometric,
            "BitsStored": dataset.get("BitsStored") if photometric == "MONOCHROME1" else None,
        },
        distinguishing={k: str(dataset[k].value) for k in DISTINGUISHING if _is_number(dataset.get(k))},
        localizer="LOCALIZER" in (dataset.get("ImageType") or []),
    )


def _is_mosaic(dataset: Dataset) -> bool:
    """By ImageType, or where that has been rewritten, by the number of images in Siemens' private elements."""
    if "MOSAIC" in (dataset.get("ImageType") or []):
        return True
    if dataset.get((0x0019, 0x0010)) is None and dataset.get((0x0029, 0x0010)) is None:
        return False
    from nibabel.nicom import csareader

    images: Any = 0
    with contextlib.suppress(Exception):  # of other vendors, or damaged: nothing else depends on them
        images = dataset.private_block(0x0019, "SIEMENS MR HEADER")[0x0A].value
        images = int.from_bytes(images, "little") if isinstance(images, bytes) else images
    with contextlib.suppress(Exception):
        images = images or csareader.get_n_mosaic(csareader.get_csa_header(dataset, "image"))
    return bool(images)


def stack(
    path: str, planes: Sequence[Plane], resample_tilt: bool = False
) -> tuple[list[int], float, Floats, Floats | None]:
    """Order the planes along rows × columns, and measure the distance in mm between neighbours.

    A plane may be off the regular grid by 1 % of the spacing or 0.01 mm, whichever is more. The spacing of a single
    plane is its SliceThickness. Where the planes are stacked off their normal by no more than rounded cosines explain,
    the positions count, and the orientation, the third value returned, is turned to fit them.

    With ``resample_tilt``, slices may be sheared or unevenly spaced, single gaps excepted: the spacing is the smallest
    then, and the fourth value gives the offset of each from the first, along rows, columns and normal, in mm.

    Raises:
        InputError: the planes differ in what they must share, repeat, leave a gap, are unevenly spaced or sheared.
    """
    _check_same(path, planes)
    first = planes[0]
    if len(planes) == 1:
        if not first.thickness or not 0 < first.thickness < np.inf:
            problem = f"a single slice whose SliceThickness is {first.thickness}"
            raise InputError(first.name, problem, "Give the whole series")
        return [0], first.thickness, first.orientation, None

    axes = first.orientation.reshape(2, 3)
    normal = np.cross(*axes)
    order = np.argsort([p.position @ normal for p in planes], kind="stable").tolist()
    ranked = [planes[i] for i in order]
    positions = np.array([p.position for p in ranked])
    along = (positions - positions[0]) @ normal
    steps = np.diff(along)
    if steps.min() < 0.01:
        raise _repeated(path, ranked, steps)
    _check_overlap(path, planes, normal)
    spacing = float(along[-1] / len(steps))
    tolerance = max(0.01, 0.01 * spacing)
    is_even = np.abs(along - spacing * np.arange(len(along))).max() <= tolerance
    if not is_even and not (resample_tilt and not _gaps(steps)):
        raise _uneven(path, ranked, steps)
    sideways = positions - positions[0] - np.outer(along, normal)
    if is_even and np.linalg.norm(sideways, axis=1).max() <= tolerance:
        return order, spacing, first.orientation, None
    shear = sideways[-1] / along[-1]
    off = np.linalg.norm(sideways - np.outer(along, shear), axis=1)
    if off.max() > tolerance:
        i = int(np.argmax(off))
        problem = f"slices are shifted in their plane: {ranked[i].name} is {off[i]:.5g} mm off the axis of the others"
        raise InputError(path, problem, EXPORT_AGAIN)
    if is_even and np.linalg.norm(shear) <= ROUNDING:
        return order, spacing, polar(axes - np.outer(axes @ shear, normal))[0].ravel(), None
    if not resample_tilt:
        angle = np.degrees(np.arctan(np.linalg.norm(shear)))
        problem = f"sheared volume (gantry tilt): the slices are stacked {angle:.3g} degrees off their normal"
        cure = "Give --resample_tilt true, or resample it to a straight grid first, for example with dcm2niix"
        raise InputError(path, problem, cure)
    offsets = np.c_[sideways @ axes.T, along]
    return order, spacing if is_even else float(steps.min()), first.orientation, offsets


def _gaps(steps: Floats) -> list[int]:
    """Steps of several slices between usual ones: slices are missing there. Where several such steps are neighbours,
    the spacing changes instead."""
    wide = np.pad(steps > 1.5 * np.sort(steps)[(len(steps) - 1) // 2], 1)
    return np.flatnonzero(wide[1:-1] & ~wide[:-2] & ~wide[2:]).tolist()


def check_declared(path: str, planes: int, headers: Sequence[Dataset]) -> None:
    """Raise an InputError if a header declares more images than were found."""
    for keyword in DECLARED:
        declared = max((int(h.get(keyword) or 0) for h in headers), default=0)
        if declared > planes:
            problem = f"{planes} slices found, but the header declares {declared} ({keyword})"
            cure = (
                f"Fetch the missing {declared - planes}; if the header counts other series too, pass check_count=False"
            )
            raise InputError(path, problem, cure)


def _check_same(path: str, planes: Sequence[Plane]) -> None:
    first = planes[0]
    localizers = [p for p in planes if p.localizer]
    if 0 < len(localizers) < len(planes):
        problem = f"{len(localizers)} of {len(planes)} images are localizers ({localizers[0].name})"
        raise InputError(path, problem, "Take the localizers out of the folder")
    for label, values in (
        ("Rows x Columns", [f"{p.size[0]} x {p.size[1]}" for p in planes]),
        ("PixelSpacing", [_close(p.spacing, first.spacing) for p in planes]),
        ("ImageOrientationPatient", [_close(p.orientation, first.orientation, ROUNDING) for p in planes]),
        *((key, [str(p.common[key]) for p in planes]) for key in first.common),
    ):
        if len(counts := Counter(values)) > 1:
            odd = planes[values.index(min(counts, key=lambda v: counts[v]))].name
            found = ", ".join(f"{value} ({n})" for value, n in counts.most_common(4))
            problem = f"the slices differ in {label}: {found}; one of the fewest is {odd}"
            raise InputError(path, problem, "Keep the slices of one volume only, or give their files as a list")
    if first.common["PhotometricInterpretation"] == "MONOCHROME1" and len({p.rescale for p in planes}) > 1:
        problem = "MONOCHROME1 with a rescale that differs between slices has no common inversion"
        raise InputError(path, problem, EXPORT_AGAIN)


def _repeated(path: str, ranked: Sequence[Plane], steps: Floats) -> InputError:
    counts = Counter([0, *np.cumsum(steps >= 0.01).tolist()])
    i = int(np.argmax(steps < 0.01))
    twins = f"{ranked[i].name} and {ranked[i + 1].name}"
    where = f"at {_text(ranked[i].position)} mm"
    differing = _differing(ranked)
    if len(set(counts.values())) == 1 and len(counts) > 1:
        problem = f"each of {len(counts)} positions holds {counts[0]} images: {counts[0]} acquisitions or time points"
        problem += f" in one series{differing}; {twins} are {where}"
        return InputError(path, problem, "Give the files of one of them as a list")
    return InputError(path, f"duplicate slices: {twins} are {where}{differing}", "Keep one of them")


def _differing(planes: Sequence[Plane]) -> str:
    """The first attribute that divides the planes into groups, in brackets."""
    for keyword in DISTINGUISHING:
        counts = Counter(p.distinguishing.get(keyword) for p in planes)
        if 1 < len(counts) < len(planes):
            return f" ({keyword} " + ", ".join(f"{k}: {n} images" for k, n in counts.most_common(6)) + ")"
    return ""


def _check_overlap(path: str, planes: Sequence[Plane], normal: Floats) -> None:
    """Two acquisitions of the same region may interleave evenly and still be two volumes."""
    for keyword in ("AcquisitionNumber", "TemporalPositionIdentifier"):
        groups: dict[Any, list[float]] = {}
        for plane in planes:
            groups.setdefault(plane.distinguishing.get(keyword), []).append(float(plane.position @ normal))
        ranges = sorted((min(v), max(v)) for v in groups.values() if len(v) > 1)
        if any(a[1] > b[0] for a, b in pairwise(ranges)):
            problem = f"several acquisitions of one region in one series{_differing(planes)}"
            raise InputError(path, problem, "Give the files of one of them as a list")


def _uneven(path: str, ranked: Sequence[Plane], steps: Floats) -> InputError:
    def between(i: int) -> str:
        return f"{steps[i]:.5g} mm between {ranked[i].name} and {ranked[i + 1].name}"

    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    multiples = steps / usual
    gaps = np.flatnonzero(multiples > 1.5)
    if len(gaps) and np.abs(multiples - multiples.round()).max() < 0.05:
        i = int(gaps[0])
        missing = int((multiples.round() - 1).sum())
        problem = f"{missing} slice(s) missing: {between(i)}, {usual:.5g} mm expected{_differing(ranked)}"
        return InputError(path, problem, "Fetch the missing slices, or give an unbroken part as a list of files")
    i = int(np.argmax(np.abs(steps - usual)))
    problem = f"uneven slice spacing: {steps.min():.5g} to {steps.max():.5g} mm; {between(i)}{_differing(ranked)}"
    cure = "Give --resample_tilt true, which resamples it, or one evenly spaced part as a list of files"
    return InputError(path, problem, cure)


def _find(groups: Sequence[Dataset], sequence: str, keyword: str) -> Any:
    """The first value of a keyword in the functional groups (frame, then shared), else in the dataset itself."""
    for group in groups:
        items = group.get(sequence)
        value = (items[0] if items else group).get(keyword)
        if value is not None and value != "":
            return value
    return None


def _numbers(name: str, groups: Sequence[Dataset], sequence: str, keyword: str, count: int) -> Floats:
    value = _find(groups, sequence, keyword)
    if value is None:
        raise InputError(name, f"no {keyword}: the geometry is unknown", f"Take this file out, or: {EXPORT_AGAIN}")
    try:
        numbers = np.array(value, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if len(numbers) != count or not np.isfinite(numbers).all():
        found = _text(numbers) if np.isfinite(numbers).all() else "of another kind"  # damaged, it might hold a name
        raise InputError(name, f"{keyword} is {found}, not {count} numbers", EXPORT_AGAIN)
    return numbers


def _uid(value: object) -> str:
    """A UID as it may be quoted: damaged, it might hold a name."""
    return str(value) if not value or re.fullmatch(r"[\d.]+", str(value)) else f"damaged UID {hash(value):x}"


def _is_number(value: object) -> bool:
    return value is not None and re.fullmatch(r"[-+\d.eE]+", str(value)) is not None


def _close(values: Floats, reference: Floats, tolerance: float = 1e-4) -> str:
    return _text(reference if np.allclose(values, reference, rtol=0, atol=tolerance) else values)


def _text(values: Floats) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
