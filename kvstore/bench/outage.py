"""`kvstore bench outage`: what look-ups cost while the shared tier is down, against a store whose shared tier is well.

Two stores in this process, each over a `redis-server` of its own, one of which is killed. Look-ups of 100 chunks: of
prompts that lie in DRAM, and of prompts that nobody has stored, for which the shared tier is asked while it is well.
Then the server is started again: how long until the store uses it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np

import kvstore
from kvstore.bench.measure import Bar, Case, Row, expect, measure
from kvstore.bench.redis_server import RedisServer
from kvstore.client import Client
from kvstore.config import Config, DramConfig, RemoteConfig
from kvstore.errors import DeadlineExceeded
from kvstore.keys import Chain
from kvstore.spec import KVSpec

MiB = 1 << 20
CHUNKS, PROMPTS = 100, 16
SPEC = KVSpec.dense("outage", layers=2, kv_heads=1, head_dim=16, chunk_tokens=16)
QUIET, BACK_S = Bar(ratio=1 / 1.1), 5.0
PATIENCE_S = 60.0


def run(*, rounds: int = 200, advance: Callable[[], None] = lambda: None) -> list[Row]:
    """Rows for `known` and `unknown` prompts, well and down, and `back` (`p50_s`: from the server's start to its use).

    `Unavailable` without `redis-server`.
    """
    with tempfile.TemporaryDirectory(prefix="kvstore-outage-") as folder, ExitStack() as stack:
        well, down = (stack.enter_context(_host(Path(folder) / name)) for name in ("well", "down"))
        known = [_prompt(seed) for seed in range(PROMPTS)]
        for client, _ in (well, down):
            _fill(client, known)
        down[1].kill()
        until(lambda: not _is_well(down[0], lookup=_prompt(-1)))
        rows = [*_rows(well[0], down[0], "known", known, rounds, advance)]
        fresh = [_prompt(PROMPTS + n) for n in range(2 * rounds + 64)]
        rows += _rows(well[0], down[0], "unknown", fresh, rounds, advance)
        down[1].start()
        began = time.monotonic()
        until(lambda: _is_well(down[0]))
        rows.append(_back(time.monotonic() - began))
    return rows


def until(true: Callable[[], bool]) -> None:
    """Wait for something; `DeadlineExceeded` after a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"it did not come within {PATIENCE_S:g} s")
        time.sleep(0.005)


@contextmanager
def _host(folder: Path) -> Iterator[tuple[Client, RedisServer]]:
    server = RedisServer(folder)
    config = Config(dram=DramConfig(64 * MiB, 64 * MiB), remote=RemoteConfig(server.url()))
    try:
        with closing(kvstore.open(config)) as client:
            yield client, server
    finally:
        server.stop()


def _prompt(seed: int) -> Chain:
    tokens = np.random.default_rng(seed + 1_000_000).integers(0, 50_000, CHUNKS * SPEC.chunk_tokens)
    return Chain.of(tokens, SPEC.chunk_tokens)


def _fill(client: Client, prompts: Sequence[Chain]) -> None:
    part = np.zeros(SPEC.part_bytes(SPEC.part(), SPEC.chunk_tokens), np.uint8)
    for prompt in prompts:
        for ref in prompt.refs:
            client.put(SPEC, ref, part)
    until(lambda: client.stats()["gauges"]["through"] == 0)


def _is_well(client: Client, lookup: Chain | None = None) -> bool:
    if lookup is not None:
        client.lookup(SPEC, lookup)
    return bool(client.stats()["tiers"]["remote"]["state"] == "ok")


def _rows(
    well: Client, down: Client, which: str, prompts: Sequence[Chain], rounds: int, advance: Callable[[], None]
) -> list[Row]:
    expected = CHUNKS * SPEC.chunk_tokens if which == "known" else 0
    found = {"well": 0, "down": 0}

    def look(client: Client, name: str) -> Callable[[int], None]:
        def run(slot: int) -> None:
            found[name] = client.lookup(SPEC, prompts[slot % len(prompts)]).tokens

        return run

    def check(name: str) -> Callable[[int], None]:
        return lambda slot: expect(found[name] == expected, f"{which} while {name}", slot)

    cases = [
        Case("well", look(well, "well"), mode=which, check=check("well"), note="100 chunks a look-up, embedded"),
        Case("down", look(down, "down"), baseline="well", mode=which, check=check("down")),
    ]
    rows = measure(cases, rounds=rounds, slots=len(prompts), advance=advance)
    QUIET.judge(rows[1])
    return rows


def _back(seconds: float) -> Row:
    return {
        "case": "back", "mode": "restarted", "bytes": 0, "p50_s": seconds, "p99_s": seconds, "gbps": None,
        "baseline": None, "ratio": None, "p99_ratio": None, "rounds": 1, "note": "", "bar": f"≤ {BACK_S:g} s",
        "met": seconds <= BACK_S, "bar_ratio": None, "bar_p50_s": BACK_S,
    }  # fmt: skip
