"""From files to files through the bundle's inference: in place, in the format of the input, and without names."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dicom_cases as cases
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from bundle_driver import driver
from dicom_cases import COLUMNS, ROWS, SLICES, real, uid, world, write_series
from highdicom.sr import srread
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from pydicom.dataelem import RawDataElement
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage
from test_dicom_seg import ALGORITHM, SEGMENTS, assert_classes_in_place, classes, complaints
from test_studies import nifti, series
from torch import nn

from monai_unet.data.dicom.rtstruct import write_rtstruct
from monai_unet.data.dicom.segmentation import write_seg
from monai_unet.data.dicom.series import read_series
from monai_unet.data.studies.find import find_studies
from monai_unet.data.studies.predict import StudyWriter, predict_studies
from monai_unet.data.studies.pseudonyms import Pseudonyms
from monai_unet.data.studies.study import Study, StudyReader
from monai_unet.data.tables import read_table
from monai_unet.doubt import NO_FLAG
from monai_unet.errors import InputError
from monai_unet.networks import ValidUNet

pytestmark = [
    # from within torch and MONAI: TorchScript in ignite, eval() of configs, the optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_segmentation"
build, _, _ = driver(BUNDLE)


class Coded(nn.Module):
    """A stand-in for a network: whatever the normalisation, the rank of a phantom's voxel is its code again.

    (1, 1, *spatial) → logits (1, 3, *spatial) of the code's class.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = x.flatten().argsort().argsort().reshape(x.shape).numpy()
        return 100.0 * nn.functional.one_hot(torch.from_numpy(classes(codes)).long()[0, 0], 3).permute(3, 0, 1, 2)[None]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.delenv("MONAI_UNET_PSEUDONYM_KEY", raising=False)


def predict(root: Path, out: Path, status: int = 0, **override: Any) -> list[str]:
    """Run the bundle's inference with `Coded` as its network; names of the masks and reports in the output folder."""
    coded: dict[str, Any] = {
        "network_def": {"_target_": f"{__name__}.Coded"},
        "task": {},
        "inferer": {"_target_": "SimpleInferer"},
    }
    # clipping would give several voxels one rank
    coded["image_transforms#3"] = {"_target_": "Identityd", "keys": "image"}
    options = {**coded, "spacing": [0, 0, 0], **override}  # 0: unchanged
    workflow = build("inference", input=str(root), output_dir=str(out), device="cpu", **options)
    if status:
        with pytest.raises(SystemExit) as caught:
            workflow.run()
        assert caught.value.code == status
    else:
        workflow.run()
    return sorted(path.name for path in out.iterdir() if path.name != "summary.csv")


@pytest.mark.timeout(1200)  # 30 studies
def test_every_voxel_stays_in_place_in_all_orientations(tmp_path: Path) -> None:
    """24 axis-aligned orientations and an oblique one, anisotropic (0.7 × 0.8 × 2.5 or 0.6 mm), DICOM and NIfTI."""
    orientations = {f"{i:02d}": {"orientation": pair, "step": 2.5} for i, pair in enumerate(cases.ALIGNED)}
    orientations["oblique"] = {"orientation": cases.OBLIQUE, "step": 0.6}
    assert len(orientations) == 25
    nifti = list(orientations)[::6]  # the last is the oblique one
    codes = np.arange(3 * ROWS * COLUMNS).reshape(3, ROWS, COLUMNS)
    for name, geometry in orientations.items():
        root = tmp_path / "in" / name

        def edit(dataset: Any, k: int, name: str = name) -> None:
            dataset.SeriesInstanceUID = uid(name)

        write_series(root, edit, slices=[2, 0, 1], **geometry)
        if name not in nifti:
            continue
        corner, *steps = world(np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]), **geometry)
        affine = np.block([[(np.array(steps) - corner).T, corner[:, None]], [np.zeros(3), 1]])
        image = nib.Nifti1Image(codes.T.astype(np.int16), affine)
        image.set_sform(affine, 2)
        image.set_qform(affine, 2)
        nib.save(image, tmp_path / "in" / f"{name}.nii.gz")
    out = tmp_path / "out"
    assert len(predict(tmp_path / "in", out)) == len(orientations) + len(nifti)
    for name, geometry in orientations.items():
        dataset = pydicom.dcmread(out / f"{Pseudonyms()(uid(name))}_seg.dcm")
        assert_classes_in_place(dataset, slices=3, **geometry)
    table = dict(line.split(",")[1::-1] for line in Pseudonyms().table.read_text().splitlines())
    for name in nifti:
        source = tmp_path / "in" / f"{name}.nii.gz"
        before, after = nib.load(source), nib.load(out / f"{table[str(source)]}_seg.nii.gz")
        np.testing.assert_array_equal(after.affine, before.affine)
        np.testing.assert_array_equal(np.asanyarray(after.dataobj), classes(codes.T))


