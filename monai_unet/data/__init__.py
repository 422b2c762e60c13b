"""Files in, files out: readers that let no bad input pass, and writers that answer in the input's format."""

from monai_unet.data.dicom import DicomSeriesReader
from monai_unet.data.microscopy import (
    MicroscopyReader,
    MicroscopyWriter,
    check_images,
    list_images,
    predict_images,
    split_pages,
    take_page,
)
from monai_unet.data.volumes import CheckedVolumeReader, check_volume_pairs
from monai_unet.errors import InputError

__all__ = [
    "CheckedVolumeReader",
    "DicomSeriesReader",
    "InputError",
    "MicroscopyReader",
    "MicroscopyWriter",
    "check_images",
    "check_volume_pairs",
    "list_images",
    "predict_images",
    "split_pages",
    "take_page",
]
