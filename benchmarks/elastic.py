"""Elastic deformation of image, label and weights, compared with other libraries; the target is half the fastest time.

    python -m benchmarks.elastic [--rounds 10]

Images of 572² are interpolated linearly and cubically, images of 132³ linearly, and labels always to the nearest voxel.
Ours has the paper's 3 × 3 grid with σ = 10 voxels, whose nodes are 286 (66) voxels apart. Libraries that smooth noise
get a Gaussian of half that spacing, so that the slope of their field is the same, and, if it can be set, the magnitude
that gives about 10 voxels. Where the cost grows with that Gaussian, the cheaper usual setting is timed too. All use one
thread and keep freed memory, as in our training. The target applies to libraries whose field does not fold.

Before the timing, ours is checked against scipy's `map_coordinates` at our own displacement. Image and label contain
the number of their row, the weights that of their column, so that the output shows the field: image and label must
agree to half a voxel. Results are written to benchmarks/results/elastic.json.
"""

from __future__ import annotations

import functools
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from benchmarks.peers import alternately, arguments, available, markdown, record, summary, title
from monai_unet.memory import keep_freed_memory
from monai_unet.transforms import RandElasticDeformationd

Arrays = dict[str, np.ndarray]
Work = Callable[[], dict[str, Any]]

KEYS = ("image", "label", "weights")
SIGMA = 10.0
#: rows and columns as fractions, because some libraries expect float images in the range 0 ... 1
UNIT = 1024
ORDERS = {1: "bilinear", 3: "bicubic"}
CASES = (((572, 572), 1), ((572, 572), 3), ((132, 132, 132), 1))
DRAWS = {2: 4, 3: 1}
#: largest share of pixels where a smooth field may reverse the rows
FOLDED = 0.01
PACKAGES = ("torchio", "albumentations", "batchgenerators", "batchgeneratorsv2", "opencv-python-headless", "SimpleITK")


def numbered(size: Sequence[int]) -> Arrays:
    """Image and label: the number of the row (first axis); weights: that of the column (last axis); (*size)."""
    rows, columns = np.indices(size)[[0, -1]]
    images = {"image": rows / UNIT, "weights": columns / UNIT}
    return {"label": rows.astype(np.int16)} | {key: image.astype(np.float32) for key, image in images.items()}


def tensors(data: Arrays) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(data[key])[None] for key in KEYS}


def ours(data: Arrays, order: int) -> Work:
    deform = RandElasticDeformationd(KEYS, 3, SIGMA, mode=[ORDERS[order], "nearest", ORDERS[order]])
    return functools.partial(deform, tensors(data))


def monai_2d(data: Arrays, order: int) -> Work:
    from monai.transforms import Rand2DElasticd

    size, mode = data["image"].shape, [ORDERS[order], "nearest", ORDERS[order]]
    spacing = tuple(n / 2 for n in size)
    deform = Rand2DElasticd(KEYS, spacing, (SIGMA, SIGMA), prob=1, mode=mode, padding_mode="reflection")
    return functools.partial(deform, tensors(data))


def monai_3d(data: Arrays, order: int) -> Work:
    from monai.transforms import Rand3DElasticd

    mode = [ORDERS[order], "nearest", ORDERS[order]]
    deform = Rand3DElasticd(KEYS, (5, 8), (100, 200), prob=1, mode=mode, padding_mode="reflection")
    return functools.partial(deform, tensors(data))


def torchio(data: Arrays, order: int) -> Work:
    import SimpleITK
    import torchio as tio

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    whole = {key: tensor.reshape(1, *tensor.shape[1:3], -1) for key, tensor in tensors(data).items()}
    kinds = {"image": tio.ScalarImage, "label": tio.LabelMap, "weights": tio.ScalarImage}
    subject = tio.Subject({key: kinds[key](tensor=tensor) for key, tensor in whole.items()})
    points, most = ((5, 5, 4), (52, 52, 0)) if data["image"].ndim == 2 else (5, 52)
    mode = {1: "linear", 3: "bspline"}[order]
    deform = tio.RandomElasticDeformation(points, most, locked_borders=0, image_interpolation=mode)

    def work() -> dict[str, Any]:
        with warnings.catch_warnings():  # of folding, which is in the table
            warnings.simplefilter("ignore", RuntimeWarning)
            return {key: image.data for key, image in deform(subject).items()}

    return work


