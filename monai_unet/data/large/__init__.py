"""Images larger than memory: read, predicted, labelled and measured part by part."""

from monai_unet.data.large.measures import measure_large_image
from monai_unet.data.large.predict import predict_large_image

__all__ = ["measure_large_image", "predict_large_image"]
