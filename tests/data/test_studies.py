"""Studies below a path: all are found, and none is named."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import dicom_cases as cases
import nibabel as nib
import numpy as np
import pytest
from dicom_cases import SLICES, uid, write_series
from platforms import POSIX
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage

from monai_unet.data.__main__ import main
from monai_unet.data.studies.find import find_studies
from monai_unet.data.studies.pseudonyms import Pseudonyms
from monai_unet.data.studies.study import Study, StudyReader
from monai_unet.errors import InputError


@pytest.fixture(autouse=True)
def _config(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.delenv("MONAI_UNET_PSEUDONYM_KEY", raising=False)


def series(
    folder: Path, name: str, slices: Any = range(SLICES), file: str = "IM{:04d}.dcm", **values: Any
) -> list[Path]:
    """A series with UIDs of its own."""

    def edit(dataset: Any, k: int) -> None:
        dataset.SeriesInstanceUID = uid(name)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid(f"{name} {k}")
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return write_series(folder, edit, slices=slices, name=file)


def nifti(path: Path, seed: int = 0, shape: tuple[int, ...] = (5, 4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.random.default_rng(seed).integers(0, 99, shape).astype(np.int16), np.diag([1, 2, 3, 1]))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    nib.save(image, path)
    return path


def companion(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seg = cases.file_dataset(SegmentationStorage, str(path))
    seg.Modality = "SEG"
    seg.save_as(path, enforce_file_format=True)


def places(root: Path, **options: Any) -> dict[str, int]:
    """Place below the root → number of files."""
    found = find_studies(root, **options)
    assert len({study.name for study in found}) == len(found)
    return {str(Path(study.place).relative_to(root)): len(study.files) for study in found}


def test_a_folder_of_studies(tmp_path: Path) -> None:
    root = tmp_path / "in"
    series(root / "P1" / "T1", "one")
    companion(root / "P1" / "SEG" / "seg.dcm")
    companion(root / "P1" / "T1" / "seg.dcm")
    series(root / "P2" / "deep" / "deeper", "two", file="IM{:d}")
    nifti(root / "c.nii.gz", 1)
    nifti(root / "P3" / "d.nii", 2)
    (root / "P3" / "notes.txt").touch()
    nifti(root / ".hidden.nii.gz", 3)
    (root / "P4" / "empty").mkdir(parents=True)
    (root / "P5").mkdir()
    (root / "P5" / "IM1.dcm").write_bytes(b"rubbish")
    companion(root / "only_companions" / "seg.dcm")
    nifti(root / "out" / "result.nii.gz", 4)
    with zipfile.ZipFile(root / "e.zip", "w") as archive:
        for path in series(tmp_path / "zipped", "zip"):
            archive.write(path, path.name)
    found = places(root, without=root / "out")
    assert found == {
        "P1/T1": SLICES + 1,
        "P2/deep/deeper": SLICES,
        "P3/d.nii": 1,
        "P4": 1,
        "P5": 1,
        "c.nii.gz": 1,
        "e.zip": 1,
    }
    outcomes = {}
    for study in find_studies(root, without=root / "out"):
        try:
            array, _ = StudyReader().get_data(study.files)
            outcomes[Path(study.place).name] = array.shape
        except InputError as error:
            outcomes[Path(study.place).name] = study.explain(error)[0]
    size = (cases.COLUMNS, cases.ROWS, SLICES)
    assert outcomes == {
        **dict.fromkeys(("T1", "deeper", "e.zip"), size),
        **dict.fromkeys(("c.nii.gz", "d.nii"), (5, 4, 3)),
        "P4": "no DICOM images (0 other files, 0 DICOM objects without images [])",
        "P5": "file 1 of 1: not a DICOM file (7 bytes, without the DICM mark)",
    }


def test_pseudonyms_follow_the_series_and_the_content(tmp_path: Path) -> None:
    series(tmp_path / "a" / "s", "one")
    nifti(tmp_path / "a" / "v.nii.gz")
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "renamed")
    names = [[study.name for study in find_studies(tmp_path / folder)] for folder in "ab"]
    assert names[0] == names[1] == sorted(names[0], key=names[0].index)
    assert names[0][0] == Pseudonyms()(uid("one"))
    shutil.copytree(tmp_path / "a", tmp_path / "a" / "t")  # copies: each is listed
    assert {study.name for study in find_studies(tmp_path / "a")} == {*names[0], *(f"{name}-2" for name in names[0])}
    table = Pseudonyms().table.read_text()
    assert f"{names[0][0]},{tmp_path / 'a' / 's'},{uid('one')}" in table


def test_equal_headers_of_different_voxels_have_different_pseudonyms(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.mhd").write_text("ObjectType = Image")
    (one,), (two,) = (find_studies(tmp_path / name) for name in "ab")
    assert one.name != two.name


def test_a_series_in_several_folders_is_one(tmp_path: Path) -> None:
    series(tmp_path / "s" / "part0", "one", slices=range(3))
    series(tmp_path / "s" / "part1", "one", slices=range(3, SLICES))
    (study,) = find_studies(tmp_path / "s")
    assert study.place == str(tmp_path / "s")
    array, _ = StudyReader().get_data(study.files)
    assert array.shape[2] == SLICES


def test_parts_of_a_series_with_images_in_common_are_one_with_duplicates(tmp_path: Path) -> None:
    """Each would be predicted as if it were the whole; also where one holds all that another does."""
    for layout in ([range(4), range(3, SLICES)], [range(4), range(SLICES)], [range(4), range(4), range(3, SLICES)]):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for n, slices in enumerate(layout):
            series(root / f"part{n}", "one", slices=slices)
        (study,) = find_studies(root)
        assert study.series == {uid("one"): list(study.files)}
        with pytest.raises(
            InputError, match=r"duplicate slices: .*/part0/(IM\d+.dcm) and .*/\1 are .* Keep one of them"
        ):
            StudyReader().get_data(study.files)


def test_a_copy_of_a_series_in_parts_is_a_copy(tmp_path: Path) -> None:
    """Of its slices: a dose screen is not one."""
    for n, slices in enumerate((range(3), range(3), range(3, SLICES), range(3, SLICES))):
        series(tmp_path / f"part{n}", "one", slices=slices)

    def screen(dataset: Any, k: int) -> None:
        dataset.SeriesInstanceUID, dataset.SOPClassUID = uid("one"), SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("screen")
        del dataset.ImagePositionPatient

    write_series(tmp_path / "part3", screen, slices=[0], name="screen.dcm")
    studies = find_studies(tmp_path)
    assert [len(study.files) for study in studies] == [SLICES, SLICES + 1]
    assert [StudyReader().get_data(study.files)[0].shape[2] for study in studies] == [SLICES, SLICES]


def test_two_series_in_a_folder_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    series(tmp_path / "s", "one", SeriesDescription="Geheim")
    series(tmp_path / "s", "two", file="b{:d}.dcm", slices=range(4))
    series(tmp_path / "t", "three")
    studies = find_studies(tmp_path)
    assert [study.error is None for study in studies] == [False, True]
    one, two = (Pseudonyms()(uid(name)) for name in ("one", "two"))
    problem, cure = studies[0].explain(studies[0].error)
    assert problem == f"2 series: {one} (6 files); {two} (4 files)"
    assert cure == f"Choose one with --series {one}, or by its description or number"
    for choice in (two, uid("two")):
        (study,) = find_studies(tmp_path, series=choice)
        assert (study.name, len(study.files), study.error) == (two, 4, None)
        assert StudyReader().get_data(study.files)[0].shape[2] == 4
    with pytest.raises(InputError, match="input: no such series. List them with: python -m monai_unet.data check PATH"):
        find_studies(tmp_path, series="1.2.3")


def test_a_series_is_chosen_in_every_folder_and_zip(tmp_path: Path) -> None:
    """Two patients, one in a zip: by description in any case, by number; a broken slice is not lost from sight."""
    for patient in ("a", "b"):
        for number, kind in enumerate(("T1 MPRAGE", "t2"), start=1):
            values = {"SeriesDescription": kind, "SeriesNumber": number}
            series(
                tmp_path / "in" / patient, patient + kind, file=f"{kind}{{:d}}.dcm", slices=range(2 + number), **values
            )
    shutil.make_archive(str(tmp_path / "in" / "b"), "zip", tmp_path / "in" / "b")
    shutil.rmtree(tmp_path / "in" / "b")
    for choice, slices in (("t1*", 3), ("T2", 4), (2, 4)):
        studies = find_studies(tmp_path / "in", series=choice)
        assert [study.error for study in studies] == [None, None]
        assert [StudyReader().get_data(study.files)[0].shape[2] for study in studies] == [slices, slices]
    assert all("4 files" in study.error.problem for study in find_studies(tmp_path / "in", series="t*"))
    with zipfile.ZipFile(tmp_path / "in" / "b.zip", "a") as archive:
        archive.writestr("t29.dcm", b"")
    study = find_studies(tmp_path / "in", series="t2")[1]
    with pytest.raises(InputError, match="empty file") as caught:
        StudyReader().get_data(study.files)
    assert study.explain(caught.value)[0] == "file 5 of 5: empty file"


@pytest.mark.parametrize("name", ["a.hdr", "a.img", "a.mgz", "a.tar.gz", "a.TGZ"])
def test_files_of_other_formats_are_listed(tmp_path: Path, name: str) -> None:
    nifti(tmp_path / "in" / "b.nii.gz")
    (tmp_path / "in" / name).write_bytes(b"content")
    (tmp_path / "in" / "a.img").write_bytes(b"content of a.hdr")
    found = [study for study in find_studies(tmp_path / "in") if name in study.place]
    assert found[0].explain(found[0].error)[0] == f"{name[1:].lower()} files are not read here"
    assert len(find_studies(tmp_path / "in")) == 2 + (name not in ("a.hdr", "a.img"))
    (alone,) = find_studies(tmp_path / "in" / name)
    assert alone.error is not None


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="input: no such file or folder. Check the path") as caught:
        find_studies(tmp_path / "Geheim")
    assert "Geheim" not in str(caught.value)


def test_the_results_folder_is_not_the_input(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="output_dir: the input's own folder: results would be taken for studies"):
        find_studies(tmp_path, without=tmp_path)


@POSIX
def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    nifti(tmp_path / "store" / "a.nii.gz")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "link").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "in")
    assert places(tmp_path / "in") == {"deep/link/a.nii.gz": 1}


def test_a_large_file_of_another_kind_is_not_read(tmp_path: Path) -> None:
    size = 1 << 27
    series(tmp_path / "study", "one")
    with (tmp_path / "study" / "film.mp4").open("wb") as film:
        film.truncate(size)
    with cases.memory_below(size / 2):
        assert places(tmp_path) == {"study": SLICES + 1}
        find_studies(tmp_path / "study" / "film.mp4")


def test_a_lack_of_memory_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path, "one")
    monkeypatch.setattr("pydicom.dcmread", cases.out_of_memory)
    with pytest.raises(MemoryError):
        find_studies(tmp_path)


def test_names_on_request(tmp_path: Path) -> None:
    nifti(tmp_path / "P1" / "brain.nii.gz")
    (study,) = find_studies(tmp_path, keep_names=True)
    assert study.name.startswith("P1_brain_")
    assert len(study.name) == len("P1_brain_") + 16
    (study,) = find_studies(tmp_path / "P1" / "brain.nii.gz", keep_names=True)
    assert study.name.startswith("brain_")


PLACE, FILES = "/data/Geheim", ("/data/Geheim/1.dcm", "/data/Geheim/2.dcm")
EXPLAINED = {
    f"between {FILES[0]} and {FILES[1]} frame 3": "between file 1 of 2 and file 2 of 2 frame 3",
    "PixelSpacing is (0.5, 1.25)": "PixelSpacing is (0.5, 1.25)",
    f"not readable (OSError: {PLACE} (x)\ny)": "not readable (OSError)",
    "its voxels should be in one file Ge heim.raw, which does not exist": (
        "its voxels should be in one file of its own, which does not exist"
    ),
    f"the slices differ in StudyInstanceUID: 1.Geheim (5), 1.3 (1); one of the fewest is {FILES[0]}": (
        "the slices differ in StudyInstanceUID; one of the fewest is file 1 of 2"
    ),
    "3 series: 1.2.826.0.1.99 (Geheim (6) x, 6 files); 1.2.3 (Geheim, 9 files)": "3 series",
    "3 series: 12ab (6 files); 34cd (9 files)": "3 series: 12ab (6 files); 34cd (9 files)",
    "no series 1.2.826.0.1.99": "no series (UID)",
    f"{PLACE} is empty": "the study is empty",
}


@pytest.mark.parametrize("problem", EXPLAINED)
def test_explanations_name_nothing(problem: str) -> None:
    study = Study("3f", PLACE, FILES)
    assert study.explain(InputError(PLACE, problem, "Cut")) == (EXPLAINED[problem], "Cut")
    assert study.explain(InputError(FILES[1], problem, "Cut"))[0] == f"file 2 of 2: {EXPLAINED[problem]}"


def test_explanations_of_wrapped_and_other_errors() -> None:
    study = Study("3f", PLACE, FILES)
    wrapped = RuntimeError("applying transform LoadImaged Geheim")
    wrapped.__cause__ = InputError(FILES[0], "9 bytes", "Cut")
    assert study.explain(wrapped) == ("file 1 of 2: 9 bytes", "Cut")
    assert study.explain(KeyError("Geheim"))[0] == "unexpected KeyError"
    wrapped.__cause__ = ImportError('NRRD and MetaImage need SimpleITK: pip install "monai_unet[volumes]"')
    assert study.explain(wrapped)[0] == 'NRRD and MetaImage need SimpleITK: pip install "monai_unet[volumes]"'


def test_explanations_name_all_on_request() -> None:
    study = Study("3f", "/data/Paula", FILES, keep_names=True)
    assert study.explain(InputError(FILES[1], "9 bytes", "Cut")) == (f"{FILES[1]}: 9 bytes", "Cut")
    assert study.explain(InputError("/data/Paula", "2 series: 1.2.3.4.5.6", "")) == ("2 series: 1.2.3.4.5.6", "")
    assert study.explain(KeyError("Paula"))[0] == "KeyError: 'Paula'"


def test_explanations_of_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        for path in series(tmp_path / "s", "one"):
            archive.write(path, f"Geheim Paula/{path.name}")
        archive.writestr("Geheim Paula/IM9999.dcm", b"")
    (study,) = find_studies(tmp_path / "e.zip")
    with pytest.raises(InputError, match="empty file") as caught:
        StudyReader().get_data(study.files)
    opened = []
    with monkeypatch.context() as patch:
        init = zipfile.ZipFile.__init__
        patch.setattr(zipfile.ZipFile, "__init__", lambda *args, **kw: opened.append(args) or init(*args, **kw))
        assert study.explain(caught.value)[0] == "file 7 of 7: empty file"
    assert len(opened) == 1, "whatever the number of its members"
    content = (tmp_path / "e.zip").read_bytes()
    (tmp_path / "e.zip").write_bytes(content.replace(b"PK\x01\x02", b"PK\x09\x02"))
    (study,) = find_studies(tmp_path / "e.zip")
    with pytest.raises(InputError) as caught:
        StudyReader().get_data(study.files)
    assert study.explain(caught.value)[0] == "not readable as DICOM (BadZipFile)"


def test_a_short_relative_path_spoils_no_explanation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "e", "one", slices=[0, 1, 3])
    monkeypatch.chdir(tmp_path)
    (study,) = find_studies("e")
    with pytest.raises(InputError, match="missing") as caught:
        StudyReader().get_data(study.files)
    assert study.explain(caught.value)[0].startswith("1 slice(s) missing: 5 mm between file 2 of 3 and file 3 of 3")


# -- python -m monai_unet.data check ---------------------------------------------------------------------------------


def test_check_lists_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "Geheim"
    series(root / "Geheim1", "one", PatientName="Geheim", StudyDescription="Geheim", file="Geheim{:d}.dcm")
    nifti(root / "Geheim.nii.gz")
    assert main(["check", str(root)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["study", "kind", "size", "voxel", "in", "mm", "axes", "image", "type", "problem"]
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:3]}
    assert rows[Pseudonyms()(uid("one"))] == "CT 20 x 16 x 6 0.7 x 0.8 x 2.5 LPS ORIGINAL/PRIMARY/AXIAL"
    assert "volume 5 x 4 x 3 1 x 2 x 3 RAS" in rows.values()
    assert lines[3].startswith("0 of 2 have a problem; which is which: ")
    assert "Geheim" not in out


def test_check_lists_problems_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "Geheim"
    series(root / "gap", "gap", slices=[0, 1, 3, 4], file="Geheim{:d}.dcm")
    series(root / "two", "one")
    series(root / "two", "two", file="b{:d}.dcm", slices=range(3))
    assert main(["check", str(root)]) == 1
    out = capsys.readouterr().out
    assert "1 slice(s) missing: 5 mm between file 2 of 4 and file 3 of 4, 2.5 mm expected. Fetch the missing" in out
    for name, size in (("one", 6), ("two", 3)):
        (line,) = [line for line in out.splitlines() if line.startswith(Pseudonyms()(uid(name)))]
        assert f"20 x 16 x {size}" in line
        assert "one of 2 series of " in line
        assert line.endswith("choose one with --series")
    assert "3 of 3 have a problem" in out
    assert "Geheim" not in out
    assert main(["check", str(root), "--keep-names"]) == 1
    assert "Geheim1.dcm" in capsys.readouterr().out


def test_check_shows_what_tells_series_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a series with a problem too: two echoes in one are why it does not read."""
    series(tmp_path, "one", SeriesDescription="Geheim", SeriesNumber=7, EchoTime=30.5, DiffusionBValue=1000)
    series(tmp_path, "one", file="b{:d}.dcm", SeriesDescription="Geheim", SeriesNumber=7, EchoTime=9, DiffusionBValue=0)
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    for column in ("number", "echo time", "b-value", "image type"):
        assert column in out
    assert "CT 7 30.5, 9.0 0.0, 1000.0 ORIGINAL/PRIMARY/AXIAL" in " ".join(out.split())
    assert "Geheim" not in out
    main(["check", str(tmp_path), "--keep-names"])
    assert "Geheim" in capsys.readouterr().out


def test_check_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "Geheim")]) == 1
    assert capsys.readouterr().err == "error: input: no such file or folder. Check the path.\n"


def test_check_of_real_series(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(cases.real("hippocampus_mr"))]) == 0
    out = capsys.readouterr().out
    for size in ("35 x 51 x 32", "36 x 48 x 35", "34 x 50 x 40"):
        assert f"MR    {size}  1 x 1 x 1    LPS" in out
    assert "HCrop" not in out
