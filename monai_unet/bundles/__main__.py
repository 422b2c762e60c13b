"""`python -m monai_unet.bundles options BUNDLE [CONFIG]`: list the options of a bundle."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from monai_unet.bundles.options import options
from monai_unet.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m monai_unet.bundles")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("options", help="list the options of a config, with defaults and meaning")
    one.add_argument("bundle", type=Path, help="its folder, or its name in the folder bundles")
    one.add_argument("config", nargs="?", default="train", help="train (the default), inference, evaluate ...")
    chosen = parser.parse_args(arguments)
    bundle = chosen.bundle if chosen.bundle.is_dir() else Path("bundles") / chosen.bundle
    try:
        found = options(bundle / "configs" / f"{chosen.config.removesuffix('.yaml')}.yaml")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    heading, indent = "", " " * 26
    for option in found:
        if option.heading != heading:
            heading = option.heading
            print(f"\n{heading}")
        print(f"--{option.name:<21}  {option.default}")
        if option.meaning:
            print(textwrap.fill(option.meaning, 100, initial_indent=indent, subsequent_indent=indent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
