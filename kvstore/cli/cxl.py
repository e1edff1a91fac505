"""`kvstore cxl wipe`: device-DAX paths that hold what no store opens any more are made usable again."""

from __future__ import annotations

from argparse import Namespace

from kvstore.cli.output import print_json, print_table
from kvstore.errors import InvalidArgument
from kvstore.tiers.cxl import contents
from kvstore.tiers.cxl import wipe as wipe_paths


def wipe(args: Namespace) -> int:
    """Say what devices hold, and with `--yes` give it up; exit 7 while a store has one open."""
    found = contents(args.paths)
    if not args.yes:
        told = "; ".join(f"{path} holds {held}" for path, held in zip(args.paths, found, strict=True))
        raise InvalidArgument(f"{told}. Nothing was changed: --yes gives it up")
    wipe_paths(args.paths)
    if args.json:
        print_json({"wiped": [{"path": path, "held": held} for path, held in zip(args.paths, found, strict=True)]})
    else:
        print_table(("wiped", "held"), list(zip(args.paths, found, strict=True)))
    return 0
