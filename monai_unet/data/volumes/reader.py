"""NIfTI, NRRD and MetaImage in: ``CheckedVolumeReader`` for MONAI's ``LoadImaged``, and a check of training pairs.

nibabel and SimpleITK read; this module refuses what they let pass: values or affines that are no numbers, two affines
in one file that disagree, damage that only a checksum or the length shows. NRRD and MetaImage need SimpleITK.
"""

from __future__ import annotations

import gzip
import itertools
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import orientation_ras_lps
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_unet.errors import InputError
from monai_unet.options import require

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]

SAVE_AGAIN = "Copy the file again from its source, or save it again with the software that made it"
NIFTI, NRRD, META = (".nii", ".nii.gz"), (".nrrd", ".nhdr"), (".mha", ".mhd")
#: The spaces of NRRD that have a known anatomy, and the signs that turn them to LPS.
NRRD_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}
META_SYNONYMS = {
    **dict.fromkeys(("Position", "Origin"), "Offset"),
    **dict.fromkeys(("Rotation", "Orientation"), "TransformMatrix"),
}


class CheckedVolumeReader(ImageReader):
    """One 3-D NIfTI, NRRD or MetaImage volume, or ``InputError``.

    The array is indexed (i, j, k) as the file stores it, in the file's dtype (float64 where NIfTI scales); the affine
    maps these indices to RAS millimetres: for NIfTI they are those of MONAI's ``NibabelReader``. Trailing axes of
    length 1 are dropped. Metadata: ``affine``, ``original_affine``, ``spatial_shape``, ``space``,
    ``original_channel_dim``.

    Args:
        label_values: for labels, the values allowed; any other, and any fraction, is an error.

    Raises:
        InputError: from ``get_data``, never from ``read``: ``LoadImage`` turns to other readers without a word when
            ``read`` fails.
    """

    def __init__(self, label_values: Sequence[int] | None = None) -> None:
        self.label_values = label_values

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether each name ends as NIfTI, NRRD or MetaImage do."""
        return all(str(f).lower().endswith((*NIFTI, *NRRD, *META)) for f in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Note the path; ``get_data`` opens it."""
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[Array, dict[str, Any]]:
        """The volume, shape (i, j, k), and its metadata."""
        path = img[0]
        if len(img) != 1:
            raise InputError(path, f"one of {len(img)} files where one volume is due", "Give one file")
        array, affine = _load(path)
        if array.dtype.kind not in "iuf":
            raise InputError(path, f"{array.dtype} values, not one number per voxel", "Convert it to one channel")
        while array.ndim > 3 and array.shape[-1] == 1:
            array = array[..., 0]
        if array.ndim != 3:
            raise InputError(path, f"{array.ndim}-D, shape {array.shape}, where 3-D is due", "Save one volume per file")
        if array.dtype.kind == "f" and (bad := int((~np.isfinite(array)).sum())):
            raise InputError(path, f"{bad} of {array.size} voxels are NaN or Inf", "Replace them, or mask the image")
        _check_affine(path, affine)
        if self.label_values is not None:
            _check_labels(path, array, self.label_values)
        return array, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(array.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
        }


def check_volume_pairs(
    items: Sequence[Mapping[str, Any]], label_values: Sequence[int], image_key: str = "image", label_key: str = "label"
) -> None:
    """Read every image and label of a MONAI datalist before training starts.

    Raises:
        InputError: naming both files of the first pair in which one cannot be read, the geometries differ by more
            than 1 % of a voxel, or a label is no integer of ``label_values``.
    """
    images, labels = CheckedVolumeReader(), CheckedVolumeReader(label_values)
    for item in items:
        image_path, label_path = str(item[image_key]), str(item[label_key])
        try:
            image, image_meta = images.get_data((image_path,))
            label, label_meta = labels.get_data((label_path,))
        except InputError as error:
            other = label_path if error.path == image_path else image_path
            raise InputError(error.path, f"{error.problem} (paired with {other})", error.cure) from error
        if image.shape != label.shape:
            problem = f"shape {label.shape}, but its image {image_path} has {image.shape}"
            raise InputError(label_path, problem, "Resample the label to its image")
        off = _distance(image_meta[MetaKeys.AFFINE], label_meta[MetaKeys.AFFINE], image.shape)
        if off > 0.01 * _voxel(image_meta[MetaKeys.AFFINE]).min():
            problem = f"the affine puts corners up to {off:.5g} mm from where its image {image_path} has them"
            raise InputError(label_path, problem, "Resample the label to its image, or correct the wrong header")


