"""Scores for "next sample": how much the network contradicts itself on rotated and mirrored versions of an image."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from lib.answers import sentence
from monai.bundle import ConfigParser
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.generic import name_to_device

from monai_unet.symmetries import symmetry_variance, trained_symmetries

logger = logging.getLogger(__name__)


def symmetries(bundle: str) -> str | list[int]:
    """The symmetries that a bundle's training shows its network."""
    recipe = ConfigParser()
    recipe.read_config(Path(bundle) / "configs" / "train.yaml")
    shown = (recipe.get_parsed_content(key) for key in ("flip_prob", "rotate_range", "network_def#spatial_dims"))
    return trained_symmetries(*shown)


class Uncertainty(ScoringMethod):
    """Write ``uncertainty`` (mean variance per voxel) into the record of each image without a label.

    The rotations and mirrorings are those that the network was trained on. An image is scored once per set of weights;
    one that cannot be read stays without a score.

    Args:
        task: its network and preprocessing are used.
        max_samples: images per call; 0 for all.
    """

    def __init__(self, task: BundleInferTask, max_samples: int = 0) -> None:
        super().__init__("Variance of the prediction over exact rotations and mirrorings")
        self.task, self.symmetries, self.max_samples = task, symmetries(task.bundle_path), max_samples

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        weights = int(Path(self.task.get_path()).stat().st_mtime)
        images = datastore.get_unlabeled_images()
        stale = [i for i in images if datastore.get_image_info(i).get("uncertainty_ts") != weights]
        stale = stale[: request.get("max_samples", self.max_samples) or None]
        device, start = name_to_device(request.get("device", "cuda")), time.time()
        failed: dict[str, str] = {}
        for image in stale:
            try:
                score = self.score(datastore.get_image_uri(image), device)
            except Exception as error:  # no reason to leave out the images after it
                failed[image] = sentence(error)
                logger.warning("%s is not scored: %s", image, failed[image])
                continue
            datastore.update_image_info(image, {"uncertainty": score, "uncertainty_ts": weights})
            logger.info("uncertainty of %s: %.6f", image, score)
        executed, latency = len(stale) - len(failed), round(time.time() - start, 3)
        return {"total": len(images), "executed": executed, "failed": failed, "latency": latency}

    def score(self, path: str, device: str) -> float:
        data: dict[str, Any] = {"image": path, "image_path": path, "device": device}
        data = self.task.run_pre_transforms(data, self.task.pre_transforms(data))
        network = self.task._get_network(device, None)
        image = data["image"][None].to(torch.device(device))
        return float(symmetry_variance(image, network, self.task.inferer(data), self.symmetries).mean())
