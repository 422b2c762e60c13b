"""Files in, files out: readers that let no bad input pass."""

from monai_unet.data.dicom import DicomSeriesReader
from monai_unet.data.errors import InputError, plain_input_errors
from monai_unet.data.image_lists import check_images, list_images
from monai_unet.data.microscopy import MicroscopyReader
from monai_unet.data.microscopy_writer import MicroscopyWriter
from monai_unet.data.seeding import SeededDataset, SeededSampler, shield_worker
from monai_unet.data.volumes import CheckedVolumeReader, check_volume_pairs

__all__ = [
    "CheckedVolumeReader",
    "DicomSeriesReader",
    "InputError",
    "MicroscopyReader",
    "MicroscopyWriter",
    "SeededDataset",
    "SeededSampler",
    "check_images",
    "check_volume_pairs",
    "list_images",
    "plain_input_errors",
    "shield_worker",
]
