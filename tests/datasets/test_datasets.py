"""Data sets by card: found, downloaded from a server on loopback, verified, listed."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from monai.data.decathlon_datalist import load_decathlon_datalist
from PIL import Image
from scipy import ndimage

from monai_unet.data import CheckedVolumeReader, DicomSeriesReader, InputError, check_volume_pairs
from monai_unet.datasets import card as card_module
from monai_unet.datasets import cards, datalist, hold_out, identity, layouts, prepare
from monai_unet.datasets.__main__ import main
from monai_unet.datasets.dicom_series import dicom_series
from monai_unet.datasets.layouts import LAYOUTS, _unlabelled
from monai_unet.datasets.phantoms import cell_phantom, em_phantom, organ_phantom
from monai_unet.datasets.store import sha256

REPOSITORY = Path(__file__).parents[2]
VOLUME = np.random.default_rng(0).integers(0, 256, (5, 9, 8), np.uint8)
LABELS = np.where(VOLUME > 99, 255, 0).astype(np.uint8)
CARD = {
    "description": "a stack",
    "licence": "none",
    "citation": "nobody",
    "folder": "here/Stack",
    "kind": "stack",
    "shape": [5, 9, 8],
    "labels": {0: "membrane", 1: "cell"},
    "volumes": {
        "v": {"sha256": sha256(VOLUME)},
        "l": {"sha256": sha256(LABELS), "values": [0, 255]},
        "extra": {"values": [0, 255], "optional": True},
    },
    "split": {
        "training": {"image": "v", "label": "l", "slices": [0, 1]},
        "test": {"image": "v", "label": "l", "slices": [3, 4]},
        "official_test": {"image": "v", "label": "extra", "slices": [0, 4]},
    },
}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The only known card, "mine"."""
    mine: dict[str, Any] = {**json.loads(json.dumps(CARD)), "labels": CARD["labels"], "name": "mine"}
    mine["url"] = "http://127.0.0.1:9/data/Stack.zip"  # nothing listens on the discard port
    monkeypatch.setattr(card_module, "cards", lambda: {"mine": mine})
    return mine


def stack(root: Path) -> Path:
    folder = root / "here" / "Stack"
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "v.tif", VOLUME, compression="zlib")
    tifffile.imwrite(folder / "l.tif", LABELS, metadata=None, byteorder=">")
    return folder


def packed(wrap: str = "Stack/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in (("v", VOLUME), ("l", LABELS)):
            tiff = io.BytesIO()
            tifffile.imwrite(tiff, array)
            archive.writestr(f"{wrap}{name}.tif", tiff.getvalue())
        archive.writestr("__MACOSX/._v.tif", b"")
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    data = b""
    ranges = True
    cut: int | None = None
    requests: list[str | None]


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        server: Server

        def do_GET(self) -> None:
            wanted, data = self.headers.get("Range"), self.server.data
            self.server.requests.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
            if self.path != "/data/Stack.zip":
                self.send_error(404)
            elif start >= len(data):
                self.send_error(416)
            else:
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start : self.server.cut])

        def log_message(self, *_: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as one:
        one.requests = []
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def load(path: Path, title: str) -> list[dict[str, str]]:
    items: list[dict[str, str]] = load_decathlon_datalist(str(path), True, title)
    return items


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# --- cards ---------------------------------------------------------------------------------------------------------


def test_cards_are_complete() -> None:
    known = cards()
    names = {"isbi2012", "em_phantom", "dic_c2dh_hela", "phc_c2dh_u373", "cell_phantom", "msd_hippocampus", "bbbc038"}
    assert names <= set(known)
    for name, one in known.items():
        assert {"description", "licence", "citation", "labels", "folder"} <= set(one), name
        if "parts" in one:
            assert set(one["parts"].values()) <= set(known)
            continue
        assert {"kind", "split"} <= set(one), name
        assert one["kind"] in LAYOUTS
        if not name.endswith("phantom"):
            assert re.match(r"https://\S+\.(zip|tar)$", one["url"])
            assert "doi:10." in one["citation"]
    assert len(known["msd_hippocampus"]["pairs"]) == 200
    assert len(known["bbbc038"]["images"]) == 322


def test_unknown_name() -> None:
    with pytest.raises(
        ValueError, match="unknown data set 'isbi'; known: bbbc038, cell_phantom, ctc_cells, dic_c2dh_hela, em_phantom"
    ):
        prepare("isbi")


def test_every_package_is_listed_for_the_wheel() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)
    assert listed is not None
    found = {".".join(f.parent.relative_to(REPOSITORY).parts) for f in REPOSITORY.glob("monai_unet/**/__init__.py")}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == found | {
        "monai_unet.datasets.cards",
        "monai_unet.bundles.shipped",
    }


