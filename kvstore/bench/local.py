"""`kvstore bench local`: the store in DRAM against a plain copy of the same bytes.

Embedded, or with a server of its own in another process (mode `local`), where two more benchmarks have many processes
at work at once (`kvstore.bench.crowd`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import kvstore
from kvstore.bench import crowd
from kvstore.bench.copies import LEASE_S, Copies, capacity_for, store_corpus
from kvstore.bench.corpus import Corpus, chunk_bytes, shape_facts, specs_of
from kvstore.bench.lookups import lookups
from kvstore.bench.measure import Bar, Row, bar_for, measure
from kvstore.bench.processes import PUT_WAIT_S, Connect, Server, server
from kvstore.client import Client
from kvstore.config import Config, DramConfig
from kvstore.spec import KVSpec

MiB = 1 << 20
SIZES = (1 * MiB, 16 * MiB)
WORKING_SET = 512 * MiB
TARGETS = 256 * MiB
LEAST = 4  # chunks in rotation, however large they are
# By way in, case and the least size that a bar is for.
BARS: Mapping[str, Mapping[str, Mapping[int, Bar]]] = {
    "embedded": {
        "get": {1 * MiB: Bar(ratio=0.8), 16 * MiB: Bar(ratio=0.9)},
        "put-copy": {16 * MiB: Bar(ratio=0.5)},
        "view": {0: Bar(p50_s=20e-6)},
        "lookup-100": {0: Bar(p50_s=50e-6)},
    },
    "local": {
        "get": {1 * MiB: Bar(ratio=0.88), 16 * MiB: Bar(ratio=0.95)},
        "get-one": {1 * MiB: Bar(ratio=0.55), 16 * MiB: Bar(ratio=0.90)},
        "get-batch": {0: Bar(ratio=0.90)},
        "get-verified": {16 * MiB: Bar(ratio=0.85)},
        "view": {0: Bar(p50_s=50e-6)},
        "put": {1 * MiB: Bar(ratio=0.65), 16 * MiB: Bar(ratio=0.80)},
        "put-copy": {0: Bar(ratio=0.40)},
        "lookup-100": {0: Bar(p50_s=50e-6)},
        "lookup-100-leased": {0: Bar(p50_s=50e-6)},
    },
}


def run(
    *,
    rounds: int = 60,
    sizes: Sequence[int] = SIZES,
    model: KVSpec | None = None,
    working_set: int = WORKING_SET,
    targets: int = TARGETS,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """All rows of the store in this process.

    `working_set` bytes are stored, `targets` bytes are read into, both in rotation. Chunks are those of `model`, or
    synthetic ones of each of `sizes` bytes.
    """
    rows: list[Row] = []
    for corpus in _corpora(sizes, model, working_set, targets):
        with open_store(capacity_for(corpus)) as client:
            rows += _copies(client, client, corpus, "embedded", rounds, advance)
    with open_store(64 * MiB) as client:
        rows += lookups(client, "embedded", rounds=rounds * 5)
    return _judged(rows, "embedded", model)


def run_server(
    *,
    rounds: int = 60,
    sizes: Sequence[int] = SIZES,
    model: KVSpec | None = None,
    working_set: int = WORKING_SET,
    targets: int = TARGETS,
    crowds: crowd.Plan | None = None,
    mode: str = "local",
    connect: Connect = Server.connect,
    without: Sequence[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """All rows of a server in another process, over the way in that `mode` names.

    `crowds` says how many processes work at once in the last two benchmarks, and how long. Cases named in `without`
    are left out.
    """
    rows: list[Row] = []
    for corpus in _corpora(sizes, model, working_set, targets):
        with ExitStack() as stack:
            running = stack.enter_context(server(capacity_for(corpus)))
            leased, plain = (stack.enter_context(connect(running, mode)) for _ in range(2))
            rows += _copies(leased, plain, corpus, mode, rounds, advance, running.pid, without)
    with server(64 * MiB) as running, connect(running, mode) as client:
        rows += lookups(client, mode, rounds=rounds * 5, server_pid=running.pid)
    _judged(rows, mode, model)
    for spec in specs_of(sizes, model):
        rows += crowd.run(spec, crowds or crowd.Plan(), mode=mode)
    for row in rows:
        row.update(shape_facts(model))
    return rows


def _copies(
    leased: Client,
    plain: Client,
    corpus: Corpus,
    mode: str,
    rounds: int,
    advance: Callable[[], None],
    server_pid: int = 0,
    without: Sequence[str] = (),
) -> list[Row]:
    """Every case of one chunk size; small chunks more often, since their p99 would be one value otherwise."""
    store_corpus(plain, corpus)
    group = Copies(leased, plain, corpus, mode, server_pid)
    cases = [case for case in group.copies() if case.name not in without]
    repeated = rounds if corpus.nbytes > 4 * MiB else rounds * 4
    rows = measure(cases, rounds=repeated, slots=corpus.count, advance=advance)
    if "view" not in without:
        rows += measure([group.views()], rounds=rounds * 5, slots=corpus.count)
    return rows


def _corpora(sizes: Sequence[int], model: KVSpec | None, working_set: int, targets: int) -> Iterator[Corpus]:
    for spec in specs_of(sizes, model):
        nbytes = chunk_bytes(spec)
        yield Corpus(nbytes, max(LEAST, working_set // nbytes), max(LEAST, targets // nbytes), spec)


def _judged(rows: list[Row], mode: str, model: KVSpec | None) -> list[Row]:
    for row in rows:
        row.update(shape_facts(model))
        several = row["case"] == "view" and model is not None and len(model.all_parts) > 1
        bar = bar_for(BARS.get(mode, {}).get(row["case"], {}), row["bytes"])
        if bar and not several:  # the promise is of one view, and this is one a part
            bar.judge(row)
    return rows


@contextmanager
def open_store(capacity: int) -> Iterator[Client]:
    """A store in this process, in DRAM alone."""
    config = Config(dram=DramConfig(capacity=capacity, extent=capacity), lease_limit_s=LEASE_S, put_wait_s=PUT_WAIT_S)
    with kvstore.open(config) as client:
        yield client
