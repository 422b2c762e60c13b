"""Write the tables of docs/benchmarks.md, docs/new_bundle.md and docs/results.md from benchmarks/results/*.json.

    python -m benchmarks.document

Each table, as printed by its benchmark, is between <!-- NAME --> and <!-- end of NAME -->.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.peers import RESULTS, title

DOCS = Path(__file__).parents[1] / "docs"
#: the modules whose tables a page has
PAGES = {
    "benchmarks.md": ("weight_map", "elastic", "inference", "whole_step", "free_speed", "start_up", "workers", "gpu"),
    "new_bundle.md": ("studies.any_task", "studies.planning", "studies.nnunet"),
    "results.md": ("studies.border_weights", "studies.fine_tuning"),
}


def filled(page: str) -> str:
    """Fill each table of the page from its result; a table without a result stays as it is."""
    text = (DOCS / page).read_text()
    for module in PAGES[page]:
        name = module.rpartition(".")[2]
        file = RESULTS / f"{name}.json"
        if not file.exists():
            continue
        table = importlib.import_module(f"benchmarks.{module}").table(json.loads(file.read_text()))
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        text, count = re.subn(f"{begin}.*?{end}", lambda _, t=f"{begin}\n{table}\n{end}": t, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"docs/{page} has {count} places for {name}; it needs {begin} and {end} once")
    return text


def draw(weight_map: dict[str, Any], elastic: dict[str, Any], inference: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    for name in dict.fromkeys(row["name"] for row in weight_map["rows"]):
        of_4096 = [row for row in weight_map["rows"] if row["name"] == name and row["size"] == [4096, 4096]]
        points = [(row["objects"], row["median_s"]) for row in of_4096 if "median_s" in row]
        if points:
            left.loglog(*zip(*points, strict=True), "o-", label=name)
    left.set(title="weight map, 4096²", xlabel="objects", ylabel="seconds")
    left.legend()
    bars = [
        (f"{row['name']}, {title(row['size'])}", row["ratio"], "tab:blue")
        for row in elastic["rows"]
        if row["order"] == 1 and row["name"] != "ours"
    ]
    limit = next(row["median_s"] for row in inference["rows"])
    bars += [(row["name"], row["median_s"] / limit, "tab:orange") for row in inference["rows"][1:]]
    names, ratios, colours = zip(*reversed(bars), strict=True)
    right.barh(names, ratios, color=colours)
    right.axvline(1, color="black", linestyle=":")
    right.set(title="time: elastic deformation over ours,\ninference over one pass of our network", xscale="log")
    return figure


def main() -> None:
    for page in PAGES:
        (DOCS / page).write_text(filled(page))
    drawn = [json.loads((RESULTS / f"{name}.json").read_text()) for name in ("weight_map", "elastic", "inference")]
    draw(*drawn).savefig(DOCS / "pictures" / "benchmarks.png", dpi=90)


if __name__ == "__main__":
    main()
