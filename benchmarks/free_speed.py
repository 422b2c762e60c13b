"""Free speed: options that might make the same network faster, each with and without it.

    python -m benchmarks.free_speed [--width 32] [--rounds 3]

Everything else is as in the bundles (passes in channels last, inference mode, freed memory kept, one tile). A pass is
over the paper's 572² tile, or over one of 1020² where larger tiles matter; a step is forward pass, loss, backward pass
and optimiser on 572². `torch.compile` is timed after its compilation, which is listed separately. bfloat16 is only
timed if the hardware supports it: otherwise it is emulated, and takes very long. The large image is an OME-Zarr of
nine tiles, with a network of half the width, so that reading and writing matter more.
"""

from __future__ import annotations

import copy
import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.larger_than_memory import network_of, write_image
from benchmarks.peers import alternately, arguments, channels, fast_bfloat16, markdown, record, summary
from benchmarks.whole_step import steps_of
from monai_unet.data.large import predict as large_images
from monai_unet.inferers import OverlapTileInferer, TileInferer
from monai_unet.memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory
from monai_unet.networks import ValidUNet

Work = Callable[[], object]


def give_back_freed_memory() -> None:
    """Set the thresholds that glibc itself arrives at after the first large tensors."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
    libc.malloc_trim(0)


def before(first: Work, then: Work) -> Work:
    return lambda: (first(), then())


def passes(network: Any, image: Tensor, amp: bool = False) -> Work:
    infer = TileInferer(amp)

    def work() -> None:
        with torch.inference_mode():
            infer(image, network)

    return work


def one_by_one(network: Any, images: Tensor) -> Work:
    works = [passes(network, image[None].contiguous(memory_format=torch.channels_last)) for image in images]
    return lambda: [work() for work in works]


def without_gradients(network: Any, image: Tensor) -> None:
    with torch.no_grad():
        network(image)


def in_turn(
    items: Sequence[Any], read: Callable[[Any], Any], write: Callable[..., None]
) -> Iterator[tuple[Any, Any, Callable[..., None]]]:
    """A replacement of `large_images._overlapped`."""
    for item in items:
        yield item, read(item), write


def large_image(image: Path, network: ValidUNet, overlapped: bool) -> None:
    how = large_images._overlapped if overlapped else in_turn
    with mock.patch.object(large_images, "_overlapped", how), tempfile.TemporaryDirectory(dir=image.parent) as folder:
        large_images.predict_large_image(image, Path(folder) / "out", network, OverlapTileInferer(388))


def options(width: int, folder: Path) -> dict[str, tuple[str, Work, Work]]:
    """Name → (description of the work, the work without the option, with it)."""
    image, small = folder / "large.ome.zarr", network_of(channels(width // 2))
    write_image(image, 3 * 388)
    torch.manual_seed(0)
    network = ValidUNet(2, 1, 2, channels(width)).eval()
    network = network.to(memory_format=torch.channels_last)
    contiguous = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    trained = [copy.deepcopy(each).train() for each in (contiguous, network)]
    tile, large, four = torch.randn(1, 1, 572, 572), torch.randn(1, 1, 1020, 1020), torch.randn(4, 1, 572, 572)
    plain, step = passes(network, tile), [steps_of(each, 572, False, 1) for each in trained]
    found: dict[str, tuple[str, Work, Work]] = {
        "channels last, pass": ("pass", passes(contiguous, tile), plain),
        "channels last, step": ("step", *step),
        "inference mode over no_grad": ("pass", partial(without_gradients, network, tile), plain),
        "four tiles per pass": ("4 passes", one_by_one(network, four), passes(network, four)),
        "reading and writing beside computing": (
            "large image",
            partial(large_image, image, small, overlapped=False),
            partial(large_image, image, small, overlapped=True),
        ),
    }
    if fast_bfloat16(tile.device):
        found["bfloat16, pass"] = ("pass", plain, passes(network, tile, amp=True))
        found["bfloat16, step"] = ("step", step[1], steps_of(trained[1], 572, True, 1))
    if hasattr(ctypes.CDLL(None), "mallopt"):
        kept = {"pass of 1020²": passes(network, large), "step": step[0]}
        for what, work in kept.items():
            # the first turn after the switch is not typical; both include it
            pair = before(before(give_back_freed_memory, work), work), before(before(keep_freed_memory, work), work)
            found[f"freed memory kept, {what}"] = (f"2 × {what}", *pair)
    return found


def compiled(width: int) -> tuple[Work, Work, float]:
    torch.manual_seed(0)
    network = ValidUNet(2, 1, 2, channels(width)).eval()
    network, tile = network.to(memory_format=torch.channels_last), torch.randn(1, 1, 572, 572)
    fast = passes(torch.compile(network), tile)
    start = time.perf_counter()
    with torch.compiler.config.patch(force_disable_caches=True):  # of earlier runs
        fast()
    return passes(network, tile), fast, time.perf_counter() - start


def main() -> None:
    given = arguments(__doc__, width=32, rounds=3)
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (what, without, with_it) in options(given.width, Path(folder)).items():
            warm_up = not name.startswith("freed memory")  # these have their own
            times = alternately({"without": without, "with": with_it}, given.rounds, warm_up)
            _, row = summary(times, "without")
            rows.append({**row, "name": name, "what": what})
            print(f"{name}: {row['ratio']:.2f} times as long as a {what} without", flush=True)
            keep_freed_memory()
    try:
        without, with_it, seconds = compiled(given.width)
    except Exception as error:  # no suitable compiler
        print(f"torch.compile is left out: {str(error).partition(chr(10))[0]}")
    else:
        _, row = summary(alternately({"without": without, "with": with_it}, given.rounds), "without")
        rows.append({**row, "name": "torch.compile", "what": "pass", "once_s": seconds})
    print(table(record("free_speed", rows, width=given.width, rounds=given.rounds)))


def table(held: dict[str, Any]) -> str:
    rows = [
        [
            row["name"],
            row["what"],
            f"{row['median_s']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['once_s']:.0f}" if "once_s" in row else "",
        ]
        for row in held["rows"]
    ]
    return f"{held['width']} channels at the top, {held['hardware']}.\n\n" + markdown(
        ["option", "timed", "with it, s", "ratio to without", "once, s"], rows
    )


if __name__ == "__main__":
    main()