@pytest.mark.slow
def test_the_wheel_holds_the_bundles_the_cards_and_all_modules(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy, because setuptools leaves a build folder behind
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if name.startswith(("monai_unet/", "datasets/", "bundles/", "pyproject.toml", "README.md")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info" not in name}
        wheel.extractall(tmp_path / "installed")
    files = [
        str(f.relative_to(source))
        for folder in ("monai_unet", "bundles", "datasets")
        for f in (source / folder).rglob("*")
        if f.is_file()
    ]
    homes = {"bundles/": "monai_unet/bundles/shipped/", "datasets/": "monai_unet/datasets/cards/"}
    for home, inside in homes.items():
        files = [inside + name.removeprefix(home) if name.startswith(home) else name for name in files]
    assert set(files) == names
    for command, expected in (["datasets", "list"], "em_phantom"), (["bundles", "copy", "cell_segmentation"], "cell"):
        done = subprocess.run(
            [sys.executable, "-m", f"monai_unet.{command[0]}", *command[1:]],
            cwd=tmp_path / "installed",
            env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected in done.stdout
    assert (tmp_path / "installed" / "cell_segmentation" / "configs" / "train.yaml").is_file()


# --- a stack: found, verified, split -------------------------------------------------------------------------------


def test_a_stack_becomes_png_slices_and_lists(card: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    stack(tmp_path)
    path = prepare("mine", tmp_path)
    assert path == tmp_path / "here" / "mine" / "dataset.json"  # beside the archive
    assert "extra.tif is not in the archive: there are no labels for its list" in capsys.readouterr().out
    for title, slices in (("training", (0, 1)), ("test", (3, 4))):
        for item, index in zip(load(path, title), slices, strict=True):
            assert Path(item["image"]).is_absolute()
            assert np.array_equal(pixels(item["image"]), VOLUME[index])
            assert np.array_equal(pixels(item["label"]), LABELS[index])
    assert [set(item) for item in load(path, "official_test")] == [{"image"}] * 5
    document = json.loads(path.read_text())
    assert document["labels"] == {"0": "membrane", "1": "cell"}
    assert (document["name"], document["licence"], document["citation"]) == ("mine", "none", "nobody")
    assert re.fullmatch("[0-9a-f]{64}", document["checksum"])


def test_the_optional_labels_are_used_when_there(card: dict[str, Any], tmp_path: Path) -> None:
    tifffile.imwrite(stack(tmp_path) / "extra.tif", LABELS)
    items = load(prepare("mine", tmp_path), "official_test")
    assert np.array_equal(pixels(items[4]["label"]), LABELS[4])


def test_a_second_run_writes_only_what_is_damaged(card: dict[str, Any], tmp_path: Path) -> None:
    stack(tmp_path)
    path = prepare("mine", tmp_path, tmp_path / "out")
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / "out").rglob("*.*")}
    assert len(before) == 11  # ten slices and dataset.json
    prepare("mine", tmp_path, tmp_path / "out")
    assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before}
    broken = Path(load(path, "training")[0]["image"])
    broken.write_bytes(b"half")
    prepare("mine", tmp_path, tmp_path / "out")
    assert np.array_equal(pixels(str(broken)), VOLUME[0])
    assert set((tmp_path / "out").rglob("*.*")) == set(before)


def test_the_checksum_sees_pixels_dtype_and_shape_only() -> None:
    one = np.arange(6, dtype=np.uint16).reshape(2, 3)
    assert sha256(one) == sha256(one.astype(">u2")) == sha256(np.asfortranarray(one))
    others = [one + 1, one.astype(np.int32), one.reshape(3, 2)]
    assert len({sha256(one), *map(sha256, others)}) == 4


def test_a_changed_pixel_is_found(card: dict[str, Any], tmp_path: Path) -> None:
    folder, changed = stack(tmp_path), VOLUME.copy()
    changed[2, 3, 4] ^= 1
    tifffile.imwrite(folder / "v.tif", changed)
    message = rf"v.tif: wrong checksum of the pixels: expected {sha256(VOLUME)}, got {sha256(changed)}. Delete it"
    with pytest.raises(InputError, match=message):
        prepare("mine", tmp_path)
    assert not (tmp_path / "here" / "mine").exists()


def test_missing_damaged_and_foreign_files(card: dict[str, Any], tmp_path: Path) -> None:
    folder = stack(tmp_path)
    tifffile.imwrite(folder / "extra.tif", LABELS[:3], photometric="minisblack")
    with pytest.raises(InputError, match=r"extra.tif: uint8 of shape \(3, 9, 8\), expected uint8 of \(5, 9, 8\)"):
        prepare("mine", tmp_path)
    tifffile.imwrite(folder / "extra.tif", LABELS // 2)
    with pytest.raises(InputError, match=r"extra.tif: labels that are not \[0, 255\]: \[127\]"):
        prepare("mine", tmp_path)
    (folder / "v.tif").write_bytes((folder / "v.tif").read_bytes()[:40])
    with pytest.raises(InputError, match=r"v.tif: damaged file \(.*\). Delete the archive's folder and run again"):
        prepare("mine", tmp_path)
    (folder / "v.tif").unlink()
    with pytest.raises(InputError, match=r"v.tif: this file is missing from the archive. Delete the archive's folder"):
        prepare("mine", tmp_path)


def test_too_little_memory_is_not_called_damage(
    card: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise MemoryError

    stack(tmp_path)
    monkeypatch.setattr(layouts, "load", fail)
    with pytest.raises(MemoryError):
        prepare("mine", tmp_path)


def test_an_output_that_cannot_be_written(card: dict[str, Any], tmp_path: Path) -> None:
    stack(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"v-00.png: it could not be written \(.*\). Choose another output folder"):
        prepare("mine", tmp_path, tmp_path / "file" / "out")


# --- the archive: downloaded, resumed, unpacked --------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["Stack/", "", "other/name/"])
def test_download_and_unpack(card: dict[str, Any], server: Server, tmp_path: Path, wrap: str) -> None:
    server.data, card["url"] = packed(wrap), f"http://127.0.0.1:{server.server_port}/data/Stack.zip"
    assert len(load(prepare("mine", tmp_path), "training")) == 2
    assert {file.name for file in (tmp_path / "here").iterdir()} == {"Stack.zip", "Stack", "mine"}
    prepare("mine", tmp_path)
    assert server.requests == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_resumes(card: dict[str, Any], server: Server, tmp_path: Path, ranges: bool) -> None:
    server.data, server.ranges, server.cut = packed(), ranges, 500
    card["url"] = f"http://127.0.0.1:{server.server_port}/data/Stack.zip"
    message = rf"Stack.zip: the connection was interrupted after 500 of {len(server.data)} bytes. Run again to resume"
    with pytest.raises(InputError, match=message):
        prepare("mine", tmp_path)
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["Stack.zip.part"]
    server.cut = None
    prepare("mine", tmp_path)
    assert (tmp_path / "here" / "Stack.zip").read_bytes() == server.data
    assert server.requests == [None, "bytes=500-"]


def test_a_part_as_long_as_the_file_is_not_trusted(card: dict[str, Any], server: Server, tmp_path: Path) -> None:
    server.data, card["url"] = packed(), f"http://127.0.0.1:{server.server_port}/data/Stack.zip"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "Stack.zip.part").write_bytes(b"x" * len(server.data))
    prepare("mine", tmp_path)
    assert server.requests == [f"bytes={len(server.data)}-", None]


def test_no_network_and_no_such_page(card: dict[str, Any], server: Server, tmp_path: Path) -> None:
    cure = f"download {card['url']} yourself and save it as {tmp_path}/here/Stack.zip"
    with pytest.raises(InputError, match=rf"could not be downloaded from {card['url']} \(.*refused.*\)") as caught:
        prepare("mine", tmp_path)
    assert cure in str(caught.value)
    card["url"] = f"http://127.0.0.1:{server.server_port}/none/Stack.zip"
    with pytest.raises(InputError, match=r"none/Stack.zip answers 404 Not Found"):
        prepare("mine", tmp_path)
    card["url"] = "file:///etc/Stack.zip"
    with pytest.raises(InputError, match=r"file:///etc/Stack.zip is not an http\(s\) address"):
        prepare("mine", tmp_path)
    assert not list((tmp_path / "here").iterdir())


def test_archives_put_there_by_hand(card: dict[str, Any], tmp_path: Path) -> None:
    killed = tmp_path / "here" / "Stack.part"  # what a killed run left behind
    killed.mkdir(parents=True)
    (killed / "old.tif").touch()
    (tmp_path / "here" / "Stack.zip").write_bytes(packed())
    prepare("mine", tmp_path)
    assert {file.name for file in (tmp_path / "here" / "Stack").iterdir()} == {"v.tif", "l.tif"}
    assert not killed.exists()
    card["url"] = "http://127.0.0.1:9/Other.tar"
    card["folder"] = "here/Other"
    with tarfile.open(tmp_path / "here" / "Other.tar", "w") as archive:
        archive.add(tmp_path / "here" / "Stack", "Other")
    prepare("mine", tmp_path)
    assert (tmp_path / "here" / "Other" / "v.tif").is_file()


@pytest.mark.parametrize("name", ["../evil.tif", "/evil.tif", "Stack/../../evil.tif"])
def test_an_archive_that_reaches_outside(card: dict[str, Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "here").mkdir()
    with zipfile.ZipFile(tmp_path / "here" / "Stack.zip", "w") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(InputError, match=r"damaged or unsafe archive \(Unsafe path detected in archive: .*evil.tif\)"):
        prepare("mine", tmp_path)
    assert not list(tmp_path.rglob("evil.tif"))


def test_a_damaged_archive(card: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    whole = packed()
    for data in (whole[: len(whole) // 2], whole[:60] + b"\0\xff\0\xff" + whole[64:], b""):
        (tmp_path / "here" / "Stack.zip").write_bytes(data)
        with pytest.raises(InputError, match=r"Stack.zip: damaged or unsafe archive \(.*\). Delete it and run again"):
            prepare("mine", tmp_path)
        assert not (tmp_path / "here" / "Stack").exists()


# --- phantoms ------------------------------------------------------------------------------------------------------


def test_em_phantom_depends_on_its_seed_alone() -> None:
    images, labels = em_phantom(2, 96, 1)
    again, other = em_phantom(1, 96, 1), em_phantom(1, 96, 2)
    assert np.array_equal(images[:1], again[0])
    assert np.array_equal(labels[:1], again[1])
    assert not np.array_equal(labels[:1], other[1])
    assert not np.array_equal(labels[0], labels[1])


def test_em_phantom_is_like_the_em_stack() -> None:
    (image,), (label,) = em_phantom(1, 256, 2015)
    membrane = label == 0
    assert set(np.unique(label)) == {0, 255}
    assert 0.15 < membrane.mean() < 0.30  # the real stack has 0.22
    width = ndimage.distance_transform_edt(membrane)
    assert np.percentile(2 * width[membrane], 90) <= 5
    assert image[membrane].mean() < image[~membrane].mean() - 25
    smooth = ndimage.gaussian_filter(image.astype(float), 1)
    scores = [2 * (membrane & (smooth < t)).sum() / (membrane.sum() + (smooth < t).sum()) for t in range(60, 180, 5)]
    assert 0.5 < max(scores) < 0.8  # no threshold solves it; the real stack's first slice allows 0.68


def test_em_phantom_is_prepared_without_archive(tmp_path: Path) -> None:
    path = prepare("em_phantom", tmp_path)
    assert path == tmp_path / "em_phantom" / "dataset.json"
    assert [len(load(path, title)) for title in ("training", "test")] == [12, 3]
    assert pixels(load(path, "test")[0]["image"]).shape == (256, 256)


def test_cell_phantom_has_touching_connected_cells() -> None:
    image, label = cell_phantom(256, 24, 2015, 0)
    assert np.array_equal(cell_phantom(256, 24, 2015, 0)[0], image)
    assert (image.dtype, label.dtype) == (np.uint8, np.uint16)
    ids = np.unique(label)
    assert ids.tolist() == list(range(len(ids)))
    assert len(ids) > 12
    assert all(ndimage.label(label == cell)[1] == 1 for cell in ids[1:])
    beside = (label[:, 1:] != label[:, :-1]) & (label[:, 1:] > 0) & (label[:, :-1] > 0)
    assert beside.sum() > 30
    assert abs(image[label > 0].mean() - image[label == 0].mean()) < 8  # the gray value is no help


def test_cell_phantom_is_prepared(tmp_path: Path) -> None:
    path = prepare("cell_phantom", tmp_path)
    assert [len(load(path, title)) for title in ("training", "test")] == [10, 4]
    item = load(path, "test")[0]
    assert tifffile.imread(item["label"]).dtype == np.uint16
    assert not pixels(item["ignore"]).any()


# --- cell tracking -------------------------------------------------------------------------------------------------


def test_cells_without_a_gold_label() -> None:
    gold = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    silver = np.array([[5, 5, 5, 0, 7, 7], [5, 5, 0, 0, 7, 7], [0, 0, 0, 0, 0, 0]])
    expected = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]])
    assert np.array_equal(_unlabelled(gold, [silver], 0), expected)
    grown = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    assert np.array_equal(_unlabelled(gold, [silver], 1), grown)
    half = np.array([[0, 3, 3, 0, 0, 0], [0, 3, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0]])  # exactly half: labelled
    assert not _unlabelled(gold, [half], 0).any()
    less = np.array([[0, 3, 3, 3, 0, 0], [0, 3, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    assert np.array_equal(_unlabelled(gold, [less], 0), (less > 0) & (gold == 0))
    assert np.array_equal(_unlabelled(gold, [half, silver], 0), expected)
    assert not _unlabelled(gold, [], 5).any()


def sequences(root: Path, names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        for part in ("", "_GT/SEG", "_ST/SEG"):
            (root / "here" / "Cells" / f"{name}{part}").mkdir(parents=True)
        for frame in (2, 7, 11):
            gold = np.zeros((16, 16), np.uint16)
            gold[2:6, 2:6] = 1
            silver = gold * 4
            if frame == 7:
                silver[9:12, 9:12] = 9
            folder = root / "here" / "Cells"
            tifffile.imwrite(folder / name / f"t{frame:03d}.tif", rng.integers(0, 255, (16, 16), np.uint8))
            tifffile.imwrite(folder / f"{name}_GT" / "SEG" / f"man_seg{frame:03d}.tif", gold)
            tifffile.imwrite(folder / f"{name}_ST" / "SEG" / f"man_seg{frame:03d}.tif", silver)


@pytest.fixture
def tracking(card: dict[str, Any]) -> dict[str, Any]:
    card.update(kind="cell_tracking", folder="here/Cells", labels={0: "background", 1: "cell"}, frames={})
    card.update(sequences=["01", "02"], split={"sequence": "01", "test_from": 11})
    card["unlabelled"] = {"references": ["ST/SEG/man_seg{}.tif", "GT/TRA/man_track{}.tif"], "margin": 0}
    return card


def test_both_sequences_give_folds(tracking: dict[str, Any], tmp_path: Path) -> None:
    sequences(tmp_path, ("01", "02"))
    path = prepare("mine", tmp_path)
    frames = {title: [Path(item["image"]).stem for item in load(path, title)] for title in ("training", "test")}
    assert frames == {"training": ["t002", "t007"], "test": ["t011"]}
    for fold, other in (("01", "02"), ("02", "01")):
        document = path.parent / f"fold_{fold}" / "dataset.json"
        for title, sequence in (("training", fold), ("test", other)):
            assert [Path(item["image"]).parent.name for item in load(document, title)] == [sequence] * 3
    assert json.loads(path.read_text())["partial_frames"] == ["01/t007", "02/t007"]
    ignore = [pixels(item["ignore"]) for item in load(path, "training")]
    assert not ignore[0].any()
    assert set(np.unique(ignore[1])) == {0, 255}
    assert np.array_equal(np.argwhere(ignore[1])[[0, -1]], [[9, 9], [11, 11]])


def test_a_missing_sequence_is_reported(tracking: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    sequences(tmp_path, ("01",))
    path = prepare("mine", tmp_path)
    assert re.search("sequence 02 is not in .*Cells: lists that need it are omitted", capsys.readouterr().out)
    assert len(load(path, "training")) == 2
    assert not list(path.parent.glob("fold_*"))


def test_bad_tracking_archives(tracking: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    sequences(tmp_path, ("02",))
    folder = tmp_path / "here" / "Cells"
    (folder / "02_ST" / "SEG" / "man_seg002.tif").unlink()
    prepare("mine", tmp_path)
    assert "02/t002: no silver truth and no tracking markers, assumed to be fully labelled" in capsys.readouterr().out
    tracking["frames"]["02/011"] = "0" * 64
    with pytest.raises(InputError, match=r"man_seg011.tif: wrong checksum of the pixels: expected 0{64}, got"):
        prepare("mine", tmp_path)
    tifffile.imwrite(folder / "02" / "t002.tif", np.zeros((5, 4), np.uint8))
    with pytest.raises(InputError, match=r"man_seg002.tif: labels of shape \(16, 16\), the image .* has \(5, 4\)"):
        prepare("mine", tmp_path)
    (folder / "02" / "t002.tif").unlink()
    with pytest.raises(InputError, match=r"t002.tif: this file is missing from the archive"):
        prepare("mine", tmp_path)
    for file in (folder / "02_GT" / "SEG").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no frame with gold truth in 01_GT/SEG, 02_GT/SEG"):
        prepare("mine", tmp_path)


# --- decathlon -----------------------------------------------------------------------------------------------------


def pairs(root: Path, present: range) -> Path:
    folder = root / "here" / "Task"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = [f"case_{number:03d}.nii.gz" for number in range(40)]
    for number in present:
        values = np.full((4, 3, 2), number % 3, np.uint8)
        for part in ("imagesTr", "labelsTr"):
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / part / names[number])
    listed = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    (folder / "dataset.json").write_text(json.dumps({"training": listed}))
    return folder


def test_data_sets_are_joined(tracking: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the same name stay apart; the last training item of each set comes last, to be held out."""
    sequences(tmp_path, ("01",))
    shutil.copytree(tmp_path / "here" / "Cells", tmp_path / "there" / "Cells")
    known = {"one": {**tracking, "name": "one"}, "two": {**tracking, "name": "two", "folder": "there/Cells"}}
    both = {key: tracking[key] for key in ("description", "licence", "citation", "labels")}
    known["both"] = {**both, "name": "both", "folder": "here/Both", "parts": {"HeLa": "one", "U373": "two"}}
    monkeypatch.setattr(card_module, "cards", lambda: known)
    path = prepare("both", tmp_path)
    frames = [(item["type"], Path(item["image"]).stem) for item in load(path, "training")]
    assert frames == [("HeLa", "t002"), ("U373", "t002"), ("HeLa", "t007"), ("U373", "t007")]
    assert [(item["type"], Path(item["image"]).stem) for item in load(path, "test")] == [
        ("HeLa", "t011"),
        ("U373", "t011"),
    ]
    items = load(path, "training") + load(path, "test")
    assert len({item["ignore"] for item in items}) == len({item["image"] for item in items}) == 6


@pytest.fixture
def task(card: dict[str, Any]) -> dict[str, Any]:
    card.update(kind="decathlon", folder="here/Task", labels={0: "background", 1: "a", 2: "p"}, pairs={})
    card["split"] = {"seed": 1, "shares": {"training": 0.5, "validation": 0.2, "test": 0.3}}
    return card


def test_the_split_does_not_depend_on_the_cases_present(task: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    def split(path: Path) -> dict[str, set[str]]:
        return {title: {Path(item["label"]).name for item in load(path, title)} for title in task["split"]["shares"]}

    pairs(tmp_path, range(0, 40, 2))
    half = split(prepare("mine", tmp_path))
    printed = capsys.readouterr().out
    assert "20 of 40 listed pairs are not in the archive" in printed
    assert "20 pairs have no checksum in the card: only geometry and labels were checked" in printed
    pairs(tmp_path, range(40))
    whole = split(prepare("mine", tmp_path))
    assert all(half[title] < whole[title] for title in whole)
    assert sum(map(len, whole.values())) == 40
    assert [len(whole[title]) for title in ("training", "validation", "test")] == pytest.approx([20, 8, 12], abs=6)


def test_bad_decathlon_archives(task: dict[str, Any], tmp_path: Path) -> None:
    folder = pairs(tmp_path, range(2))
    label = folder / "labelsTr" / "case_001.nii.gz"
    values = np.full((4, 3, 2), 1, np.uint8)
    task["pairs"] = {"case_001": sha256(values, values)[:16]}
    prepare("mine", tmp_path)
    nib.save(nib.Nifti1Image(values * 2, np.eye(4)), label)
    with pytest.raises(InputError, match=r"case_001.nii.gz: wrong checksum of the pixels: expected \w{16}, got"):
        prepare("mine", tmp_path)
    task["pairs"] = {}
    nib.save(nib.Nifti1Image(values * 7, np.eye(4)), label)
    with pytest.raises(InputError, match=r"labels beyond \[0, 1, 2\]: \[7\]"):
        prepare("mine", tmp_path)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 1, 1, 1])), label)
    with pytest.raises(InputError, match=r"shape \(4, 3, 2\) or affine differs from the image .* \(4, 3, 2\)"):
        prepare("mine", tmp_path)
    label.write_bytes(label.read_bytes()[:50])
    with pytest.raises(InputError, match=r"case_001.nii.gz: damaged file"):
        prepare("mine", tmp_path)
    for file in folder.rglob("*.nii.gz"):
        file.unlink()
    with pytest.raises(InputError, match="it has none of the 40 listed pairs"):
        prepare("mine", tmp_path)
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"no list of training pairs in its dataset.json \('training'\)"):
        prepare("mine", tmp_path)


# --- the Data Science Bowl -----------------------------------------------------------------------------------------


def photograph(folder: Path, image: np.ndarray, *masks: np.ndarray) -> Path:
    """An image as RGBA, and one PNG per nucleus."""
    opaque = np.full((*image.shape[:2], 1), 255, np.uint8)
    for part, number, array in [
        ("images", folder.name, np.concatenate([image.astype(np.uint8), opaque], axis=2)),
        *(("masks", f"{number}", np.where(mask, 255, 0).astype(np.uint8)) for number, mask in enumerate(masks)),
    ]:
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / part / f"{number}.png")
    return folder


@pytest.fixture
def bowl(card: dict[str, Any], tmp_path: Path) -> Path:
    """An archive of one dark gray image of two overlapping nuclei, and of one bright coloured image without any."""
    card.update(kind="data_science_bowl", folder="here/Bowl", images={})
    card["split"] = {"seed": 1, "shares": {"training": 1.0, "test": 0.0}}
    folder = tmp_path / "here" / "Bowl" / "stage1_train"
    rows = np.arange(6)[:, None] + np.zeros(5)
    photograph(folder / "a", np.full((6, 5, 3), 9), rows < 3, (rows >= 2) & (rows < 4))
    photograph(folder / "b", np.full((4, 7, 3), [250, 240, 90]))
    return folder


def test_masks_of_nuclei_are_merged_and_images_typed(bowl: Path, tmp_path: Path, capsys: Any) -> None:
    items = load(prepare("mine", tmp_path), "training")
    assert [item["type"] for item in items] == ["gray, dark, 6 × 5", "coloured, bright, 4 × 7"]
    assert Path(items[0]["image"]) == bowl / "a" / "images" / "a.png"
    ids = tifffile.imread(items[0]["label"])
    assert ids.dtype == np.uint16
    assert ids[:, 0].tolist() == [1, 1, 1, 2, 0, 0]  # the row of both nuclei is the first one's
    assert not tifffile.imread(items[1]["label"]).any()
    printed = capsys.readouterr().out
    assert "5 pixels belong to two nuclei; each was given to the first" in printed
    assert "2 images have no checksum in the card: only shapes and values were checked" in printed


def test_bad_archives_of_nuclei(bowl: Path, card: dict[str, Any], tmp_path: Path) -> None:
    card["images"] = {"a": "0123"}
    with pytest.raises(InputError, match=r"a.png: wrong checksum of the pixels: expected 0123, got \w{64}"):
        prepare("mine", tmp_path)
    mask = bowl / "a" / "masks" / "1.png"
    Image.fromarray(np.full((6, 5), 7, np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"1.png: not a mask of 0 and 255 in the image's shape \(6, 5\)"):
        prepare("mine", tmp_path)
    mask.write_bytes(b"")
    with pytest.raises(InputError, match=r"1.png: damaged file"):
        prepare("mine", tmp_path)
    image = bowl / "a" / "images" / "a.png"
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(image)
    with pytest.raises(InputError, match=r"a.png: pixels of shape \(6, 5\), expected opaque RGBA"):
        prepare("mine", tmp_path)
    Image.fromarray(np.zeros((6, 5, 4), np.uint8)).save(image)
    with pytest.raises(InputError, match=r"a.png: pixels of shape \(6, 5, 4\), expected opaque RGBA"):
        prepare("mine", tmp_path)
    shutil.rmtree(bowl)
    with pytest.raises(InputError, match="there is no image in its stage1_train"):
        prepare("mine", tmp_path)


# --- the prepared folder ---


def test_a_dataset_json_that_is_not_a_datalist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset.json: there is no such datalist\. Run python -m .* prepare NAME"):
        datalist(tmp_path, "training")
    for text in ("{", "[1]", "3"):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(InputError, match=r"dataset.json: not a JSON datalist \(.*\)\. Prepare the data set again"):
            datalist(tmp_path, "training")
    (tmp_path / "dataset.json").write_text('{"test": []}')
    with pytest.raises(InputError, match="it has no list 'training', only test. Choose one of these, or add it"):
        datalist(tmp_path, "training")


def save(path: Path, value: int, **options: Any) -> str:
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path, **options)
    return str(path)


def test_identity_of_other_items_is_that_of_their_pixels(tmp_path: Path) -> None:
    one, two = ({"image": save(tmp_path / f"{value}.png", value)} for value in (1, 2))
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "mine", "checksum": "1", "training": [one]}))
    assert identity(tmp_path) == identity(tmp_path, [one]) == "mine sha256:1"
    assert re.fullmatch(r"2 items sha256:\w{64}", identity(tmp_path, [one, two]))


def test_an_edited_label_changes_the_identity_of_ones_own_data(tmp_path: Path) -> None:
    """Saved anew with other compression or under another name, it does not."""
    items = [{"image": save(tmp_path / "a.png", 9), "label": save(tmp_path / "l.png", 1)}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items, "test": []}))
    before = identity(tmp_path)
    assert before == identity(tmp_path, items)
    save(tmp_path / "l.png", 1, compress_level=0)
    assert identity(tmp_path, items) == before
    items[0]["label"] = save(tmp_path / "renamed.tif", 1)
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    assert identity(tmp_path) == before
    save(tmp_path / "renamed.tif", 2)
    assert identity(tmp_path, items) != before


def test_a_label_edited_after_prepare_changes_the_identity_of_a_card(card: dict[str, Any], tmp_path: Path) -> None:
    """Of the lists with an item that is used; saved anew with other compression, it does not."""
    stack(tmp_path)
    path = prepare("mine", tmp_path)
    training, test = load(path, "training"), load(path, "test")
    as_prepared = f"mine sha256:{json.loads(path.read_text())['checksum']}"
    assert identity(path.parent) == identity(path.parent, training) == identity(path.parent, test[:1]) == as_prepared
    label = Image.open(training[1]["label"])
    label.save(training[1]["label"], compress_level=0)
    assert identity(path.parent, training) == as_prepared
    label.putpixel((3, 2), 255 - label.getpixel((3, 2)))
    label.save(training[1]["label"])
    edited = identity(path.parent, training)
    assert re.fullmatch(r"mine sha256:\w{64}", edited)
    assert edited != as_prepared
    assert identity(path.parent) != as_prepared
    assert identity(path.parent, test) == as_prepared
    prepare("mine", tmp_path)
    assert identity(path.parent, training) == as_prepared


def test_a_stack_of_many_pages_is_found_at_once(tmp_path: Path) -> None:
    """Twenty thousand items, each compared with each, would take minutes."""
    items = [{"image": f"{number}.png", "label": f"{number}.tif"} for number in range(20_000)]
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "mine", "checksum": "1", "training": items}))
    start = time.monotonic()
    assert identity(tmp_path, [{**item, "page": 0} for item in datalist(tmp_path, "training")]) == "mine sha256:1"
    assert time.monotonic() - start < 10


def test_datalists_as_people_have_them(tmp_path: Path) -> None:
    """An empty list, plain strings as in the Decathlon, a byte order mark; one item that is none."""
    text = (
        '{"training": [{"image": "a.png", "label": "b.png"}], "test": ["Zürich/c.png"], "validation": [], "odd": [1]}'
    )
    (tmp_path / "dataset.json").write_text(text, encoding="utf-8-sig")
    assert datalist(tmp_path, "training") == [{"image": str(tmp_path / "a.png"), "label": str(tmp_path / "b.png")}]
    assert datalist(tmp_path, "test") == [{"image": str(tmp_path / "Zürich" / "c.png")}]
    assert datalist(tmp_path, "validation") == []
    with pytest.raises(InputError, match=r"dataset.json: item 0 of 'odd' is 1\. Write \{"):
        datalist(tmp_path, "odd")


@pytest.mark.parametrize("count", [3, 20])
def test_more_items_held_out_than_there_are(count: int) -> None:
    items = [{"image": name} for name in "abc"]
    with pytest.raises(InputError, match=rf"^--validation_items: it is {count}, .* has 3 items\. Use at most 2\.$"):
        hold_out(items, count)
    assert hold_out(items, 0) == (items, [])
    assert hold_out([], 2) == ([], [])


# --- the command line ----------------------------------------------------------------------------------------------


def test_command_line(card: dict[str, Any], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_unet.datasets.__main__.cards", card_module.cards)
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == ["mine", "a", "stack", "[none]"]
    folder = stack(tmp_path)
    monkeypatch.setenv("MONAI_UNET_DATA", str(tmp_path))
    assert main(["prepare", "mine", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "dataset.json")
    (folder / "v.tif").unlink()
    assert main(["prepare", "mine", "--root", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["prepare", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


# --- the real archives ---------------------------------------------------------------------------------------------


@pytest.mark.skipif("MONAI_UNET_DATA" not in os.environ, reason="needs the real archives in $MONAI_UNET_DATA")
def test_real_archives(tmp_path: Path) -> None:
    lengths = {
        "isbi2012": {"training": 22, "test": 6, "official_test": 30},
        "dic_c2dh_hela": {"training": 6, "test": 3},
        "phc_c2dh_u373": {"training": 10, "test": 5},
        "ctc_cells": {"training": 16, "test": 8},
        "msd_hippocampus": {"training": 141, "validation": 27, "test": 32},
    }
    for name, lists in lengths.items():
        path = prepare(name, output=tmp_path / name)
        assert {title: len(load(path, title)) for title in lists} == lists
    assert json.loads((tmp_path / "dic_c2dh_hela" / "dataset.json").read_text())["partial_frames"] == [
        "01/t034",
        "01/t039",
        "01/t067",
    ]
    item = load(tmp_path / "isbi2012" / "dataset.json", "test")[0]
    assert Path(item["image"]).name == "train-volume-24.png"


@pytest.mark.slow
@pytest.mark.skipif("MONAI_UNET_DATA" not in os.environ, reason="needs the real archives in $MONAI_UNET_DATA")
def test_the_split_of_nuclei_by_image_type(tmp_path: Path) -> None:
    path = prepare("bbbc038", output=tmp_path)
    counts = {
        title: Counter(item["type"] for item in load(path, title)) for title in ("training", "validation", "test")
    }
    assert [sum(count.values()) for count in counts.values()] == [229, 31, 62]
    frequent = {kind for kind, number in sum(counts.values(), Counter()).items() if number >= 6}
    assert all(frequent <= set(count) for count in counts.values())


def test_the_organ_phantom_is_the_same_as_nifti_and_as_dicom(tmp_path: Path) -> None:
    folder = prepare("organ_phantom", output=tmp_path).parent
    document = json.loads((folder / "dataset.json").read_text())
    card = cards()["organ_phantom"]
    assert [len(document[split]) for split in ("training", "validation", "test")] == [8, 2, 3]
    check_volume_pairs(document["training"], label_values=[0, 1, 2])
    for item in document["test"]:
        nifti, here = CheckedVolumeReader().get_data((item["image"],))
        dicom, there = DicomSeriesReader().get_data((item["dicom"],))
        np.testing.assert_array_equal(nifti, dicom)
        np.testing.assert_allclose(here["affine"], there["affine"], atol=1e-4)
        assert nifti.std() > 10
        assert (there["modality"], there["spatial_shape"][2]) == ("MR", 22)
    matrix = here["affine"][:3, :3]
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=0), card["spacing"], rtol=1e-6)
    assert (np.abs(matrix / card["spacing"]) < 0.99).all(), "oblique to every axis"
    middle = matrix @ ((np.array(card["size"]) - 1) / 2) + here["affine"][:3, 3]
    np.testing.assert_allclose(middle, card["centre"], atol=1e-4)

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    prepare("organ_phantom", output=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_the_organs_touch_anterior_before_posterior_and_depend_on_their_number_only() -> None:
    image, label = organ_phantom([40, 48, 22], [0.9, 0.8, 1.6], seed=3, number=5)
    assert (image.dtype, label.dtype, image.shape, label.shape) == (np.uint16, np.uint8, (40, 48, 22), (40, 48, 22))
    anterior, posterior = (np.argwhere(label == value) for value in (1, 2))
    assert anterior.mean(0)[1] > posterior.mean(0)[1] + 8
    grown = ndimage.binary_dilation(label == 1)
    assert (grown & (label == 2)).any(), "they touch"
    assert 0.02 < (label > 0).mean() < 0.2
    for value in (1, 2):
        assert ndimage.label(label == value)[1] == 1
        assert image[label == value].mean() > 1.2 * image[label == 0].mean()
    again = organ_phantom([40, 48, 22], [0.9, 0.8, 1.6], seed=3, number=5)
    assert all(np.array_equal(a, b) for a, b in zip(again, (image, label), strict=True))
    assert not np.array_equal(organ_phantom([40, 48, 22], [0.9, 0.8, 1.6], seed=3, number=6)[1], label)


def test_a_dicom_series_needs_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=re.escape('pydicom is missing: pip install "monai_unet[dicom]"')):
        dicom_series(np.zeros((2, 2, 2), np.uint16), np.eye(4), "x")
