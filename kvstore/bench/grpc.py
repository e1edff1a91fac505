"""`kvstore bench grpc`: a server in another process, over gRPC on loopback, against a raw TCP stream."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import numpy as np

import kvstore
from kvstore.bench.corpus import Corpus, ref_of, spec_of
from kvstore.bench.measure import Bar, Case, Row, expect, measure
from kvstore.bench.tcp_peer import SLOT
from kvstore.client import Client, Hit
from kvstore.errors import Unavailable
from kvstore.keys import ChunkRef

MiB = 1 << 20
MODE = "grpc"
SIZES = (16 * MiB,)
WORKING_SET = 256 * MiB
GET_BAR = Bar(ratio=0.3)
TIMEOUT_S = 60.0


def run(
    *,
    sizes: tuple[int, ...] = SIZES,
    rounds: int = 60,
    working_set: int = WORKING_SET,
    progress: Callable[[], None] = lambda: None,
) -> list[Row]:
    """All rows. `working_set` bytes are stored, and as many are read into, both in rotation."""
    rows: list[Row] = []
    for nbytes in sizes:
        corpus = Corpus(nbytes, max(2, working_set // nbytes), max(2, working_set // nbytes))
        with ExitStack() as stack:
            peer = stack.enter_context(tcp_peer(corpus))
            client = stack.enter_context(server(4 * working_set))
            group = _Group(client, corpus, peer)
            rows += measure(group.cases(), rounds=rounds, slots=corpus.count, advance=progress)
    with server(256 * MiB) as client:
        rows += measure([_lookup(client)], rounds=rounds * 5, slots=1)
    for row in rows:
        met = GET_BAR.met(row) if row["case"] == "get" else None
        row["bar"], row["met"] = (None, None) if met is None else (str(GET_BAR), met)
    return rows


@contextmanager
def server(dram: int) -> Iterator[Client]:
    """A client of `kvstore serve` in a process of its own."""
    command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", "127.0.0.1:0"]
    command += ["--dram", str(dram), "--dram-extent", str(dram), "--store-lease-limit-s", "3600"]
    command += ["--store-put-wait-s", "60"]  # the first put waits until its extent is populated
    with _child(command) as first_line:
        client = kvstore.connect(str(json.loads(first_line)["address"]), timeout=TIMEOUT_S)
        with client:
            yield client


@contextmanager
def tcp_peer(corpus: Corpus) -> Iterator[socket.socket]:
    """A connection to a process that sends the corpus's chunks."""
    command = [sys.executable, "-m", "kvstore.bench.tcp_peer", str(corpus.nbytes), str(corpus.count)]
    with _child(command) as first_line, socket.create_connection(("127.0.0.1", int(first_line))) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield peer


@contextmanager
def _child(command: list[str]) -> Iterator[str]:
    """A process, by the first line that it prints; it is stopped at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            first_line = process.stdout.readline()
            if not first_line:
                raise Unavailable(f"{' '.join(command)} ended with status {process.wait()} before it was ready")
            yield first_line
        finally:
            process.terminate()


def _lookup(client: Client, chunks: int = 100) -> Case:
    """`lookup-100`: one prompt of 100 chunks, all there."""
    spec = spec_of(256 << 10)
    block = np.zeros(spec.part_shape(spec.part(), spec.chunk_tokens), np.uint16)
    chain = client.chain(spec, range(chunks * spec.chunk_tokens))
    for ref in chain.refs:
        client.put(spec, ref, block)
    hits: deque[Hit] = deque(maxlen=1)

    def look(slot: int) -> None:
        del slot
        hits.append(client.lookup(spec, chain))

    def check(slot: int) -> None:
        expect(hits[0].refs == chain.refs, "look-up", slot)

    note = f"{chunks} chunks of one prompt, all in the server's DRAM; keys hashed before"
    return Case(f"lookup-{chunks}", look, mode=MODE, note=note, check=check)


class _Group:
    """The cases of one size."""

    def __init__(self, client: Client, corpus: Corpus, peer: socket.socket) -> None:
        self._client, self._corpus, self._spec, self._peer = client, corpus, corpus.spec, peer
        for ref, source in zip(corpus.refs, corpus.sources, strict=True):
            client.put(self._spec, ref, source)
        self._seeds = count(1 << 32)
        self._put: deque[ChunkRef] = deque()

    def cases(self) -> list[Case]:
        """The baseline first."""
        nbytes = self._corpus.nbytes
        held = f"{self._corpus.count * nbytes >> 20} MiB of chunks in the server's DRAM, in rotation"
        return [
            Case(
                "tcp-raw", self._tcp, nbytes, mode="loopback", check=self._arrived,
                note="baseline: sendmsg from memory, recv_into(MSG_WAITALL) rotating buffers, another process",
            ),
            Case("get", self._get, nbytes, "tcp-raw", MODE, f"{held}; verified on arrival", check=self._arrived),
            Case(
                "put", self._store, nbytes, "tcp-raw", MODE,
                "the caller's rotating arrays to the acknowledgement (stored), checksums included",
                before=self._next, after=self._forget_old, check=self._stored,
            ),
        ]  # fmt: skip

    def _tcp(self, slot: int) -> None:
        target = self._corpus.target(slot).data
        self._peer.sendall(SLOT.pack(slot))
        while target:
            received = self._peer.recv_into(target, 0, socket.MSG_WAITALL)
            if not received:
                raise Unavailable("the raw TCP peer went away")
            target = target[received:]

    def _get(self, slot: int) -> None:
        self._client.get(self._spec, self._corpus.refs[slot], out=self._corpus.target(slot))

    def _arrived(self, slot: int) -> None:
        expect(self._corpus.arrived(slot), "a transfer", slot)

    def _next(self, slot: int) -> None:
        del slot
        self._put.append(ref_of(next(self._seeds)))

    def _store(self, slot: int) -> None:
        self._client.put(self._spec, self._put[-1], self._corpus.sources[slot])

    def _stored(self, slot: int) -> None:
        self._client.get(self._spec, self._put[-1], out=self._corpus.target(slot))
        expect(self._corpus.arrived(slot), "put", slot)

    def _forget_old(self, slot: int) -> None:
        del slot
        if len(self._put) > self._corpus.count:
            self._client.delete(self._spec, [self._put.popleft().key])
