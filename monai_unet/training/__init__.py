"""Training runs that resume bit for bit, and end with a reason and a cure."""

from monai_unet.training.best import BestCheckpoint
from monai_unet.training.checkpoints import Checkpoints
from monai_unet.training.guards import Guards
from monai_unet.training.seeding import SeededDataset, SeededSampler, shield_worker
from monai_unet.training.signals import TrainingStopped
from monai_unet.training.targets import PrepareTarget

__all__ = [
    "BestCheckpoint",
    "Checkpoints",
    "Guards",
    "PrepareTarget",
    "SeededDataset",
    "SeededSampler",
    "TrainingStopped",
    "shield_worker",
]
