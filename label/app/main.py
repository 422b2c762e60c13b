"""MONAI Label's monaibundle app for the bundles of this repository.

The stock app serves them too. This one adds "next sample" by uncertainty, outlines for QuPath and CVAT, training at the
width of the served weights, weights that must match, and DICOM SEG by the package's own writer.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import monailabel.app
import monailabel.datastore.dicom
import monailabel.endpoints.infer
import numpy as np
from lib.answers import answer_with_reasons, root_cause
from lib.outlines import annotation, mask_of_xml
from lib.segmentations import in_order_of, seg_writer
from lib.uncertainty import Uncertainty
from monai.bundle import ConfigParser
from monai.transforms import Compose
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.transform.writer import PolygonWriter

from monai_unet.data import InputError, MicroscopyReader, MicroscopyWriter
from monai_unet.data.microscopy.outlines import outlines
from monai_unet.networks import load_network, load_task
from monai_unet.transforms import LabelInstances, LabelInstancesd

logger = logging.getLogger(__name__)

_spec = importlib.util.spec_from_file_location(
    "monaibundle", Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle" / "main.py"
)
assert _spec is not None
assert _spec.loader is not None
stock = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stock)

#: the keys of the configs that a client may set for a training; the recipe sets the others
OPTIONS = ("steps_per_epoch", "tile_size", "learning_rate", "seed")


class Infer(BundleInferTask):  # type: ignore[misc]
    """Answer with a mask, or with outlines if the request asks for "asap", "dsa", "json" or "geojson"."""

    def __init__(self, path: str, conf: dict[str, str], **options: Any) -> None:
        super().__init__(path, conf, **options)
        self.weights_of = 0  # the time of the weights that the parsed config goes by
        if self.valid and (names := load_task(Path(path) / "models" / "model.pt").get("class_names")):
            self.labels = {name.lower(): number for number, name in enumerate(names) if number}

    def _load_bundle_config(self, path: str, config: str) -> ConfigParser:
        parser = super()._load_bundle_config(path, config)
        if "in_channels" in parser:  # no client can set it, so it comes from the weights
            parser["network_def#in_channels"] = None
            parser["in_channels"] = "$@network_def.in_channels"
        return parser

    def get_path(self, validate: bool = True) -> str:
        """The file of the weights. MONAI Label would go on with those that it has loaded if the file were gone."""
        path = super().get_path(validate)
        if path is None:
            raise MONAILabelException(MONAILabelError.INFERENCE_ERROR, f"{self.path[0]} is gone: put it back")
        return str(path)

    def pre_transforms(self, data: dict[str, Any] | None = None) -> Any:
        """Go by what the weights that are there now say of their task: a training may have replaced them."""
        if (now := Path(self.get_path()).stat().st_mtime_ns) != self.weights_of:
            self.bundle_config.parse(True)  # MONAI Label would go on with what it has parsed
            self.weights_of = now
        return super().pre_transforms(data)

    def run_pre_transforms(self, data: dict[str, Any], transforms: Any) -> Any:
        """Read an archive's series from its slices, with the checks of the bundle's own reader.

        MONAI Label passes a NIfTI file that it has made of them, with the numbers of the headers rounded.
        """
        series = Path(str(data["image"]).removesuffix(".nii.gz"))
        if series.is_dir() and any(series.glob("*.dcm")):
            data = {**data, "image": str(series)}
        return super().run_pre_transforms(data, transforms)

    def run_post_transforms(self, data: dict[str, Any], transforms: Any) -> Any:
        """Bring the mask into the voxel order of that NIfTI file: clients overlay them without reading the affine.

        The doubt about it goes into the parameters of the answer.
        """
        data = super().run_post_transforms(data, transforms)
        found = data["doubt"]
        data["result"] = {**data.get("result", {}), "doubt": found.image, "look": found.look}
        series = Path(str(data["image_path"]).removesuffix(".nii.gz"))
        if self.dimension == 3 and series.is_dir():
            data["pred"], affine = in_order_of(
                np.asarray(data["pred"]), data["pred_meta_dict"]["affine"], data["image_path"]
            )
            data["pred_meta_dict"]["affine"] = affine
        return data

    @property
    def instances(self) -> bool:
        """Whether the bundle predicts instances."""
        steps = self.bundle_config.get_parsed_content("postprocessing")
        return any(isinstance(step, LabelInstancesd) for step in Compose(steps).flatten().transforms)

    def writer(self, data: dict[str, Any], extension: str | None = None, dtype: Any = None) -> tuple[Any, Any]:
        if self.dimension != 2 or data.get("output") not in ("asap", "dsa", "json", "geojson"):
            return super().writer(data, extension, dtype)
        mask = np.asarray(data["pred"]).T  # back from (x, y), which MONAI Label's own writer takes
        ids = mask if self.instances else LabelInstances(grow=0)(mask[None])[0]
        labels = [*self.labels] if self.instances else [*self.labels][:1]
        if data["output"] == "geojson":
            return None, outlines(ids, class_names=["background", *labels]) if len(labels) > 1 else outlines(ids)
        region = [*data.get("location", (0, 0)), *data.get("size", (0, 0))]
        data["result"] = {"annotation": annotation(ids, labels, region if all(region[2:]) else None)}
        return PolygonWriter()(data)


class Train(BundleTrainTask):  # type: ignore[misc]
    """Continue training the served weights, at their own width, with the compact recipe if the bundle has one."""

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf, load_strict=True)
        compact = Path(path) / "configs" / "compact.yaml"
        self.bundle_config_path = [self.bundle_config_path, *([str(compact)] if compact.is_file() else [])]
        self.recipe = ConfigParser()
        self.recipe.read_config(self.bundle_config_path)
        self.request: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        ours = {"multi_gpu", "gpus", "tracking", "tracking_uri", "tracking_experiment_name", "run_id"}
        stock_options = {name: value for name, value in super().config().items() if name not in ours}
        return {**stock_options, **{name: self.recipe[name] for name in OPTIONS}}

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        if not datastore.datalist():
            raise InputError(datastore.name(), "no image has a label", "Submit a label first")
        self.request = {**request, "tracking": "None", "multi_gpu": False}  # the bundle does its own tracking
        return super().__call__(self.request, datastore)

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[Any]) -> None:
        if pretrained:
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        network = load_network(Path(self.bundle_path) / "models" / "model.pt")
        own: dict[str, Any] = {"features": list(network.features), "in_channels": network.in_channels}
        own |= {"kernel_size": [*map(list, network.kernel_size)], "strides": [*map(list, network.strides)]}
        own["norm"] = network.norm or "$None"  # MONAI drops an override that is None
        if network.norm and self.request.get("pretrained", True):
            own["fix_norm_after"] = 0  # an epoch must not replace the statistics that the weights have learnt with
        overrides.update({name: value for name, value in own.items() if name in self.recipe})
        overrides.update({name: self.request[name] for name in OPTIONS if name in self.request})
        return overrides


class App(stock.MyApp, MONAILabelApp):  # type: ignore[misc, name-defined]
    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        super().__init__(app_dir, studies, conf)
        for path in self.models.values():
            metadata = json.loads((Path(path) / "configs" / "metadata.json").read_text())
            if "algorithm" in metadata:
                convert = seg_writer(metadata, Path(path) / "models" / "model.pt")
                monailabel.endpoints.infer.nifti_to_dicom_seg = convert
                monailabel.datastore.dicom.nifti_to_dicom_seg = convert

    def init_infers(self) -> dict[str, Any]:
        try:
            return {name: Infer(path, self.conf, load_strict=True) for name, path in self.models.items()}
        except RuntimeError as error:  # the reason should be the last line on the screen
            raise root_cause(error) from None

    def init_trainers(self) -> dict[str, Any]:
        return {name: Train(path, self.conf) for name, path in self.models.items()}

    def init_strategies(self) -> dict[str, Any]:
        return {"uncertainty": Epistemic(key="uncertainty", desc="The image that the model is least sure of")} | (
            super().init_strategies()
        )

    def init_scoring_methods(self) -> dict[str, Any]:
        return {"uncertainty": Uncertainty(next(iter(self._infers.values())))}

    def server_mode(self, mode: bool) -> None:
        super().server_mode(mode)
        answer_with_reasons(monailabel.app.app)

    def infer(self, request: dict[str, Any], datastore: Any = None) -> Any:
        """Fetch a series first: an archive's first answer names a temporary file instead of the one that it keeps."""
        store, image = datastore or self.datastore(), str(request["image"])
        if not Path(image).exists():
            if image not in store.list_images():
                raise ImageNotFoundException(f"there is no image {image!r}: see /datastore/?output=all for their IDs")
            if isinstance(store, DICOMWebDatastore):
                store.get_image_uri(image)
        return super().infer(request, datastore)

    def infer_wsi(self, request: dict[str, Any], datastore: Any = None) -> Any:
        """Predict whole: the overlap-tile inferer takes any size, so neither tiles nor OpenSlide are needed."""
        return self.infer(request, datastore)

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Store QuPath's polygons as a mask, which training needs."""
        super().on_save_label(image_id, label_id)
        store, task = self.datastore(), next(iter(self._infers.values()))
        if task.dimension != 2:
            return
        label = Path(store.get_label_uri(label_id, DefaultLabelTag.FINAL))
        if label.suffix != ".xml":
            return
        reader = MicroscopyReader(None)
        shape = reader.get_data(reader.read(store.get_image_uri(image_id)))[0].shape[-2:]
        writer = MicroscopyWriter(output_dtype=np.uint16)
        writer.set_data_array(mask_of_xml(label, shape, task.instances, [*task.labels]), channel_dim=None)
        with tempfile.TemporaryDirectory() as folder:
            writer.write(mask := Path(folder) / f"{image_id}.tif")
            store.save_label(image_id, str(mask), DefaultLabelTag.FINAL, store.get_label_info(label_id, "final"))
        label.unlink()
