"""`lookup-100` and `lookup-100-leased`: one prompt of 100 chunks, all there, over any way into a store."""

from __future__ import annotations

from collections import deque

import numpy as np

from kvstore.bench.corpus import spec_of
from kvstore.bench.measure import Case, Row, Step, expect, measure
from kvstore.client import Client
from kvstore.hit import Hit

CHUNKS = 100


def lookups(client: Client, mode: str, *, rounds: int, server_pid: int = 0, leased: bool = True) -> list[Row]:
    """The rows of a store that is empty so far and has room for 64 MiB."""
    spec = spec_of(256 << 10)
    block = np.zeros(spec.part_shape(spec.part(), spec.chunk_tokens), np.uint16)
    chain = client.chain(spec, range(CHUNKS * spec.chunk_tokens))
    for ref in chain.refs:
        client.put(spec, ref, block)
    hits: deque[Hit] = deque(maxlen=1)

    def look(lease_s: float) -> Step:
        def run(slot: int) -> None:
            del slot
            hits.append(client.lookup(spec, chain, lease_s=lease_s))

        return run

    def check(slot: int) -> None:
        expect(hits[0].refs == chain.refs, "look-up", slot)

    def release(slot: int) -> None:
        del slot
        hits[0].release()

    note = f"{CHUNKS} chunks of one prompt, all in the store's DRAM; keys hashed before"
    cases = [Case(f"lookup-{CHUNKS}", look(0.0), mode=mode, note=note, check=check)]
    if leased:
        name = f"lookup-{CHUNKS}-leased"
        cases.append(Case(name, look(10.0), mode=mode, note=note, check=check, after=release))
    for case in cases:
        case.server_pid = server_pid
    return measure(cases, rounds=rounds, slots=1)
