"""Images larger than memory: read, predicted and labelled part by part."""

from monai_unet.data.large.predict import predict_large_image

__all__ = ["predict_large_image"]
