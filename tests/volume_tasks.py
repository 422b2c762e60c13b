"""Small synthetic data sets of the kinds that `monai_unet.bundles new` plans for: files as their users have them.

Each function writes one into a folder, by a fixed seed, and returns the folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tifffile

__all__ = ["ORGANS", "nuclei_stacks", "organs_ct", "sparse_volumes", "two_sequences"]

#: class → HU, centre and half axes in mm from the middle of the body: right, anterior, superior; the kidneys look alike
ORGANS = {
    "liver": (100, (7.5, 3, 11), (7, 8, 13)),
    "spleen": (200, (-8, -1, 11), (6, 6, 13)),
    "left_kidney": (300, (-7, -4, -15), (5.5, 5, 12)),
    "right_kidney": (300, (7, -4, -15), (5.5, 5, 12)),
    "gallbladder": (-60, (3, 6, -8), (2.5, 2.5, 6)),
}


def organs_ct(folder: Path, cases: int = 8) -> Path:
    """CT of 0.7 × 0.7 × 5 mm: five organs, one of them rare, in volumes that are stored in several orientations."""
    rng = np.random.default_rng(5)
    size, spacing = (44, 36, 12), np.array([0.7, 0.7, 5.0])
    for number in range(cases):
        position = _positions(size, spacing)
        shift = rng.normal(0, 0.5, 3) * (1, 1, 5)
        body = ((position / (15.5, 12.5, 60)) ** 2).sum(-1) < 1
        hounsfield, label = np.where(body, 20, -1000), np.zeros(size, np.uint8)
        for value, (density, centre, half) in enumerate(ORGANS.values(), start=1):
            radii = np.array(half) * rng.uniform(0.9, 1.1, 3)
            inside = (((position - centre - shift) / radii) ** 2).sum(-1) < 1
            label[inside], hounsfield[inside] = value, density
        hounsfield = (hounsfield + rng.normal(0, 10, size)).round().astype(np.int16)
        axes = ("RAS", "LPS", "SLA")[number % 3]  # NIfTI's, DICOM's, and slices first
        _save(folder, number, [_turned(hounsfield, axes, spacing)], _turned(label, axes, spacing), cases)
    _describe(folder, channel_names={"0": "CT"}, labels={"background": 0} | _numbered(list(ORGANS)))
    return folder


def two_sequences(folder: Path, cases: int = 8, joined: bool = False) -> Path:
    """T1 and T2, a file each or, if joined, the last axis of one: a lesion is bright in either, fat in both."""
    rng = np.random.default_rng(6)
    size, spacing = (36, 40, 32), np.ones(3)
    for number in range(cases):
        position = _positions(size, spacing)
        head = ((position / (16, 18, 14)) ** 2).sum(-1) < 1
        label, images = np.zeros(size, np.uint8), [np.where(head, 400.0, 20.0), np.where(head, 900.0, 50.0)]
        for value in (1, 2, 3):  # bright in T1, bright in T2; fat, in both, is no lesion
            inside = np.linalg.norm(position - rng.uniform(-7, 7, 3), axis=-1) < rng.uniform(4, 6)
            inside &= label == 0
            label[inside] = value
            for channel in {1: (0,), 2: (1,), 3: (0, 1)}[value]:
                images[channel][inside] *= 1.8
        label[label == 3] = 0
        volumes = [_turned((image * rng.normal(1, 0.05, size)).astype(np.float32), "LAS", spacing) for image in images]
        if joined:
            both = np.stack([volume.get_fdata(dtype=np.float32) for volume in volumes], axis=-1)
            volumes = [nib.Nifti1Image(both, volumes[0].affine)]
        _save(folder, number, volumes, _turned(label, "LAS", spacing), cases, joined)
    labels = {"background": 0, "T1_lesion": 1, "T2_lesion": 2}
    _describe(folder, channel_names={"0": "T1", "1": "T2"}, labels=labels)
    return folder


def sparse_volumes(folder: Path, cases: int = 8) -> Path:
    """MR of which three slices each are labelled, 255 is the rest: as in Çiçek et al. 2016; truth/ holds all labels."""
    rng = np.random.default_rng(7)
    size, spacing = (40, 40, 32), np.ones(3)
    (folder / "truth").mkdir(parents=True)
    for number in range(cases):
        position = _positions(size, spacing)
        label = np.zeros(size, np.uint8)
        centre = rng.uniform(-4, 4, 3)
        distance = np.linalg.norm((position - centre) / rng.uniform(0.9, 1.1, 3), axis=-1)
        label[distance < 12], label[distance < 7] = 1, 2
        image = np.array([300.0, 500.0, 800.0])[label] * rng.normal(1, 0.08, size)
        sparse = np.full_like(label, 255)
        for axis in range(3):
            plane: list[Any] = [slice(None)] * 3
            plane[axis] = size[axis] // 2 + int(rng.integers(-5, 6))
            sparse[tuple(plane)] = label[tuple(plane)]
        nib.save(_turned(label, "RAS", spacing), folder / "truth" / f"case-{number}.nii.gz")
        volume = _turned(image.astype(np.float32), "RAS", spacing)
        _save(folder, number, [volume], _turned(sparse, "RAS", spacing), cases)
    _describe(folder, channel_names={"0": "MR"}, labels={"background": 0, "shell": 1, "core": 2, "ignore": 255})
    return folder


def nuclei_stacks(folder: Path, cases: int = 6) -> Path:
    """Confocal stacks, 0.4 µm per pixel and 1.2 µm from plane to plane, of round nuclei that touch in pairs."""
    rng = np.random.default_rng(8)
    size, spacing = (16, 52, 52), np.array([1.2, 0.4, 0.4])
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        position = _positions(size, spacing)
        ids, radius = np.zeros(size, np.uint16), 3.0
        reach = (np.array(size) - 1) * spacing / 2 - radius
        centres = [rng.uniform(-reach, reach)]
        while len(centres) < 8:
            centre = rng.uniform(-reach, reach)
            if len(centres) % 2:  # touches the one before it
                away = centre - centres[-1]
                centre = centres[-1] + away * (2 * radius / np.linalg.norm(away))
            apart = min(np.linalg.norm(centre - other) for other in centres)
            if apart >= 2 * radius - 1e-6 and (np.abs(centre) <= reach).all():
                centres.append(centre)
        bright = np.zeros(size)
        for identity, centre in enumerate(centres, start=1):
            distance = np.linalg.norm(position - centre, axis=-1) / radius
            ids[distance <= 1] = identity
            bright = np.maximum(bright, 1500 * np.exp(-2 * distance**2))  # they fade towards their rims
        bright = (200 + bright) * rng.normal(1, 0.05, size)
        metadata = {"spacing": 1.2, "unit": "um", "axes": "ZYX"}
        options: dict[str, Any] = {"imagej": True, "resolution": (2.5, 2.5), "metadata": metadata}
        tifffile.imwrite(folder / "images" / f"stack-{number}.tif", bright.astype(np.uint16), **options)
        tifffile.imwrite(folder / "labels" / f"stack-{number}.tif", ids)
    return folder


def _positions(size: Sequence[int], spacing: np.ndarray) -> np.ndarray:
    """Of each voxel, in mm from the middle, (*size, 3)."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(size, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _turned(array: np.ndarray, axes: str, spacing: np.ndarray) -> nib.Nifti1Image:
    """A volume of right, anterior and superior axes, stored along others."""
    image = nib.Nifti1Image(array, np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units("mm")
    return image.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    )


def _save(
    folder: Path, number: int, channels: list[nib.Nifti1Image], label: nib.Nifti1Image, cases: int, joined: bool = False
) -> None:
    """In nnU-Net's layout; the last two cases are for the test."""
    part = "Ts" if number >= cases - 2 else "Tr"
    for name in (f"images{part}", f"labels{part}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for channel, image in enumerate(channels):
        ending = "" if joined else f"_{channel:04d}"
        nib.save(image, folder / f"images{part}" / f"case-{number}{ending}.nii.gz")
    nib.save(label, folder / f"labels{part}" / f"case-{number}.nii.gz")


def _describe(folder: Path, **document: Any) -> None:
    (folder / "dataset.json").write_text(json.dumps({"name": folder.name, **document}))


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names, start=1)}
