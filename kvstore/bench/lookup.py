"""`kvstore bench lookup`: how long it takes to learn how far a prompt reaches, over an index of many entries.

The index holds prompts of 100 and of 1,000 chunks, half of its entries each; look-ups of 1, 10 and 100 chunks ask for
the starts of the former, and all walk through the prompts in turn. `hit`: everything is there; `partial`: the first
half is; `miss`: nothing is. Chunks have one token and a few bytes only; with a model they have its KV groups, ranks
and windows (as many chunks wide as the model's are). Keys are hashed before. An embedded store is asked by
threads, which share one interpreter, a server by processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from statistics import median
from typing import Any

import numpy as np

import kvstore
from kvstore.bench.corpus import chunk_bytes, put_chunk, shape_facts
from kvstore.bench.cpu import CpuClock
from kvstore.bench.crew import Answer, Crew, processes, threads
from kvstore.bench.local import open_store
from kvstore.bench.measure import Bar, Row, cpu_facts, percentile
from kvstore.bench.processes import MODES, TIMEOUT_S, Server, server
from kvstore.client import Client
from kvstore.errors import Corrupt, InvalidArgument
from kvstore.keys import Chain
from kvstore.spec import KVGroup, KVSpec

RECORD = 8192  # what a part of such a chunk takes: a block for its header, one for its bytes
LENGTHS = (1, 10, 100, 1000)
CLIENTS = (1, 2, 4, 8)
ALL_MODES = ("embedded", "local", "grpc")
SWEPT = 100  # the length that more than one client at a time is measured with
# Of one client that asks for 100 chunks which are there.
BARS = {
    ("embedded", "hit"): Bar(p50_s=50e-6),
    ("local", "hit"): Bar(p50_s=5e-6),
    ("local", "hit-leased"): Bar(p50_s=50e-6),
}
PROMPTS = 64  # of each length and kind that a client walks through
KINDS = {"hit": 1.0, "partial": 0.5, "miss": 0.0}  # the share of a prompt that is there


def run(
    *,
    entries: int = 100_000,
    model: KVSpec | None = None,
    clients: Sequence[int] = CLIENTS,
    modes: Sequence[str] = ALL_MODES,
    seconds: float = 0.3,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Rows of every mode; `clients` many ask at once, `seconds` long each."""
    if unknown := set(modes) - {"embedded", *MODES}:
        raise InvalidArgument(f"no mode {min(unknown)!r}; there are embedded, {', '.join(MODES)}")
    prompts, spec = stored_prompts(entries), tiny(model)
    rows: list[Row] = []
    capacity = (entries + 1000) * RECORD * len(spec.all_parts)
    if "embedded" in modes:
        with open_store(capacity) as client:
            _fill(client, spec, prompts)
            with threads([Asker(client, spec, prompts, seed) for seed in range(max(clients))]) as crew:
                rows += _rows(crew, "embedded", entries, clients, seconds, 0, advance)
    served = [mode for mode in modes if mode != "embedded"]
    if served:
        with server(capacity) as running:
            for mode in served:
                with running.connect(mode) as client:
                    if mode == served[0]:
                        _fill(client, spec, prompts)
                with _crew(running, mode, spec, prompts, max(clients)) as crew:
                    rows += _rows(crew, mode, entries, clients, seconds, running.pid, advance)
    for row in rows:
        row.update(shape_facts(model))
    return rows


