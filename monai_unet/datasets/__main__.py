"""`python -m monai_unet.datasets list` and `python -m monai_unet.datasets prepare NAME`."""

from __future__ import annotations

import argparse
import sys

from monai_unet.datasets import cards, prepare
from monai_unet.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 for success, 1 for input that must not go on, with its reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m monai_unet.datasets", description=prepare.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the known datasets")
    one = commands.add_parser("prepare", help="find or download, verify, write dataset.json")
    one.add_argument("name", choices=list(cards()))
    one.add_argument("--root", help="where archives lie (default: $MONAI_UNET_DATA, else ~/.cache/monai_unet)")
    one.add_argument("--output", help="where dataset.json goes (default: beside the archive)")
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
