"""A bundle's metadata.json, by MONAI's bundle specification."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import monai_unet
from monai_unet.bundles.plan import Plan
from monai_unet.data.dicom.segmentation import segments_of
from monai_unet.networks import ValidUNet

__all__ = ["metadata"]

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
PAPERS = {
    2: "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015. "
    "arXiv:1505.04597",
    3: "Çiçek, Abdulkadir, Lienkamp, Brox, Ronneberger: 3D U-Net: Learning Dense Volumetric Segmentation from Sparse "
    "Annotation. MICCAI 2016. arXiv:1606.06650",
}
PACKAGES = ("pytorch-ignite", "mlflow", "pillow")
READERS = {False: ("tifffile", "imagecodecs"), True: ("nibabel", "scipy")}


def metadata(plan: Plan) -> dict[str, Any]:
    """Describe a bundle: its task, the versions it was written with, its images, and what the network takes and gives.

    Entries of ``plan.metadata`` replace those derived from the plan.

    >>> from monai_unet.bundles.plan import shipped_plans
    >>> metadata(shipped_plans()["cell_segmentation"])["network_data_format"]["inputs"]["image"]["spatial_shape"]
    ['172+16*n', '172+16*n']
    """
    own = dict(plan.metadata)
    objects = f"instances: 0 {plan.class_names[0]}, each {plan.thing} its own number{plan.ids}"
    classes = objects if plan.instances else ", ".join(f"{value} {name}" for value, name in enumerate(plan.class_names))
    document = {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": own.pop("changelog", {"0.1.0": "written by monai_unet.bundles new"}),
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch").partition("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {
            "monai_unet": monai_unet.__version__,
            **{package: _version(package) for package in (*PACKAGES, *READERS[plan.volumes])},
        },
        "name": own.pop("name", plan.name),
        "task": own.pop("task", f"{plan.kind} in {plan.modality}: {', '.join(plan.class_names[1:])}"),
        "description": own.pop(
            "description",
            f"The {'3-D ' * (plan.dims == 3)}U-Net, trained on {plan.subject}, as planned from these data.",
        ),
        "authors": "monai_unet developers",
        "copyright": "Copyright (c) monai_unet developers",
        "data_source": own.pop("data_source", "the user's own"),
        "data_type": "nifti or dicom" if plan.volumes else "png or tiff",
        "image_classes": f"{plan.modality}, {plan.channels} channel{'s' * (plan.channels > 1)}: "
        + ", ".join(plan.channel_names),
        "label_classes": classes,
        "pred_classes": classes,
        "intended_use": "Research. Not for diagnosis.",
        "references": [PAPERS[plan.dims], *own.pop("references", [])],
    }
    if plan.volumes:
        document["algorithm"] = {
            "name": f"monai_unet {plan.name}",
            "version": "0.1.0",
            "family": ["123110", "DCM", "Artificial Intelligence"],
        }
        segments = segments_of({"class_names": plan.class_names}, {})
        document["segments"] = own.pop("segments", segments)
    return {**document, **own, "network_data_format": _network(plan)}


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _network(plan: Plan) -> dict[str, Any]:
    values = {name: plan.settings[name].value for name in ("features", "kernel_size", "strides") if plan.has(name)}
    network = ValidUNet(
        plan.dims, plan.channels, len(plan.class_names), **{**values, "features": [1] * len(values["features"])}
    )
    inputs, outputs = [], []
    for axis in range(plan.dims):
        multiple = network.multiple if isinstance(network.multiple, int) else network.multiple[axis]
        smallest = network.input_size(1, axis)
        inputs.append(f"{smallest - multiple}+{multiple}*n")
        outputs.append(f"{multiple}*n{network.output_size(smallest, axis) - multiple:+d}")
    tensor = {"type": "image", "dtype": "float32", "is_patch_data": False}
    names = ["background", *plan.class_names[1:]]
    return {
        "inputs": {
            "image": {
                **tensor,
                "format": "magnitude",
                "modality": plan.modality,
                "num_channels": plan.channels,
                "spatial_shape": inputs,
                "value_range": [-10, 15],  # of zero mean and unit variance, clipped
                "channel_def": {str(number): name for number, name in enumerate(plan.channel_names)},
            }
        },
        "outputs": {
            "pred": {
                **tensor,
                "format": "segmentation",
                "num_channels": len(names),
                "spatial_shape": outputs,
                "value_range": [0, 1],
                "channel_def": {str(number): name for number, name in enumerate(names)},
            }
        },
    }
