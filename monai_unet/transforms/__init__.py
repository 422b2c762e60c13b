"""The paper's transforms, in MONAI's conventions: array form, and dictionary form with ``d``, ``D`` and ``Dict``."""

from __future__ import annotations

from monai_unet.transforms.elastic import RandElasticDeformation, RandElasticDeformationd
from monai_unet.transforms.instances import (
    LabelInstances,
    LabelInstancesd,
    SeparateInstances,
    SeparateInstancesd,
)
from monai_unet.transforms.weight_map import BorderWeightMap, BorderWeightMapd

BorderWeightMapD = BorderWeightMapDict = BorderWeightMapd
LabelInstancesD = LabelInstancesDict = LabelInstancesd
RandElasticDeformationD = RandElasticDeformationDict = RandElasticDeformationd
SeparateInstancesD = SeparateInstancesDict = SeparateInstancesd

__all__ = [
    "BorderWeightMap",
    "BorderWeightMapD",
    "BorderWeightMapDict",
    "BorderWeightMapd",
    "LabelInstances",
    "LabelInstancesD",
    "LabelInstancesDict",
    "LabelInstancesd",
    "RandElasticDeformation",
    "RandElasticDeformationD",
    "RandElasticDeformationDict",
    "RandElasticDeformationd",
    "SeparateInstances",
    "SeparateInstancesD",
    "SeparateInstancesDict",
    "SeparateInstancesd",
]
