"""Image by image through a MONAI evaluator: a bad image stops only itself, and existing results are left alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from monai.data import DataLoader, Dataset, FolderLayout
from monai.engines import Evaluator
from monai.transforms import Compose, SaveImaged
from torch.utils.data import Subset
from tqdm import tqdm

from monai_unet.data.microscopy.datalist import check_images
from monai_unet.data.microscopy.measures import MeasureTables
from monai_unet.data.microscopy.reader import MicroscopyReader
from monai_unet.doubt import NO_FLAG
from monai_unet.errors import LISTED, InputError
from monai_unet.files import LONGEST_NAME, remove_leftovers
from monai_unet.options import parse_bool

__all__ = ["predict_images"]

logger = logging.getLogger(__name__)


def predict_images(
    evaluator: Evaluator,
    postprocessing: Compose,
    channels: int | None = 1,
    stacks: bool | Literal["volume"] = True,
    overwrite: bool | str = False,
    colour: bool | str = False,
    class_names: Sequence[str] | None = None,
    rule: Mapping[str, Any] | None = None,
    object_classes: Sequence[str] = (),
) -> None:
    """Predict each image whose results are not all there, and remove what killed runs have left of them.

    Masks that are saved as "instances", or "label" where there are classes, are measured: `MeasureTables`, beside them.
    If their "probability" is saved, too, images to look at are listed, the most doubtful ones first.

    A bar in the terminal shows how many are done, and how long the others will take.

    Args:
        evaluator: predicts the items of its data loader's `Dataset`.
        postprocessing: the evaluator's; its `SaveImaged` decide where the results go. Whether they replace existing
            files is up to their writers.
        channels: the channels the network takes; None for any number.
        stacks: whether an image may have several pages; "volume": it must, for a 3-D network.
        overwrite: predict all images; "true" and "false" are understood.
        colour: as for `MicroscopyReader`.
        class_names: of masks of classes, with that of the background; None for instances.
        rule: as for :func:`monai_unet.doubt.doubt`.
        object_classes: as for `MeasureTables`.

    Raises:
        InputError: the only image is bad, or a table of measures.
        SystemExit: with status 1, at the end, if some of several images are bad; they are listed.

    >>> import tempfile
    >>> from monai.engines import SupervisedEvaluator
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save = SaveImaged("pred", output_dir=folder, output_ext=".tif", separate_folder=False)
    ...     (Path(folder) / "cells_trans.tif").touch()
    ...     data = DataLoader(Dataset([{"image": "cells.png"}]))
    ...     predict_images(SupervisedEvaluator("cpu", data, network=None), Compose([save]))
    0 of 1 images predicted, 1 already there, in ...
    """
    again = parse_bool("overwrite", overwrite)
    dataset = cast(Dataset, cast(DataLoader, evaluator.data_loader).dataset)
    saving = [step for step in postprocessing.transforms if isinstance(step, SaveImaged)]
    layouts = [cast(FolderLayout, step.saver.folder_layout) for step in saving]
    reader = MicroscopyReader(channels, colour=colour)
    masks = [layout for layout in layouts if layout.postfix == ("instances" if class_names is None else "label")]
    tables = [MeasureTables(layout.output_dir, reader, class_names, rule, object_classes) for layout in masks]
    maps = [layout for layout in layouts if layout.postfix == "probability"][:1]
    bad, there = list[InputError](), 0
    evaluator.interrupt_resume_enabled = False  # else the run after a failed one ends before it begins
    bar = tqdm(dataset.data, "predicting", unit="image", disable=None)  # None: unless it is a terminal
    try:
        for number, item in enumerate(bar):
            results = [Path(layout.filename(subject=item["image"])) for layout in layouts]
            try:
                _check_names(item["image"], results)
                for result in results:
                    remove_leftovers(result)
                ready = not again and all(result.is_file() for result in results)
                if not ready:
                    check_images([item], channels=channels, stacks=stacks, colour=colour)
                    evaluator.data_loader = DataLoader(Subset(dataset, [number]), batch_size=1)
                    evaluator.state.epoch_length = 1  # ignite would repeat the one item as often as there were images
                    evaluator.run()
                for table, layout in zip(tables, masks, strict=True):
                    paths = [each.filename(subject=item["image"]) for each in (layout, *maps)]
                    table.add(item["image"], *paths)
            except Exception as error:
                if (cause := _input_error(error)) is None:
                    raise
                logger.error("%s", cause)
                bad.append(cause)
                continue
            there += int(ready)
            if not ready:
                logger.info("%d of %d: %s", number + 1, len(dataset), item["image"])
    finally:
        for table in tables:
            table.write()
    if bad and len(dataset) == 1:
        raise bad[0]
    folders = ", ".join({os.fspath(layout.output_dir): None for layout in layouts})
    done = len(dataset) - len(bad) - there
    print(f"{done} of {len(dataset)} images predicted, {there} already there, in {folders}")
    for table in tables:
        _list_doubts(table)
    for failure in bad:
        print(f"FAILED  {failure}")
    if bad:
        raise SystemExit(1) from bad[0]


def _list_doubts(table: MeasureTables) -> None:
    if any(found.look is None for found in table.doubts.values()):
        print(NO_FLAG)
    ranked = sorted(table.doubts.items(), key=lambda entry: -entry[1].image)
    chosen = [f"{name}  {found.text}" for name, found in ranked if found.look]
    print(*chosen[:LISTED], sep="\n", end="\n" if chosen else "")
    if len(chosen) > LISTED:
        print(f"and {len(chosen) - LISTED} more, in {table.summary_path}")


def _input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` that MONAI has wrapped, if it is one."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def _check_names(image: str, results: list[Path]) -> None:
    longest = max((len(os.fsencode(result.name)) for result in results), default=0)
    if longest > LONGEST_NAME:
        problem = f"its results would have names of {longest} bytes; file systems take {LONGEST_NAME}"
        raise InputError(image, problem, f"Give it a name that is {longest - LONGEST_NAME} bytes shorter")
