"""The benchmarks themselves: turns, ratios, and the agreement of the peers with ours."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import document, elastic, peers, weight_map
from monai_unet.transforms import BorderWeightMap


def test_works_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []
    times = peers.alternately({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "cab" + "abc" + "bca" + "cab"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_without_a_warm_up_all_turns_count() -> None:
    calls: list[str] = []
    times = peers.alternately({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2, warm_up=False)
    assert "".join(calls) == "ab" + "ba"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}


def test_works_are_timed_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(peers.time, "perf_counter", lambda: now[0])
    works = {"short": lambda: now.__setitem__(0, now[0] + 1), "long": lambda: now.__setitem__(0, now[0] + 5)}
    assert peers.alternately(works, rounds=2) == {"short": [1.0, 1.0], "long": [5.0, 5.0]}


def test_summary_by_hand() -> None:
    ours, other = peers.summary({"ours": [2.0, 1.0, 9.0], "other": [3.0, 8.0, 5.0]}, base="ours")
    assert ours == {"name": "ours", "median_s": 2.0, "min_s": 1.0, "max_s": 9.0, "ratio": 1.0}
    assert other == {"name": "other", "median_s": 5.0, "min_s": 3.0, "max_s": 8.0, "ratio": 1.5}


def test_a_peer_that_is_not_installed_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> int:
        raise ModuleNotFoundError("No module named 'peer'")

    assert peers.available({"there": lambda: 1, "peer's": missing}) == {"there": 1}
    assert capsys.readouterr().out == (
        "peer's is left out, its import failed (No module named 'peer'): pip install \"monai_unet[peers]\"\n"
    )


def test_a_record_can_be_read_back(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "RESULTS", tmp_path)
    held = peers.record("mine", [{"size": 3}], packages=("numpy", "no such package"), target=2)
    assert json.loads((tmp_path / "mine.json").read_text()) == held
    assert held["rows"] == [{"size": 3}]
    assert held["target"] == 2
    assert held["versions"]["numpy"] == np.__version__
    assert "no such package" not in held["versions"]


def test_markdown_by_hand() -> None:
    assert peers.markdown(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


@pytest.mark.parametrize("shape", [(41, 33), (23, 17, 19)])
def test_the_peers_of_the_weight_map_agree_with_ours(shape: tuple[int, ...]) -> None:
    find_boundaries = pytest.importorskip("skimage.segmentation").find_boundaries
    ids = weight_map.touching_cells(shape, 6)[0]
    assert np.unique(ids).tolist() == [0, 1, 2, 3, 4, 5, 6]
    ours = BorderWeightMap(class_weights=None)(ids[None])[0]
    assert ours.max() > 5  # they touch
    for peer in (weight_map.one_transform_per_object, weight_map.transforms_in_boxes):
        np.testing.assert_allclose(ours, peer(ids, 10, 5), atol=1e-4)
    pairs = weight_map.boundaries_all_pairs(find_boundaries, ids, 10, 5)
    np.testing.assert_allclose(ours[ids == 0], pairs[ids == 0], atol=1e-4)


def test_one_object_alone_has_no_border_term_in_any_of_them() -> None:
    find_boundaries = pytest.importorskip("skimage.segmentation").find_boundaries
    ids = np.zeros((9, 9), np.int32)
    ids[3:5, 3:5] = 1
    assert np.all(weight_map.one_transform_per_object(ids, 10, 5) == 1)
    assert np.all(weight_map.transforms_in_boxes(ids, 10, 5) == 1)
    assert np.all(weight_map.boundaries_all_pairs(find_boundaries, ids, 10, 5) == 1)


def test_boxes_leave_out_no_more_than_the_term_reaches() -> None:
    ids = np.zeros((4, 80), np.int32)
    ids[:, 0], ids[:, 24] = 1, 2
    whole = weight_map.one_transform_per_object(ids, 10, 5)
    np.testing.assert_allclose(weight_map.transforms_in_boxes(ids, 10, 5), whole, atol=2e-5)
    assert whole[0, 12] > 1 + 9e-5  # by hand: 10 exp(-24²/50) = 1e-4


def test_exponents_of_powers() -> None:
    rows = [
        {"size": (side, side), "objects": count, "name": name, "median_s": side**2 * count**0.5}
        for name in (weight_map.OURS, weight_map.BOXES, weight_map.WHOLE)
        for side, count in ((512, 200), (1024, 200), (4096, 200), (4096, 20), (4096, 20000))
    ]
    rows.append({"size": (96, 96, 96), "objects": 200, "name": weight_map.OURS, "median_s": 1e-9})
    found = weight_map.exponents(rows)
    assert set(found) == {weight_map.OURS, weight_map.BOXES, weight_map.WHOLE}
    for exponents in found.values():
        assert exponents == pytest.approx({"pixels": 1.0, "objects": 0.5})


@pytest.mark.parametrize("size", [(45, 52), (15, 22, 18)])
def test_ours_equals_map_coordinates(size: tuple[int, ...]) -> None:
    assert elastic.oracle_difference(size) < 1e-4


def shifted(size: tuple[int, ...], rows: float, columns: float) -> dict[str, np.ndarray]:
    data = elastic.numbered(size)
    image, weights = data["image"] + rows / elastic.UNIT, data["weights"] + columns / elastic.UNIT
    return {"image": image, "label": np.round(image * elastic.UNIT), "weights": weights}


def test_the_field_of_a_shift() -> None:
    read = elastic.field(shifted((40, 30), 3.25, -4.0), (40, 30))
    assert read["displacement"] == pytest.approx(np.sqrt((3.25**2 + 4**2) / 2), abs=1e-3)
    assert read["label_off"] == pytest.approx(0.25, abs=1e-3)
    assert read["folded"] == 0


def test_a_mirrored_image_is_folded_and_a_label_left_behind_is_off() -> None:
    out = shifted((40, 30), 0, 0)
    out["image"] = out["image"][::-1]
    read = elastic.field(out, (40, 30))
    assert read["folded"] == 1
    assert read["label_off"] > 15


@pytest.mark.parametrize(("size", "order"), [((64, 48), 1), ((64, 48), 3), ((24, 20, 16), 1)])
def test_our_deformation_is_the_same_for_label_and_image(
    size: tuple[int, ...], order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic, "SIGMA", 1.0)  # so small that nothing beyond the edge is read
    out = elastic.ours(elastic.numbered(size), order)()
    read = elastic.field(out, size)
    assert read["label_off"] < 0.6
    assert read["displacement"] > 0.01


def test_the_target_is_over_the_peers_whose_field_does_not_fold() -> None:
    about = {"size": (572, 572), "order": 1}
    rows = [
        {**about, "name": name, "ratio": ratio, "folded": folded}
        for name, ratio, folded in (("ours", 1, 0), ("rough", 1.1, 0.2), ("slow", 9, 0), ("quick", 2.6, 0))
    ]
    rows.append({"size": (132, 132, 132), "order": 1, "name": "other", "ratio": 0.5, "folded": 0})
    told = elastic.target({"rows": rows}, (572, 572), 1)
    assert (
        told == "572², bilinear: 2.6 times as fast as quick, the fastest peer; where the field folds, 1.1 times rough"
    )
    assert elastic.target({"rows": rows[:1]}, (572, 572), 1) == "572², bilinear: no peer"


def test_the_table_of_weight_maps_marks_estimates_and_peers_that_were_not_run() -> None:
    about = {"size": (512, 512), "objects": 2000}
    rows = [
        {**about, "name": weight_map.OURS, "how": "measured", "median_s": 0.5, "ratio": 1},
        {**about, "name": weight_map.WHOLE, "how": "estimated from 5 objects", "median_s": 61200.0, "ratio": 122400.0},
        {**about, "name": weight_map.PAIRS, "how": "not run: one array of 4.2 GB"},
    ]
    growth = {weight_map.OURS: {"pixels": 0.654, "objects": 0.4}}
    lines = weight_map.table({"rows": rows, "exponents": growth}).splitlines()
    assert lines[2] == "| 512² | 2,000 | 0.5 s |  | 61,200 s (estimated), × 122,400 | not run: one array of 4.2 GB |"
    assert lines[3] == "| exponent of pixels |  | 0.65 |  |  |  |"


@pytest.mark.parametrize("page", document.PAGES)
def test_the_tables_of_the_docs_are_those_of_the_results(page: str) -> None:
    assert (document.DOCS / page).read_text() == document.filled(page)