class Half(nn.Module):
    """Class 1 where the image is above 1000: (1, 1, *spatial) → logits (1, 3, *spatial), in mm from the border."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        distance = (x - 1000) / 40
        return torch.cat([-distance, distance, torch.full_like(distance, -100)], 1)


def test_another_spacing_comes_back_to_the_source_grid(tmp_path: Path) -> None:
    """An oblique series of 0.7 × 0.8 × 2.5 mm, seen at 1 mm; the border is an oblique plane through its centre."""
    geometry = {"orientation": cases.OBLIQUE}
    places = world(np.indices((SLICES, ROWS, COLUMNS)).reshape(3, -1).T, **geometry)
    distance = ((places - places.mean(0)) @ [0.6, 0.48, 0.64]).reshape(SLICES, ROWS, COLUMNS)

    def edit(dataset: Any, k: int) -> None:
        cases.pixels(dataset, np.round(1000 + 40 * distance[k]).astype(np.uint16))

    write_series(tmp_path / "in", edit, **geometry)
    unscaled = {"image_transforms#3": {"_target_": "CastToTyped", "keys": "image"}}
    half = {"_target_": f"{__name__}.Half"}
    (name,) = predict(tmp_path / "in", tmp_path / "out", network_def=half, spacing=[1, 1, 1], **unscaled)
    dataset = pydicom.dcmread(tmp_path / "out" / name)
    assert len(dataset.SegmentSequence) == 2
    found = np.zeros((SLICES, ROWS, COLUMNS), bool)
    for frame, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float) - cases.ORIGIN
        found[round(float(position @ np.cross(*cases.OBLIQUE)) / cases.STEP)] = frame
    clear = np.abs(distance) > 0.5
    np.testing.assert_array_equal(found[clear], distance[clear] > 0)


@pytest.mark.parametrize("direction", [(0.6, 0.48, 0.64), (0, 0.6, 0.8)])
@pytest.mark.parametrize(
    ("along", "tilt"),
    [([0, 2.5, 5, 7.5, 10, 12.5], 14.0), ([0, 2, 4, 6, 11, 16], 0.0), ([0, 2.1, 4.5, 6.4, 9.0, 11.2], -25.0)],
)
def test_a_tilted_or_uneven_series_comes_back_onto_its_slices(
    tmp_path: Path, along: list[float], tilt: float, direction: tuple[float, float, float]
) -> None:
    """The image is the distance from an oblique plane, in the patient; the mask of each slice is its side of it."""
    steps = np.array(along)[:, None] * [0, np.tan(np.radians(tilt)), 1]
    indices = np.indices((ROWS, COLUMNS)).reshape(2, -1)[::-1].T * cases.SPACING[::-1]
    places = cases.ORIGIN + steps[:, None] + np.c_[indices, np.zeros(len(indices))]
    distance = ((places - places.mean((0, 1))) @ direction).reshape(SLICES, ROWS, COLUMNS)

    def edit(dataset: Any, k: int) -> None:
        dataset.ImagePositionPatient = [float(f"{v:.6f}") for v in cases.ORIGIN + steps[k]]
        cases.pixels(dataset, np.round(1000 + 40 * distance[k]).astype(np.uint16))

    write_series(tmp_path / "in", edit)
    override = {
        "network_def": {"_target_": f"{__name__}.Half"},
        "image_transforms#3": {"_target_": "CastToTyped", "keys": "image"},
    }
    predict(tmp_path / "in", tmp_path / "refused", status=1, **override)
    assert "--resample_tilt true" in (tmp_path / "refused" / "failures.json").read_text()
    both = {"resample_tilt": "true", "report": "true"}
    assert predict(tmp_path / "in", tmp_path / "report", status=1, **both, **override) == ["failures.json"]
    (failure,) = json.loads((tmp_path / "report" / "failures.json").read_text())
    assert "so a report cannot count volumes in its SEG" in failure["problem"]
    (name,) = predict(tmp_path / "in", tmp_path / "out", resample_tilt="true", **override)
    dataset = pydicom.dcmread(tmp_path / "out" / name)
    assert complaints(tmp_path / "out" / name) == ""
    found = np.zeros((SLICES, ROWS, COLUMNS), bool)
    for frame, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float) - cases.ORIGIN
        k = int(np.abs(steps - position).sum(1).argmin())
        np.testing.assert_allclose(position, steps[k], atol=1e-3)
        found[k] = frame
    clear = np.abs(distance) > 1.5  # half a voxel of the grid and of the slice
    np.testing.assert_array_equal(found[clear], distance[clear] > 0)


def test_nine_of_ten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    for n in range(5):
        nifti(root / f"v{n}.nii.gz", seed=n)
    for n in range(5):
        series(root / f"s{n}", f"s{n}", slices=[0, 2, 3] if n == 3 else range(3))
    shutil.make_archive(str(root / "s4"), "zip", root / "s4")
    shutil.rmtree(root / "s4")
    found = predict(root, out, status=1)
    bad = Pseudonyms()(uid("s3"))
    assert len(found) == 10
    assert sum(name.endswith("_seg.nii.gz") for name in found) == 5
    assert sum(name.endswith("_seg.dcm") for name in found) == 4
    (failure,) = json.loads((out / "failures.json").read_text())
    assert failure["study"] == bad
    assert failure["problem"].startswith("1 slice(s) missing: 5 mm between file 1 of 3 and file 2 of 3")
    assert failure["cure"].startswith("Fetch the missing slices")
    lines = capsys.readouterr().out.splitlines()
    assert sum("predicted in" in line for line in lines) == 9
    (line,) = [line for line in lines if "FAILED" in line]
    assert line.startswith(f"{bad}  FAILED: 1 slice(s) missing")
    assert "9 of 10 studies have results" in lines[-2]
    assert lines[-1].startswith("doubt has no flag")

    # a second run leaves the nine alone; mended, the tenth is made, and the report goes
    times = {path: path.stat().st_mtime_ns for path in out.glob("*_seg*")}
    shutil.rmtree(root / "s3")
    series(root / "s3", "s3", slices=range(3))
    assert set(predict(root, out)) == {*found, f"{bad}_seg.dcm"} - {"failures.json"}
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert capsys.readouterr().out.count("already there") == 9
    predict(root, out, overwrite="true")
    assert all(path.stat().st_mtime_ns > time for path, time in times.items())


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_how_long_it_will_take(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of studies that are there already, as of others."""
    studies = [Study(f"s{n}", f"{n}.nii.gz", (f"{n}.nii.gz",)) for n in range(3)]
    for study in studies:
        (tmp_path / f"{study.name}_seg.nii.gz").touch()
    writer = StudyWriter(tmp_path, segments=[], algorithm={}, reader=StudyReader())
    data = DataLoader(Dataset([{"image": study.files} for study in studies]))
    screen = io.StringIO()
    screen.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    predict_studies(studies, SupervisedEvaluator("cpu", data, network=None), writer)
    assert bool(re.search(r"predicting: .* 3/3 \[\d\d:\d\d<00:00", screen.getvalue())) == terminal
    assert terminal or screen.getvalue() == ""


