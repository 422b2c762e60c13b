"""Start-up time, from `python -m monai.bundle run` to the first training step, and MONAI's share of it.

    python -m benchmarks.start_up [--rounds 3]

Three take turns, each in a process of its own: importing torch; a bundle run whose config does nothing, which measures
the import of MONAI; and the compact training of the EM bundle on the synthetic stack, until its first step begins.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from benchmarks.peers import alternately, arguments, markdown, record, summary
from monai_unet.datasets import prepare

BUNDLE = Path(__file__).parents[1] / "bundles" / "em_membrane_segmentation"
EMPTY, FIRST = "a bundle run that does nothing", "the EM bundle, to its first step"
FIRST_STEP = """
+train#handlers:
- _target_: benchmarks.start_up.StopAtFirstStep
"""


class StopAtFirstStep:
    """Ends the process when the first step begins."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        sys.exit(0)


def main() -> None:
    rounds = arguments(__doc__, rounds=3).rounds
    python = [sys.executable, "-W", "ignore"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare("em_phantom", output=folder / "data").parent
        (folder / "empty.yaml").write_text("run:\n- $None\n")
        (folder / "first.yaml").write_text(FIRST_STEP)
        configs = [str(BUNDLE / "configs" / f"{part}.yaml") for part in ("train", "compact")]
        run = [*python, "-m", "monai.bundle", "run", "--bundle_root", str(BUNDLE), "--config_file"]
        train = [*run, str([*configs, str(folder / "first.yaml")]), "--dataset_dir", str(data)]
        commands = {
            "import torch": [*python, "-c", "import torch"],
            EMPTY: [*run, str(folder / "empty.yaml")],
            FIRST: [*train, "--output_dir", str(folder / "model")],
        }
        works = {
            title: partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL, cwd=BUNDLE.parents[1])
            for title, command in commands.items()
        }
        times = alternately(works, rounds, warm_up=False)  # a slow first round does not change the median
    print(table(record("start_up", summary(times, EMPTY), packages=("monai",))))


def table(held: dict[str, Any]) -> str:
    rows = [
        [row["name"], f"{row['median_s']:.1f} ({row['min_s']:.1f} … {row['max_s']:.1f})", f"{row['ratio']:.2f}"]
        for row in held["rows"]
    ]
    return f"{held['hardware']}.\n\n" + markdown(["", "s (min … max)", "of MONAI's empty run"], rows)


if __name__ == "__main__":
    main()
