"""The paper's transforms, in MONAI's conventions: array forms, and dictionary forms with a ``d``."""

from __future__ import annotations

from monai_unet.transforms.doubt import Doubtd
from monai_unet.transforms.elastic import RandElasticDeformation, RandElasticDeformationd
from monai_unet.transforms.foreground import ForegroundVoxels, ForegroundVoxelsd
from monai_unet.transforms.instances import LabelInstances, LabelInstancesd, SeparateInstances, SeparateInstancesd
from monai_unet.transforms.intensity import NormalizePages, NormalizePagesd, NormalizeVolumed
from monai_unet.transforms.object_classes import ClassifyInstancesd, classify_instances
from monai_unet.transforms.rescale import RescaleToPixelSized
from monai_unet.transforms.unlabelled import ClassWeightMap, ClassWeightMapd, SplitUnlabelled, SplitUnlabelledd
from monai_unet.transforms.weight_map import BorderWeightMap, BorderWeightMapd

__all__ = [
    "BorderWeightMap",
    "BorderWeightMapd",
    "ClassWeightMap",
    "ClassWeightMapd",
    "ClassifyInstancesd",
    "Doubtd",
    "ForegroundVoxels",
    "ForegroundVoxelsd",
    "LabelInstances",
    "LabelInstancesd",
    "NormalizePages",
    "NormalizePagesd",
    "NormalizeVolumed",
    "RandElasticDeformation",
    "RandElasticDeformationd",
    "RescaleToPixelSized",
    "SeparateInstances",
    "SeparateInstancesd",
    "SplitUnlabelled",
    "SplitUnlabelledd",
    "classify_instances",
]
