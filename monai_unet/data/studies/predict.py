"""Study by study through a MONAI evaluator: results in the coin of the input, failures in a report, no names."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from monai.data import DataLoader
from monai.engines import Evaluator
from torch.utils.data import Subset

from monai_unet.data.dicom.rtstruct import write_rtstruct
from monai_unet.data.dicom.segmentation import write_seg
from monai_unet.data.studies.find import VOLUMES
from monai_unet.data.studies.pseudonyms import Pseudonyms
from monai_unet.data.studies.study import Study
from monai_unet.data.volumes.writer import write_volume
from monai_unet.files import replacing
from monai_unet.options import parse_bool

__all__ = ["StudyWriter", "predict_studies"]

logger = logging.getLogger(__name__)

#: What headers beside their voxels become: one file.
ONE_FILE = {".nhdr": ".nrrd", ".mhd": ".mha"}


class StudyWriter:
    """Writes a study's mask: DICOM as ``<name>_seg.dcm``, a volume as ``<name>_seg`` with its own suffix.

    Args:
        output_dir: where the results go; made when needed.
        segments: of each label from 1 on its codes and colour, as `dicom_seg.write_seg` takes them.
        algorithm: the algorithm's name, version and family, likewise.
        rtstruct: of DICOM, ``<name>_rtstruct.dcm`` too; "true" and "false" are understood, as they come from a
            command line.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        segments: Sequence[Mapping[str, Any]],
        algorithm: Mapping[str, Any],
        rtstruct: bool | str = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.segments, self.algorithm = segments, algorithm
        self.rtstruct = parse_bool("rtstruct", rtstruct)

    def paths(self, study: Study) -> list[Path]:
        """The files of a study's results."""
        suffix = next((s for s in sorted(VOLUMES, key=len) if study.files[0].lower().endswith(s)), None)
        if suffix is not None:
            return [self.output_dir / f"{study.name}_seg{ONE_FILE.get(suffix, suffix)}"]
        kinds = ["seg", "rtstruct"] if self.rtstruct else ["seg"]
        return [self.output_dir / f"{study.name}_{kind}.dcm" for kind in kinds]

    def __call__(self, study: Study, pred: Any) -> None:
        """Write ``pred``, a `MetaTensor` (1, i, j, k) of labels on the source's grid.

        Raises:
            ValueError: it is not on the source's grid.
        """
        mask = np.asarray(pred.numpy(force=True)[0]).astype(np.uint8)
        source = pred.meta.get("original_affine")
        if source is None or not np.allclose(pred.affine.numpy(force=True), source, atol=1e-3):
            raise ValueError("the mask's affine is not its source's: apply Invertd")
        writers = {"seg": write_seg, "rtstruct": write_rtstruct}
        for path in self.paths(study):
            if path.suffix != ".dcm":
                write_volume(path, mask, study.files[0])
            else:
                sources = pred.meta["source_files"].splitlines()
                writers[path.stem.rpartition("_")[2]](path, mask, sources, self.segments, self.algorithm)


def predict_studies(
    studies: Sequence[Study], evaluator: Evaluator, writer: StudyWriter, overwrite: bool | str = False
) -> None:
    """Predict each study and write its mask; a study that fails leaves the others alone.

    A table goes to the screen. Failures go to ``failures.json`` in the writer's folder, a list of ``study``,
    ``problem`` and ``cure``; without failures an older one is removed.

    Args:
        studies: in the order of the items in the evaluator's data loader.
        evaluator: runs one item at a time; its output's ``pred`` is what is written.
        writer: a study whose files are there already is left out.
        overwrite: predict those too; "true" and "false" are understood.

    Raises:
        SystemExit: with status 1, at the end, where a study failed.
    """
    again = parse_bool("overwrite", overwrite)
    dataset = cast(DataLoader, evaluator.data_loader).dataset
    evaluator.logger.setLevel(logging.CRITICAL)  # ignite logs errors with their text, which names files
    evaluator.interrupt_resume_enabled = False  # else the run after a failed one ends before it begins
    rows, failures = [], []
    for number, study in enumerate(studies):
        start = time.monotonic()
        try:
            if study.error is not None:
                raise study.error
            if not again and all(path.is_file() for path in writer.paths(study)):
                rows.append((study.name, "already there"))
                continue
            evaluator.data_loader = DataLoader(Subset(dataset, [number]), batch_size=1)
            evaluator.run()
            writer(study, evaluator.state.output[0]["pred"])
            rows.append((study.name, f"predicted in {time.monotonic() - start:.1f} s"))
        except Exception as error:
            problem, cure = study.explain(error)
            rows.append((study.name, f"FAILED: {problem}. {cure}."))
            failures.append({"study": study.name, "problem": problem, "cure": cure})
        finally:
            evaluator.state.output = evaluator.state.batch = None  # one volume at a time in memory
        logger.info("%d of %d: %s %s", number + 1, len(studies), *rows[-1])
    _report(rows, failures, writer.output_dir)
    if failures:
        raise SystemExit(1)


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
