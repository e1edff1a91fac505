"""How long codecs take on one core, against a copy of the raw bytes in the same run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from kvstore.bench.codec_forms import CHUNK, Bits, Candidate, block_of, restore, restore_by_reference
from kvstore.bench.measure import Case, Row, expect, measure
from kvstore.calibrate.capture import bits_of
from kvstore.codecs import Artefact, Block, encode
from kvstore.codecs.transform import reference
from kvstore.codecs.transform.plan import Plan, plan_of
from kvstore.spec import KVSpec

WORKING_SET = 256 << 20
DISTINCT = 6  # chunks of different content; the working set repeats them in memory of their own
ROUNDS = 21
Bytes = npt.NDArray[np.uint8]


class Chunks:
    """The working set: the parts of chunks, raw, and memory to decode into, at least 256 MiB of either."""

    def __init__(self, spec: KVSpec, caches: Sequence[Bits]) -> None:
        """`caches` are chunks' `[layer, 2, token, head, dim]`, each CHUNK tokens, the first at position 0."""
        self.blocks = [block_of(spec, number, CHUNK, CHUNK) for number in range(len(spec.groups))]
        distinct = [
            np.concatenate(
                [np.ascontiguousarray(kv[list(group.layers)]).view(np.uint8).ravel() for group in spec.groups]
            )
            for kv in caches
        ]
        self.distinct = len(distinct)
        self.nbytes = len(distinct[0])
        self.slots = -(-WORKING_SET // self.nbytes)
        self.sources = [distinct[slot % self.distinct].copy() for slot in range(self.slots)]
        self.targets = [np.ones(self.nbytes, np.uint8) for _ in range(self.slots)]

    def parts(self, memory: Bytes) -> Iterator[tuple[Block, memoryview]]:
        """Each part of a chunk in its memory."""
        at = 0
        for block in self.blocks:
            yield block, memory[at : at + block.nbytes].data
            at += block.nbytes


def speed(candidate: Candidate, chunks: Chunks, *, rounds: int = ROUNDS) -> Row:
    """`encode_ratio`, `decode_ratio` (time / memcpy time), `bits` and `times_smaller` of a form on these chunks.

    Everything a chunk takes is in it, container and checksums too. What is decoded is compared: with the raw bytes
    for an exact codec, else with what the codec's definition in NumPy makes of the same container.
    """
    containers = [
        [encode(raw, block, candidate.form).data for block, raw in chunks.parts(chunks.sources[slot])]
        for slot in range(chunks.distinct)
    ]
    expected = [_expected(candidate, chunks, slot, containers[slot]) for slot in range(chunks.distinct)]
    # Each slot has containers of its own: what is decoded comes from memory and not from a cache.
    held = [[bytes(each) for each in containers[slot % chunks.distinct]] for slot in range(chunks.slots)]

    def copied(slot: int) -> None:
        np.copyto(chunks.targets[slot], chunks.sources[slot])

    def encoded(slot: int) -> None:
        for block, raw in chunks.parts(chunks.sources[slot]):
            encode(raw, block, candidate.form)

    def decoded(slot: int) -> None:
        for container, (block, out) in zip(held[slot], chunks.parts(chunks.targets[slot]), strict=True):
            restore(candidate, memoryview(container), out, block)

    def right(slot: int) -> None:
        expect(np.array_equal(chunks.targets[slot], expected[slot % chunks.distinct]), "decode", slot)
        chunks.targets[slot].fill(1)

    cases = [
        Case("memcpy", copied, chunks.nbytes),
        Case("encode", encoded, chunks.nbytes, "memcpy"),
        Case("decode", decoded, chunks.nbytes, "memcpy", check=right),
    ]
    rows = {row["case"]: row for row in measure(cases, rounds=rounds, slots=chunks.slots)}
    coded = sum(len(each) for slot in containers for each in slot) / chunks.distinct
    elements = chunks.nbytes // 2
    return {
        # The row's own time is the decoding; what all benchmarks have is there for programs that read any of them.
        **{
            name: rows["decode"][name]
            for name in ("bytes", "p50_s", "p99_s", "gbps", "baseline", "ratio", "cpu_s_per_gb")
        },
        "encode_ratio": 1 / rows["encode"]["ratio"],
        "decode_ratio": 1 / rows["decode"]["ratio"],
        "encode_gbps": rows["encode"]["gbps"],
        "bits": 8 * coded / elements,
        "times_smaller": chunks.nbytes / coded,
    }


def drawn(artefact: Artefact, spec: KVSpec, count: int = DISTINCT) -> list[Bits]:
    """Chunks as the tables of a transform artefact say that a model's are, where the model itself is not run."""
    random = np.random.default_rng(0)
    dim, heads = spec.groups[0].head_dim, spec.groups[0].kv_heads
    layers = sum(len(group.layers) for group in spec.groups)
    made = []
    for _ in range(count):
        kv = np.empty((layers, 2, CHUNK, heads, dim), np.uint16)
        for number, group in enumerate(spec.groups):
            for first, layer in enumerate(group.layers):
                block = block_of(spec, number, CHUNK, CHUNK).cut(first, first + 1)
                plan = plan_of(artefact, block, artefact.facts["levels"][0])
                q = _draw(plan, random)
                kv[layer] = bits_of(reference.turned(reference.inverse(q, plan), block, plan, 0))[0]
        made.append(kv)
    return made


def _draw(plan: Plan, random: np.random.Generator) -> npt.NDArray[np.int32]:
    by_slot = np.stack([np.repeat(np.arange(256), table) for table in plan.bank])
    by_slot[by_slot == 0] = 128  # no escapes: their values are in no table
    slots = random.integers(0, 4096, (CHUNK, plan.columns))
    low = random.integers(0, 256, (CHUNK, plan.columns)) & (1 << plan.shift.astype(np.int64)) - 1
    drawn: npt.NDArray[np.int32] = ((by_slot[plan.tables[None, :], slots] - 128 << plan.shift) | low).astype(np.int32)
    return drawn


def _expected(candidate: Candidate, chunks: Chunks, slot: int, containers: Sequence[memoryview]) -> Bytes:
    if candidate.form.exact:
        return chunks.sources[slot]
    made = np.empty(chunks.nbytes, np.uint8)
    for container, (block, out) in zip(containers, chunks.parts(made), strict=True):
        restore_by_reference(candidate, container, out, block)
    return made


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core, libraries that thread included."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
