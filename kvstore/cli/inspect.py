"""`kvstore stats`, `kvstore tiers` and `kvstore ls`."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from kvstore.api import ChunkInfo, PlacementInfo
from kvstore.cli.output import print_json, print_table, size
from kvstore.cli.target import open_client
from kvstore.forms import form_text


def stats(args: Namespace) -> int:
    """Counters and gauges."""
    with open_client(args) as client:
        found = client.stats()
    if args.json:
        print_json(found)
    else:
        print_table(("name", "value"), list(_flat(found)))
    return 0


def tiers(args: Namespace) -> int:
    """Where chunks lie, from fast to slow: room, speed, use, errors."""
    with open_client(args) as client:
        found = client.stats()["tiers"]
    if args.json:
        print_json({"tiers": found})
        return 0
    columns = ("tier", "kind", "state", "capacity", "used", "%", "read GB/s", "write GB/s", "latency us", "hits",
               "written", "evicted", "errors")  # fmt: skip
    print_table(columns, [_tier_row(name, each) for name, each in found.items()])
    for each in found.values():
        if each["kind"] == "peers":
            print(_peers_text(each))
    return 0


def ls(args: Namespace) -> int:
    """Stored chunks."""
    with open_client(args) as client:
        chunks = list(islice(client.list(), args.limit))
    if args.json:
        print_json({"chunks": [chunk_dict(chunk) for chunk in chunks]})
        return 0
    columns = ("key", "spec", "position", "tokens", "parts", "tiers", "form", "raw", "stored", "hits", "pinned")
    print_table(columns, [_row(chunk) for chunk in chunks])
    return 0


def artefacts(args: Namespace) -> int:
    """What codecs have learnt of models, as far as the store has it."""
    with open_client(args) as client:
        found = client.stats().get("artefacts", [])
    if args.json:
        print_json({"artefacts": found})
        return 0
    columns = ("digest", "kind", "model", "size", "use")
    uses = {True: "encodes", False: "older chunks"}
    rows = [(each["digest"], each["kind"], each["model"], size(each["bytes"]), uses[each["current"]]) for each in found]
    print_table(columns, rows)
    return 0


def chunk_dict(chunk: ChunkInfo) -> dict[str, Any]:
    """A chunk as plain data."""
    return {
        "key": chunk.key.hex(),
        "parent": chunk.parent.hex(),
        "spec": chunk.spec.hex(),
        "position": chunk.position,
        "tokens": chunk.tokens,
        "hits": chunk.hits,
        "leases": chunk.leases,
        "pinned_until_ms": chunk.pinned_until_ms,
        "last_use_ms": chunk.last_use_ms,
        "placements": [placement_dict(each) for each in chunk.placements],
    }


def placement_dict(placement: PlacementInfo) -> dict[str, Any]:
    """A placement as plain data."""
    part = placement.part
    return {
        "group": part.group,
        "rank": part.rank,
        "layers": list(part.layers),
        "tier": placement.tier,
        "form": placement.form,
        "level": placement.level,
        "level_name": form_text(placement.form, placement.level).partition(":")[2],
        "exact": placement.exact,
        "logical": placement.logical,
        "stored": placement.stored,
    }


def _row(chunk: ChunkInfo) -> tuple[object, ...]:
    tiers = "+".join(dict.fromkeys(each.tier for each in chunk.placements))
    parts = len({each.part for each in chunk.placements})
    left = chunk.pinned_until_ms / 1000 - time.time()
    pinned = f"{left:.0f} s" if left > 0 else ""
    forms = "+".join(dict.fromkeys(form_text(each.form, each.level) for each in chunk.placements))
    raw = size(sum({each.part: each.logical for each in chunk.placements}.values()))
    stored = size(sum(each.stored for each in chunk.placements))
    return (
        chunk.key.hex(), chunk.spec.hex()[:8], chunk.position, chunk.tokens, parts, tiers, forms, raw, stored,
        chunk.hits, pinned,
    )  # fmt: skip


def _tier_row(name: str, tier: Mapping[str, Any]) -> tuple[object, ...]:
    full = 100 * tier["used"] / tier["capacity"] if tier["capacity"] else 0.0
    return (
        name, tier["kind"], tier["state"], size(tier["capacity"]), size(tier["used"]), f"{full:.0f}",
        f"{tier['read_bytes_per_s'] / 1e9:.2f}", f"{tier['write_bytes_per_s'] / 1e9:.2f}",
        f"{tier['latency_s'] * 1e6:.0f}", tier["hits"], tier["written"], tier["evicted"], tier["errors"],
    )  # fmt: skip


def _peers_text(tier: Mapping[str, Any]) -> str:
    """What a table has no columns for: the other hosts, and what passed between them and this one."""
    told = f"{tier['peers']} other hosts, {tier['peers_down']} of them down; {tier['published']} entries published, "
    lines = [f"{told}{tier['found']} found, {tier['records_read']} read from others, {tier['lost']} lost there"]
    lines += [f"{name}: {state}" for name, state in tier.items() if name.startswith("peer ") and state != "ok"]
    return "\n".join(lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
