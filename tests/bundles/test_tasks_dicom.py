"""A bundle that was planned from NIfTI files predicts DICOM studies: a SEG with the names and codes of its classes."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_driver import driver
from volume_tasks import ORGANS, organs_ct

from monai_unet.bundles import decide
from monai_unet.bundles.new import new_bundle
from monai_unet.datasets.dicom_series import dicom_series
from monai_unet.networks import ValidUNet

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    # warnings of torch and MONAI: TorchScript inside ignite, eval() of configs, merged configs, optional nvImageCodec
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def write_ct(volume: nib.Nifti1Image, folder: Path, modality: str = "CT") -> Path:
    """An axial series, a file per slice, as a scanner stores it: patient coordinates, an offset of -1024 HU."""
    folder.mkdir(parents=True)
    axial = nib.as_closest_canonical(volume).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    stored = (np.asarray(axial.dataobj) + 1024).clip(0, 4095).astype(np.uint16)
    for number, content in enumerate(dicom_series(stored, axial.affine, "phantom")):
        dataset = pydicom.dcmread(io.BytesIO(content))
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        dataset.Modality, dataset.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
        dataset.save_as(folder / f"{number}.dcm")
    return folder


def save_thresholds(path: Path, values: dict[str, object], names: list[str], thresholds: list[float]) -> None:
    """Weights by which a voxel's class is the number of thresholds, in HU, that it is above."""
    network = ValidUNet(3, 1, len(names), (2, 3), norm=None, kernel_size=values["kernel_size"][:2], strides=[[2, 2, 1]])
    state = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    for name in ("encoder.0.conv1", "encoder.0.conv2", "decoder.0.conv1", "decoder.0.conv2"):
        state[f"{name}.weight"][0, 2 if name == "decoder.0.conv1" else 0, 1, 1, 0] = 1.0
    state["encoder.0.conv1.bias"][0] = 10  # ReLU would cut what is below the mean
    marks = 10 + (np.array(thresholds) - values["mean"]) / values["std"]
    for number in range(1, len(names)):  # the lines cross where a class takes over from the one before it
        state["head.weight"][number, 0], state["head.bias"][number] = number, -float(marks[:number].sum())
    seen = {name: values[name] for name in ("mean", "std", "window")}
    task = {"kind": "classes", "class_names": names, "modality": "CT", **seen}
    torch.save({"model": state, "task": task}, path)


def segments(path: Path, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The masks of a SEG of an axial series, by label, with the axes of a volume that is stored as RAS."""
    seg = pydicom.dcmread(path)
    names = {int(segment.SegmentNumber): segment.SegmentLabel for segment in seg.SegmentSequence}
    masks = {name: np.zeros(shape, bool) for name in names.values()}
    lowest = min(
        float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in seg.PerFrameFunctionalGroupsSequence
    )
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        height = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        masks[names[number]][..., round((height - lowest) / 5)] = frame.T[::-1, ::-1] > 0
    return masks


def test_dicom_of_ct_becomes_a_seg_with_the_names_and_codes_of_the_organs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decide, "measure_cost", lambda *_: decide.Cost(0.5, 0.1, 1, 2**30, "cpu"))
    monkeypatch.setattr(decide, "step_seconds", lambda *_: (0.5, 2**30))
    data = organs_ct(tmp_path / "data", cases=4)
    bundle, plan = new_bundle("organs", data, tmp_path)
    (bundle / "models").mkdir()
    planned = {name: setting.value for name, setting in plan.settings.items()}
    save_thresholds(bundle / "models" / "model.pt", planned, list(plan.class_names), [-40.5, 60.5, 150.5, 250.5, 310.5])
    volume = nib.load(data / "imagesTs" / "case-3_0000.nii.gz")
    hounsfield = np.asarray(nib.as_closest_canonical(volume).dataobj)
    expected = np.digitize(hounsfield, [-40.5, 60.5, 150.5, 250.5, 310.5], right=True)
    run = driver(bundle)[1]

    given = {"device": "cpu", "keep_names": True}
    run("inference", **given, input=str(data / "imagesTs" / "case-3_0000.nii.gz"), output_dir=str(tmp_path / "nifti"))
    (mask,) = (tmp_path / "nifti").glob("*_seg*")
    assert np.array_equal(np.asarray(nib.as_closest_canonical(nib.load(mask)).dataobj), expected)

    series = write_ct(volume, tmp_path / "study")
    run("inference", **given, input=str(series), output_dir=str(tmp_path / "dicom"))
    (path,) = (tmp_path / "dicom").glob("*_seg.dcm")
    found = segments(path, hounsfield.shape)
    assert list(found) == list(ORGANS)
    for number, name in enumerate(ORGANS, start=1):
        assert np.array_equal(found[name], expected == number), name
    described = pydicom.dcmread(path).SegmentSequence
    assert [segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for segment in described] == [
        *("Liver", "Spleen", "Kidney", "Kidney", "Gallbladder")
    ]

    write_ct(volume, tmp_path / "mr", "MR")
    with pytest.raises(SystemExit):
        run("inference", **given, input=str(tmp_path / "mr"), output_dir=str(tmp_path / "mr out"))
    assert "its modality is MR, and the network was trained on CT" in "".join(capsys.readouterr())
    assert not list((tmp_path / "mr out").glob("*.dcm"))
