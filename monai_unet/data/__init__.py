"""Files in, files out: readers that let no bad input pass."""

from monai_unet.data.errors import InputError

__all__ = ["InputError"]
