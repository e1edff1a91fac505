"""The cases that move chunks over a network channel, against a raw stream of the same bytes."""

from __future__ import annotations

from kvstore.bench.copies import BATCH, all_well, batch, read_chunk
from kvstore.bench.corpus import Corpus, put_chunk, wants_of
from kvstore.bench.measure import Case, Step, expect
from kvstore.bench.puts import Fresh
from kvstore.bench.redis_peer import RedisPeer
from kvstore.bench.tcp_peer import RawStream
from kvstore.client import Client

MiB = 1 << 20


class Wire:
    """The cases of one chunk size over a server that holds the corpus."""

    def __init__(self, client: Client, corpus: Corpus, raw: RawStream, mode: str, server_pid: int) -> None:
        self._client, self._corpus, self._spec, self._mode = client, corpus, corpus.spec, mode
        self._raw, self._pid, self._fresh = raw, server_pid, Fresh(client, corpus)
        self._wants = [wants_of(client, self._spec, ref, corpus.target(i)) for i, ref in enumerate(corpus.refs)]
        self._held = f"{corpus.count * corpus.nbytes >> 20} MiB of chunks in the server's DRAM, in rotation"

    def cases(self, redis: RedisPeer | None = None) -> list[Case]:
        """The baseline first; with `redis`, its reads of the same chunks."""
        nbytes = self._corpus.nbytes
        base = "tls-raw" if self._raw.cipher else "tcp-raw"
        how = f"over {self._raw.cipher}" if self._raw.cipher else "recv_into(MSG_WAITALL)"
        cases = [
            Case(base, self._stream, nbytes, mode="loopback",
                 note=f"baseline: from memory into rotating buffers, another process, {how}"),
            Case("get", self._get, nbytes, base, self._mode, f"{self._held}; verified on arrival"),
        ]  # fmt: skip
        if redis is not None:
            note = "redis-server, GET over TCP into rotating buffers; nothing verified"
            cases.append(Case("redis", self._read_redis(redis), nbytes, base, "redis", note))
        for case in cases:
            case.check = self._arrived(case.name)
        if nbytes == MiB:
            note = f"{self._held}; {BATCH} in one call, verified on arrival"
            cases.append(
                Case("get-batch", self._get_batch, BATCH * nbytes, base, self._mode, note, check=self._batch_arrived)
            )
        note = "the caller's rotating arrays to the acknowledgement (stored), checksums included"
        fresh = self._fresh
        cases.append(
            Case("put", self._put, nbytes, base, self._mode, note, fresh.before, fresh.after, self._stored)
        )  # fmt: skip
        others = {base: self._raw.pid, "redis": redis.pid if redis else 0}
        for case in cases:
            case.server_pid = others.get(case.name, self._pid)
        return cases

    def _stream(self, slot: int) -> None:
        self._raw.read(slot, self._corpus.target(slot).data)

    def _get(self, slot: int) -> None:
        read_chunk(self._client, self._corpus, self._wants[slot], slot)

    def _read_redis(self, redis: RedisPeer) -> Step:
        def run(slot: int) -> None:
            redis.get(slot, self._corpus.target(slot).data)

        return run

    def _get_batch(self, slot: int) -> None:
        wants = [want for each in batch(slot, self._corpus) for want in self._wants[each]]
        all_well(self._client.get_many(self._spec, wants))

    def _arrived(self, case: str) -> Step:
        def check(slot: int) -> None:
            expect(self._corpus.arrived(slot), case, slot)

        return check

    def _batch_arrived(self, slot: int) -> None:
        for each in batch(slot, self._corpus):
            expect(self._corpus.arrived(each), "get-batch", each)

    def _put(self, slot: int) -> None:
        put_chunk(self._client, self._spec, self._fresh.ref, self._corpus.sources[slot])

    def _stored(self, slot: int) -> None:
        target = self._corpus.target(slot)
        all_well(self._client.get_many(self._spec, wants_of(self._client, self._spec, self._fresh.ref, target)))
        expect(self._corpus.arrived(slot), "put", slot)
