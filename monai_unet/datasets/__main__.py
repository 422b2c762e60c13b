"""`python -m monai_unet.datasets list` and `python -m monai_unet.datasets prepare NAME`."""

from __future__ import annotations

import argparse
import sys

from monai_unet.datasets import cards, prepare
from monai_unet.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0 for success, and 1 for bad input, whose reason goes to stderr."""
    parser = argparse.ArgumentParser(prog="python -m monai_unet.datasets", description="Data sets as MONAI datalists.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the known data sets")
    one = commands.add_parser("prepare", help="find or download an archive, verify it, write dataset.json")
    one.add_argument("name", choices=list(cards()))
    one.add_argument("--root", help="folder of the archives (default: $MONAI_UNET_DATA, else ~/.cache/monai_unet)")
    one.add_argument("--output", help="folder of dataset.json (default: next to the archive)")
    options = parser.parse_args(arguments)
    if options.command == "list":
        for name, card in cards().items():
            print(f"{name:16} {card['description']} [{card['licence']}]")
        return 0
    try:
        print(prepare(options.name, options.root, options.output))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