def _load(path: str) -> tuple[Array, Affine]:
    name = path.lower()
    if not name.endswith((*NIFTI, *NRRD, *META)):
        raise InputError(path, "not named as NIfTI, NRRD or MetaImage", "Convert it to .nii.gz")
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)  # to the end, where the checksum is
        if name.endswith(NIFTI):
            return _nifti(path, content)
        if name.endswith(NRRD):
            return _itk(path, *_nrrd_header(path, content), _nrrd_affine)
        return _itk(path, *_meta_header(path, content), _meta_affine)
    except (InputError, ImportError):
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, f"truncated or damaged: {error}", SAVE_AGAIN) from error
    except Exception as error:
        raise InputError(path, f"not readable ({type(error).__name__}: {error})", SAVE_AGAIN) from error


def _nifti(path: str, content: bytes) -> tuple[Array, Affine]:
    import nibabel as nib

    second = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    header = kind.header_class(content[: kind.header_class.template_dtype.itemsize], check=False)
    shape = header.get_data_shape()
    expected = int(header["vox_offset"]) + math.prod(map(int, shape)) * header.get_data_dtype().itemsize
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "followed by other data"
        raise InputError(path, f"{len(content)} bytes where the header says {expected}: {fault}", SAVE_AGAIN)
    voxel = np.array(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(voxel).all() and (voxel > 0).all()):
        raise InputError(path, f"voxel size {_text(voxel)} mm", "Correct pixdim in the header")
    if (unit := header.get_xyzt_units()[0]) not in ("mm", "unknown"):
        raise InputError(path, f"lengths in {unit}, not mm", "Convert the header to mm")
    if np.isinf(header["scl_slope"]):  # nibabel would leave the values unscaled
        raise InputError(path, "scl_slope is Inf", "Correct it in the header")
    image = kind.from_bytes(content)
    sform, qform = (f(coded=True)[0] for f in (image.header.get_sform, image.header.get_qform))
    if sform is None and qform is None:
        raise InputError(path, "neither sform nor qform is set: the orientation is unknown", "Set one of them")
    for form in (sform, qform):
        if form is not None:
            _check_affine(path, form)
    affine = np.array(image.affine, dtype=np.float64)
    if sform is not None and qform is not None:
        off = _distance(sform, qform, (*shape, 1, 1)[:3])
        if off > 0.01 * voxel.min():
            problem = f"sform and qform disagree by up to {off:.5g} mm"
            raise InputError(path, problem, "Delete the wrong one, or copy the right one over it")
    if np.abs(_voxel(affine) / voxel - 1).max() > 0.01:
        problem = f"pixdim says voxels of {_text(voxel)} mm, the affine {_text(_voxel(affine))} mm"
        raise InputError(path, problem, "Correct the header")
    array = np.asanyarray(image.dataobj)
    return array.astype(array.dtype.newbyteorder("="), copy=False), affine


def _itk(
    path: str, fields: dict[str, str], payload: bytes, geometry: Callable[[dict[str, str]], Affine]
) -> tuple[Array, Affine]:
    sitk = require("SimpleITK", "volumes")
    image = sitk.ReadImage(path)
    expected = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    if len(payload) != expected:
        fault = "truncated" if len(payload) < expected else "followed by other data"
        raise InputError(path, f"{len(payload)} bytes of voxels where the header says {expected}: {fault}", SAVE_AGAIN)
    if image.GetNumberOfComponentsPerPixel() > 1 or image.GetDimension() != 3:
        problem = f"{image.GetDimension()}-D with {image.GetNumberOfComponentsPerPixel()} numbers per voxel"
        raise InputError(path, f"{problem} where 3-D with one is due", "Save one volume per file")
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    try:
        stated = geometry(fields)  # where a field is missing or misspelt, SimpleITK assumes a value
    except KeyError as error:
        raise InputError(path, f"no {error.args[0]}: the geometry is unknown", SAVE_AGAIN) from error
    if not _distance(lps, stated, image.GetSize()) <= 0.01 * _voxel(stated).min():
        raise InputError(path, "SimpleITK reads another geometry than the header states: it is damaged", SAVE_AGAIN)
    array = sitk.GetArrayFromImage(image)
    if payload not in (array.tobytes(), array.byteswap().tobytes()):  # SimpleITK hands out what it could not fill
        raise InputError(path, "the voxels read are not those in the file: its header is damaged", SAVE_AGAIN)
    return array.T, orientation_ras_lps(lps)


