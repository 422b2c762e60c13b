"""Event handlers of the bundles: MLflow, checkpoints, pictures."""

from monai_unet.handlers.checkpoints import BestCheckpoint, load_network
from monai_unet.handlers.guards import Guards
from monai_unet.handlers.mlflow_model import BestModel
from monai_unet.handlers.pictures import Pictures
from monai_unet.handlers.scores import Scores
from monai_unet.handlers.stopping import TrainingStopped
from monai_unet.handlers.tracking import Tracking
from monai_unet.handlers.training_state import Checkpoints
from monai_unet.handlers.volume_metrics import PerClass, SurfaceMetricHandler

__all__ = [
    "BestCheckpoint",
    "BestModel",
    "Checkpoints",
    "Guards",
    "PerClass",
    "Pictures",
    "Scores",
    "SurfaceMetricHandler",
    "Tracking",
    "TrainingStopped",
    "load_network",
]
