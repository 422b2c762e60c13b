"""``python -m monai_unet.data check PATH``: list what is in a folder, and what is wrong with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import nibabel as nib
from monai.data.utils import affine_to_spacing
from monai.utils import MetaKeys

from monai_unet.data.studies.find import find_studies
from monai_unet.data.studies.pseudonyms import Pseudonyms
from monai_unet.data.studies.study import Study, StudyReader
from monai_unet.errors import InputError

HEADER = ("study", "kind", "size", "voxel in mm", "axes", "number", "echo time", "b-value", "image type", "description")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row per series or volume: pseudonym, modality or "volume", size, voxel size, anatomical axes, problem.

    What tells series apart is added: number, echo times, b-values, image type and, with ``--keep-names``, description.
    The axes are the directions in which the indices grow: "LPS" is an axial series, "RAS" is canonical in nibabel.

    Returns:
        1 if there is a problem, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m monai_unet.data")
    check = parser.add_subparsers(required=True, metavar="check").add_parser("check", help="list and check volumes")
    check.add_argument("path", help="a NIfTI, NRRD or MetaImage file, a DICOM folder, file or zip, or a folder of them")
    check.add_argument("--keep-names", action="store_true", help="show paths and file names, not pseudonyms only")
    options = parser.parse_args(arguments)
    try:
        studies = find_studies(options.path, keep_names=options.keep_names)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = [row for study in studies for row in _rows(study)]
    table = [(*HEADER, "problem"), *rows]
    columns = [column for column in zip(*table, strict=True) if any(column[1:]) or column[0] == "problem"]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    problems = sum(bool(row[-1]) for row in rows)
    print(f"{problems} of {len(rows)} have a problem; which is which: {Pseudonyms().table}")
    return int(problems > 0)


def _rows(study: Study) -> Iterator[tuple[str, ...]]:
    if study.error is None or not study.series:
        yield (study.name, *_described(study, StudyReader(), *study.series))
        return
    pseudonyms = Pseudonyms()
    for uid in study.series:
        *described, problem = _described(study, StudyReader(series=uid), uid)
        among = f"one of {len(study.series)} series of {study.name}: choose one with --series"
        yield (pseudonyms(uid), *described, f"{among}. {problem}" if problem else among)


def _described(study: Study, reader: StudyReader, uid: str = "") -> tuple[str, ...]:
    facts = []
    for keyword in ("SeriesNumber", "EchoTime", "DiffusionBValue", "ImageType", "SeriesDescription"):
        values = sorted(study.facts.get(uid, {}).get(keyword, set()) - {""})
        if keyword == "SeriesDescription" and not study.keep_names:
            values = []
        facts.append(", ".join(values[:4] + ["…"] * (len(values) > 4)))
    try:
        if study.error is not None and not study.series:
            raise study.error
        array, meta = reader.get_data(study.files)
    except InputError as error:
        problem, cure = study.explain(error)
        kind = ", ".join(study.facts.get(uid, {}).get("Modality", ()))
        return (kind, "", "", "", *facts, f"{problem}. {cure}.")
    voxel = affine_to_spacing(meta[MetaKeys.AFFINE])
    return (
        meta.get("modality", "volume"),
        " x ".join(map(str, array.shape)),
        " x ".join(f"{v:.4g}" for v in voxel),
        "".join(nib.aff2axcodes(meta[MetaKeys.AFFINE])),
        *facts,
        "",
    )


if __name__ == "__main__":
    raise SystemExit(main())
