"""Encoding inside the store: which form a part is given on its way in or down, and what is done where that fails.

An encoded part takes the place of a raw one only after it was decoded once and, if its codec is exact, found equal:
so no codec, whatever it does, loses what is stored. Lossy forms are made from what is exact, or not at all.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from kvstore import _native, codecs
from kvstore.artefacts import Artefacts
from kvstore.catalog import Scope
from kvstore.codecs import Block, Encoded, Form, NotEncodable, form_name
from kvstore.config import Config
from kvstore.decoding import decode_layers, threads_for
from kvstore.errors import InvalidArgument, KVStoreError, SpecMismatch
from kvstore.forms import Named, lossless, parse_form
from kvstore.keys import ChunkRef
from kvstore.record import RAW, Record, group_table
from kvstore.spec import KVSpec, Part

_LEARN = 0.2  # weight of the last part in the figures of a form
_UNMEASURED = 5e8  # stored bytes that a codec is taken to decode in a second before it was measured


class Coded(NamedTuple):
    """A record ready to be written: its packed header and its payload in one piece."""

    record: Record
    header: bytes
    payload: memoryview


@dataclass
class Figures:
    """What a form has cost and saved, in bytes and seconds."""

    parts: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    encode_s: float = 0.0
    decoded_parts: int = 0
    decoded_bytes: int = 0
    decode_s: float = 0.0
    decode_bytes_per_s: float = 0.0  # of late
    stored_share: float = 0.0  # of late


class Coder:
    """The forms of one store. Any thread may call; nothing is held while a codec runs."""

    def __init__(self, config: Config, artefacts: Artefacts) -> None:
        self.artefacts = artefacts
        self._dram = parse_form(config.dram.codec, "dram.codec")
        self._below = [parse_form(each.codec, f"{each.table}.codec") for each in config.below]
        names = {each.codec for each in config.namespaces if each.codec is not None}
        self._own = {name: parse_form(name, "namespace.codec") for name in names}
        self._lock = threading.Lock()
        self._figures: dict[str, Figures] = {}
        self._fallbacks: Counter[str] = Counter()

    def put_form(self, scope: Scope) -> Named | None:
        """The form in which a namespace's puts are stored, None for raw."""
        codec = scope.namespace.codec
        return self._allowed(scope, self._dram if codec is None else self._own[codec])

    def form_in(self, scope: Scope, tier: int) -> Named | None:
        """The form that a namespace's parts are given on their way to a tier below DRAM, None for as they are."""
        return self._allowed(scope, self._below[tier - 1] if 0 < tier <= len(self._below) else None)

    def recode(self, scope: Scope, source: Coded, wanted: Named | None) -> Coded:
        """A record in the form that is wanted, or in the next best; as it is where nothing else will do.

        Nothing is made of what is lossy already, nothing that takes as much room as before.
        """
        record = source.record
        if wanted is None or not record.exact or _is_in(record, wanted):
            return source
        ref = ChunkRef(record.key, record.parent, record.position, record.tokens)
        raw = self._raw(scope.spec, ref, source)
        if raw is None:
            return source
        for form in _first_of(wanted, lossless()):
            if record.form != RAW and _is_in(record, form):
                break
            made = self._encode(scope.spec, record, raw, form, ref)
            if made is not None:
                return made
        return source

    def decode(
        self, spec: KVSpec, ref: ChunkRef, part: Part, form: int, frames: memoryview, out: memoryview,
        layers: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """`kvstore.decoding.decode_layers` with this store's artefacts, counted."""
        start = time.perf_counter()
        decode_layers(frames, out, spec, ref, part, layers, self.artefacts.get, threads=threads_for(out.nbytes))
        seconds = time.perf_counter() - start
        with self._lock:
            figures = self._figures.setdefault(form_name(form), Figures())
            figures.decoded_parts += 1
            figures.decoded_bytes += out.nbytes
            figures.decode_s += seconds
            if layers is None and seconds > 0:
                weight = _LEARN if figures.decode_bytes_per_s else 1.0
                figures.decode_bytes_per_s += weight * (out.nbytes / seconds - figures.decode_bytes_per_s)
                if not figures.parts:  # none was encoded since the start
                    figures.stored_share = frames.nbytes / out.nbytes

    def cost_in(self, scope: Scope, tier: int) -> tuple[float, float]:
        """What share of its raw length a part takes in a tier, and the seconds that decoding costs per raw byte."""
        form = self.form_in(scope, tier) if tier else self.put_form(scope)
        figures = None if form is None else self._figures.get(form.codec.name)
        if figures is None or not figures.decode_bytes_per_s:
            return 1.0, 0.0
        return figures.stored_share, 1 / figures.decode_bytes_per_s

    def decoding_bytes_per_s(self, form: int) -> float:
        """How many stored bytes of a form are decoded in a second, as measured of late."""
        figures = self._figures.get(form_name(form))
        if figures is None or not figures.decode_bytes_per_s:
            return _UNMEASURED
        return figures.decode_bytes_per_s * figures.stored_share

    def stats(self) -> dict[str, Any]:
        """Per codec what was encoded and decoded; the parts for which another form was taken, by reason."""
        with self._lock:
            made = {name: vars(each).copy() for name, each in self._figures.items()}
            return {"forms": made, "fallbacks": dict(self._fallbacks)}

    def _allowed(self, scope: Scope, form: Named | None) -> Named | None:
        """The form, or the exact one in its place where the namespace has not opted in to a lossy one."""
        return form if form is None or form.codec.exact or scope.namespace.lossy else lossless()

    def _raw(self, spec: KVSpec, ref: ChunkRef, source: Coded) -> memoryview | None:
        record = source.record
        if record.form == RAW:
            return source.payload[: record.stored]
        raw = np.empty(record.logical, np.uint8).data
        try:
            self.decode(spec, ref, record.part, record.form, source.payload[: record.stored], raw)
        except KVStoreError:
            self._fell_back("not_decodable")
            return None
        return raw

    def _encode(self, spec: KVSpec, record: Record, raw: memoryview, named: Named, ref: ChunkRef) -> Coded | None:
        """One try; None, and counted, where it fails in any way."""
        block = Block.of(spec, record.part, record.tokens, record.position)
        try:
            made, seconds = self._made(spec, raw, block, named)
            if made is None:
                return None
            coded = _record_of(record, made)
            if coded.record.total_bytes >= record.total_bytes:
                self._fell_back("not_smaller")
                return None
            decode_s = self._proven(spec, ref, record.part, made, raw)
            if decode_s is None:
                return None
            if made.form.artefact is not None:
                self.artefacts.keep(made.form.artefact)
        except KVStoreError as error:
            self._fell_back(_reason(error))
            return None
        except Exception:  # noqa: BLE001 - a codec is anybody's code, and nothing that it does may lose a part
            self._fell_back("failed")
            return None
        self._learn(named.codec.name, record.logical, coded.record.stored, seconds, decode_s)
        return coded

    def _made(self, spec: KVSpec, raw: memoryview, block: Block, named: Named) -> tuple[Encoded | None, float]:
        artefact = None
        if named.codec.artefact_kind:
            artefact = None if block.opaque else self.artefacts.choose(named, block, spec)
            if artefact is None:
                self._fell_back("no_artefact")
                return None, 0.0
        start = time.perf_counter()
        made = codecs.encode(raw, block, Form(named.codec, named.level, artefact))
        return made, time.perf_counter() - start

    def _proven(self, spec: KVSpec, ref: ChunkRef, part: Part, made: Encoded, raw: memoryview) -> float | None:
        """The seconds that decoding took; None where it does not give back what it should."""
        out, artefact = np.empty(len(raw), np.uint8).data, made.form.artefact

        def find(digest: bytes) -> codecs.Artefact:
            return artefact if artefact is not None and digest == artefact.digest else self.artefacts.get(digest)

        start = time.perf_counter()
        try:
            decode_layers(made.data, out, spec, ref, part, None, find)
        except KVStoreError:
            self._fell_back("wrong_result")
            return None
        seconds = time.perf_counter() - start
        if made.form.exact and _native.xxh3_128(out) != _native.xxh3_128(raw):
            self._fell_back("wrong_result")
            return None
        return seconds

    def _fell_back(self, reason: str) -> None:
        with self._lock:
            self._fallbacks[reason] += 1

    def _learn(self, name: str, raw: int, stored: int, encode_s: float, decode_s: float) -> None:
        with self._lock:
            figures = self._figures.setdefault(name, Figures())
            weight = _LEARN if figures.parts else 1.0
            figures.parts += 1
            figures.raw_bytes += raw
            figures.stored_bytes += stored
            figures.encode_s += encode_s
            figures.stored_share += weight * (stored / raw - figures.stored_share)
            if decode_s > 0:
                figures.decode_bytes_per_s += weight * (raw / decode_s - figures.decode_bytes_per_s)


def _is_in(record: Record, form: Named) -> bool:
    return (record.form, record.level) == (form.codec.number, form.level)


def _first_of(*forms: Named | None) -> Iterator[Named]:
    last = None
    for form in forms:
        if form is not None and form != last:
            last = form
            yield form


def _record_of(record: Record, made: Encoded) -> Coded:
    ranges = list(zip(made.offsets.tolist(), made.lengths.tolist(), strict=True))
    found = replace(
        record,
        stored=made.data.nbytes,
        groups=group_table(ranges, _native.xxh3_128_many(made.data, made.offsets, made.lengths)),
        form=made.form.codec.number,
        level=made.form.level,
        exact=made.form.exact,
        artefact=made.form.digest,
        generation=0,
        header_least=record.header_bytes,
    )
    return Coded(found, found.pack(), made.data)


_REASONS: tuple[tuple[type[KVStoreError], str], ...] = (
    (NotEncodable, "not_encodable"),  # NaN or infinity
    (SpecMismatch, "wrong_artefact"),
    (InvalidArgument, "not_taken"),  # a dtype, a layout or a size that the codec does not take
)


def _reason(error: KVStoreError) -> str:
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "failed")
