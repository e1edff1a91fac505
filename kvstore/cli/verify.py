"""`kvstore verify`: everything is read back against its checksums."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from kvstore.cli.inspect import placement_dict
from kvstore.cli.output import print_json, print_table, progress, size
from kvstore.cli.target import open_client
from kvstore.errors import Corrupt


def verify(args: Namespace) -> int:
    """Print what was read per tier and what is corrupt; exit 6 if anything is."""
    tiers: dict[str, dict[str, int]] = {}
    corrupt: list[dict[str, Any]] = []
    with open_client(args) as client, progress("verifying", client.describe().chunks or None) as advance:
        last = b""
        for chunk, placement, problem in client.verify():
            tier = tiers.setdefault(placement.tier, {"placements": 0, "bytes": 0, "corrupt": 0})
            tier["placements"] += 1
            tier["bytes"] += placement.stored
            tier["corrupt"] += bool(problem)
            if problem:
                corrupt.append({"key": chunk.key.hex(), **placement_dict(placement), "problem": problem})
            advance(chunk.key != last)
            last = chunk.key
    if args.json:
        print_json({"ok": not corrupt, "tiers": tiers, "corrupt": corrupt})
    else:
        rows = [(name, t["placements"], size(t["bytes"]), t["corrupt"]) for name, t in tiers.items()]
        print_table(("tier", "placements", "read", "corrupt"), rows)
        if corrupt:
            print_table(("key", "tier", "problem"), [(bad["key"], bad["tier"], bad["problem"]) for bad in corrupt])
    return Corrupt.exit_code if corrupt else 0
