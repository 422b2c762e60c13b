"""`python -m monai_unet.bundles`: a `new` bundle for a data set, `options` of one, `copy` of one in the package.

`release` makes weights to publish of a training; `doubt` sets the threshold of the flag "look at it"; `export` writes a
network for other programs.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from monai_unet.bundles.copies import copy_bundle, shipped_bundle
from monai_unet.bundles.options import options
from monai_unet.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m monai_unet.bundles")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("options", help="list the options of a config, with defaults and meaning")
    one.add_argument("bundle", type=Path, help="its folder, or the name of one that comes with the package")
    one.add_argument("config", nargs="?", default="train", help="train (the default), inference, evaluate ...")
    new = commands.add_parser("new", help="write a bundle for the images and labels of a folder")
    new.add_argument("name", help="of the bundle: a new folder")
    new.add_argument(
        "--dataset_dir", required=True, help="images/ and labels/, imagesTr/ and labelsTr/, or dataset.json"
    )
    new.add_argument("--output", default=".", help="folder of the bundle (default: the working folder)")
    new.add_argument("--kind", choices=("instances", "classes"), help="of the labels (default: inferred from them)")
    new.add_argument("--memory", type=float, metavar="GiB", help="of a training step (default: half of what is free)")
    new.add_argument("--minutes", type=float, default=60.0, help="of the training on this machine (default: 60)")
    new.add_argument("--label_components", action="store_true", help="instances are the separate pieces of masks")
    copied = commands.add_parser("copy", help="copy a bundle that comes with the package, with its weights")
    copied.add_argument("name", help="of the bundle")
    copied.add_argument("folder", nargs="?", help="a new one (default: of the bundle's name)")
    released = commands.add_parser("release", help="make a trained model the weights that a bundle is published with")
    released.add_argument("bundle", help="its folder")
    released.add_argument("--ckpt_path", required=True, help="model.pt of the training run")
    doubtful = commands.add_parser("doubt", help='set the threshold of the flag "look at it" (docs/doubt.md)')
    doubtful.add_argument("bundle", help="its folder")
    doubtful.add_argument("--dataset_dir", required=True, help="folder of dataset.json")
    doubtful.add_argument(
        "--split", default="validation", help="a list of it that is not trained on (default: %(default)s)"
    )
    doubtful.add_argument("--share", type=float, default=0.15, help="of its images to flag (default: %(default)s)")
    doubtful.add_argument("--ckpt_path", help="model.pt to write to (default: the bundle's)")
    doubtful.add_argument("--averaging", choices=("none", "mirror", "all"), help="(default: as the bundle predicts)")
    exported = commands.add_parser("export", help="write a bundle's network for other programs")
    exported.add_argument("bundle", help="its folder, or the name of one that comes with the package")
    exported.add_argument("--format", required=True, choices=("bioimageio", "onnx", "torchscript"))
    exported.add_argument("--output", help="a new folder (default: <bundle>_<format> in the working folder)")
    chosen = parser.parse_args(arguments)
    try:
        return COMMANDS[chosen.command](chosen)
    except (InputError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _new(chosen: argparse.Namespace) -> int:
    from monai_unet.bundles.new import new_bundle  # torch takes seconds to import

    folder, plan = new_bundle(
        chosen.name,
        chosen.dataset_dir,
        chosen.output,
        chosen.kind,
        chosen.memory,
        chosen.minutes,
        chosen.label_components,
    )
    for name, (value, why) in {"labels": (plan.kind, plan.why), **plan.settings}.items():
        print(f"{name:<18} {value}   {why}")
    print(f"\n{folder} is written. Train it:\n  python -W ignore -m monai.bundle run --bundle_root {folder}", end=" ")
    print(f"--config_file {folder}/configs/train.yaml")
    return 0


def _copy(chosen: argparse.Namespace) -> int:
    print(copy_bundle(chosen.name, chosen.folder))
    return 0


def _release(chosen: argparse.Namespace) -> int:
    from monai_unet.bundles.release import release

    print(release(chosen.bundle, chosen.ckpt_path))
    return 0


def _doubt(chosen: argparse.Namespace) -> int:
    from monai_unet.bundles.doubt import report, set_doubt

    rule, found = set_doubt(**{name: value for name, value in vars(chosen).items() if name != "command"})
    print(report(rule, found))
    return 0


def _export(chosen: argparse.Namespace) -> int:
    from monai_unet.bundles.export import export

    print(export(chosen.bundle, chosen.format, chosen.output))
    return 0


def _options(chosen: argparse.Namespace) -> int:
    bundle = chosen.bundle if chosen.bundle.is_dir() else shipped_bundle(str(chosen.bundle))
    found = options(bundle / "configs" / f"{chosen.config.removesuffix('.yaml')}.yaml")
    heading, indent = "", " " * 26
    for option in found:
        if option.heading != heading:
            heading = option.heading
            print(f"\n{heading}")
        print(f"--{option.name:<21}  {option.default}")
        if option.meaning:
            print(textwrap.fill(option.meaning, 100, initial_indent=indent, subsequent_indent=indent))
    return 0


COMMANDS = {
    "new": _new,
    "options": _options,
    "copy": _copy,
    "release": _release,
    "doubt": _doubt,
    "export": _export,
}

if __name__ == "__main__":
    sys.exit(main())
