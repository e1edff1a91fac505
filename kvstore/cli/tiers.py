"""`kvstore tiers`: what tiers are like, and draining them."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kvstore.api import Drain
from kvstore.cli.output import print_json, print_table, size
from kvstore.cli.target import open_client
from kvstore.client import Client
from kvstore.errors import InvalidArgument, PermissionDenied, StorageError

POLL_S = 0.2


def tiers(args: Namespace) -> int:
    """Where chunks lie, from fast to slow: room, speed, use, errors; or `drain` and `resume` one."""
    if args.action != "show":
        return _move(args)
    if args.name or args.path or args.wait:
        raise InvalidArgument("a tier, --path and --wait go with `drain` or `resume`")
    with open_client(args) as client:
        found = _tiers(client)
    if args.json:
        print_json({"tiers": found})
        return 0
    columns = ("tier", "kind", "state", "capacity", "used", "%", "read GB/s", "write GB/s", "latency us", "hits",
               "written", "evicted", "errors")  # fmt: skip
    print_table(columns, [_row(name, each) for name, each in found.items()])
    for each in found.values():
        if each["kind"] == "peers":
            print(_peers_text(each))
    for name, each in found.items():
        if "admit" in each:
            print(_filter_text(name, each))
    drains = [each for tier in found.values() for each in tier.get("drains", {}).values()]
    if drains:
        print_table(("drain", "state", "left", "moved", "parts", "dropped", "chunks"), list(map(_drain_row, drains)))
    return 0


def _peers_text(tier: Mapping[str, Any]) -> str:
    """What a table has no columns for: the other hosts, and what passed between them and this one."""
    told = f"{tier['peers']} other hosts, {tier['peers_down']} of them down; {tier['published']} entries published, "
    lines = [f"{told}{tier['found']} found, {tier['records_read']} read from others, {tier['lost']} lost there"]
    lines += [f"{name}: {state}" for name, state in tier.items() if name.startswith("peer ") and state != "ok"]
    return "\n".join(lines)


def _filter_text(name: str, tier: Mapping[str, Any]) -> str:
    """What comes down to a tier and what does not."""
    refused = tier["refused"]
    why = (("used_once", "used once"), ("budget_low", "used once, budget low"), ("budget_spent", "budget spent"))
    told = ", ".join(f"{refused[reason]} {words}" for reason, words in why if refused[reason])
    text = f"{name}: admits {tier['admit']}; refused {sum(refused.values())} chunks{f' ({told})' if told else ''}"
    if not tier["write_bytes_per_day"]:
        return text
    left, most = size(max(0, tier["budget_left"])), size(tier["budget_most"])
    state = {"open": "", "budget_low": ": only what was used twice comes down", "budget_spent": ": nothing comes down"}
    return f"{text}; {left} of {most} may be written now{state[tier['budget']]}"


def _move(args: Namespace) -> int:
    """Drain or resume a tier; exit 7 where a drain that is waited for fails."""
    if not args.name:
        raise InvalidArgument(f"which tier? `kvstore tiers {args.action} NAME`")
    with open_client(args) as client:
        if "channel" not in client.describe().extra:
            raise InvalidArgument("a drain lasts as long as the process that does it: give the --url of a server")
        ask = client.resume if args.action == "resume" else client.drain
        found = ask(args.name, args.path)
        while args.wait and found.state.startswith("draining"):
            time.sleep(POLL_S)
            found = client.drain(args.name, args.path)
    if args.json:
        print_json(asdict(found))
    else:
        print(_told(found))
    if found.state.startswith("drain failed"):
        raise StorageError(f"{found.path or found.tier}: {found.state}")
    return 0


def _tiers(client: Client) -> Mapping[str, Any]:
    stats = client.stats()
    if "tiers" not in stats:
        raise PermissionDenied(
            "tiers belong to all tenants of this server: ask with a token of an operator's namespace"
        )
    found: Mapping[str, Any] = stats["tiers"]
    return found


def _told(found: Drain) -> str:
    what = f"{found.tier} {found.path}".strip()
    if found.state == "ok":
        return f"{what} is in use"
    dropped = f", dropped {found.dropped_chunks} chunks ({size(found.dropped_bytes)})" if found.dropped_chunks else ""
    left = f", {size(found.left_bytes)} left" if found.state.startswith("draining") else ""
    return f"{what}: {found.state}{left}, moved {found.moved_parts} parts ({size(found.moved_bytes)}){dropped}"


def _drain_row(drain: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        drain["path"] or drain["tier"], drain["state"], size(drain["left_bytes"]), size(drain["moved_bytes"]),
        drain["moved_parts"], size(drain["dropped_bytes"]), drain["dropped_chunks"],
    )  # fmt: skip


def _row(name: str, tier: Mapping[str, Any]) -> tuple[object, ...]:
    full = 100 * tier["used"] / tier["capacity"] if tier["capacity"] else 0.0
    return (
        name, tier["kind"], tier["state"], size(tier["capacity"]), size(tier["used"]), f"{full:.0f}",
        f"{tier['read_bytes_per_s'] / 1e9:.2f}", f"{tier['write_bytes_per_s'] / 1e9:.2f}",
        f"{tier['latency_s'] * 1e6:.0f}", tier["hits"], tier["written"], tier["evicted"], tier["errors"],
    )  # fmt: skip
