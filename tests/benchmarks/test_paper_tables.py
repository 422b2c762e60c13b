"""The command behind the paper's tables: its runs, its resumption and its output. The bundles are not run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import paper_tables


class Bundles:
    """A stand-in for `python -m monai.bundle run`, at 120 s a run: records the options, and writes scores."""

    def __init__(self) -> None:
        self.runs: list[tuple[list[str], dict[str, Any]]] = []
        self.fail = ""
        self.clock = 0.0

    def __call__(self, bundle: str, configs: list[str], options: dict[str, Any], log: Path) -> None:
        self.runs.append((configs, options))
        self.clock += 120
        if self.fail in configs:
            raise KeyboardInterrupt
        if "evaluate" in configs:
            Path(options["output_dir"]).mkdir(parents=True, exist_ok=True)
            overall = {"seg": 0.75, "merged_cells": 3.0, "split_cells": 1.0}
            scores = {"overall": overall, "images": [{"image": "t039.tif", **overall}]}
            (Path(options["output_dir"]) / "scores.json").write_text(json.dumps(scores))


@pytest.fixture
def bundles(tmp_path, monkeypatch) -> Bundles:
    stand_in = Bundles()
    for fold in (".", "fold_01", "fold_02"):
        (tmp_path / "data" / fold).mkdir(parents=True)
        (tmp_path / "data" / fold / "dataset.json").write_text("{}")
    monkeypatch.setattr(paper_tables, "bundle_run", stand_in)
    monkeypatch.setattr(paper_tables, "time", SimpleNamespace(perf_counter=lambda: stand_in.clock))
    monkeypatch.setattr(paper_tables, "prepare", lambda name, output: tmp_path / "data" / "dataset.json")
    monkeypatch.setattr(paper_tables, "seconds_per_step", lambda *args: [0.5, 0.6, 0.5])
    monkeypatch.setattr(paper_tables, "fast_bfloat16", lambda device: True)
    monkeypatch.setattr(paper_tables, "RESULTS", tmp_path / "results")
    return stand_in


def test_trains_for_the_given_minutes_then_scores_both_sequences(bundles, tmp_path):
    record = paper_tables.reproduce("hela", width=32, minutes=20, seed=7, work=tmp_path / "work")
    (train, options), *evaluations = bundles.runs
    assert train == ["train", "compact"]
    assert options["max_epochs"] == 20  # 1200 s at 1.15 · 0.5 s are 2,086 steps: an even number of hundreds
    assert (options["seed"], options["resume"]) == (7, "auto")
    assert [Path(o["dataset_dir"]).name for _, o in evaluations] == ["data", "fold_01"]
    assert set(record["scores"]) == {"held out", "sequence 02"}
    assert (record["steps"], record["training_s"]) == (2000, 120)
    paper_tables.keep(record)
    assert json.loads((tmp_path / "results" / "hela_32_seed7.json").read_text()) == record


def test_the_paper_s_width_takes_the_paper_s_configuration(bundles, tmp_path):
    paper_tables.reproduce("u373", width=64, minutes=1, seed=0, work=tmp_path / "work")
    assert bundles.runs[0][0] == ["train"]
    assert bundles.runs[0][1]["amp"] is True


def test_an_interrupted_command_resumes(bundles, tmp_path):
    bundles.fail = "train"
    with pytest.raises(KeyboardInterrupt):
        paper_tables.reproduce("hela", width=32, minutes=20, seed=0, work=tmp_path / "work")
    bundles.fail = "evaluate"
    with pytest.raises(KeyboardInterrupt):
        paper_tables.reproduce("hela", width=32, minutes=20, seed=0, work=tmp_path / "work")
    assert bundles.runs[1][1] == bundles.runs[0][1], "the same training, with resume"
    bundles.fail = "nothing"
    record = paper_tables.reproduce("hela", width=32, minutes=20, seed=0, work=tmp_path / "work")
    assert [configs[-1] for configs, _ in bundles.runs] == ["compact", "compact", "evaluate", "evaluate", "evaluate"]
    assert record["training_s"] == 2 * 120, "both attempts' time, and no evaluation's"
    with pytest.raises(SystemExit, match="belongs to another training run.*Choose another --work, or remove it"):
        paper_tables.reproduce("hela", width=32, minutes=30, seed=0, work=tmp_path / "work")


def test_the_table_has_ours_next_to_the_paper_s(bundles, tmp_path):
    for seed in (0, 1):
        record = paper_tables.reproduce("hela", width=32, minutes=20, seed=seed, work=tmp_path / f"work{seed}")
        paper_tables.keep(record)
    text = paper_tables.document()
    assert "| | seg | seg, mean of frames (95 %) | merged cells | split cells |" in text
    assert "| **width 32, seed 1**, held out; 2,000 steps in 2 min on " in text
    assert text.count("| 0.7500 | 0.7500 (0.7500–0.7500) | 3 | 1 |") == 4
    assert "| U-Net in the paper, challenge's test set | 0.7756 |  |  |  |" in text
    assert "U373" not in text, "no row without a result"


def test_errors_as_small_as_the_challenge_s_keep_their_digits(bundles):
    errors = {"warping_error": 0.0016232, "rand_error": 0.06, "pixel_error": 0.05}
    scores = {"held out": {"overall": errors, "images": [errors, errors]}}
    record = {
        "dataset": "isbi2012",
        "width": 32,
        "seed": 0,
        "steps": 1,
        "training_s": 60,
        "protocol": "",
        "hardware": "",
    }
    paper_tables.keep({**record, "scores": scores})
    text = paper_tables.document()
    assert "| 0.00162 | 0.00162 (0.00162–0.00162) | 0.0600 | 0.0600 (0.0600–0.0600) | 0.0500 |" in text
    assert "| human values in the paper | 0.000005 |  | 0.0021 |  | 0.001 |  |" in text


def test_a_fold_trains_on_one_sequence_and_scores_the_other(bundles, tmp_path):
    record = paper_tables.reproduce("hela", width=32, minutes=20, seed=0, work=tmp_path / "work", fold="02")
    assert {Path(options["dataset_dir"]).name for _, options in bundles.runs} == {"fold_02"}
    assert set(record["scores"]) == {"sequence 01"}
    paper_tables.keep(record)
    assert "Ours: trained on sequence 02, scored on sequence 01;" in paper_tables.document()
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["hela_32_fold02_seed0.json"]
    (tmp_path / "data" / "fold_01" / "dataset.json").unlink()
    with pytest.raises(SystemExit, match="no --fold 01 of dic_c2dh_hela: a fold needs both sequences"):
        paper_tables.reproduce("hela", width=32, minutes=20, seed=0, work=tmp_path / "other", fold="01")
