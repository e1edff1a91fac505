"""`kvstore remote sweep`: what is old in a shared place goes, whoever wrote it."""

from __future__ import annotations

import time
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict

from kvstore.cli.output import print_json, size
from kvstore.cli.settings import configuration
from kvstore.errors import InvalidArgument
from kvstore.opening import open_engine
from kvstore.schema import parse_seconds
from kvstore.tiers.remote.sweep import Swept
from kvstore.tiers.remote.sweep import sweep as sweep_place


def sweep(args: Namespace) -> int:
    """Delete records that are older than an age, and artefacts that no other names; without `--yes` say which."""
    config, age_s = configuration(args), parse_seconds(args.older_than)
    if config.remote is None:
        raise InvalidArgument("which place? give --remote URL, or --config FILE with a [remote] url")
    with closing(open_engine(config.remote)) as engine:
        swept = sweep_place(engine, int((time.time() - age_s) * 1000), delete=args.yes)
    if args.json:
        print_json({"deleted": args.yes, **asdict(swept)})
    else:
        print(_told(swept, deleted=args.yes))
    return 0


def _told(swept: Swept, *, deleted: bool) -> str:
    what = f"{swept.records} records ({size(swept.record_bytes)}) and {swept.artefacts} artefacts "
    what += f"({size(swept.artefact_bytes)})"
    left = f"{swept.left_records} records ({size(swept.left_bytes)}) stay"
    return f"deleted {what}; {left}" if deleted else f"would delete {what}; {left}. Nothing was changed: --yes does it"
