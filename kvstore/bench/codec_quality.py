"""What forms cost a real model: the protocol of `kvstore.calibrate.quality` over named documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from kvstore.bench.codec_forms import CHUNK, Candidate, coded
from kvstore.bench.codec_peer import lmcache_cachegen, python_of_lmcache
from kvstore.bench.measure import Row, expect
from kvstore.calibrate.capture import FOLLOWING, Captured, capture, values_of
from kvstore.calibrate.documents import CALIBRATED, HELD_OUT, Document, documents
from kvstore.calibrate.models import Subject
from kvstore.calibrate.quality import Judge, Verdict, mean

ALL_GENRES = (*CALIBRATED, *HELD_OUT)


@dataclass(frozen=True, slots=True)
class Protocol:
    """Tokens of context, and how many documents of each genre (`in`: calibrated genres alone)."""

    context: int
    each: int
    genres: tuple[str, ...] = ALL_GENRES


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({
    "smollm2": Protocol(2048, 2),
    "gemma3": Protocol(1536, 1, CALIBRATED),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """One form on one document."""

    genre: str
    kl: float
    top1: float
    bits: float


def chosen(protocol: Protocol) -> list[Document]:
    """The documents of a protocol, genre by genre."""
    return [each for genre in protocol.genres for each in documents("bench", [genre])[: protocol.each]]


def captured(subject: Subject, protocol: Protocol) -> Iterator[tuple[Document, Captured]]:
    """Each document with the model's cache of its context and what follows."""
    size = protocol.context + FOLLOWING
    for document in chosen(protocol):
        yield document, capture(subject, document.name, subject.tokens(document.text(), size))


def measured(
    subject: Subject,
    candidates: Sequence[Candidate],
    protocol: Protocol,
    advance: Callable[[], None] = lambda: None,
) -> dict[Candidate, list[Measured]]:
    """Every form on every document. `advance` is called once for each pair."""
    found: dict[Candidate, list[Measured]] = {candidate: [] for candidate in candidates}
    for document, cache in captured(subject, protocol):
        judge = Judge(subject, cache, protocol.context)
        for candidate in candidates:
            lossy, nbytes = coded(candidate, subject.spec, judge.exact)
            if candidate.form.exact:
                expect(np.array_equal(lossy, judge.exact), candidate.case, 0)
                verdict = Verdict(0.0, 1.0)
            else:
                verdict = judge.judge(values_of(lossy))
            found[candidate].append(Measured(document.genre, verdict.kl, verdict.top1, 8 * nbytes / lossy.size))
            advance()
    return found


def rows(found: Mapping[Candidate, Sequence[Measured]]) -> list[tuple[Candidate, Row]]:
    """Per form a row for documents of calibrated genres (`in`), and one for those of genres held out (`out`)."""
    made = []
    for candidate, all_seen in found.items():
        for genre, of in (("in", CALIBRATED), ("out", HELD_OUT)):
            seen = [each for each in all_seen if each.genre in of]
            if not seen:
                continue
            bits = sum(each.bits for each in seen) / len(seen)
            row: Row = {
                "genre": genre,
                "documents": len(seen),
                "bits": bits,
                "times_smaller": 16 / bits,
                "kl": sum(each.kl for each in seen) / len(seen),
                "kl_worst": max(each.kl for each in seen),
                "top1": sum(each.top1 for each in seen) / len(seen),
            }
            made.append((candidate, row))
    return made


def lmcache(subject: Subject, model: Path, protocol: Protocol) -> list[Row]:
    """The row of LMCache's CacheGen, on two documents, where it is installed and the model has one KV group."""
    if python_of_lmcache() is None or len(subject.spec.groups) > 1:
        return []
    few = Protocol(protocol.context, 1, CALIBRATED[:2])
    judges = [Judge(subject, cache, protocol.context) for _, cache in captured(subject, few)]
    chunks = [
        np.ascontiguousarray(judge.exact[:, :, start : start + CHUNK])
        for judge in judges
        for start in range(0, protocol.context, CHUNK)
    ]
    made = lmcache_cachegen(chunks, model)
    each = len(chunks) // len(judges)
    verdicts = [
        judge.judge(values_of(np.concatenate(made.decoded[number * each : (number + 1) * each], axis=2)))
        for number, judge in enumerate(judges)
    ]
    found = mean(verdicts)
    return [made.row(model=subject.name, genre="in", documents=len(judges), kl=found.kl, top1=found.top1)]
