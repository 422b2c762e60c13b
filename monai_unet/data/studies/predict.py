"""Study by study through a MONAI evaluator: results in the format of the input, failures in a report, no names."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from monai.data import DataLoader
from monai.engines import Evaluator
from torch.utils.data import Subset
from tqdm import tqdm

from monai_unet.data.dicom.files import read_header
from monai_unet.data.dicom.report import write_report
from monai_unet.data.dicom.rtstruct import write_rtstruct
from monai_unet.data.dicom.segmentation import write_seg
from monai_unet.data.dicom.silence import reading
from monai_unet.data.studies.pseudonyms import Pseudonyms
from monai_unet.data.studies.study import Study, StudyReader, volume_suffix
from monai_unet.data.tables import read_table, update_table
from monai_unet.data.volumes.writer import write_volume
from monai_unet.doubt import NO_FLAG
from monai_unet.errors import InputError
from monai_unet.files import replacing
from monai_unet.options import parse_bool

__all__ = ["StudyWriter", "predict_studies"]

logger = logging.getLogger(__name__)

#: Formats with separate header and voxels, and those in which their results are one file.
ONE_FILE = {".nhdr": ".nrrd", ".mhd": ".mha"}


class StudyWriter:
    """Write a study's mask: of DICOM as ``<name>_seg.dcm``, of a volume as ``<name>_seg`` with the volume's suffix.

    Args:
        output_dir: folder of the results, created when needed.
        segments: codes and colours of the labels from 1 on, as in `write_seg`.
        algorithm: name, version and family, as in `write_seg`.
        reader: the reader of the studies, which keeps the series it has just read.
        rtstruct: for DICOM, whether to write ``<name>_rtstruct.dcm`` too; "true" and "false" are understood.
        report: for DICOM, whether to write the volumes as ``<name>_report.dcm`` too.
        deidentify: for DICOM, whether results leave out all of patient and study but UIDs.

    >>> writer = StudyWriter("results", segments=[], algorithm={}, reader=StudyReader(), rtstruct="true")
    >>> [path.name for path in writer.paths(Study("5f3a", "in/1", ("in/1/IM1", "in/1/IM2")))]
    ['5f3a_seg.dcm', '5f3a_rtstruct.dcm']
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        segments: Sequence[Mapping[str, Any]],
        algorithm: Mapping[str, Any],
        reader: StudyReader,
        rtstruct: bool | str = False,
        deidentify: bool | str = False,
        report: bool | str = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.segments, self.algorithm, self.reader = segments, algorithm, reader
        self.rtstruct = parse_bool("rtstruct", rtstruct)
        self.report = parse_bool("report", report)
        self.deidentify = parse_bool("deidentify", deidentify)

    def paths(self, study: Study) -> list[Path]:
        """The files of a study's results."""
        if suffix := volume_suffix(study.files[0]):
            return [self.output_dir / f"{study.name}_seg{ONE_FILE.get(suffix, suffix)}"]
        wanted = {"seg": True, "rtstruct": self.rtstruct, "report": self.report}
        kinds = [kind for kind, written in wanted.items() if written]
        return [self.output_dir / f"{study.name}_{kind}.dcm" for kind in kinds]

    def __call__(self, study: Study, pred: Any, paths: Sequence[Path]) -> dict[str, float]:
        """Write the labels of the study that was read last, a `MetaTensor` (1, i, j, k) on its grid, to these paths.

        Returns:
            The volume of each segment in ml, under its name.

        Raises:
            ValueError: they are on another grid.
            InputError: a report of a resampled series.
        """
        mask = np.asarray(pred.numpy(force=True)[0]).astype(np.uint8)
        source = pred.meta.get("original_affine")
        if source is None or not np.allclose(pred.affine.numpy(force=True), source, atol=1e-3):
            raise ValueError("the mask's affine is not its source's: apply Invertd")
        ml = float(abs(np.linalg.det(np.asarray(source)[:3, :3])) / 1000)
        series = self.reader.last
        if series is not None and self.deidentify:
            series = series.deidentified()
        if series is not None and series.offsets is not None and any(path.stem.endswith("_report") for path in paths):
            problem = "its slices are tilted or unevenly spaced, so a report cannot count volumes in its SEG"
            raise InputError(study.place, problem, "Leave --report out: summary.csv has the volumes")
        for path in paths:
            if series is None:
                write_volume(path, mask, study.files[0])
            elif path.stem.endswith("_report"):
                write_report(path, self.output_dir / f"{study.name}_seg.dcm", series, ml)
            else:
                write = write_rtstruct if path.stem.endswith("_rtstruct") else write_seg
                write(path, mask, series, self.segments, self.algorithm)
        names = [f"{segment['label']}_ml" for segment in self.segments]
        counts = np.bincount(mask.ravel(), minlength=len(names) + 1)[1:]
        names += [f"segment_{number + 1}_ml" for number in range(len(names), len(counts))]
        return {name: float(count * ml) for name, count in zip(names, counts, strict=True)}


