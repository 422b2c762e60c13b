"""Labels of a client, on the grid that MONAI Label hands out, as DICOM SEG of the series."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from lib.segmentations import on_grid, seg_writer

from monai_unet.datasets.dicom_series import dicom_series
from monai_unet.networks import ValidUNet

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

METADATA = json.loads(
    (Path(__file__).parents[2] / "bundles/hippocampus_segmentation/configs/metadata.json").read_text()
)
NAMES = ("Anterior hippocampus", "Posterior hippocampus")


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Oblique, anisotropic, nowhere symmetric."""
    turn = np.array([[0.98, 0.2, 0], [-0.2, 0.98, 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn / np.linalg.norm(turn, axis=0) * [0.9, 1.1, 2.0]
    affine[:3, 3] = [-20, 13, 5]
    image = np.arange(9 * 7 * 5).reshape(9, 7, 5).astype(np.int16)
    folder = tmp_path / "series"
    folder.mkdir()
    for number, data in enumerate(dicom_series(image, affine, "phantom")):
        (folder / f"{number}.dcm").write_bytes(data)
    return folder


def labels_as_handed_out(series: Path, path: Path, label: dict[tuple[int, int, int], int]) -> Path:
    """A label on the grid of the NIfTI that MONAI Label makes of the series (dicom_to_nifti, by SimpleITK)."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    image = reader.Execute()
    mask = SimpleITK.Image(image.GetSize(), SimpleITK.sitkUInt8)
    mask.CopyInformation(image)
    for voxel, value in label.items():
        mask[voxel] = value
    SimpleITK.WriteImage(mask, str(path))
    return path


def found(seg: pydicom.Dataset, series: Path) -> dict[str, set[tuple[float, ...]]]:
    """Per segment, the places in mm of its voxels, from the headers of the slices that its frames refer to."""
    slices = {str(d.SOPInstanceUID): d for d in map(pydicom.dcmread, series.glob("*.dcm"))}
    places: dict[str, set[tuple[float, ...]]] = {str(segment.SegmentLabel): set() for segment in seg.SegmentSequence}
    names = list(places)
    planes = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for plane, frame in zip(planes, seg.PerFrameFunctionalGroupsSequence, strict=True):
        name = names[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
        source = slices[str(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)]
        along, down = np.reshape([float(v) for v in source.ImageOrientationPatient], (2, 3))
        for row, column in np.argwhere(plane):
            place = np.array(source.ImagePositionPatient, float)
            place += column * float(source.PixelSpacing[1]) * along + row * float(source.PixelSpacing[0]) * down
            places[name].add(tuple(np.round(place, 2)))
    return places


@pytest.mark.parametrize(
    "label",
    [{(1, 2, 0): 1, (8, 6, 4): 2, (8, 5, 4): 2}, {(3, 1, 2): 2}, {}],
    ids=["both", "posterior alone", "empty"],
)
def test_every_voxel_is_where_the_client_painted_it_under_its_own_name(label, series, tmp_path):
    file = labels_as_handed_out(series, tmp_path / "label.nii.gz", label)
    torch.save(ValidUNet(3, 1, 3, (2, 3)).state_dict(), tmp_path / "model.pt")
    write = seg_writer(METADATA, tmp_path / "model.pt")
    seg = pydicom.dcmread(write(str(series), str(file), [{"name": "anterior"}], use_itk=True))
    image = SimpleITK.ReadImage(str(file))
    expected = {
        name: {
            tuple(np.round(image.TransformIndexToPhysicalPoint(voxel), 2)) for voxel, v in label.items() if v == value
        }
        for value, name in enumerate(NAMES, start=1)
    }
    assert found(seg, series) == expected
    source = pydicom.dcmread(next(series.glob("*.dcm")))
    assert seg.StudyInstanceUID == source.StudyInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID


def test_weights_of_other_classes_name_their_own_segments(series, tmp_path):
    file = labels_as_handed_out(series, tmp_path / "label.nii.gz", {(1, 2, 0): 1})
    task = {"class_names": ["background", "liver", "tumour"]}
    torch.save({"model": ValidUNet(3, 1, 3, (2, 3)).state_dict(), "task": task}, tmp_path / "model.pt")
    seg = pydicom.dcmread(seg_writer(METADATA, tmp_path / "model.pt")(str(series), str(file)))
    assert list(found(seg, series)) == ["liver", "tumour"]


def test_a_label_of_another_grid_is_refused(tmp_path):
    file = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), file)
    assert on_grid(str(file), np.eye(4), (4, 5, 6)).shape == (4, 5, 6)
    moved = np.eye(4)
    moved[0, 3] = 0.5
    for affine, shape in ((moved, (4, 5, 6)), (np.eye(4), (4, 5, 7)), (np.diag([1, 1, 2, 1]), (4, 5, 6))):
        with pytest.raises(ValueError, match=r"the label has \(4, 5, 6\) voxels on a grid that is not the series'"):
            on_grid(str(file), affine, shape)
