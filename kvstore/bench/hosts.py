"""`kvstore bench hosts`: hosts that read from each other against one store of their size, and against hosts alone.

Requests are dealt to the hosts in turn, each served as an engine does: look up under a lease, get the chunks of the
hit, put those that were missing. What counts is the share of prompt tokens that are hits. Every host is a server
process in a network namespace with a link of 1 Gbit/s where the machine lets us (root, iproute2), else on loopback; the
directory is a `redis-server` of its own. Chunks are tiny so that it is quick; that changes no hit. Times are
ignored, requests follow each other at once, but for `pause_s` between them: a prompt that comes back does so after
seconds in life. Every eighth batch of a hit is compared byte by byte.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.bench.fleet import Fleet
from kvstore.bench.measure import Row, percentile
from kvstore.bench.mix import pool
from kvstore.bench.network import Network
from kvstore.bench.replay import Replayer
from kvstore.bench.workloads import Workload, trace, zipf
from kvstore.config import Config
from kvstore.errors import Unavailable
from kvstore.record import BLOCK
from kvstore.spec import KVSpec

LEAST_RATIO = 0.02  # of tokens, below one store of the summed size at most
FACTS = ("hosts", "requests", "hit_ratio", "from_peers_bytes", "lost", "checked", "network")
_SLACK = 1.02  # allocators round


@dataclass(frozen=True)
class Plan:
    """What is replayed, and over what: `share` of all distinct chunks fit the hosts together.

    Without `trace_path` popularity follows Zipf over documents of 1 to 16 chunks of 256 tokens.
    """

    trace_path: Path | None = None
    requests: int = 1000
    hosts: int = 2
    share: float = 0.25
    rate: str = "1gbit"
    pause_s: float = 0.0
    seed: int = 0
    policy: str = Config.policy

    def workload(self) -> Workload:
        """The requests."""
        if self.trace_path is not None:
            return trace(self.trace_path, self.requests)
        return zipf(exponent=0.8, requests=self.requests, documents=self.requests, tokens=256, seed=self.seed)


def run(plan: Plan, *, advance: Callable[[], None] = lambda: None) -> list[Row]:
    """Rows `one` (a store of the summed size), `shared`, and `alone`."""
    workload = plan.workload()
    spec = KVSpec.dense("bench-hosts", layers=1, kv_heads=1, head_dim=2, chunk_tokens=workload.chunk_tokens)
    record = BLOCK + -(-spec.part_bytes(spec.part(), spec.chunk_tokens) // BLOCK) * BLOCK
    dram = int(plan.share * _distinct(workload) * record / plan.hosts * _SLACK) // BLOCK * BLOCK
    rows = []
    for mode, hosts, size, share in (
        ("one", 1, dram * plan.hosts, False),
        ("shared", plan.hosts, dram, True),
        ("alone", plan.hosts, dram, False),
    ):
        rows.append(_replay(plan, workload, spec, mode, hosts, size, share, advance))
    one, shared, _ = (row["hit_ratio"] for row in rows)
    rows[1] |= {
        "baseline": "one", "ratio": shared / one if one else None, "bar": f"≥ one - {LEAST_RATIO:g}",
        "met": shared >= one - LEAST_RATIO,
    }  # fmt: skip
    return rows


def _distinct(workload: Workload) -> int:
    """Chunks that are not the same."""
    seen: set[tuple[int, int]] = set()
    for blocks in workload.requests:
        parent = 0
        for number, _ in blocks:
            parent = hash((parent, number))
            seen.add((parent, number))
    return len(seen)


def _replay(
    plan: Plan, workload: Workload, spec: KVSpec, mode: str, hosts: int, dram: int, share: bool,
    advance: Callable[[], None],
) -> Row:  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-hosts-")))
        network, where = _network(plan, hosts) if share else (None, "none")
        if network is not None:
            stack.callback(network.close)
        fleet = stack.enter_context(
            closing(Fleet(folder, hosts, dram, network=network, share=share, policy=plan.policy))
        )
        descriptor = stack.enter_context(pool(spec))
        clients = [stack.enter_context(closing(host.connect())) for host in fleet.hosts]
        serving = [Replayer(client, spec, [], descriptor) for client in clients]
        start = time.monotonic()
        for number, blocks in enumerate(workload.requests):
            serving[number % hosts].serve(blocks)
            time.sleep(plan.pause_s)
            advance()
        taken = time.monotonic() - start
        stats = [client.stats() for client in clients]
    return _row(workload, mode, [each.tally() for each in serving], stats, taken, where)


def _network(plan: Plan, hosts: int) -> tuple[Network | None, str]:
    try:
        return Network(hosts, rate=plan.rate), f"namespaces, {plan.rate}"
    except Unavailable as error:
        return None, f"loopback ({error})"


def _row(workload: Workload, mode: str, tallies: Sequence[Any], stats: Sequence[Any], taken: float, where: str) -> Row:
    def total(name: str) -> Any:
        return sum(tally[name] for tally in tallies)

    lookups = [each for tally in tallies for each in tally["lookups"]]
    peers = [each["tiers"].get("peers", {}) for each in stats]
    return {
        "case": workload.name, "mode": mode, "bytes": 0, "p50_s": percentile(lookups, 0.5),
        "p99_s": percentile(lookups, 0.99), "gbps": None, "baseline": None, "ratio": None, "hosts": len(tallies),
        "requests": len(workload.requests), "hit_ratio": total("hit_tokens") / total("tokens"),
        "hit_tokens": total("hit_tokens"), "tokens": total("tokens"), "lost": total("lost"),
        "checked": total("checked"), "from_peers_bytes": sum(each.get("bytes_read", 0) for each in peers),
        "found": sum(each.get("found", 0) for each in peers), "network": where, "elapsed_s": taken,
        "bar": None, "met": None, "note": "p50, p99: look-ups; hit_ratio: of all prompt tokens",
    }  # fmt: skip
