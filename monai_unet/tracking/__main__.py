"""`python -m monai_unet.tracking send DIR`: send to MLflow the runs that it has not received."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from monai_unet.tracking.sending import send


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0 if everything is sent, or else 1, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m monai_unet.tracking")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("send", help="send to MLflow the runs that it has not received")
    one.add_argument("folder", type=Path, help="the folder of journals: <output_dir>/mlflow")
    one.add_argument("--uri", help="the tracking URI (default: that of the training run, or $MLFLOW_TRACKING_URI)")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        print(f"error: {options.folder}: there is no such folder. Give <output_dir>/mlflow.", file=sys.stderr)
        return 1
    try:
        sent, busy = send(options.folder, options.uri)
    except Exception as error:  # MLflow's stores raise errors of their own
        print(f"error: {error}\nNothing is lost: try again when the server is back.", file=sys.stderr)
        return 1
    print(f"{len(sent)} sent" + (f", {len(busy)} left to the processes that are writing them" if busy else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
