"""The best network of a training as an MLflow model, that says what ``inference.yaml`` says.

The model's folder holds the checkpoint and the bundle's ``inference.yaml``; the code is the installed monai_unet's, so
nothing is pickled. `mlflow models serve` answers with it, and `mlflow.pyfunc.load_model` reads it.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
import yaml
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose

import monai_unet
from monai_unet.tracking.run import Tracking
from monai_unet.training.best import BestCheckpoint

__all__ = ["BestModel", "Segmentation", "save_model"]

#: an array comes without file, and goes without one
FILES = ("LoadImaged", "SaveImaged")
#: of a training's config, what says nothing about the network
PLACES = ("imports", "bundle_root", "dataset_dir", "output_dir", "ckpt_path", "input", "device", "amp")


class BestModel:
    """At the end of a training, the best network goes into its MLflow run, and into the registry as a new version.

    The version bears the metric that chose the network, its value and epoch as tags. A training that is stopped or
    fails leaves its best network in the output folder, and here none.

    Args:
        tracking: the training's.
        best: knows the checkpoint, and the metric that chose it.
        config: the bundle's ``inference.yaml``: preprocessing, inferer and postprocessing are its own.
        name: the registered model's, the bundle's name.
    """

    def __init__(self, tracking: Tracking, best: BestCheckpoint, config: str | os.PathLike[str], name: str) -> None:
        self.tracking, self.best, self.config, self.name = tracking, best, Path(config), name

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if self.best.best is None or not self.best.path.is_file():
            return
        try:
            with self.tracking.model(self.name, self._why()) as place:
                if place is not None:
                    save_model(place, self.best.path, self.config, self.tracking.config or {})
        except OSError as error:  # a training that has come to its end does not fail for this
            logging.getLogger(__name__).error("the MLflow model could not be written: %s", error)

    def _why(self) -> dict[str, str]:
        best = {"metric": self.best.metric, self.best.metric: str(self.best.best)}
        return {**best, "epoch": str(self.best.epoch)}


def save_model(
    folder: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    config: str | os.PathLike[str],
    training: Mapping[str, Any],
) -> None:
    """Write an MLflow model.

    Args:
        folder: receives it, and must not exist.
        checkpoint: weights of a `ValidUNet`.
        config: the bundle's ``inference.yaml``.
        training: the training's config; values at its top that ``inference.yaml`` has too, ``in_channels`` for example,
            go before those of the file.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    # the one kind of tensor that MLflow passes on with any number of axes
    anything = Schema([TensorSpec(np.dtype("O"), (-1,))])
    packages = (monai_unet, torch, monai, mlflow)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "bundle"
        data.mkdir()
        shutil.copyfile(checkpoint, data / "model.pt")
        shutil.copyfile(config, data / "inference.yaml")
        (data / "training.yaml").write_text(yaml.safe_dump(_shared(config, training)))
        mlflow.pyfunc.save_model(
            os.fspath(folder),
            loader_module=__name__,
            data_path=os.fspath(data),
            signature=ModelSignature(anything, anything, ParamSchema([ParamSpec("output", DataType.string, "labels")])),
            pip_requirements=[f"{package.__name__}=={package.__version__.split('+')[0]}" for package in packages],
        )


def _shared(config: str | os.PathLike[str], training: Mapping[str, Any]) -> dict[str, Any]:
    inference = ConfigParser.load_config_file(config)
    values = {key: training[key] for key in inference.keys() & training.keys() - set(PLACES)}
    return {
        key: value
        for key, value in values.items()
        if not isinstance(value, Mapping) and str(value)[:1] not in ("$", "@")
    }


class Segmentation:
    """What an MLflow server calls: an image in, labels or probabilities out.

    Args:
        folder: ``model.pt``, ``inference.yaml`` and ``training.yaml``, as `save_model` writes them.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        parser = ConfigParser()
        parser.read_config([Path(folder) / "inference.yaml", Path(folder) / "training.yaml"])
        parser["bundle_root"] = os.fspath(folder)
        parser["ckpt_path"] = os.fspath(Path(folder) / "model.pt")
        for block in ("preprocessing", "postprocessing"):
            steps = parser[f"{block}::transforms"]
            parser[f"{block}::transforms"] = [s for s in steps if s["_target_"].split(".")[-1] not in FILES]
        self.device: torch.device = parser.get_parsed_content("device")
        self.network = parser.get_parsed_content("network").eval()
        self.inferer = parser.get_parsed_content("inferer")
        self.preprocessing = parser.get_parsed_content("preprocessing")
        steps = parser.get_parsed_content("postprocessing").transforms
        cut = next(index for index, step in enumerate(steps) if isinstance(step, AsDiscreted))
        self.to_probabilities, self.to_labels = Compose(steps[:cut]), Compose(steps[cut:])

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Segment an image, or several of one size.

        Args:
            model_input: numbers, nested lists too: ``(*spatial)``, ``(C, *spatial)`` or ``(B, C, *spatial)``, any
                spatial size, raw values as in the files that the bundle reads. Volumes: axes right, anterior, superior
                with voxels of 1 mm.
            params: ``{"output": "labels"}``, the default, or ``{"output": "probabilities"}``.

        Returns:
            Labels, ``(*spatial)`` or ``(B, *spatial)``: classes or instances, as ``inference.yaml`` has them. Or
            probabilities of all classes, ``(K, *spatial)`` or ``(B, K, *spatial)``, float32.

        Raises:
            ValueError: another output, another number of axes or channels, NaN or Inf.
        """
        output = (params or {}).get("output", "labels")
        if output not in ("labels", "probabilities"):
            raise ValueError(f'output is {output!r}; it must be "labels" or "probabilities"')
        images = np.asarray(model_input, dtype=np.float32)
        if not np.isfinite(images).all():
            raise ValueError("the image holds NaN or Inf; give finite numbers")
        dims, channels = self.network.spatial_dims, self.network.in_channels
        if images.ndim == dims:
            images = images[None]
        if images.ndim not in (dims + 1, dims + 2) or images.shape[-dims - 1] != channels:
            raise ValueError(
                f"the shape is {images.shape}; the network takes {dims} spatial axes, with {channels} "
                f"channel{'s' * (channels > 1)} before them and a batch before those"
            )
        if images.ndim == dims + 1:
            return self._segment(images, output)
        return np.stack([self._segment(image, output) for image in images])

    def _segment(self, image: np.ndarray, output: str) -> np.ndarray:
        item = self.preprocessing({"image": MetaTensor(torch.from_numpy(image))})
        with torch.inference_mode():
            item["pred"] = self.inferer(item["image"][None].to(self.device), self.network)[0]
        item = self.to_probabilities(item)
        if output == "labels":
            item = self.to_labels(item)
        result: np.ndarray = item["pred"].numpy(force=True)
        return result[0] if output == "labels" and result.ndim > self.network.spatial_dims else result


def _load_pyfunc(folder: str) -> Segmentation:
    """MLflow's entry."""
    return Segmentation(folder)