def predict_studies(
    studies: Sequence[Study],
    evaluator: Evaluator,
    writer: StudyWriter,
    overwrite: bool | str = False,
    modality: str | None = None,
) -> None:
    """Predict each study and write its mask; a failed study does not affect the others.

    Prints a table with the volume of each segment in ml. The volumes go to ``summary.csv`` in the writer's folder, too,
    a row per study, where earlier rows stay. Failures go to ``failures.json`` there, a list of ``study``, ``problem``
    and ``cure``; without failures, an older report is removed. A bar in the terminal shows how many are done, and how
    long the others will take.

    Args:
        studies: in the order of the items of the evaluator's data loader.
        evaluator: runs one item at a time; ``pred`` of its output is written, its ``doubt`` printed and tabled, too.
        writer: files that exist already are left as they are, and a study of which all do is skipped. A study fails if
            it has images to which its SEG does not refer, such as slices that have arrived since.
        overwrite: write those too; "true" and "false" are understood.
        modality: what the network was trained on, as DICOM names it ("CT", "MR"); a series of another one fails before
            its images are read. None to accept any.

    Raises:
        InputError: DICOM is to be written with another number of segments than the network has classes.
        SystemExit: with status 1, at the end, if a study failed.

    >>> import tempfile
    >>> from monai.data import Dataset
    >>> from monai.engines import SupervisedEvaluator
    >>> data = DataLoader(Dataset([{"image": ("brain.nii.gz",)}]))
    >>> evaluator = SupervisedEvaluator("cpu", data, network=None)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "5f3a_seg.nii.gz").touch()
    ...     writer = StudyWriter(folder, segments=[], algorithm={}, reader=StudyReader())
    ...     predict_studies([Study("5f3a", "brain.nii.gz", ("brain.nii.gz",))], evaluator, writer)
    5f3a  already there
    1 of 1 studies have results; which is which: ...pseudonyms.csv
    """
    again = parse_bool("overwrite", overwrite)
    _check_segments(studies, evaluator, writer)
    dataset = cast(DataLoader, evaluator.data_loader).dataset
    evaluator.logger.setLevel(logging.CRITICAL)  # ignite logs the texts of errors, which name files
    evaluator.interrupt_resume_enabled = False  # else the run after a failed one ends before it begins
    next(read_table(summary := writer.output_dir / "summary.csv", "study"), None)  # refused before the first study
    rows, failures, flagless = [], [], False
    bar = tqdm(studies, "predicting", unit="study", disable=None)  # None: unless it is a terminal
    for number, study in enumerate(bar):
        start = time.monotonic()
        try:
            if study.error is not None:
                raise study.error
            _check_modality(study, modality)
            if study.instances and not again:
                _check_complete(study, writer.paths(study)[0])
            paths = [path for path in writer.paths(study) if again or not path.exists()]
            if not paths:
                rows.append((study.name, "already there"))
                continue
            evaluator.data_loader = DataLoader(Subset(dataset, [number]), batch_size=1)
            evaluator.state.epoch_length = 1  # ignite would repeat the one item as often as there were studies
            evaluator.run()
            output = evaluator.state.output[0]
            found: dict[str, Any] = {**writer(study, output["pred"], paths)}
            listed = "".join(f", {name.removesuffix('_ml')} {volume:.4g} ml" for name, volume in found.items())
            if (doubtful := output.get("doubt")) is not None:
                listed += f", {doubtful.text}"
                found |= {"doubt": doubtful.image, "look": "" if doubtful.look is None else int(doubtful.look)}
                flagless |= doubtful.look is None
            if paths == writer.paths(study):  # what was there may have been corrected
                update_table(summary, "study", list(found), {study.name: [found]})
            rows.append((study.name, f"predicted in {time.monotonic() - start:.1f} s{listed}"))
        except Exception as error:
            problem, cure = study.explain(error)
            rows.append((study.name, f"FAILED: {problem}. {cure}."))
            failures.append({"study": study.name, "problem": problem, "cure": cure})
        finally:
            evaluator.state.output = evaluator.state.batch = None  # one volume at a time in memory
        logger.info("%d of %d: %s %s", number + 1, len(studies), *rows[-1])
    _report(rows, failures, writer.output_dir)
    if flagless:
        print(NO_FLAG)
    if failures:
        raise SystemExit(1)


def _check_segments(studies: Sequence[Study], evaluator: Evaluator, writer: StudyWriter) -> None:
    classes = getattr(getattr(evaluator, "network", None), "out_channels", None)
    if classes is None or all(volume_suffix(study.files[0]) for study in studies):
        return
    if (count := len(writer.segments)) != classes - 1:
        raise InputError(
            "segments",
            f"the bundle has {count}, and the network {classes} classes with the background",
            "Name a checkpoint of this bundle with --ckpt_path, or describe each class in its metadata.json",
        )


def _check_modality(study: Study, modality: str | None) -> None:
    found = {value for uid in study.series for value in study.facts.get(uid, {}).get("Modality", ())}
    if modality is not None and found and modality not in found:
        raise InputError(
            study.place,
            f"its modality is {' and '.join(sorted(found))}, and the network was trained on {modality}",
            f"Choose a series of {modality}, or name a checkpoint that was trained on such images with --ckpt_path",
        )


def _check_complete(study: Study, seg_path: Path) -> None:
    known = images = set[str]().union(*study.instances.values())
    with suppress(InputError), reading(seg_path):  # if it is there; what is not DICOM may be somebody's work
        header = read_header(seg_path)
        if header is not None and header.get("Manufacturer") == "monai_unet":  # others need not refer to every slice
            items = [item for series in header.ReferencedSeriesSequence for item in series.ReferencedInstanceSequence]
            known = {item.ReferencedSOPInstanceUID for item in items}
    if more := images - known:
        raise InputError(
            study.place,
            f"{len(more)} of its {len(images)} images are not in its result {seg_path.name}; they may be newer",
            "Move its results away and predict it again, or replace the results of all studies with --overwrite true",
        )


def _report(rows: Sequence[tuple[str, str]], failures: Sequence[Mapping[str, str]], folder: Path) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, outcome in rows:
        print(f"{name:<{width}}  {outcome}")
    print(f"{len(rows) - len(failures)} of {len(rows)} studies have results; which is which: {Pseudonyms().table}")
    path = folder / "failures.json"
    if failures:
        with replacing(path) as partial:
            partial.write_text(json.dumps(failures, indent=2))
    else:
        path.unlink(missing_ok=True)
