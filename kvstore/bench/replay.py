"""One client of `kvstore bench mix`: look up, get what is there, put what was missing, check a sample."""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import kvstore
from kvstore.api import Want
from kvstore.bench.corpus import Bytes, chunk_bytes, layout
from kvstore.bench.crew import Answer
from kvstore.bench.processes import TIMEOUT_S
from kvstore.bench.workloads import Blocks, chain_of
from kvstore.client import Client
from kvstore.cost import Prefill, Prompt
from kvstore.errors import Corrupt, NotFound, Shed
from kvstore.hit import Hit
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec

MiB = 1 << 20
POOL = 64 * MiB  # the memory that contents are cut from
LANDING = 64 * MiB  # what a client reads into, in rotation
BATCH = 16
LEASE_S = 60.0
CHECK_EVERY = 8


def role(config: Mapping[str, Any]) -> Replayer:
    """What `kvstore.bench.crew` runs in a process of its own."""
    client = kvstore.connect(config["url"], timeout=TIMEOUT_S)
    prefill = Prefill(*config["prefill"]) if config.get("prefill") else None
    spec = KVSpec.from_dict(config["spec"])
    return Replayer(client, spec, config["requests"], config["pool"], own=True, prefill=prefill)


@dataclass
class _Tally:
    """What became of one client's requests."""

    began_ms: list[int] = field(default_factory=list)  # each request, by a clock that all processes share
    lookups: list[float] = field(default_factory=list)
    gets: list[float] = field(default_factory=list)
    loads: list[tuple[int, float]] = field(default_factory=list)  # tokens of a hit, and the time of all its gets
    puts: list[float] = field(default_factory=list)
    sheds: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    hit_tokens: int = 0
    left_out: int = 0  # of these
    got: int = 0
    put: int = 0
    copied: int = 0
    copy_s: float = 0.0
    untimed_s: float = 0.0
    checked: int = 0
    lost: int = 0


class Replayer:
    """One client: its share of the requests, one after the other. With `prefill` it loads what pays."""

    def __init__(
        self, client: Client, spec: KVSpec, requests: Sequence[Blocks], pool: int, *, own: bool = False,
        prefill: Prefill | None = None,
    ) -> None:  # fmt: skip
        self._prefill = prefill
        self._client, self._spec, self._requests, self._own = client, spec, requests, own
        self._chunk = chunk_bytes(spec)
        self._memory = mmap.mmap(pool, POOL + self._chunk, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._pool = np.frombuffer(self._memory, np.uint8)
        self._landing = np.ones(max(LANDING, 2 * self._chunk), np.uint8)
        self._at = 0
        self._tally = _Tally()

    def run(self, do: str, until: float) -> Answer:
        """`replay` all of it."""
        del do, until
        self._tally = _Tally()
        for blocks in self._requests:
            self.serve(blocks)
        return self.tally()

    def serve(self, blocks: Blocks) -> None:
        """One request."""
        self._request(chain_of(blocks))

    def tally(self) -> Answer:
        """What became of the requests so far."""
        return vars(self._tally)

    def check(self) -> None:
        """Contents are compared while the requests go by."""

    def close(self) -> None:
        """End a connection of its own."""
        if self._own:
            self._client.close()

    def _request(self, refs: Sequence[ChunkRef]) -> None:
        tally = self._tally
        prompt = None if self._prefill is None else Prompt(refs[-1].end, self._prefill)
        start = time.monotonic()
        hit = self._client.lookup(self._spec, refs, lease_s=LEASE_S, prompt=prompt)
        tally.lookups.append(time.monotonic() - start)
        tally.began_ms.append(round(start * 1000))
        tally.tokens += refs[-1].end
        found = hit.tokens + hit.left_out
        tally.hit_tokens += found
        tally.left_out += hit.left_out
        with hit:
            size = max(1, min(BATCH, len(self._landing) // 2 // self._chunk))
            before = len(tally.gets)
            for first in range(0, len(hit.refs), size):
                self._get(hit, hit.refs[first : first + size])
            if hit.tokens:
                tally.loads.append((hit.tokens, sum(tally.gets[before:])))
        for ref in refs:
            if ref.position >= found:
                self._put(ref)

    def _get(self, hit: Hit, refs: Sequence[ChunkRef]) -> None:
        tally = self._tally
        sampled = len(tally.gets) % CHECK_EVERY == 0
        if sampled:
            self._copy(refs)
        wants, expected = self._wants(hit, refs)
        start = time.monotonic()
        outcomes = self._client.get_many(self._spec, wants)
        tally.gets.append(time.monotonic() - start)
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, NotFound):
                raise outcome
        good = [number for number, outcome in enumerate(outcomes) if outcome is None]
        tally.lost += len(outcomes) - len(good)
        tally.got += sum(wants[number].out.nbytes for number in good)
        if sampled:
            start = time.monotonic()
            for number in good:
                if not np.array_equal(np.frombuffer(wants[number].out, np.uint8), expected[number]):
                    raise Corrupt(f"a get gave other bytes than were put for chunk {wants[number].ref.key.hex()}")
                np.frombuffer(wants[number].out, np.uint8)[:64] = 0
            tally.checked += len(good)
            tally.untimed_s += time.monotonic() - start

    def _wants(self, hit: Hit, refs: Sequence[ChunkRef]) -> tuple[list[Want], list[Bytes]]:
        """What reads the parts that the hit needs, one behind the other, and what they should hold."""
        needed = [frozenset(ref.key for ref in hit.refs_for(group)) for group in range(len(self._spec.groups))]
        wants, expected = [], []
        for ref in refs:
            memory, source = self._land(ref), self._content(ref)
            for part, at in layout(self._spec, ref.tokens):
                if ref.key in needed[part.group]:
                    wants.append(self._client.want(self._spec, ref, memory[at], part=part))
                    expected.append(source[at])
        return wants, expected

    def _copy(self, refs: Sequence[ChunkRef]) -> None:
        """What a plain copy of as many bytes takes: from and to memory that was not touched just now."""
        tally, begun = self._tally, time.monotonic()
        for number, ref in enumerate(refs):
            target = self._land(ref)
            source = self._pool[(self._at * 7 + number * self._chunk) % POOL :][: len(target)]
            start = time.monotonic()
            np.copyto(target, source)
            tally.copy_s += time.monotonic() - start
            tally.copied += len(target)
        tally.untimed_s += time.monotonic() - begun

    def _put(self, ref: ChunkRef) -> None:
        tally, source = self._tally, self._content(ref)
        try:
            for part, at in layout(self._spec, ref.tokens):
                start = time.monotonic()
                stored = self._client.put(self._spec, ref, source[at], part=part)
                tally.puts.append(time.monotonic() - start)
                tally.put += (at.stop - at.start) * stored
        except Shed as error:
            tally.sheds[error.reason] = tally.sheds.get(error.reason, 0) + 1

    def _land(self, ref: ChunkRef) -> Bytes:
        nbytes = chunk_bytes(self._spec, ref.tokens)
        if self._at + nbytes > len(self._landing):
            self._at = 0
        memory = self._landing[self._at : self._at + nbytes]
        self._at += nbytes
        return memory

    def _content(self, ref: ChunkRef) -> Bytes:
        at = int.from_bytes(ref.key[:8], "little") % (POOL // 64) * 64
        return self._pool[at : at + chunk_bytes(self._spec, ref.tokens)]
