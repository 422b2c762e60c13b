"""Volumes with a geometry: NIfTI, NRRD and MetaImage, in and out."""

from monai_unet.data.volumes.datalist import check_volume_pairs
from monai_unet.data.volumes.reader import CheckedVolumeReader
from monai_unet.data.volumes.writer import write_volume

__all__ = ["CheckedVolumeReader", "check_volume_pairs", "write_volume"]
