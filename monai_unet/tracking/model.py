"""The best network of a training as an MLflow model that gives the results of ``inference.yaml``.

The model's folder holds the checkpoint and the bundle's ``inference.yaml``; the code is the installed monai_unet's, so
nothing is pickled. `mlflow models serve` serves it, and `mlflow.pyfunc.load_model` loads it.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
import yaml
from ignite.engine import Engine, Events
from monai.bundle import ComponentLocator, ConfigParser
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose
from monai.utils import ensure_tuple_rep

import monai_unet
from monai_unet.networks import load_task
from monai_unet.tracking.run import Tracking
from monai_unet.training.checkpoints import BestCheckpoint

__all__ = ["BestModel"]

#: left out, because images come and go as arrays
FILE_TRANSFORMS = ("LoadImaged", "SaveImaged")
#: keys of a training's config that do not describe the network
LOCAL_KEYS = ("imports", "bundle_root", "dataset_dir", "output_dir", "ckpt_path", "input", "device", "amp")


class BestModel:
    """Add the best network to the MLflow run and to the registry, as a new version, when the training has completed.

    The tags of the version are the metric that chose the network, its value and its epoch. A training that is stopped
    or fails registers nothing; its best network is in the output folder.

    Args:
        tracking: that of the training.
        best: knows the checkpoint, and the metric that chose it.
        config: the bundle's ``inference.yaml``, for preprocessing, inferer and postprocessing.
        name: of the registered model, by convention the bundle's name.

    >>> network = torch.nn.Conv2d(1, 2, 3)
    >>> tracking, best = Tracking("membranes", {}), BestCheckpoint(network, "model.pt", "rand_error")
    >>> trainer = Engine(lambda engine, batch: None)
    >>> BestModel(tracking, best, "configs/inference.yaml", "membranes").attach(trainer)
    """

    def __init__(self, tracking: Tracking, best: BestCheckpoint, config: str | os.PathLike[str], name: str) -> None:
        self.tracking, self.best, self.config, self.name = tracking, best, Path(config), name

    def attach(self, engine: Engine) -> None:
        """Register the model when this trainer has completed."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        journal, best = self.tracking.journal, self.best
        if journal is None or best.best is None or not best.path.is_file():
            return
        try:
            model = journal.new_file("model")
            save_model(model, best.path, self.config, self.tracking.config or {})
        except OSError as error:  # no reason for a completed training to fail
            logging.getLogger(__name__).error("the MLflow model could not be written: %s", error)
        else:
            tags = {"metric": best.metric, best.metric: str(best.best), "epoch": str(best.epoch)}
            journal.log_model(model, self.name, tags)


