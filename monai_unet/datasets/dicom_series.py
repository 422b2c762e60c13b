"""A volume as the slices of a DICOM series (PS3.3 A.4, MR image), with the same bytes every time."""

from __future__ import annotations

import io

import numpy as np

from monai_unet.options import require

__all__ = ["dicom_series"]


def dicom_series(volume: np.ndarray, affine: np.ndarray, name: str) -> list[bytes]:
    """Encode a volume as one DICOM file per slice, of an invented patient.

    Args:
        volume: uint16, indexed (column, row, slice).
        affine: (4, 4), from these indices to RAS millimetres; its axes are orthogonal and right-handed.
        name: of patient and series; the UIDs are derived from it.

    Returns:
        The content of the files, in the order of the slices.

    Raises:
        ImportError: pydicom is not installed.

    >>> import pydicom
    >>> first, second = dicom_series(np.zeros((5, 4, 2), np.uint16), np.diag([-0.5, -0.5, 2, 1]), "phantom-1")
    >>> header = pydicom.dcmread(io.BytesIO(second))
    >>> header.Rows, header.Columns, header.PixelSpacing, header.ImagePositionPatient
    (4, 5, [0.5, 0.5], [0.0, 0.0, 2.0])
    """
    require("pydicom", "dicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
    from pydicom.valuerep import format_number_as_ds

    lps = np.diag([-1, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    directions = lps[:, :3] / spacing

    def decimals(*numbers: float) -> list[str]:
        return [format_number_as_ds(float(number)) for number in numbers]

    files = []
    for k in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, "slice", str(k)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        d.PatientName = d.PatientID = name
        d.PatientBirthDate = d.PatientSex = ""
        d.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
        d.StudyID, d.AccessionNumber, d.ReferringPhysicianName = "1", "", ""
        d.StudyDate, d.StudyTime = "20150101", "120000"
        d.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
        d.SeriesNumber, d.SeriesDescription, d.Modality = 1, "phantom", "MR"
        d.FrameOfReferenceUID = generate_uid(entropy_srcs=[name, "frame of reference"])
        d.PositionReferenceIndicator = ""
        d.Manufacturer = "monai_unet"
        d.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
        d.ScanningSequence, d.SequenceVariant, d.ScanOptions, d.MRAcquisitionType = "RM", "NONE", "", "3D"
        d.RepetitionTime = d.EchoTime = d.EchoTrainLength = None
        d.InstanceNumber, d.AcquisitionNumber = k + 1, 1
        d.ImagePositionPatient = decimals(*(lps[:, :3] @ (0, 0, k) + lps[:, 3]))
        d.ImageOrientationPatient = decimals(*directions[:, 0], *directions[:, 1])
        d.PixelSpacing = decimals(spacing[1], spacing[0])  # between rows, then between columns
        d.SliceThickness, d.SpacingBetweenSlices = decimals(spacing[2], spacing[2])
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.Columns, d.Rows = volume.shape[:2]
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
        d.PixelData = np.ascontiguousarray(volume[:, :, k].T, dtype="<u2").tobytes()
        buffer = io.BytesIO()
        d.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files