def albumentations(data: Arrays, order: int, **given: Any) -> Work:
    import albumentations
    import cv2

    cv2.setNumThreads(0)
    mode = {1: cv2.INTER_LINEAR, 3: cv2.INTER_CUBIC}[order]
    deform = albumentations.ElasticTransform(interpolation=mode, border_mode=cv2.BORDER_REFLECT_101, p=1, **given)
    together = albumentations.Compose([deform], additional_targets={"weights": "image"})

    def work() -> dict[str, Any]:
        out = together(image=data["image"], mask=data["label"], weights=data["weights"])
        return {"image": out["image"], "label": out["mask"], "weights": out["weights"]}

    return work


def batchgenerators(data: Arrays, order: int) -> Work:
    from batchgenerators.transforms.spatial_transforms import SpatialTransform_2

    deform = SpatialTransform_2(
        data["image"].shape,
        deformation_scale=(0.25, 0.25),
        do_rotation=False,
        do_scale=False,
        random_crop=False,
        order_data=order,
        order_seg=0,
        border_mode_data="mirror",
        border_mode_seg="mirror",
    )
    images, labels = np.stack([data["image"], data["weights"]])[None], data["label"][None, None]

    def work() -> dict[str, Any]:
        out = deform(data=images, seg=labels)
        return {"image": out["data"][0, 0], "label": out["seg"][0, 0], "weights": out["data"][0, 1]}

    return work


def batchgenerators_2(data: Arrays, order: int) -> Work:
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    deform = SpatialTransform(
        data["image"].shape,
        0,
        random_crop=False,
        p_elastic_deform=1,
        elastic_deform_scale=0.25,
        elastic_deform_magnitude=2 * SIGMA,
        mode_seg="nearest",
        border_mode_seg="reflection",
        mode_image=ORDERS[order],
        padding_mode_image="reflection",
    )
    given = tensors(data)
    images, labels = torch.cat([given["image"], given["weights"]]), given["label"]

    def work() -> dict[str, Any]:
        out = deform(image=images, segmentation=labels)
        return {"image": out["image"][0], "label": out["segmentation"][0], "weights": out["image"][1]}

    return work


Maker = Callable[[Arrays, int], Work]
#: name: function that makes the work, and its parameters
EITHER: dict[str, tuple[Maker, str]] = {
    "ours": (ours, "3 nodes per axis, σ 10"),
    "TorchIO RandomElasticDeformation": (torchio, "5 B-spline points per axis (2 intervals), uniform ± 52"),
    "batchgenerators SpatialTransform_2": (batchgenerators, "scale 0.25; its magnitude follows from that"),
    "batchgeneratorsv2 SpatialTransform": (batchgenerators_2, "scale 0.25, magnitude 20"),
}
ONLY: dict[int, dict[str, tuple[Maker, str]]] = {
    2: {
        "MONAI Rand2DElasticd": (monai_2d, "nodes 286 apart, σ 10"),
        "albumentations ElasticTransform": (
            functools.partial(albumentations, sigma=143, alpha=8000),
            "σ 143, alpha 8000",
        ),
        "albumentations ElasticTransform, its σ": (
            functools.partial(albumentations, sigma=50, alpha=8000),
            "σ 50 (its default), alpha 8000",
        ),
        "albumentations ElasticTransform, approximate": (
            functools.partial(albumentations, sigma=50, alpha=300, approximate=True),
            "approximate=True (a kernel of 17 pixels), alpha 300",
        ),
    },
    3: {
        "MONAI Rand3DElasticd": (
            monai_3d,
            "σ 5 … 8, magnitude 100 … 200, as in its tutorial; σ 33 asks for 34 GB",
        ),
    },
}


def oracle_difference(size: Sequence[int]) -> float:
    """Largest difference of linear images from scipy's at our displacement; labels must agree except for ties."""
    rng = np.random.default_rng(0)
    image = rng.random(size, dtype=np.float32)
    label = rng.integers(0, 500, size).astype(np.int16)
    deform = RandElasticDeformationd(["image", "label"], 3, SIGMA, mode=["bilinear", "nearest"])
    deform.set_random_state(0)
    out = deform({"image": image[None], "label": label[None]})
    places = np.indices(size, dtype=np.float32) + deform.deformation.displacement(size).numpy()
    apart = np.mean(ndimage.map_coordinates(label, places, order=0, mode="mirror") != out["label"][0])
    if apart > 1e-3:  # points halfway between two voxels, up to rounding
        raise AssertionError(f"{apart:.2%} of the labels differ from scipy's")
    return float(np.abs(ndimage.map_coordinates(image, places, order=1, mode="mirror") - out["image"][0]).max())


