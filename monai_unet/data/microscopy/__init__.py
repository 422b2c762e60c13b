"""Microscopy images: TIFF, PNG and their kin in, TIFF and GeoJSON outlines out."""

from monai_unet.data.microscopy.datalist import check_images, list_images, split_pages, take_page
from monai_unet.data.microscopy.outlines import OutlinesWriter
from monai_unet.data.microscopy.predict import predict_images
from monai_unet.data.microscopy.reader import MicroscopyReader
from monai_unet.data.microscopy.writer import MicroscopyWriter

__all__ = [
    "MicroscopyReader",
    "MicroscopyWriter",
    "OutlinesWriter",
    "check_images",
    "list_images",
    "predict_images",
    "split_pages",
    "take_page",
]
