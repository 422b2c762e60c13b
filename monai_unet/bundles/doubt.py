"""The flag "look at this one": its threshold, and the temperature of the probabilities, from a validation set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from monai_unet.bundles.release import record_checksum
from monai_unet.doubt import Doubt, doubt, temper
from monai_unet.errors import InputError
from monai_unet.files import replacing
from monai_unet.metrics.calibration import Bin, calibration_error, fit_temperature, reliability
from monai_unet.networks import load_task

__all__ = ["Examined", "examine", "report", "set_doubt", "threshold_of"]

#: images that a threshold needs at least
FEWEST = 10
#: pixels of an image that calibration looks at
SAMPLE = 20_000


class Examined(NamedTuple):
    """What an evaluation has found, image by image.

    >>> inside = [(np.array([1, 1]), np.array([0.6, 0.8]))]
    >>> Examined(["a.png"], {"seg": [0.7]}, inside, np.array([0.1]), np.array([False])).doubts()[0].text
    'doubt 0.30'
    """

    images: list[str]
    #: of each metric that has values per image
    scores: dict[str, list[float]]
    #: ids and probabilities of the pixels of each mask
    inside: list[tuple[np.ndarray, np.ndarray]]
    #: of pixels of all images, as many of each as of the others
    probability: np.ndarray
    truth: np.ndarray

    def doubts(self, rule: dict[str, Any] | None = None) -> list[Doubt]:
        """The doubt about each image."""
        return [doubt(ids, probability, rule) for ids, probability in self.inside]

    def reliability(self, temperature: float = 1.0) -> list[Bin]:
        """Of the probabilities, after division of their logits by a temperature."""
        return reliability(temper(self.probability, temperature), self.truth)


def examine(
    bundle: str | os.PathLike[str], dataset_dir: str | os.PathLike[str], split: str = "validation", **options: Any
) -> Examined:
    """Evaluate a bundle on a list of ``dataset.json``, and keep what the doubt is computed from.

    Args:
        bundle: its folder.
        dataset_dir: folder of ``dataset.json``.
        split: the list.
        options: of the bundle's evaluation, such as ``ckpt_path`` and ``averaging``; None: the bundle's own.

    Raises:
        InputError: as the evaluation.

    >>> examine("no/such/bundle", "data")
    Traceback (most recent call last):
    monai_unet.errors.InputError: no/such/bundle: it has no configs/evaluate.yaml. Name the folder of a bundle.
    """
    bundle = Path(bundle)
    if not (bundle / "configs" / "evaluate.yaml").is_file():
        raise InputError(bundle, "it has no configs/evaluate.yaml", "Name the folder of a bundle")
    configs = [str(bundle / "configs" / f"{name}.yaml") for name in ("inference", "evaluate")]
    given = {name: value for name, value in options.items() if value is not None}
    workflow = ConfigWorkflow(
        configs,
        str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle),
        dataset_dir=str(dataset_dir),
        split=split,
        **{"handlers": [], **given},
    )
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("evaluator")
    found = Examined([], {}, [], np.zeros(0), np.zeros(0, bool))
    samples = list[tuple[np.ndarray, np.ndarray]]()

    def collect(engine: Engine) -> None:
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            item = {**batch, **output}
            pred = item["pred"]  # one-hot where there are several classes
            ids: np.ndarray = (pred[0] if len(pred) == 1 else pred.argmax(0)).numpy(force=True).astype(np.int32)
            probability: np.ndarray = item["probability"][0].numpy(force=True)
            inside = ids > 0
            found.images.append(Path(item["image"].meta["filename_or_obj"]).name)
            found.inside.append((ids[inside], probability[inside]))
            known = torch.ones_like(item["label"][0]) if item.get("ignore") is None else item["ignore"][0] == 0
            places = np.flatnonzero(known.numpy(force=True))
            chosen = np.random.default_rng(0).choice(places, SAMPLE) if len(places) else places
            samples.append((probability.ravel()[chosen], item["label"][0].numpy(force=True).ravel()[chosen] > 0))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, collect)
    evaluator.run()
    details = getattr(evaluator.state, "metric_details", {})
    scores = {name: details[name].flatten(1).nanmean(1).tolist() for name in evaluator.state.metrics if name in details}
    probability, truth = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    return found._replace(scores=scores, probability=probability, truth=truth)


def threshold_of(numbers: Sequence[float], share: float) -> float:
    """Choose the threshold that this share of the numbers is above, in the middle between two of them.

    >>> threshold_of([0.1, 0.5, 0.2, 0.3], 0.25)
    0.4
    """
    ranked = sorted(numbers, reverse=True)
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    return (ranked[count - 1] + ranked[count]) / 2


def set_doubt(
    bundle: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str],
    split: str = "validation",
    share: float = 0.15,
    ckpt_path: str | os.PathLike[str] | None = None,
    averaging: str | Sequence[int] | None = None,
) -> tuple[dict[str, Any], Examined]:
    """Write temperature and thresholds into a checkpoint's task, as its entry "doubt".

    The checksum of weights that a bundle is published with follows.

    Args:
        bundle: its folder.
        dataset_dir: folder of ``dataset.json``.
        split: the list; what the network was trained on makes it look surer than it is.
        share: of the images, and of the objects, that the flag is to be set for.
        ckpt_path: the checkpoint; None for the bundle's ``models/model.pt``.
        averaging: as in ``inference.yaml``; None for the bundle's own.

    Returns:
        The entry, and what it comes from.

    Raises:
        InputError: ``share`` is not between 0 and 0.5, the list has fewer than ten images, the checkpoint has no task.

    >>> set_doubt("bundle", "data", share=15)
    Traceback (most recent call last):
    monai_unet.errors.InputError: --share: it is 15. Use a number above 0 and up to 0.5.
    """
    if not 0 < share <= 0.5:
        raise InputError("--share", f"it is {share}", "Use a number above 0 and up to 0.5")
    path = Path(bundle) / "models" / "model.pt" if ckpt_path is None else Path(ckpt_path)
    task = load_task(path)
    if not task:
        raise InputError(
            path, "it has no task to write to", "Name a model.pt that a bundle of this package has written"
        )
    found = examine(bundle, dataset_dir, split, ckpt_path=str(path), averaging=averaging)
    if len(found.images) < FEWEST:
        problem = f'the list "{split}" has {len(found.images)} images, and a threshold needs {FEWEST}'
        raise InputError(dataset_dir, problem, "Label more images that are not trained on, or name another --split")
    rule: dict[str, Any] = {"temperature": fit_temperature(found.probability, found.truth)}
    doubts = found.doubts(rule)
    rule["threshold"] = threshold_of([each.image for each in doubts], share)
    objects = [number for each in doubts for number in each.objects.values()]
    if task.get("kind") == "instances" and len(objects) >= FEWEST:
        rule["object_threshold"] = threshold_of(objects, share)
    rule |= {"share": share, "images": len(found.images), "split": split, "averaging": averaging}
    content = torch.load(path, map_location="cpu", weights_only=True)
    content["task"] = {**task, "doubt": rule}
    with replacing(path) as partial:
        torch.save(content, partial)
    if "release" in task and path.resolve() == (Path(bundle) / "models" / "model.pt").resolve():
        record_checksum(bundle)
    return rule, found


def report(rule: dict[str, Any], found: Examined) -> str:
    """Say what was found: the reliability before and after, the threshold, and how the flagged images score.

    >>> inside = [(np.array([1]), np.array([p])) for p in (0.6, 0.8)]
    >>> found = Examined(["a.png", "b.png"], {"dice": [0.7, 0.9]}, inside, np.array([0.05]), np.array([False]))
    >>> print(report({"temperature": 1.0, "threshold": 0.3}, found))
      pixels  predicted  found  at temperature 1.00
           1      0.050  0.000                0.050
    expected calibration error 0.0500, at temperature 1.00 0.0500
    threshold 0.300: 1 of 2 images flagged
    mean dice 0.700 of the flagged ones, 0.900 of the others
    """
    temperature = rule["temperature"]
    before, after = found.reliability(), found.reliability(temperature)
    lines = [f"  pixels  predicted  found  at temperature {temperature:.2f}"]
    for n, predicted, share in before:
        tempered = float(temper(np.array([predicted]), temperature)[0])
        lines.append(f"{n:8d}  {predicted:9.3f}  {share:.3f}  {tempered:19.3f}")
    errors = [calibration_error(bins) for bins in (before, after)]
    lines.append(f"expected calibration error {errors[0]:.4f}, at temperature {temperature:.2f} {errors[1]:.4f}")
    if "threshold" not in rule:
        return "\n".join(lines)
    flags = np.array([bool(each.look) for each in found.doubts(rule)])
    lines.append(f"threshold {rule['threshold']:.3f}: {flags.sum()} of {len(flags)} images flagged")
    for name, values in found.scores.items():
        parts = {"the flagged ones": np.array(values)[flags], "the others": np.array(values)[~flags]}
        means = [f"{np.nanmean(part):.3f} of {who}" for who, part in parts.items() if np.isfinite(part).any()]
        lines.append(f"mean {name} {', '.join(means)}")
    return "\n".join(lines)