def field(out: dict[str, Any], size: Sequence[int]) -> dict[str, float]:
    """Measure the field from the deformed row and column numbers, away from the edges of the image."""
    inside = tuple(slice(n // 4, -(n // 4)) for n in size)
    read = {key: np.asarray(out[key], dtype=np.float64).reshape(size)[inside] for key in KEYS}
    rows, columns = read["image"] * UNIT, read["weights"] * UNIT
    at_rows, at_columns = (number[inside] for number in np.indices(size)[[0, -1]])
    squares = [np.mean((rows - at_rows) ** 2), np.mean((columns - at_columns) ** 2)]
    return {
        "displacement": float(np.sqrt(np.mean(squares))),
        "folded": float(np.mean(np.diff(rows, axis=0) <= 0)),
        "label_off": float(np.abs(rows - read["label"]).max()),
    }


def compare(size: tuple[int, ...], order: int, rounds: int) -> list[dict[str, Any]]:
    entries = EITHER | ONLY[len(size)]
    data = numbered(size)
    works = available({name: functools.partial(make, data, order) for name, (make, _) in entries.items()})
    fields = {}
    for name, work in works.items():
        drawn = [field(work(), size) for _ in range(DRAWS[len(size)])]
        fields[name] = {key: statistics.fmean(one[key] for one in drawn) for key in drawn[0]}
        fields[name]["label_off"] = max(one["label_off"] for one in drawn)
        if fields[name]["label_off"] > 0.6:
            raise AssertionError(f"{name}: image and label are {fields[name]['label_off']:.2f} voxels apart")
    about = {"size": size, "order": order, "rounds": rounds}
    rows = summary(alternately(works, rounds, warm_up=False), "ours")
    return [{**about, **row, "given": entries[row["name"]][1], **fields[row["name"]]} for row in rows]


def table(record: dict[str, Any]) -> str:
    """Markdown of benchmarks/results/elastic.json."""
    header = ("size, order", "transform", "given", "median, ms", "min … max", "ratio", "displacement", "folded")
    lines = [
        (
            f"{title(row['size'])}, {ORDERS[row['order']]}",
            row["name"],
            row["given"],
            f"{row['median_s'] * 1e3:.0f}",
            f"{row['min_s'] * 1e3:.0f} … {row['max_s'] * 1e3:.0f}",
            f"{row['ratio']:.1f}",
            f"{row['displacement']:.1f}",
            f"{row['folded']:.1%}",
        )
        for row in sorted(record["rows"], key=lambda row: (len(row["size"]), row["order"], row["ratio"]))
    ]
    return markdown(header, lines)


def target(record: dict[str, Any], size: Sequence[int], order: int) -> str:
    """How much faster ours is than the fastest peer; those whose field folds are listed separately."""
    peers = [row for row in record["rows"] if (*row["size"], row["order"]) == (*size, order) and row["name"] != "ours"]
    smooth = [row for row in peers if row["folded"] <= FOLDED]
    best = min(smooth, key=lambda row: row["ratio"], default=None)
    text = f"{best['ratio']:.1f} times as fast as {best['name']}, the fastest peer" if best else "no peer"
    folding = [f"{row['ratio']:.1f} times {row['name']}" for row in peers if row not in smooth]
    return f"{title(size)}, {ORDERS[order]}: {text}" + (
        f"; where the field folds, {', '.join(folding)}" * bool(folding)
    )


def main() -> None:
    rounds = arguments(__doc__, rounds=10).rounds
    torch.set_num_threads(1)
    keep_freed_memory()
    differences = {title(size): oracle_difference(size) for size in {size for size, _ in CASES}}
    if max(differences.values()) > 1e-3:
        raise AssertionError(f"ours differs from scipy's map_coordinates: {differences}")
    rows = []
    for size, order in CASES:
        rows += compare(size, order, rounds if len(size) == 2 else max(rounds // 3, 1))
    held = record("elastic", rows, packages=PACKAGES, difference_from_scipy=differences)
    print(table(held))
    print(f"ours differs from scipy's map_coordinates by at most {max(differences.values()):.1e} (images in 0 … 1)")
    for size, order in CASES:
        print(target(held, size, order))


if __name__ == "__main__":
    main()
