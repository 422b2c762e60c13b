"""Measures: closed forms of boxes and discs, scikit-image itself on a real image, and tables that runs add to."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import AsDiscreted, Compose, LoadImaged, SaveImaged

from monai_unet.data import InputError, MicroscopyReader, MicroscopyWriter, list_images, predict_images
from monai_unet.data.microscopy.measures import MeasureTables, measure
from monai_unet.data.microscopy.outlines import OutlinesWriter
from monai_unet.data.tables import read_table, update_table
from monai_unet.transforms import LabelInstancesd

skimage = pytest.importorskip("skimage.measure")
pytestmark = pytest.mark.filterwarnings("ignore:.*NvImgCodec")


def columns(table: dict[str, np.ndarray], *names: str) -> list[Any]:
    return [table[name].tolist() for name in names]


@pytest.mark.parametrize("size", [(0.5, 0.5), (0.5, 0.2), (math.nan, math.nan)])
def test_boxes_in_pixels_and_micrometres(size: tuple[float, float]) -> None:
    """4 rows × 10 columns from (2, 3), and one pixel in the corner; values of two channels by hand."""
    ids = np.zeros((12, 20), np.uint16)
    ids[2:6, 3:13], ids[11, 19] = 900, 2
    image = np.stack([np.broadcast_to(np.arange(20), ids.shape), np.full(ids.shape, -1.5)])
    table = measure(ids, image, size)
    known = np.array(size)
    assert columns(table, "label", "area_px", "touches_border") == [[2, 900], [1, 40], [1, 0]]
    assert columns(table, "centroid_y_px", "centroid_x_px") == [[11, 3.5], [19, 7.5]]
    assert columns(table, "box_y_from_px", "box_y_to_px") == [[11, 2], [12, 6]]
    assert columns(table, "box_x_from_px", "box_x_to_px") == [[19, 3], [20, 13]]
    assert columns(table, "extent", "mean_1", "minimum_1", "maximum_1") == [[1, 1], [19, 7.5], [19, 3], [19, 12]]
    assert columns(table, "integrated_1", "mean_2", "integrated_2") == [[19, 300], [-1.5, -1.5], [-1.5, -60]]
    assert table["perimeter_px"].tolist() == [0, 24], "through the centres of the outermost pixels"
    np.testing.assert_allclose(table["area_um2"], table["area_px"] * known.prod())
    np.testing.assert_allclose(table["centroid_y_um"], table["centroid_y_px"] * known[0])
    np.testing.assert_allclose(table["centroid_x_um"], table["centroid_x_px"] * known[1])
    square = known[0] if known[0] == known[1] else math.nan
    np.testing.assert_allclose(table["perimeter_um"], table["perimeter_px"] * square)


def test_an_ellipse_of_pixels_is_a_disc_in_micrometres() -> None:
    y, x = np.indices((200, 100)) - np.array([100, 50])[:, None, None]
    disc = ((0.5 * y) ** 2 + x**2 < 40**2).astype(int)
    (anisotropic,), (unknown,) = (measure(disc, disc[None], size)["eccentricity"] for size in ((0.5, 1), (np.nan, 1)))
    assert anisotropic < 0.1
    assert unknown == pytest.approx(math.sqrt(1 - 0.5**2), abs=0.01)
    round_one = (np.hypot(*np.indices((200, 200)) - 100) < 80).astype(int)
    table = measure(round_one, round_one[None], (0.25, 0.25))
    assert table["area_um2"][0] == pytest.approx(math.pi * 20**2, rel=0.01)
    assert table["perimeter_um"][0] == pytest.approx(2 * math.pi * 20, rel=0.05)


def test_a_ball_of_anisotropic_voxels() -> None:
    """Radius 6 µm, in planes 0.5 µm apart."""
    z, y, x = np.indices((30, 40, 40)) * np.array([0.5, 0.4, 0.4])[:, None, None, None]
    ball = ((z - 7.2) ** 2 + (y - 8) ** 2 + (x - 8) ** 2 < 36).astype(np.uint8)
    table = measure(ball, np.ones((1, *ball.shape)), (0.5, 0.4, 0.4))
    assert table["volume_um3"][0] == pytest.approx(4 / 3 * math.pi * 6**3, rel=0.01)
    assert table["surface_um2"][0] == pytest.approx(4 * math.pi * 36, rel=0.1)
    assert [table[f"centroid_{axis}_um"][0] for axis in "zyx"] == pytest.approx([7.2, 8, 8], abs=0.1)
    assert table["integrated_1"][0] == table["volume_vx"][0] == ball.sum()
    assert table["touches_border"][0] == 0
    cube = np.zeros((4, 5, 6), int)
    cube[1:3, 1:4, 1:5] = 1
    (unknown,) = measure(cube, cube[None], (np.nan, 1, 1))["surface_um2"]
    assert math.isnan(unknown)


def test_a_real_image_equals_skimage_directly() -> None:
    if "MONAI_UNET_DATA" not in os.environ:
        pytest.skip("MONAI_UNET_DATA is not set: the real image is not here")
    folder = Path(os.environ["MONAI_UNET_DATA"]) / "ctc" / "PhC-C2DH-U373" / "01"
    image = tifffile.imread(folder / "t007.tif").astype(float)
    ids = skimage.label(image > np.percentile(image, 97))
    ids[np.isin(ids, np.flatnonzero(np.bincount(ids.ravel()) < 50))] = 0
    table = measure(ids, image[None], (0.65, 0.65))
    found = skimage.regionprops(ids, image, spacing=(0.65, 0.65))
    assert len(found) == len(table["label"]) > 5
    same = {"label": "label", "area_um2": "area", "perimeter_um": "perimeter", "eccentricity": "eccentricity"}
    same |= {"mean_1": "intensity_mean", "minimum_1": "intensity_min", "maximum_1": "intensity_max"}
    for ours, theirs in same.items():
        np.testing.assert_allclose(table[ours], [region[theirs] for region in found], rtol=1e-9)


def test_no_objects_and_another_shape() -> None:
    table = measure(np.zeros((5, 6)), np.zeros((2, 5, 6)), (1, 1))
    assert {len(column) for column in table.values()} == {0}
    with pytest.raises(ValueError, match=re.escape("the image has shape (5, 7), its objects (5, 6)")):
        measure(np.zeros((5, 6)), np.zeros((1, 5, 7)), (1, 1))


# --- tables ----------------------------------------------------------------------------------------------------------


class Bright(SimpleInferer):
    """In place of a network: two classes, the second where a pixel is above 100."""

    def __call__(self, inputs: torch.Tensor, network: Any, *_: Any, **__: Any) -> torch.Tensor:
        return torch.cat([100 - inputs, inputs - 100], 1)


def predict(folder: Path, out: Path, overwrite: bool = False, class_names: list[str] | None = None) -> None:
    """Predict a folder as a bundle does."""
    writer = partial(MicroscopyWriter, overwrite=overwrite)
    save = {"output_dir": out, "separate_folder": False, "print_log": False}
    tif = {"writer": writer, "output_ext": ".tif", "output_dtype": None, **save}
    steps: list[Any] = [AsDiscreted("pred", argmax=True, dtype=torch.uint8)]
    if class_names is None:
        outlines = partial(OutlinesWriter, overwrite=overwrite, reader=MicroscopyReader())
        steps += [LabelInstancesd("pred", grow=0)]
        steps += [SaveImaged("pred", output_postfix="", output_ext=".geojson", writer=outlines, **save)]
    steps += [SaveImaged("pred", output_postfix="instances" if class_names is None else "label", **tif)]
    loader = DataLoader(Dataset(list_images(folder, out), LoadImaged("image", MicroscopyReader)), batch_size=1)
    post = Compose(steps)
    engine = SupervisedEvaluator("cpu", loader, torch.nn.Identity(), inferer=Bright(), postprocessing=post)
    predict_images(engine, post, overwrite=overwrite, class_names=class_names)


def cells(path: Path, *corners: tuple[int, int]) -> None:
    """An image of 40 × 30 pixels of 0.5 µm, with cells of 4 × 6 pixels, the first one of value 150, the next 151 …"""
    image = np.full((40, 30), 20, np.uint8)
    for number, (y, x) in enumerate(corners):
        image[y : y + 4, x : x + 6] = 150 + number
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, image, resolution=(20000, 20000), resolutionunit=3)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    cells(tmp_path / "in" / "a.tif", (3, 3), (20, 10), (36, 20))
    cells(tmp_path / "in" / "b.tif", (10, 10))
    return tmp_path / "in"


def rows(path: Path, **where: str) -> list[dict[str, str]]:
    with path.open() as file:
        return [row for row in csv.DictReader(file) if where.items() <= row.items()]


def test_ids_are_those_of_the_mask_and_of_the_outlines(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(two, out)
    found = rows(out / "measures.csv", image="a.tif")
    ids = tifffile.imread(out / "a_instances.tif")
    features = {f["properties"]["name"]: f for f in json.loads((out / "a.geojson").read_text())["features"]}
    assert [row["label"] for row in found] == list(features) == ["1", "2", "3"]
    for number, row in enumerate(found):
        y, x = np.argwhere(ids == int(row["label"])).mean(0)
        assert (float(row["centroid_y_px"]), float(row["centroid_x_px"])) == (y, x)
        assert (row["mean_1"], row["area_px"], row["area_um2"]) == (str(150 + number), "24", "6")
        assert row["touches_border"] == str(int(number == 2))
        corners = np.array(features[row["label"]]["geometry"]["coordinates"][0])
        assert corners.mean(0) == pytest.approx([x + 0.5, y + 0.5], abs=1.5)
        shown = features[row["label"]]["properties"]["measurements"]
        numbers = {name: float(text) for name, text in row.items() if name not in ("image", "label")}
        assert shown == pytest.approx(numbers, rel=1e-7)
    summary, other = rows(out / "summary.csv")
    written = (out / "a_instances.tif").stat().st_mtime_ns
    assert np.datetime64(summary.pop("mask_written"), "ns").astype(int) == written
    assert summary == {
        "image": "a.tif",
        "objects": "3",
        "touching_border": "1",
        "image_area_px": "1200",
        "image_area_um2": "300",
        "objects_area_px": "72",
        "objects_area_um2": "18",
        "share": "0.06",
        "objects_per_mm2": "10000",
    }
    assert (other["image"], other["objects"]) == ("b.tif", "1")


def test_a_continued_run_keeps_rows_and_replaces_those_of_new_masks(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(two / "a.tif", out)
    predict(two / "b.tif", out)
    before = (out / "measures.csv").read_text()
    assert [row["image"] for row in rows(out / "measures.csv")] == ["a.tif"] * 3 + ["b.tif"]
    predict(two, out)
    assert (out / "measures.csv").read_text() == before, "nothing is measured again"
    cells(two / "a.tif", (3, 3))
    predict(two, out)
    assert (out / "measures.csv").read_text() == before, "its results are left alone"
    predict(two / "a.tif", out, overwrite=True)
    assert [row["image"] for row in rows(out / "measures.csv")] == ["b.tif", "a.tif"]
    assert {row["image"]: row["objects"] for row in rows(out / "summary.csv")} == {"b.tif": "1", "a.tif": "1"}


def test_corrected_masks_and_masks_of_a_killed_run_are_measured(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(two, out)
    ids = tifffile.imread(out / "a_instances.tif")
    tifffile.imwrite(out / "a_instances.tif", np.where(ids == 2, 0, ids))
    predict(two, out)
    assert [row["label"] for row in rows(out / "measures.csv", image="a.tif")] == ["1", "3"]
    (out / "measures.csv").unlink()
    predict(two, out)
    assert len(rows(out / "measures.csv")) == 3
    tifffile.imwrite(out / "a_instances.tif", ids[:20])
    with pytest.raises(SystemExit):
        predict(two, out)
    assert len(rows(out / "measures.csv")) == 3
    tables = MeasureTables(out, MicroscopyReader())
    message = r"a_instances.tif: shape \(20, 30\), but its image .*a.tif has \(40, 30\). Predict it again with --over"
    with pytest.raises(InputError, match=message):
        tables.add(two / "a.tif", out / "a_instances.tif")


def test_a_corrected_mask_is_measured_whatever_its_time_and_the_tables(two: Path, tmp_path: Path) -> None:
    """Tables that another image has made newer than it, and a copy that kept its time, as of rsync -t."""
    out = tmp_path / "out"
    predict(two, out)
    ids, known = tifffile.imread(out / "a_instances.tif"), (out / "a_instances.tif").stat().st_mtime_ns

    def counted() -> dict[str, str]:
        return {row["image"]: row["objects"] for row in rows(out / "summary.csv")}

    tifffile.imwrite(out / "a_instances.tif", np.where(ids == 2, 0, ids))
    predict(two / "b.tif", out, overwrite=True)
    predict(two / "a.tif", out)
    assert counted() == {"a.tif": "2", "b.tif": "1"}
    tifffile.imwrite(out / "a_instances.tif", np.where(ids == 1, ids, 0))
    os.utime(out / "a_instances.tif", ns=(known, known - 10**12))
    predict(two, out)
    assert counted() == {"a.tif": "1", "b.tif": "1"}
    assert [row["label"] for row in rows(out / "measures.csv", image="a.tif")] == ["1"]


def test_rows_of_an_earlier_version_are_measured_once(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(two, out)
    lines = [line.rpartition(",")[0] for line in (out / "summary.csv").read_text().splitlines()]
    assert "mask_written" not in lines[0]
    (out / "summary.csv").write_text("".join(f"{line}\n" for line in lines))
    (out / "measures.csv").write_text((out / "measures.csv").read_text().replace(",24,", ",99,"))
    predict(two / "a.tif", out)
    assert [(row["image"], row["mask_written"] > "2") for row in rows(out / "summary.csv")] == [
        ("b.tif", False),
        ("a.tif", True),
    ]
    assert {(row["image"], row["area_px"]) for row in rows(out / "measures.csv")} == {("b.tif", "99"), ("a.tif", "24")}
    before = (out / "summary.csv").read_text(), (out / "summary.csv").stat().st_mtime_ns
    predict(two / "a.tif", out)
    assert before == ((out / "summary.csv").read_text(), (out / "summary.csv").stat().st_mtime_ns)


def test_a_bad_image_has_no_row(two: Path, tmp_path: Path) -> None:
    (two / "aa.tif").write_bytes(b"II*\0 half")
    with pytest.raises(SystemExit):
        predict(two, tmp_path / "out")
    assert [row["image"] for row in rows(tmp_path / "out" / "summary.csv")] == ["a.tif", "b.tif"]


def test_areas_of_classes(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(two, out, class_names=["background", "cell"])
    assert not (out / "measures.csv").exists()
    expected = {"image_area_px": "1200", "cell_area_px": "72", "cell_area_um2": "18", "cell_share": "0.06"}
    assert expected.items() <= rows(out / "summary.csv")[0].items()
    mask = tifffile.imread(out / "a_label.tif")
    tifffile.imwrite(out / "a_label.tif", 255 * mask)
    predict(two, out, class_names=["background", "cell"])
    assert expected.items() <= rows(out / "summary.csv", image="a.tif")[0].items(), "0 and 255 are two classes, too"


def test_classes_of_objects_have_a_column_and_are_counted(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(two, out)
    ids = tifffile.imread(out / "a_instances.tif")
    tifffile.imwrite(out / "a_instances.tif", np.array([0, 1, 4, 6], np.uint16)[ids])
    tables = MeasureTables(out, MicroscopyReader(), object_classes=["live", "dead"])
    tables.add(two / "a.tif", out / "a_instances.tif")
    tables.write()
    found = rows(out / "measures.csv", image="a.tif")
    assert [(row["label"], row["class"], row["area_px"]) for row in found] == [
        ("1", "live", "24"),
        ("4", "dead", "24"),
        ("6", "dead", "24"),
    ]
    (summary,) = rows(out / "summary.csv", image="a.tif")
    assert (summary["objects"], summary["live_objects"], summary["dead_objects"]) == ("3", "1", "2")


def test_without_scikit_image_masks_are_written_nevertheless(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.measure", None)
    predict(two / "b.tif", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.geojson", "b_instances.tif"]
    assert 'objects are not measured: skimage is missing: pip install "monai_unet[microscopy]"' in caplog.text


def test_a_table_that_is_none_is_refused_before_the_first_image(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(two / "a.tif", out)
    text = (out / "measures.csv").read_text()
    (out / "measures.csv").write_text(text.replace(",", ";"))
    with pytest.raises(InputError, match=r"measures.csv: a table without a column 'image'; its first line is 'image;"):
        predict(two, out)
    assert not (out / "b_instances.tif").exists()
    (out / "measures.csv").write_bytes(text.replace("a.tif", "ä.tif").encode("latin-1"))
    with pytest.raises(InputError, match=r"a table that is not UTF-8 \(byte \d+\). Save it as CSV, UTF-8 and"):
        predict(two, out)
    (out / "measures.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    predict(two, out)
    assert [row["image"] for row in read_table(out / "measures.csv", "image")] == ["a.tif"] * 3 + ["b.tif"]


def test_a_table_is_written_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    update_table(path, "image", ["n"], {"a, b": [{"n": 1}, {"n": 2.5}]})
    before = path.read_text()

    def broken() -> Any:
        yield {"n": 3}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        update_table(path, "image", ["n"], {"c": broken()})
    assert path.read_text() == before == 'image,n\n"a, b",1\n"a, b",2.5\n'
    assert list(tmp_path.iterdir()) == [path]
