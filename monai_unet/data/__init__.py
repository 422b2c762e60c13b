"""Files in, files out: readers that let no bad input pass."""

from monai_unet.data.errors import InputError
from monai_unet.data.microscopy import MicroscopyReader, MicroscopyWriter, check_images, list_images

__all__ = [
    "InputError",
    "MicroscopyReader",
    "MicroscopyWriter",
    "check_images",
    "list_images",
]
