"""Does the flag "look at it" find bad masks? On images that nothing was chosen on, and on images of another kind.

    python -m benchmarks.studies.doubt BUNDLE --dataset_dir DIR [--images N] [--averaging all]

BUNDLE is the folder of a bundle with weights, DIR its prepared data set. Flags need a threshold in the checkpoint
(python -m monai_unet.bundles doubt); without one there is the AUROC only. A mask is bad if its score is beyond the
limit in SCORES, stated beforehand. Predicts the list "test" and images of another kind: for instances those of the Cell
Tracking Challenge, if they are at hand; of volumes the list "test" again, with MONAI's Rician noise and bias field
(seed 0). Prints for each source how many of the bad are flagged, how many of the good are not, and the area under the
ROC curve (AUROC) of the number; for the list "test" the calibration of the pixels, too. Writes
benchmarks/results/doubt_BUNDLE.json. --images is the most of each source.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from benchmarks.peers import markdown, record
from monai_unet.bundles.doubt import examine, report
from monai_unet.datasets import prepare
from monai_unet.doubt import Doubt
from monai_unet.errors import InputError
from monai_unet.networks import load_task

#: the score of an image, the limit beyond which it is bad, and whether more is better
SCORES = {"ap50": (0.5, True), "dice": (0.8, True), "rand_error": (0.1, False), "pixel_error": (0.1, False)}
#: images of another kind, by card
OTHERS = ("phc_c2dh_u373", "dic_c2dh_hela")
NOISE = {"_target_": "RandRicianNoised", "keys": "image", "prob": 1.0, "relative": True, "channel_wise": True}
NOISE |= {"sample_std": False}
BIAS = {"_target_": "RandBiasFieldd", "keys": "image", "prob": 1.0}
#: what is done to volumes; relative to their standard deviation, and to MONAI's own largest coefficient, 0.1
SPOILT = {
    "noise, 0.2 of the contrast": {**NOISE, "std": 0.2},
    "noise, 0.5 of the contrast": {**NOISE, "std": 0.5},
    "bias field, coefficients up to 0.1": {**BIAS, "coeff_range": [0.0, 0.1]},
    "bias field, coefficients up to 0.3": {**BIAS, "coeff_range": [0.0, 0.3]},
}


class Source(NamedTuple):
    name: str
    dataset_dir: str
    options: dict[str, Any]


def sources(bundle: Path, dataset_dir: str) -> Iterator[Source]:
    config = ConfigParser.load_config_file(bundle / "configs" / "inference.yaml")
    if "spacing" in config:
        quick: dict[str, Any] = {"additional_metrics": {}}  # surface distances take longer than the prediction
        yield Source("test", dataset_dir, quick)
        *first, last = config["image_transforms"]
        for name, step in SPOILT.items():
            steps = [*first, {"_target_": "ScaleIntensityd", "keys": "image"}, step, last]
            yield Source(f"test, {name}", dataset_dir, {**quick, "image_transforms": steps})
        return
    yield Source("test", dataset_dir, {})
    if load_task(bundle / "models" / "model.pt")["kind"] == "instances":
        for card in OTHERS:
            with contextlib.suppress(InputError):  # not at hand
                folder = prepare(card, output=Path(tempfile.gettempdir()) / "doubt" / card).parent
                yield Source(card, str(folder), {})


def row(source: str, scores: Sequence[float], doubts: Sequence[Doubt], metric: str) -> dict[str, Any]:
    limit, more = SCORES[metric]
    values = np.nan_to_num(np.array(scores))  # nothing found, nothing there
    bad = values < limit if more else values > limit
    flags, numbers = np.array([each.look for each in doubts], bool), np.array([each.image for each in doubts])
    pairs = numbers[bad][:, None] - numbers[~bad]  # AUROC: how often a bad image is the more doubtful one of a pair
    return {
        "source": source,
        "images": len(values),
        "score": float(values.mean()),
        "bad": int(bad.sum()),
        "bad_flagged": int(flags[bad].sum()),
        "good": int((~bad).sum()),
        "good_not_flagged": int((~flags[~bad]).sum()),
        "auroc": float((pairs > 0).mean() + (pairs == 0).mean() / 2) if pairs.size else None,
        "numbers": numbers.tolist(),
        "scores": values.tolist(),
    }


def table(result: dict[str, Any]) -> str:
    header = ["images", "number", f"mean {result['metric']}", "bad, flagged", "good, not flagged", "AUROC"]
    lines = []
    for each in result["rows"]:
        flags = [f"{each[kind]} of {each[of]}" for kind, of in (("bad_flagged", "bad"), ("good_not_flagged", "good"))]
        if result["rule"] is None:
            flags = [f"of {each[of]}" for of in ("bad", "good")]
        auroc = "" if each["auroc"] is None else f"{each['auroc']:.2f}"
        lines.append([each["source"], each["images"], f"{each['score']:.3f}", *flags, auroc])
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--averaging", choices=("none", "mirror", "all"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rule = load_task(given.bundle / "models" / "model.pt").get("doubt")
    rows, metric, calibration = list[dict[str, Any]](), "", ""
    scores, doubts = list[float](), list[Doubt]()
    for name, folder, options in sources(given.bundle, given.dataset_dir):
        set_determinism(0)
        data = f"$datasets.datalist(@dataset_dir, @split)[:{given.images}]"
        found = examine(given.bundle, folder, "test", averaging=given.averaging, **{"dataset#data": data}, **options)
        metric = metric or next(known for known in SCORES if known in found.scores)
        rows.append(row(name, found.scores[metric], found.doubts(rule), metric))
        scores, doubts = [*scores, *found.scores[metric]], [*doubts, *found.doubts(rule)]
        calibration = calibration or report(rule or {"temperature": 1.0}, found)
        print(table({"metric": metric, "rule": rule, "rows": rows[-1:]}), flush=True)
    facts = {"metric": metric, "limit": SCORES[metric][0], "rule": rule, "calibration": calibration.splitlines()}
    rows.append(row("all", scores, doubts, metric))
    result = record(f"doubt_{given.bundle.resolve().name}", rows, **facts)
    print(f'\nthe list "test":\n{calibration}\n\nbad: {metric} beyond {SCORES[metric][0]}\n\n{table(result)}')


if __name__ == "__main__":
    main()