def save_model(
    folder: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    config: str | os.PathLike[str],
    training: Mapping[str, Any],
) -> None:
    """Write an MLflow model.

    Args:
        folder: where to write it; must not exist.
        checkpoint: ``model.pt``: weights of a `ValidUNet`, and its task.
        config: the bundle's ``inference.yaml``.
        training: the training's config; top-level values that ``inference.yaml`` has as well, such as ``in_channels``,
            take precedence over those of the file, unless it takes them from the task in the checkpoint.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    packages = (monai_unet, torch, monai, mlflow)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "bundle"
        data.mkdir()
        shutil.copyfile(checkpoint, data / "model.pt")
        shutil.copyfile(config, data / "inference.yaml")
        (data / "training.yaml").write_text(yaml.safe_dump(_shared(config, training, load_task(checkpoint))))
        model = Segmentation(data)
        example = _example(model.network.spatial_dims, model.network.in_channels)
        model.inferer = lambda image, network: image.new_zeros(
            1, network.out_channels, *image.shape[2:]
        )  # takes no time
        labels = model.predict(example)
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype("O"), (-1,))]),  # the only tensor that MLflow accepts with any number of axes
            Schema([TensorSpec(labels.dtype, (-1,) * labels.ndim)]),
            ParamSchema([ParamSpec("output", DataType.string, "labels")]),
        )
        mlflow.pyfunc.save_model(
            os.fspath(folder),
            loader_module=__name__,
            data_path=os.fspath(data),
            signature=signature,
            input_example=example,
            pip_requirements=[f"{package.__name__}=={package.__version__.split('+')[0]}" for package in packages],
        )


def _example(spatial_dims: int, channels: int) -> np.ndarray:
    """An image (*spatial), or (C, *spatial) of several channels, as `Segmentation.predict` takes it: a gray ramp."""
    ramp = (np.arange(16**spatial_dims) % 256).astype(np.uint8).reshape((16,) * spatial_dims)
    return ramp if channels == 1 else np.stack([ramp] * channels)


def _shared(config: str | os.PathLike[str], training: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    inference = ConfigParser.load_config_file(config)
    return {
        key: training[key]
        for key in inference.keys() & training.keys() - set(LOCAL_KEYS)
        if not isinstance(training[key], Mapping)
        and str(training[key])[:1] not in ("$", "@")
        and not (key in task and "@task" in str(inference[key]))
    }


class _Locator(ComponentLocator):
    """MONAI's, for a process in which another thread imports modules at this moment, as the journal's does."""

    def _find_module_names(self) -> list[str]:
        return [name for name in list(sys.modules) if name.startswith(self.MOD_START)]


class Segmentation:
    """Segment arrays for MLflow: an image in, labels or probabilities out.

    Args:
        folder: holds ``model.pt``, ``inference.yaml`` and ``training.yaml``, as `save_model` writes them.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        parser = ConfigParser()
        parser.locator = _Locator()
        parser.read_config([Path(folder) / "inference.yaml", Path(folder) / "training.yaml"])
        parser["bundle_root"] = os.fspath(folder)
        parser["ckpt_path"] = os.fspath(Path(folder) / "model.pt")
        for block in ("image_transforms", "save_transforms"):
            steps = parser.get(block, [])
            parser[block] = [step for step in steps if step["_target_"].split(".")[-1] not in FILE_TRANSFORMS]
        self.device: torch.device = parser.get_parsed_content("device")
        self.network = parser.get_parsed_content("network").eval()
        self.inferer = parser.get_parsed_content("inferer")
        self.preprocessing = parser.get_parsed_content("preprocessing")
        self.affine: torch.Tensor | None = None  # of arrays, which have none
        if "spacing" in parser:
            spacing = ensure_tuple_rep(parser.get_parsed_content("spacing"), self.network.spatial_dims)
            self.affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
        steps = parser.get_parsed_content("postprocessing").transforms
        cut = next(index for index, step in enumerate(steps) if isinstance(step, AsDiscreted))
        self.to_probabilities, self.to_labels = Compose(steps[:cut]), Compose(steps[cut:])

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Segment one image, or several of one size.

        Args:
            model_input: array or nested lists, ``(*spatial)``, ``(C, *spatial)`` or ``(B, C, *spatial)``, of any
                spatial size, with raw values as in the files that the bundle reads. Volumes: axes right, anterior,
                superior, with voxels of the size that the network was trained for.
            params: ``{"output": "labels"}``, the default, or ``{"output": "probabilities"}``.

        Returns:
            Labels, ``(*spatial)`` or ``(B, *spatial)``: classes or instances, as in ``inference.yaml``. Or the
            probabilities of all classes, ``(K, *spatial)`` or ``(B, K, *spatial)``, float32.

        Raises:
            ValueError: unknown output, wrong number of axes or channels, NaN or Inf.
        """
        output = (params or {}).get("output", "labels")
        if output not in ("labels", "probabilities"):
            raise ValueError(f'output is {output!r}; it must be "labels" or "probabilities"')
        images = np.asarray(model_input, dtype=np.float32)
        if not np.isfinite(images).all():
            raise ValueError("the image contains NaN or Inf; pass finite values")
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
        item = self.preprocessing({"image": MetaTensor(torch.from_numpy(image), affine=self.affine)})
        with torch.inference_mode():
            item["pred"] = self.inferer(item["image"][None].to(self.device), self.network)[0]
        item = self.to_probabilities(item)
        if output == "labels":
            item = self.to_labels(item)
        result: np.ndarray = item["pred"].numpy(force=True)
        return result[0] if output == "labels" and result.ndim > self.network.spatial_dims else result


_load_pyfunc = Segmentation  # MLflow calls it to load the model