def tiny(model: KVSpec | None) -> KVSpec:
    """Chunks of one token and few bytes with the KV groups, windows (in chunks) and ranks of a model's."""
    if model is None:
        return KVSpec.dense("bench-lookup", layers=1, kv_heads=1, head_dim=8, chunk_tokens=1)
    groups = [
        KVGroup((number,), window=-(-group.window // model.chunk_tokens), latent_dim=1)
        if group.latent_dim
        else KVGroup((number,), model.tp_size, 1, window=-(-group.window // model.chunk_tokens))
        for number, group in enumerate(model.groups)
    ]
    return KVSpec(f"bench-lookup-{model.model}", "", "uint8", tuple(groups), chunk_tokens=1, tp_size=model.tp_size)


def stored_prompts(entries: int) -> dict[int, int]:
    """How many prompts of each stored length make up an index of so many entries."""
    if entries < 2000:
        raise InvalidArgument(f"an index of at least 2000 entries is needed for prompts of 1000 chunks, not {entries}")
    return {100: entries // 200, 1000: entries // 2000}


def prompt(length: int, number: int, share: float = 1.0) -> Chain:
    """A prompt of `length` chunks of one token that begins as the stored one of that number does.

    After `share` of its length it goes on with tokens that no stored prompt has.
    """
    stored = 1000 if length == 1000 else 100
    ids = np.arange(length, dtype=np.uint32)
    ids[0] = stored << 20 | number
    ids[int(share * length) :] += 1 << 31
    chain = Chain.of(ids, 1)
    assert chain.packed  # hashed now, not while somebody is timed
    return chain


def _fill(client: Client, spec: KVSpec, prompts: Mapping[int, int]) -> None:
    block = np.zeros(chunk_bytes(spec), np.uint8)
    for length, number in prompts.items():
        for each in range(number):
            for ref in prompt(length, each).refs:
                put_chunk(client, spec, ref, block)


@contextmanager
def _crew(running: Server, mode: str, spec: KVSpec, prompts: Mapping[int, int], members: int) -> Iterator[Crew]:
    config = {"url": running.url(mode), "spec": spec.to_dict(), "prompts": list(prompts.items())}
    with processes("lookup", [{**config, "seed": seed} for seed in range(members)]) as crew:
        yield crew


def _rows(
    crew: Crew,
    mode: str,
    entries: int,
    clients: Sequence[int],
    seconds: float,
    server_pid: int,
    advance: Callable[[], None],
) -> list[Row]:
    rows = []
    clock = CpuClock(server_pid)
    for at_once in clients:
        lengths = LENGTHS if at_once == min(clients) else (SWEPT,)
        for length in lengths:
            for what in (*KINDS, "hit-leased") if length > 1 else ("hit", "miss", "hit-leased"):
                crew.phase([f"{length} {what} prepare"] * at_once, 0.0)
                used = clock.seconds()
                answers = crew.phase([f"{length} {what}"] * at_once, seconds)
                row = _row(length, what, mode, answers, clock.seconds() - used if server_pid else None)
                row["note"] = f"an index of {entries} entries; keys hashed before"
                row["entries"] = entries
                bar = BARS.get((mode, what)) if length == SWEPT and at_once == 1 else None
                if bar:
                    bar.judge(row)
                rows.append(row)
                advance()
    return rows


def _row(length: int, what: str, mode: str, answers: Sequence[Answer], server_cpu_s: float | None) -> Row:
    times = [each for answer in answers for each in answer["times"]]
    return {
        "case": f"lookup-{length}-{what}", "mode": mode, "bytes": 0, "clients": len(answers), "p50_s": median(times),
        "p99_s": percentile(times, 0.99), "gbps": None, "baseline": None, "ratio": None,
        "lookups_per_s": sum(len(answer["times"]) / answer["elapsed_s"] for answer in answers),
        **cpu_facts(sum(answer["cpu_s"] for answer in answers), server_cpu_s, len(times), 0),
        "rounds": len(times), "bar": None, "met": None,
    }  # fmt: skip


def role(config: Mapping[str, Any]) -> Asker:
    """What `kvstore.bench.crew` runs in a process of its own."""
    client = kvstore.connect(config["url"], timeout=TIMEOUT_S)
    return Asker(client, KVSpec.from_dict(config["spec"]), dict(config["prompts"]), config["seed"], own=True)


class Asker:
    """Looks prompts up and compares how far they reach with how far they should."""

    def __init__(
        self, client: Client, spec: KVSpec, prompts: Mapping[int, int], seed: int, *, own: bool = False
    ) -> None:
        self._client, self._spec, self._prompts, self._seed, self._own = client, spec, prompts, seed, own
        self._chains: dict[tuple[int, str], list[Chain]] = {}
        self._wrong = ""

    def run(self, do: str, until: float) -> Answer:
        """`LENGTH KIND`, or `LENGTH hit-leased`: one look-up after the other; and `prepare`: nothing but the keys."""
        words = do.split()
        length, kind = int(words[0]), words[1].removesuffix("-leased")
        lease_s = 10.0 if words[1].endswith("-leased") else 0.0
        chains = self._prepared(length, kind)
        if "prepare" in words:
            return {}
        expected, times, found = int(KINDS[kind] * length), list[float](), -1
        for number in count():
            start = time.monotonic()
            if start >= until:
                break
            hit = self._client.lookup(self._spec, chains[number % len(chains)], lease_s=lease_s)
            times.append(time.monotonic() - start)
            hit.release()
            if hit.tokens != expected:
                found = hit.tokens
        self._wrong = "" if found < 0 else f"a look-up found {found} of {length} chunks, not {expected} ({do})"
        return {"times": times}

    def check(self) -> None:
        """Every look-up must have told what is there."""
        if self._wrong:
            raise Corrupt(self._wrong)

    def close(self) -> None:
        """End a connection of its own."""
        if self._own:
            self._client.close()

    def _prepared(self, length: int, kind: str) -> list[Chain]:
        chains = self._chains.get((length, kind))
        if chains is None:
            there = self._prompts[1000 if length == 1000 else 100]
            numbers = [(self._seed * PROMPTS + i) % there for i in range(min(there, PROMPTS))]
            chains = self._chains[length, kind] = [prompt(length, number, KINDS[kind]) for number in numbers]
        return chains