def test_volumes_of_the_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Voxels of 1 × 2 × 3 mm; a study that is predicted later has a row, too, and a corrected mask keeps its own."""
    series(tmp_path / "in" / "one", "one", slices=range(3))
    nifti(tmp_path / "in" / "a.nii.gz", shape=(9, 8, 7))
    out, summary = tmp_path / "out", tmp_path / "out" / "summary.csv"
    (name,) = {*predict(tmp_path / "in" / "a.nii.gz", out)}
    counts = np.bincount(np.asanyarray(nib.load(out / name).dataobj).ravel(), minlength=3)
    anterior, posterior = (f"{count * 6 / 1000:.8g}" for count in counts[1:])
    assert posterior != "0"
    pseudonym = name.partition("_")[0]
    head, row = summary.read_text().splitlines()
    assert head == "study,Anterior hippocampus_ml,Posterior hippocampus_ml,doubt,look"
    *volumes, doubtful, look = row.split(",")
    assert volumes == [pseudonym, anterior, posterior]
    assert (float(doubtful), look) == (pytest.approx(0, abs=1e-6), "")
    said = capsys.readouterr().out
    assert f", Anterior hippocampus {float(anterior):.4g} ml, Posterior" in said
    assert said.count(", doubt 0.00\n") == said.count(NO_FLAG) == 1
    predict(tmp_path / "in", out)
    assert summary.read_text().splitlines()[:2] == [head, row]
    (other,) = summary.read_text().splitlines()[2:]
    summary.write_text(summary.read_text().replace(other, f"{Pseudonyms()(uid('one'))},by,hand"))
    predict(tmp_path / "in", out, rtstruct="true")
    assert summary.read_text().endswith("by,hand\n"), "its SEG may have been corrected"
    summary.write_text("a;b")
    with pytest.raises(InputError, match="summary.csv: a table without a column 'study'; its first line is 'a;b'"):
        without_reading(tmp_path / "in", out)


def test_rtstruct_on_request(tmp_path: Path) -> None:
    series(tmp_path / "in", "one", slices=range(3))
    name = Pseudonyms()(uid("one"))
    assert predict(tmp_path / "in", tmp_path / "out") == [f"{name}_seg.dcm"]
    assert predict(tmp_path / "in", tmp_path / "out", rtstruct="true") == [f"{name}_rtstruct.dcm", f"{name}_seg.dcm"]
    for kind in ("seg", "rtstruct"):
        assert complaints(tmp_path / "out" / f"{name}_{kind}.dcm") == ""


def test_report_on_request(tmp_path: Path) -> None:
    """It has the volumes of the SEG as it is on disk, and names it as their source."""
    series(tmp_path / "in", "one", slices=range(3))
    name, out = Pseudonyms()(uid("one")), tmp_path / "out"
    predict(tmp_path / "in", out)
    (row,) = read_table(out / "summary.csv", "study")
    assert predict(tmp_path / "in", out, report="true") == [f"{name}_report.dcm", f"{name}_seg.dcm"]
    path = out / f"{name}_report.dcm"
    assert complaints(path) == ""
    report, seg = srread(path), pydicom.dcmread(out / f"{name}_seg.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    for group, segment in zip(groups, seg.SegmentSequence, strict=True):
        (volume,) = group.get_measurements(codes.SCT.Volume)
        assert (volume.unit, volume.value) == (codes.UCUM.CubicCentimeter, float(row[f"{segment.SegmentLabel}_ml"]))
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert group.referenced_segment.referenced_segment_numbers == [segment.SegmentNumber]
    assert (report.PatientName, report.StudyInstanceUID) == (seg.PatientName, seg.StudyInstanceUID)
    seg.PixelData = bytes(len(seg.PixelData))  # somebody has found nothing there
    seg.save_as(out / f"{name}_seg.dcm")
    path.unlink()
    predict(tmp_path / "in", out, report="true")
    groups = srread(path).content.get_volumetric_roi_measurement_groups()
    assert [group.get_measurements(codes.SCT.Volume)[0].value for group in groups] == [0, 0]
    (out / f"{name}_seg.dcm").write_text("corrected")
    path.unlink()
    with pytest.raises(SystemExit):
        predict(tmp_path / "in", out, report="true")
    (failure,) = json.loads((out / "failures.json").read_text())
    assert "not a DICOM SEG, which a report refers to" in failure["problem"]
    assert failure["cure"] == "Predict the study again with --overwrite true"


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    """A corrected SEG is somebody's day."""
    series(tmp_path / "in", "one", slices=range(3))
    name, out = Pseudonyms()(uid("one")), tmp_path / "out"
    out.mkdir()
    (out / f"{name}_seg.dcm").write_text("corrected")
    assert predict(tmp_path / "in", out, rtstruct="true") == [f"{name}_rtstruct.dcm", f"{name}_seg.dcm"]
    assert (out / f"{name}_seg.dcm").read_text() == "corrected"
    predict(tmp_path / "in", out, rtstruct="true", overwrite="true")
    assert pydicom.dcmread(out / f"{name}_seg.dcm").Modality == "SEG"


