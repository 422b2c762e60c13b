"""Training runs that resume bit for bit, and that end with a reason and a cure."""

from monai_unet.training.checkpoints import BestCheckpoint, Checkpoints
from monai_unet.training.guards import Guards
from monai_unet.training.progress import Progress
from monai_unet.training.seeding import SeededDataset, SeededLoader, SeededSampler
from monai_unet.training.signals import TrainingStopped, shield_worker
from monai_unet.training.start import init_head, init_weights
from monai_unet.training.statistics import FixedStatistics
from monai_unet.training.targets import PrepareTarget

__all__ = [
    "BestCheckpoint",
    "Checkpoints",
    "FixedStatistics",
    "Guards",
    "PrepareTarget",
    "Progress",
    "SeededDataset",
    "SeededLoader",
    "SeededSampler",
    "TrainingStopped",
    "init_head",
    "init_weights",
    "shield_worker",
]
