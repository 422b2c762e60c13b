"""NRRD and MetaImage in: SimpleITK decodes, and is checked against the header's text and the bytes that follow it.

SimpleITK assumes values for fields that are missing or misspelt, and ignores lengths and checksums.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from monai.data.utils import orientation_ras_lps

from monai_unet.data.decoded import Decoded
from monai_unet.data.volumes.checks import SAVE_AGAIN, Affine, check_length, corner_distance, voxel_size
from monai_unet.errors import InputError
from monai_unet.options import require

NRRD, META = (".nrrd", ".nhdr"), (".mha", ".mhd")
#: The spaces of NRRD that have a known anatomy, and the signs that turn them to LPS.
NRRD_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}
#: What else NRRD defines: only these words are quoted, because anything else might be a name.
NRRD_WORDS = (
    *("scanner-xyz", "3d-right-handed", "3d-left-handed", "right-up", "right-down"),
    *(f"{space}-time" for space in (*NRRD_SPACES, "scanner-xyz", "3d-right-handed", "3d-left-handed")),
    *("text", "txt", "ascii", "hex", "bzip2", "bz2"),
    *("m", "cm", "um", "µm", "nm", "micron", "microns", "micrometer", "micrometre", "meter", "metre", "inch", "pixel"),
)
META_SYNONYMS = {
    **dict.fromkeys(("Position", "Origin"), "Offset"),
    **dict.fromkeys(("Rotation", "Orientation"), "TransformMatrix"),
}


class _Header(NamedTuple):
    fields: dict[str, str]
    voxels: bytes  # all that follows in the file
    other_file: str | None  # that holds the voxels instead
    is_compressed: bool


def load_itk(path: Path, content: bytes) -> Decoded:
    """Decode NRRD or MetaImage: voxels (i, j, k) and the affine to RAS millimetres.

    Args:
        path: of the file, which SimpleITK reads.
        content: all of the file.
    """
    sitk, is_nrrd = require("SimpleITK", "volumes"), path.name.lower().endswith(NRRD)
    header = (_nrrd_header if is_nrrd else _meta_header)(path, content)
    voxels = header.voxels if header.other_file is None else _read_other(path, header.other_file)

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    components, shape = reader.GetNumberOfComponents(), reader.GetSize()
    if components > 1 or len(shape) != 3:
        problem = f"{len(shape)}-D with {components} numbers per voxel: 3-D with one is required"
        raise InputError(path, problem, "Save one volume per file")
    voxel_bytes = sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    expected = math.prod(shape) * voxel_bytes
    voxels = _inflate(voxels, expected) if header.is_compressed else voxels
    check_length(path, len(voxels), expected, "bytes of voxels")
    try:
        image = reader.Execute()
    except RuntimeError as error:
        if "Failed to allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        raise
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    try:
        stated = np.vstack([(_nrrd_geometry if is_nrrd else _meta_geometry)(header.fields), [0, 0, 0, 1]])
    except KeyError as error:
        raise InputError(path, f"no {error.args[0]}: the geometry is unknown", SAVE_AGAIN) from error
    if not corner_distance(affine, stated, shape) <= 0.01 * voxel_size(stated).min():
        raise InputError(path, "SimpleITK reads another geometry than the header states: it is damaged", SAVE_AGAIN)
    array = sitk.GetArrayFromImage(image)
    if voxels not in (array.tobytes(), array.byteswap().tobytes()):  # SimpleITK returns voxels that it could not fill
        raise InputError(path, "the voxels read are not those in the file: its header is damaged", SAVE_AGAIN)
    return Decoded(array.T, orientation_ras_lps(affine), one_file=header.other_file is None)


def _nrrd_header(path: Path, content: bytes) -> _Header:
    end = re.search(rb"\r?\n\r?\n", content)  # lines may end in LF or CRLF
    head, voxels = (content[: end.start()], content[end.end() :]) if end else (content, b"")
    lines = [line.split(": ", 1) for line in head.decode("latin1").splitlines()[1:] if ": " in line]
    fields = {line[0]: line[1].strip() for line in lines}
    if fields.get("space", "").lower() not in NRRD_SPACES:
        problem = f"space is {_quoted(fields.get('space'))}, which is not anatomical"
        raise InputError(path, problem, "Save it with space LPS or RAS")
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    if units - {"mm", "millimeter", "millimetre", ""}:
        problem = f"space units are {', '.join(sorted(map(_quoted, units)))}, not mm"
        raise InputError(path, problem, "Convert directions and origin to mm")
    if (encoding := fields.get("encoding", "")) not in ("raw", "gzip", "gz"):
        raise InputError(path, f"encoding is {_quoted(encoding)}, which is not checked here", "Save it as raw or gzip")
    return _Header(fields, voxels, fields.get("data file", fields.get("datafile")), encoding != "raw")


def _quoted(word: str | None) -> str:
    return "missing" if not word else word if word.lower() in (*NRRD_SPACES, *NRRD_WORDS, "mm") else "another one"


def _nrrd_geometry(fields: dict[str, str]) -> Affine:
    """Steps and origin as columns (3, 4), in LPS millimetres."""
    vectors = re.findall(r"\(([^)]*)\)", fields["space directions"] + fields["space origin"])
    columns = np.array([vector.split(",") for vector in vectors], dtype=np.float64)
    return (columns * NRRD_SPACES[fields["space"].lower()]).T


def _meta_header(path: Path, content: bytes) -> _Header:
    head, mark, rest = content.partition(b"ElementDataFile")
    source, _, voxels = rest.partition(b"\n")
    lines = [line.split("=", 1) for line in head.decode("latin1").splitlines() if "=" in line]
    fields = {META_SYNONYMS.get(line[0].strip(), line[0].strip()): line[1].strip() for line in lines}
    if not mark or int(fields.get("HeaderSize", 0)):
        raise InputError(path, "no ElementDataFile, or a HeaderSize", SAVE_AGAIN)
    name = source.decode("latin1").strip(" =\r")
    is_compressed = fields.get("CompressedData", "False").lower() == "true"
    return _Header(fields, voxels, None if name.upper() == "LOCAL" else name, is_compressed)


def _meta_geometry(fields: dict[str, str]) -> Affine:
    """Steps and origin as columns (3, 4), in LPS millimetres."""
    matrix, spacing, offset = (
        np.array(fields[key].split(), dtype=np.float64) for key in ("TransformMatrix", "ElementSpacing", "Offset")
    )
    return np.c_[matrix.reshape(3, 3).T * spacing, offset]


def _read_other(path: Path, name: str) -> bytes:
    file = path.parent / name
    if not file.is_file():
        problem = f"its voxels should be in one file {name}, which does not exist"
        raise InputError(path, problem, "Save header and voxels again")
    return file.read_bytes()


def _inflate(voxels: bytes, expected: int) -> bytes:
    """Decompress zlib or gzip to the end, where the checksum is, or a byte too far; SimpleITK looks at neither."""
    stream = zlib.decompressobj(wbits=47)
    content = stream.decompress(voxels, expected + 1)
    if (not stream.eof and len(content) <= expected) or stream.unused_data:
        raise zlib.error("the compressed voxels end too early, or other data follow them")
    return content
