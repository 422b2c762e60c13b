"""From file to file with hand-made weights: stacks as volumes, several classes, and images of another pixel size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from bright_network import save_bright_network
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CopyItemsd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    SaveImaged,
    SqueezeDimd,
)
from PIL import Image
from scipy import ndimage

from monai_unet.data import InputError, MicroscopyReader, MicroscopyWriter, check_images, list_images, predict_images
from monai_unet.inferers import OverlapTileInferer
from monai_unet.metrics import seg_measure
from monai_unet.networks import load_network
from monai_unet.tracking import Pictures
from monai_unet.transforms import (
    BorderWeightMap,
    LabelInstances,
    LabelInstancesd,
    NormalizePagesd,
    RandElasticDeformationd,
    RescaleToPixelSized,
    SeparateInstances,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*NvImgCodec")


def predict(
    folder: Path,
    normalize: Any,
    label: list[Any],
    pixel_size_um: tuple[float, ...] | None = None,
    dims: int = 2,
    classes: int = 2,
    **options: Any,
) -> Path:
    """What the configs of a bundle do, with a network that sees what is bright."""
    save_bright_network(folder.parent / "model.pt", dims, classes=classes)
    out = folder.parent / "out"
    rescale = RescaleToPixelSized("image", pixel_size_um)
    preprocessing = Compose([LoadImaged("image", reader=MicroscopyReader()), rescale, normalize])

    def save(key: str, postfix: str, dtype: Any) -> SaveImaged:
        writer = {"writer": MicroscopyWriter, "output_ext": ".tif", "separate_folder": False, "print_log": False}
        return SaveImaged(key, output_dir=out, output_postfix=postfix, output_dtype=dtype, **writer)

    postprocessing = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd(["pred", "image"], preprocessing, "image", nearest_interp=False),  # the image for the pictures
            CopyItemsd("pred", names="probability"),
            AsDiscreted("pred", argmax=True, dtype=torch.uint8),
            *label,
            save("probability", "probability", np.float32),
            save("pred", "label", None),
            SqueezeDimd("pred", dim=0),
        ]
    )
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(list_images(folder), preprocessing), batch_size=1),
        load_network(folder.parent / "model.pt", in_channels=1, spatial_dims=dims),
        inferer=OverlapTileInferer(tile_size=20),
        postprocessing=postprocessing,
        val_handlers=[Pictures(out / "pictures")],
    )
    predict_images(evaluator, postprocessing, **options)
    return out


@pytest.fixture
def balls() -> np.ndarray:
    """Ids of nuclei in a stack whose pages are 2 pixels apart, some of them cut by its border, two in contact."""
    z, y, x = np.indices((9, 36, 40))
    ids = np.zeros(z.shape, np.uint16)
    for number, (a, b, c) in enumerate([(4, 10, 8), (0, 30, 30), (4, 10, 25), (4, 10, 33), (8, 35, 0), (8, 22, 20)], 1):
        ids[np.sqrt((2 * (z - a)) ** 2 + (y - b) ** 2 + (x - c) ** 2) < 5] = number
    return ids


def test_a_stack_of_nuclei_is_one_volume(tmp_path: Path, balls: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    carved = SeparateInstances()(balls[None])[0]
    sizes = {"axes": "ZYX", "PhysicalSizeZ": 0.6, "PhysicalSizeY": 0.3, "PhysicalSizeX": 0.3}
    tifffile.imwrite(tmp_path / "in" / "nuclei.tif", np.uint16([100, 1000])[carved], ome=True, metadata=sizes)
    normalize = NormalizeIntensityd("image", channel_wise=True)
    out = predict(tmp_path / "in", normalize, [LabelInstancesd("pred", min_size=5)], dims=3, stacks="volume")
    found = tifffile.imread(out / "nuclei_label.tif")
    assert found.dtype == np.uint16
    assert np.array_equal(found, LabelInstances(min_size=5)(carved[None])[0])
    assert found.max() == 6
    assert seg_measure(balls, found) > 0.99  # the voxels at the end of the contact are not given back
    image, meta = MicroscopyReader().get_data([out / "nuclei_label.tif"])
    assert image.shape == (1, *balls.shape)
    assert meta["pixel_size_um"] == pytest.approx([0.6, 0.3, 0.3], rel=1e-4)
    picture = np.asarray(Image.open(out / "pictures" / "nuclei.png"))
    last_panel = (picture[16:-2, -402:-2] == (255, 0, 0)).all(-1)  # ten times as large
    outlined = last_panel.reshape(36, 10, 40, 10).any(axis=(1, 3))
    nuclei = ndimage.binary_dilation(found[4] > 0, iterations=2)
    assert outlined.any()
    assert not (outlined & ~nuclei).any()  # of the middle page


def test_single_images_are_no_volumes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "page.tif", np.zeros((36, 40), np.uint16))
    message = "page.tif: a single image of 36 x 40 pixels, but the network takes stacks. Save the pages of a stack"
    with pytest.raises(InputError, match=message):
        check_images([{"image": tmp_path / "page.tif"}], stacks="volume")


def test_a_stack_trains_as_a_volume(balls: np.ndarray) -> None:
    ids = balls[None].astype(np.int64)
    separate = SeparateInstances(keep_ids=True)(ids)
    assert seg_measure(balls, LabelInstances(grow=1)(separate)[0]) > 0.99
    weight = BorderWeightMap(w0=10, sigma=1.5, class_weights=None, spacing=(0.6, 0.3, 0.3))(separate)
    ridge = (ids > 0) & (separate == 0)
    assert ridge.any()
    assert (weight[ridge] >= 1 + 10 * np.exp(-((0.3 + 0.6) ** 2) / (2 * 1.5**2)) - 1e-4).all()  # one pixel from both
    assert weight[0, 8, 0, 39] == pytest.approx(1, abs=0.01)
    deform = RandElasticDeformationd(
        ["ids", "weight"],
        grid_size=(2, 3, 3),
        sigma=(0.5, 2, 2),
        rotate_range=(3.14, 0, 0),
        mode=["nearest", "bilinear"],
        spatial_size=(9, 24, 24),
    )
    tile = deform.set_random_state(0)({"ids": torch.as_tensor(ids), "weight": torch.as_tensor(weight)})
    assert tile["ids"].shape == tile["weight"].shape == (1, 9, 24, 24)
    assert deform.deformation.angles[1:].tolist() == [0, 0]  # the pages stay pages
    assert set(tile["ids"].unique().tolist()) <= set(range(7))


def test_classes_are_numbers_and_probabilities_channels(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = np.zeros((30, 40), np.uint8)
    image[5:15, 5:15], image[5:12, 25:33] = 60, 200
    Image.fromarray(image).save(tmp_path / "in" / "a.png")
    normal = (image - image.mean()) / image.std()
    out = predict(tmp_path / "in", NormalizePagesd("image"), [], classes=3)
    label = tifffile.imread(out / "a_label.tif")
    assert label.dtype == np.uint8
    assert np.array_equal(label, (normal > 0.5).astype(int) + (normal > 1.5))
    assert set(np.unique(label)) == {0, 1, 2}
    probability = tifffile.imread(out / "a_probability.tif")
    assert probability.shape == (3, 30, 40)
    np.testing.assert_allclose(probability.sum(0), 1, rtol=1e-6)
    assert np.array_equal(probability.argmax(0), label)


def test_results_are_on_the_grid_of_an_image_of_another_pixel_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    image = np.zeros((61, 83), np.uint8)
    image[10:30, 10:30] = 200
    image[40:44, 60:64] = 200  # 1 µm: less than min_size
    for name, size in {"fine": 0.25, "mistaken": 250, "same": 0.5}.items():
        tifffile.imwrite(
            tmp_path / "in" / f"{name}.tif",
            image[:: 2 if name == "same" else 1, :: 2 if name == "same" else 1],
            ome=True,
            metadata={"axes": "YX", "PhysicalSizeY": size, "PhysicalSizeX": size},
        )
    label = LabelInstancesd("pred", min_size=10, pixel_size_um=(0.5, 0.5))
    with pytest.raises(SystemExit):
        predict(tmp_path / "in", NormalizePagesd("image"), [label], pixel_size_um=(0.5, 0.5))
    printed = capsys.readouterr().out
    assert "2 of 3 images predicted" in printed
    assert "mistaken.tif: a pixel size of 250 x 250 µm, that of the task is 0.5 x 0.5 µm. Correct the pixel" in printed
    fine, same = (tifffile.imread(tmp_path / "out" / f"{name}_label.tif") for name in ("fine", "same"))
    assert fine.shape == image.shape
    assert same.shape == (31, 42)
    assert fine.max() == same.max() == 1
    assert np.abs(fine.astype(int) - (image > 0) * (np.indices(image.shape)[0] < 35)).sum() <= 2 * 40  # an edge's pixel
    assert MicroscopyReader().get_data([tmp_path / "out" / "fine_label.tif"])[1]["pixel_size_um"] == pytest.approx(
        [0.25, 0.25], rel=1e-4
    )
