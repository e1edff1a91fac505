"""`kvstore bench grpc`: a server in another process, over gRPC on loopback, against a raw TCP stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from kvstore.bench.copies import capacity_for, store_corpus
from kvstore.bench.corpus import Corpus, chunk_bytes, shape_facts, specs_of
from kvstore.bench.lookups import lookups
from kvstore.bench.measure import Bar, Row, measure
from kvstore.bench.processes import server
from kvstore.bench.tcp_peer import raw_stream
from kvstore.bench.wire import Wire
from kvstore.spec import KVSpec

MiB = 1 << 20
MODE = "grpc"
SIZES = (16 * MiB,)
WORKING_SET = 256 * MiB
GET_BAR = Bar(ratio=0.3)
LEAST = 4  # chunks in rotation, however large they are


def run(
    *,
    rounds: int = 60,
    sizes: Sequence[int] = SIZES,
    model: KVSpec | None = None,
    working_set: int = WORKING_SET,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """All rows. `working_set` bytes are stored, and as many are read into, both in rotation."""
    rows: list[Row] = []
    for spec in specs_of(sizes, model):
        nbytes = chunk_bytes(spec)
        slots = max(LEAST, working_set // nbytes)
        corpus = Corpus(nbytes, slots, slots, spec)
        with ExitStack() as stack:
            raw = stack.enter_context(raw_stream(corpus))
            running = stack.enter_context(server(capacity_for(corpus)))
            client = stack.enter_context(running.connect(MODE))
            store_corpus(client, corpus)
            group = Wire(client, corpus, raw, MODE, running.pid)
            rows += measure(group.cases(), rounds=rounds, slots=slots, advance=advance)
    with server(256 * MiB) as running, running.connect(MODE) as client:
        rows += lookups(client, MODE, rounds=rounds * 5, server_pid=running.pid, leased=False)
    for row in rows:
        row.update(shape_facts(model))
        if row["case"] == "get" and row["bytes"] >= 16 * MiB:
            GET_BAR.judge(row)
    return rows