LATIN = b"M\xfcller^J\xf6rg"
CHARACTER_SETS: dict[bytes | None, tuple[bytes, str]] = {
    None: (b"Muller^A", "Muller^A"),
    **dict.fromkeys(
        (b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO 2022 IR 100", b"ISO IR 100", b"ISO-8859-1", b"ISO_IR 100\\ISO_IR 100"),
        (LATIN, "Müller^Jörg"),
    ),
    b"ISO_IR 101": (b"Luk\xe1\xb9^A", "Lukáš^A"),
    b"ISO_IR 109": (b"\xa1amrun^A", "Ħamrun^A"),
    b"ISO_IR 110": (b"J\xe0nis^A", "Jānis^A"),
    b"ISO_IR 126": (b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
    b"ISO_IR 127": (b"\xe2\xc8\xc7\xe6\xea", "قباني"),
    b"ISO_IR 138": (b"\xf9\xf8\xe5\xef", "שרון"),
    b"ISO_IR 144": (b"\xbb\xee\xda^\xb0", "Люк^А"),
    b"ISO_IR 148": (b"\xd0\xfdr\xfe^A", "Ğırş^A"),
    b"ISO_IR 166": (b"\xa1\xa2", "กข"),
    b"ISO_IR 13": (b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    b"ISO_IR 192": ("Wang^小東".encode(), "Wang^小東"),
    b"GB18030": ("Wang^小东".encode("gb18030"), "Wang^小东"),
    b"GBK": ("Wang^小东".encode("gbk"), "Wang^小东"),
    b"ISO 2022 IR 6\\ISO 2022 IR 87": (b"A=\x1b$B;3ED\x1b(B", "A=山田"),
    b"\\ISO 2022 IR 87\\ISO 2022 IR 159": (b"A=\x1b$B;3ED\x1b(B", "A=山田"),
    b"\\ISO 2022 IR 149": (b"A=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce", "A=洪^吉"),
    b"\\ISO 2022 IR 58": (b"A=\x1b$)A\xd0\xa1", "A=小"),
}


@pytest.mark.parametrize("code", CHARACTER_SETS)
def test_names_in_any_character_set_reach_the_results(tmp_path: Path, code: bytes | None) -> None:
    written, name = CHARACTER_SETS[code]

    def raw(tag: int, kind: str, value: bytes) -> RawDataElement:
        value += b" " * (len(value) % 2)
        return RawDataElement(pydicom.tag.Tag(tag), kind, len(value), value, 0, False, True)

    def edit(dataset: Any, k: int) -> None:
        dataset._dict[pydicom.tag.Tag(0x00100010)] = raw(0x00100010, "PN", written)
        if code is not None:
            dataset._dict[pydicom.tag.Tag(0x00080005)] = raw(0x00080005, "CS", code)

    write_series(tmp_path / "in", edit, slices=range(2))
    found = read_series([tmp_path / "in"])
    mask = np.ones(found.shape, np.uint8)
    for kind, write in (("SEG", write_seg), ("RTSTRUCT", write_rtstruct)):
        write(tmp_path / kind, mask, found, SEGMENTS, ALGORITHM)
        dataset = pydicom.dcmread(tmp_path / kind)
        assert str(dataset.PatientName).rstrip("= ") == name
        assert complaints(tmp_path / kind) == ""


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_what_only_a_writer_needs_is_found_before_the_prediction(
    tmp_path: Path, keyword: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Coded, "forward", lambda self, x: pytest.fail("predicted"))
    series(tmp_path / "in", "one", slices=range(3), **{keyword: ""})
    predict(tmp_path / "in", tmp_path / "out", status=1)
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["problem"] == f"file 1 of 3: no {keyword}: a result could not refer to it"


def test_a_slice_is_opened_three_times_from_finding_to_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To find its series, to read its header, to decode its pixels; a zip is opened as often, however many it holds."""
    series(tmp_path / "in" / "one", "one", slices=range(3))
    series(tmp_path / "two", "two", slices=range(4))
    shutil.make_archive(str(tmp_path / "in" / "two"), "zip", tmp_path / "two")
    opened: Counter[str] = Counter()
    real = open

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened[str(file)] += 1
        return real(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", counting)
    monkeypatch.setattr("io.open", counting)
    assert len(predict(tmp_path / "in", tmp_path / "out", rtstruct="true")) == 4
    counts = {Path(file).name: n for file, n in opened.items() if file.startswith(str(tmp_path / "in"))}
    assert set(counts) == {"IM0000.dcm", "IM0001.dcm", "IM0002.dcm", "two.zip"}
    assert max(counts.values()) <= 3, counts


def test_a_lack_of_memory_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "in", "one", slices=range(3))
    monkeypatch.setattr("highdicom.Image.get_frames", cases.out_of_memory)
    predict(tmp_path / "in", tmp_path / "out", status=1)
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["problem"] == "out of memory"


def test_failures_after_reading_are_reported_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nifti(tmp_path / "in" / "a.nii.gz", seed=1)
    nifti(tmp_path / "in" / "b.nii.gz", seed=2)
    write = StudyWriter.__call__

    def fails(self: StudyWriter, study: Any, pred: Any, paths: Any) -> Any:
        if study.place.endswith("a.nii.gz"):
            raise OSError(28, "No space left on device", "/Geheim")
        return write(self, study, pred, paths)

    monkeypatch.setattr(StudyWriter, "__call__", fails)
    assert len(predict(tmp_path / "in", tmp_path / "out", status=1)) == 2
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["problem"] == "unexpected OSError"
    assert "--keep_names true" in failure["cure"]


def without_reading(root: Path, out: Path, network: nn.Module | None = None, **options: Any) -> None:
    """Predict studies with an evaluator that has no data."""
    studies = find_studies(root)
    evaluator = SupervisedEvaluator("cpu", DataLoader(Dataset([{"image": s.files} for s in studies])), network)
    predict_studies(studies, evaluator, StudyWriter(out, SEGMENTS, ALGORITHM, StudyReader()), **options)


def test_slices_that_came_after_the_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study fails, others do not; where nothing came, it is skipped, with a dose screen among its slices, too."""
    root, out = tmp_path / "in", tmp_path / "out"
    series(root / "a", "a", slices=range(4))
    series(root / "b", "b")

    def screen(dataset: Any, k: int) -> None:
        dataset.SeriesInstanceUID, dataset.SOPClassUID = uid("b"), SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("screen")
        del dataset.ImagePositionPatient

    write_series(root / "b", screen, slices=[0], name="screen.dcm")
    for name, study in (("a", root / "a"), ("b", root / "b")):
        found = read_series([study]).deidentified()  # UIDs stay
        mask = np.zeros(found.shape, np.uint8)
        mask[0, 0, 0] = 1  # frames of the other slices are left out
        write_seg(out / f"{Pseudonyms()(uid(name))}_seg.dcm", mask, found, SEGMENTS, ALGORITHM)
    monkeypatch.setattr(SupervisedEvaluator, "run", lambda self: pytest.fail("predicted"))
    without_reading(root, out)
    series(root / "a", "a", slices=range(4, SLICES))
    with pytest.raises(SystemExit):
        without_reading(root, out)
    (failure,) = json.loads((out / "failures.json").read_text())
    name = Pseudonyms()(uid("a"))
    assert failure["study"] == name
    assert failure["problem"] == f"2 of its 6 images are not in its result {name}_seg.dcm; they may be newer"
    assert failure["cure"].startswith("Move its results away and predict it again, or replace the results of all")
    seg = pydicom.dcmread(out / f"{name}_seg.dcm")
    seg.Manufacturer = "an editor"  # which refers to the slices with a segment only
    seg.save_as(out / f"{name}_seg.dcm")
    without_reading(root, out)
    assert not (out / "failures.json").exists()


def test_a_series_of_another_modality_fails_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    series(tmp_path / "in", "one", slices=range(3))
    monkeypatch.setattr(SupervisedEvaluator, "run", lambda self: pytest.fail("it was read"))
    with pytest.raises(SystemExit):
        without_reading(tmp_path / "in", tmp_path / "out", modality="MR")
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["problem"] == "its modality is CT, and the network was trained on MR"
    assert failure["cure"].startswith("Choose a series of MR, or name a checkpoint that was trained on such images")


@pytest.mark.parametrize("modality", [None, "CT"])
def test_its_own_modality_is_read(modality: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "in", "one", slices=range(3))
    nifti(tmp_path / "in" / "a.nii.gz", seed=1)  # has no modality
    read = []
    monkeypatch.setattr(SupervisedEvaluator, "run", lambda self: read.append(self))  # without output
    with pytest.raises(SystemExit):
        without_reading(tmp_path / "in", tmp_path / "out", ValidUNet(3, 1, 3, (2, 3)), modality=modality)
    assert len(read) == 2


def test_segments_must_be_the_networks_classes_where_dicom_is_written(tmp_path: Path) -> None:
    series(tmp_path / "dicom", "one", slices=range(3))
    problem = "segments: the bundle has 2, and the network 2 classes with the background. Name a checkpoint"
    with pytest.raises(InputError, match=problem):
        without_reading(tmp_path / "dicom", tmp_path / "out", ValidUNet(3, 1, 2, (2, 3)))


def test_a_mask_that_was_not_brought_back_is_refused(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "a.nii.gz", shape=(4, 4, 4))
    postprocessing = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    override = {"postprocessing": postprocessing, "keep_names": True, "spacing": [1, 1, 1]}
    assert predict(tmp_path / "in", tmp_path / "out", status=1, **override) == ["failures.json"]
    assert "the mask's affine is not its source's: apply Invertd" in (tmp_path / "out" / "failures.json").read_text()


@pytest.mark.parametrize("name", ["overwrite", "rtstruct", "report", "keep_names", "deidentify"])
def test_a_switch_is_true_or_false(tmp_path: Path, name: str) -> None:
    nifti(tmp_path / "in" / "a.nii.gz")
    with pytest.raises((ValueError, RuntimeError)) as caught:
        predict(tmp_path / "in", tmp_path / "out", **{name: "yes"})
    found: BaseException | None = caught.value
    while found.__cause__ is not None:
        found = found.__cause__
    assert str(found) == f"{name} is 'yes'; it must be true or false"


MARK = "Geheim"


def test_deidentified_results_keep_no_word_of_patient_or_study(tmp_path: Path) -> None:
    text = (
        "PatientName",
        "PatientID",
        "StudyDescription",
        "AccessionNumber",
        "InstitutionName",
        "StationName",
        "StudyID",
    )
    more = (
        "ReferringPhysicianName",
        "PhysiciansOfRecord",
        "OtherPatientNames",
        "PatientComments",
        "DeviceSerialNumber",
    )
    private = {**dict.fromkeys(text + more, MARK), "StudyDate": "19991231", "PatientBirthDate": "19991230"}
    series(tmp_path / "in", "one", slices=range(3), **private, PatientSex="F", PatientAge="042Y")
    predict(tmp_path / "in", tmp_path / "out", rtstruct="true", report="true", deidentify="true")
    for path in (tmp_path / "out").glob("*.dcm"):
        content, dataset = path.read_bytes(), pydicom.dcmread(path)
        assert not any(secret in content for secret in (MARK.encode(), b"19991231", b"19991230", b"042Y"))
        assert (dataset.StudyInstanceUID, dataset.PatientIdentityRemoved) == (uid("study"), "YES")
        assert complaints(path) == ""


def test_no_name_leaves_the_input(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / MARK, tmp_path / "out"
    private = {
        "PatientName": MARK,
        "PatientID": MARK,
        "StudyDescription": MARK,
        "SeriesDescription": MARK,
        "AccessionNumber": MARK,
        "StudyDate": "19991231",
        "InstitutionName": MARK,
    }
    series(root / f"{MARK}1", "good", slices=range(3), file=f"{MARK}{{:d}}.dcm", **private)
    series(root / f"{MARK}2", "gap", slices=[0, 2, 3], file=f"{MARK}{{:d}}.dcm", **private)
    series(root / f"{MARK}3", "one", slices=range(2), file=f"{MARK}a{{:d}}.dcm", **private)
    series(root / f"{MARK}3", "two", slices=range(2), file=f"{MARK}b{{:d}}.dcm", **private)
    cut = series(root / f"{MARK}4", "cut", slices=range(3), file=f"{MARK}{{:d}}.dcm", **private)[1]
    cut.write_bytes(cut.read_bytes()[:-100])
    nifti(root / f"{MARK}5" / f"{MARK}.nii.gz", seed=1)
    nifti(root / f"{MARK}6.nii.gz", seed=2, shape=(3, 3, 3, 2))
    (root / f"{MARK}7.nii.gz").write_bytes(b"\x1f\x8bGeheim")
    (root / f"{MARK}8.nrrd").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nspace: left-posterior-superior\n"
        f"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\ndata file: {MARK}.raw\n\n"
    )
    with caplog.at_level(logging.DEBUG):
        found = predict(root, out, status=1)
    assert len([name for name in found if "_seg" in name]) == 2
    assert len(json.loads((out / "failures.json").read_text())) == 6
    for path in out.rglob("*"):
        assert MARK not in path.name
        if path.suffix != ".dcm":
            assert MARK.encode() not in path.read_bytes()
    seg = next(out.glob("*_seg.dcm"))
    assert pydicom.dcmread(seg).PatientName == MARK, "the SEG keeps the patient module"
    printed = caplog.text + "".join(capfd.readouterr())
    assert "slice(s) missing" in printed
    for secret in (MARK, "19991231", uid("good"), uid("gap"), uid("one"), uid("study")):
        assert secret not in printed
        assert secret not in (out / "failures.json").read_text()
    assert MARK in Pseudonyms().table.read_text(), "the user's own table leads back"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_command_ends_with_status_1_and_prints_no_path(tmp_path: Path) -> None:
    """MONAI itself prints the arguments, but not the content of a file that an argument names."""
    nifti(tmp_path / MARK / f"{MARK}1.nii.gz")
    (tmp_path / MARK / f"{MARK}2.nii.gz").write_bytes(b"cut")
    (tmp_path / "case.yaml").write_text(f"input: {tmp_path / MARK}")
    network = ValidUNet(3, 1, 3, features=(2, 3))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    arguments = {
        "config_file": BUNDLE / "configs" / "inference.yaml",
        "bundle_root": BUNDLE,
        "input": f"%{tmp_path / 'case.yaml'}::input",
        "output_dir": tmp_path / "out",
        "ckpt_path": tmp_path / "model.pt",
        "device": "cpu",
    }
    command = [sys.executable, "-m", "monai.bundle", "run", *(f"--{k}={v}" for k, v in arguments.items())]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "1 of 2 studies have results" in result.stdout
    assert MARK not in result.stdout + result.stderr
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".dcm", ".json", ".csv"}


def test_names_on_request(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "Paula" / "brain.nii.gz")
    (name,) = predict(tmp_path / "in", tmp_path / "out", keep_names="true")
    assert name.startswith("Paula_brain_")
    assert name.endswith("_seg.nii.gz")


def test_every_study_has_its_item_and_is_predicted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items are taken from the evaluator's data set by number: in another order, results would get wrong names."""
    passes = []
    forward = Coded.forward
    monkeypatch.setattr(Coded, "forward", lambda self, x: passes.append(x.shape) or forward(self, x))
    values = {}
    for n in range(3):
        source = nifti(tmp_path / "in" / f"v{n}.nii.gz", seed=n, shape=(5, 4, 3 + n))
        values[nib.load(source).shape] = source
    found = predict(tmp_path / "in", tmp_path / "out")
    assert {nib.load(tmp_path / "out" / name).shape for name in found} == set(values)
    assert len(passes) == 3


# -- real series -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_odd_files(tmp_path: Path) -> None:
    """Every file gives a SEG without errors, or a failure with its reason."""
    root = tmp_path / "in"
    for k, path in enumerate(sorted(real("odd/pydicom").iterdir())):
        if path.is_file():
            (root / f"{k:02d}").mkdir(parents=True)
            shutil.copy(path, root / f"{k:02d}")
    for name in ("gantrytilting/001", "sliceincrement/001", "sliceincrement/002", "siemens_multiframe/anatomical/001"):
        shutil.copytree(real("odd/dicom2nifti") / name, root / name.replace("/", "_"))
    for name in ("23x38x3/image", "24x38x3/multiframe"):
        shutil.copytree(real("odd/dcmqi") / name, root / name.replace("/", "_"))
    found = predict(root, tmp_path / "out", status=1)
    results = [tmp_path / "out" / name for name in found if name.endswith("_seg.dcm")]
    assert len(results) >= 10
    for path in results:
        assert complaints(path) == "", path
    problems = " | ".join(f["problem"] for f in json.loads((tmp_path / "out" / "failures.json").read_text()))
    assert "unexpected" not in problems
    for words in ("gantry tilt", "slice(s) missing", "big-endian", "bytes of pixels where the header says"):
        assert words in problems