def _nrrd_header(path: str, content: bytes) -> tuple[dict[str, str], bytes]:
    head, _, payload = content.replace(b"\r\n", b"\n", content[:4096].count(b"\r\n")).partition(b"\n\n")
    lines = [line.split(": ", 1) for line in head.decode("latin1").splitlines()[1:] if ": " in line]
    fields = {line[0]: line[1].strip() for line in lines}
    if fields.get("space", "").lower() not in NRRD_SPACES:
        raise InputError(path, f"space is {fields.get('space')}, no anatomical one", "Save it with space LPS or RAS")
    if (encoding := fields.get("encoding", "")) not in ("raw", "gzip", "gz"):
        raise InputError(path, f"encoding {encoding} is not checked here", "Save it as raw or gzip")
    if external := fields.get("data file", fields.get("datafile")):
        payload = _external(path, external)
    return fields, payload if encoding == "raw" else _inflate(payload)


def _meta_header(path: str, content: bytes) -> tuple[dict[str, str], bytes]:
    head, mark, rest = content.partition(b"ElementDataFile")
    external, _, payload = rest.partition(b"\n")
    lines = [line.split("=", 1) for line in head.decode("latin1").splitlines() if "=" in line]
    fields = {META_SYNONYMS.get(line[0].strip(), line[0].strip()): line[1].strip() for line in lines}
    source = external.decode("latin1").strip(" =\r")
    if not mark or int(fields.get("HeaderSize", 0)):
        raise InputError(path, "no ElementDataFile, or a HeaderSize", SAVE_AGAIN)
    if source.upper() != "LOCAL":
        payload = _external(path, source)
    return fields, _inflate(payload) if fields.get("CompressedData", "False").lower() == "true" else payload


def _nrrd_affine(fields: dict[str, str]) -> Affine:
    vectors = re.findall(r"\(([^)]*)\)", fields["space directions"] + fields["space origin"])
    columns = np.array([vector.split(",") for vector in vectors], dtype=np.float64)
    return _affine((columns * NRRD_SPACES[fields["space"].lower()]).T)


def _meta_affine(fields: dict[str, str]) -> Affine:
    matrix, spacing, offset = (
        np.array(fields[key].split(), dtype=np.float64) for key in ("TransformMatrix", "ElementSpacing", "Offset")
    )
    return _affine(np.c_[matrix.reshape(3, 3).T * spacing, offset])


def _affine(columns: Affine) -> Affine:
    return np.vstack([columns, [0, 0, 0, 1]])


def _external(path: str, name: str) -> bytes:
    file = Path(path).parent / name
    if not file.is_file():
        raise InputError(
            path, f"its voxels should lie in one file {name}, which is not there", "Save header and voxels again"
        )
    return file.read_bytes()


def _inflate(payload: bytes) -> bytes:
    """Decompress zlib or gzip to the end, where the checksum is; SimpleITK looks at neither."""
    stream = zlib.decompressobj(wbits=47)
    content = stream.decompress(payload)
    if not stream.eof or stream.unused_data:
        raise zlib.error("the compressed voxels end too early, or other data follow them")
    return content


def _check_affine(path: str, affine: Affine) -> None:
    if not np.isfinite(affine).all():
        raise InputError(path, "the affine holds NaN or Inf", "Correct the header")
    voxel = _voxel(affine)
    if (voxel < 1e-9).any():
        raise InputError(path, f"voxel size {_text(voxel)} mm in the affine", "Correct the header")
    cosines = (affine[:3, :3] / voxel).T @ (affine[:3, :3] / voxel)
    if (worst := np.abs(cosines - np.eye(3)).max()) > 1e-3:
        problem = f"sheared or singular affine: its axes meet at {math.degrees(math.acos(min(worst, 1))):.4g} degrees"
        raise InputError(path, problem, "Resample it to a straight grid")


def _check_labels(path: str, array: Array, allowed: Sequence[int]) -> None:
    values = np.unique(array)
    if (fractions := values[values != np.round(values)]).size:
        problem = f"{fractions.size} fractional label values, such as {fractions[0]:.6g}"
        raise InputError(path, problem, "Resample labels with nearest-neighbour interpolation")
    if (strange := values[~np.isin(values, allowed)]).size:
        problem = f"label values {strange[:8].astype(int).tolist()} besides {sorted(allowed)}"
        raise InputError(path, problem, "Map the labels to the allowed values")


def _voxel(affine: Affine) -> Affine:
    return np.linalg.norm(affine[:3, :3], axis=0)


def _distance(a: Affine, b: Affine, shape: Sequence[int]) -> float:
    """Largest distance in mm between the places that two affines give the corners of a volume."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape))])
    return float(np.linalg.norm(corners @ (a - b).T, axis=1).max())


def _text(values: Affine) -> str:
    return " x ".join(f"{v:.6g}" for v in values)
