"""The record of a run: MLflow runs that survive a lost server, pictures, scores, the registered model."""

from monai_unet.tracking.model import BestModel
from monai_unet.tracking.pictures import Pictures
from monai_unet.tracking.run import Tracking
from monai_unet.tracking.scores import Scores

__all__ = ["BestModel", "Pictures", "Scores", "Tracking"]
