"""MONAI's volume metrics as the evaluation calls them: millimetres, classes, empty masks, and a published oracle."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from monai_unet.data import DicomSeriesReader
from monai_unet.metrics import PerClass

pytestmark = [
    # from torch and MONAI: nvImageCodec is optional; masks are empty, which is pinned here
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
EVALUATE = Path(__file__).parents[2] / "bundles" / "hippocampus_segmentation" / "configs" / "evaluate.yaml"
SPACING = (0.5, 2.0, 3.0)


def scored(
    cases: list[tuple[torch.Tensor, torch.Tensor]], spacing=SPACING, classes=("anterior", "posterior")
) -> Engine:
    """An engine that has evaluated class indices (prediction, reference) with the metrics of evaluate.yaml."""
    parser = ConfigParser(ConfigParser.load_config_file(EVALUATE))
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))

    def one_hot(index: torch.Tensor) -> MetaTensor:
        return MetaTensor(torch.nn.functional.one_hot(index, len(classes) + 1).movedim(-1, 0).float(), affine=affine)

    engine = Engine(lambda _, case: [{"pred": one_hot(case[0]), "reference": one_hot(case[1])}])
    engine.state.metric_details = {}  # MONAI's engines have it
    for block in ("key_metric", "additional_metrics"):
        for name in parser[block]:
            parser.get_parsed_content(f"{block}::{name}").attach(engine, name)
    if len(classes) > 1:
        PerClass(classes).attach(engine)
    engine.run(cases)
    return engine


def volume(shape=(12, 12, 12), **voxels: slice | tuple) -> torch.Tensor:
    index = torch.zeros(shape, dtype=torch.long)
    for name, where in voxels.items():
        index[where] = {"anterior": 1, "posterior": 2}[name]
    return index


def test_a_shifted_slab_is_its_shift_in_mm_away():
    """A plate of one voxel, shifted by 2 voxels along each axis in turn: every distance is the shift."""
    for axis, mm in enumerate(SPACING):
        at, there = [[slice(None)] * 3 for _ in range(2)]
        at[axis], there[axis] = 4, 6
        engine = scored([(volume(anterior=tuple(there)), volume(anterior=tuple(at)))])
        assert engine.state.metrics["assd_mm_anterior"] == pytest.approx(2 * mm)
        assert engine.state.metrics["hd95_mm_anterior"] == pytest.approx(2 * mm)
        assert engine.state.metrics["dice_anterior"] == 0


def test_the_surface_distance_is_the_mean_over_both_surfaces():
    """One voxel against two, 4 voxels of 0.5 mm apart: distances 0 there, and 0 and 2 back; the mean of the three."""
    reference = volume(anterior=(2, 2, 2))
    prediction = reference.clone()
    prediction[6, 2, 2] = 1
    metrics = scored([(prediction, reference)]).state.metrics
    assert metrics["assd_mm_anterior"] == pytest.approx(2 / 3)
    assert metrics["hd95_mm_anterior"] == pytest.approx(0.95 * 2)  # interpolated between 0 and 2
    assert metrics["dice_anterior"] == pytest.approx(2 / 3)


def test_values_per_class_and_overall():
    whole = volume(anterior=slice(0, 4), posterior=slice(6, 10))
    half = volume(anterior=slice(0, 4), posterior=slice(6, 8))
    state = scored([(whole, whole), (half, whole)]).state
    assert state.metrics["dice_anterior"] == 1
    assert state.metrics["dice_posterior"] == pytest.approx((1 + 2 / 3) / 2)
    assert state.metrics["dice"] == pytest.approx((1 + 1 + 1 + 2 / 3) / 4)
    assert state.metric_details["dice_posterior"].squeeze().tolist() == pytest.approx([1, 2 / 3])


def test_a_second_evaluation_reports_its_own_values():
    """MONAI's StatsHandler prints at the end of the epoch: the values per class are this evaluation's by then."""
    whole, part = volume(anterior=slice(0, 4), posterior=slice(6, 10)), volume(anterior=slice(0, 2))
    engine = scored([(whole, whole)])
    reported = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: reported.append(dict(engine.state.metrics)))
    engine.run([(part, whole)])
    assert reported[0]["dice_anterior"] == pytest.approx(2 / 3)
    assert reported[0]["dice_posterior"] == 0


def test_the_cut_of_an_organ_at_the_edge_of_the_volume_is_not_surface():
    """Two slabs that leave the volume on one side differ by a voxel on the other: all distances are that voxel."""
    metrics = scored([(volume(anterior=slice(8, 12)), volume(anterior=slice(7, 12)))]).state.metrics
    assert metrics["assd_mm_anterior"] == pytest.approx(SPACING[0])
    assert metrics["hd95_mm_anterior"] == pytest.approx(SPACING[0])
    metrics = scored([(volume(anterior=slice(0, 12)), volume(anterior=slice(7, 12)))]).state.metrics
    assert metrics["assd_mm_anterior"] == math.inf, "a prediction that fills the volume has no surface"
    assert metrics["hd95_mm_anterior"] == math.inf


@pytest.mark.parametrize(
    ("prediction", "reference", "dice", "distance"),
    [
        ({}, {}, 1, math.nan),
        ({}, {"anterior": slice(0, 4)}, 0, math.inf),
        ({"anterior": slice(0, 4)}, {}, 0, math.inf),
    ],
)
def test_empty_masks(prediction, reference, dice, distance):
    """Dice 1 where both are empty and 0 where one is; no distance there, and an infinite one."""
    both = {"posterior": slice(6, 9)}
    metrics = scored([(volume(**prediction, **both), volume(**reference, **both))]).state.metrics
    assert metrics["dice_anterior"] == dice
    for name in ("assd_mm", "hd95_mm"):
        assert metrics[f"{name}_anterior"] == pytest.approx(distance, nan_ok=True)
        assert metrics[f"{name}_posterior"] == 0
        assert metrics[name] == (0 if math.isnan(distance) else math.inf)


def test_a_reference_without_voxel_size_is_refused():
    parser = ConfigParser(ConfigParser.load_config_file(EVALUATE))
    handler = parser.get_parsed_content("additional_metrics::assd_mm")
    with pytest.raises(TypeError, match="the reference is a Tensor; only a MetaTensor has a voxel size"):
        handler.update([[torch.zeros(3, 4, 4, 4)], [torch.zeros(3, 4, 4, 4)]])


@pytest.mark.skipif("MONAI_UNET_DATA" not in os.environ, reason="needs MONAI_UNET_DATA: the CHAOS liver")
def test_the_chaos_challenge_states_the_same_scores():
    """CHAOS (Kavur et al. 2021) publishes a CT with two liver masks and their scores: Dice 0.978, ASSD 0.734."""
    from PIL import Image

    folder = Path(os.environ["MONAI_UNET_DATA"]) / "dicom" / "chaos_ct_liver" / "Data_3D"
    _, meta = DicomSeriesReader().get_data((str(folder / "DICOM_anon"),))
    masks = []
    for name in ("Segmentation", "Ground"):
        pages = [np.asarray(Image.open(file)) > 0 for file in sorted((folder / name).glob("*.png"))]
        masks.append(torch.as_tensor(np.stack(pages).T).long())
    assert masks[1].shape == tuple(meta["spatial_shape"])
    masks = [mask[40:332, 132:396] for mask in masks]  # all of both livers, which the last slice cuts
    spacing = np.linalg.norm(meta["affine"][:3, :3], axis=0)
    metrics = scored([tuple(masks)], spacing, ("liver",)).state.metrics
    assert metrics["dice"] == pytest.approx(0.978, abs=5e-4)
    assert metrics["assd_mm"] == pytest.approx(0.734, abs=5e-4)
