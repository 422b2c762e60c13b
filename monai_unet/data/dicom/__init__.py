"""DICOM series in, DICOM SEG and RTSTRUCT out."""

from monai_unet.data.dicom.reader import DicomSeriesReader

__all__ = ["DicomSeriesReader"]
