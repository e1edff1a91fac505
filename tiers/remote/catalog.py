"""What a place holds, found by listing it: what digests mean, and a row for every record."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from kvstore.errors import InvalidArgument, KVStoreError
from kvstore.namespace import namespace_digest
from kvstore.record import BLOCK, Record, header_length, unpack
from kvstore.spec import KVSpec
from kvstore.tiers.base import RECOVERED_DTYPE, Name, Recovered
from kvstore.tiers.nvme.rows import pack_row
from kvstore.tiers.remote.attempts import Attempts
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.meter import Meter
from kvstore.tiers.remote.names import META, object_name, parse
from kvstore.tiers.remote.names import unpack as unpack_name
from kvstore.tiers.remote.table import LocationTable

VERSION = 1
HEAD_BYTES = BLOCK
_META_BYTES = 1 << 20
_AT_ONCE = 256


class Catalog:
    """Objects under `meta/` that say what the digests in names and records mean."""

    def __init__(self, engine: Engine, attempts: Attempts, timeout_s: float) -> None:
        self._engine, self._attempts, self._timeout_s = engine, attempts, timeout_s
        self._known: set[bytes] = set()
        self._lock = threading.Lock()

    def describe(self, namespace: str, spec: KVSpec) -> None:
        """Write what this host has not written yet. Raises what a write raises."""
        name = namespace_digest(namespace)
        self._keep(name, "namespace", {"name": namespace})
        self._keep(spec.digest, "spec", {"spec": spec.to_dict()})

    def _keep(self, digest: bytes, kind: str, content: dict[str, Any]) -> None:
        with self._lock:
            if digest in self._known:
                return
        data = json.dumps({"version": VERSION, **content}, indent=1).encode()
        name = f"{META}{kind}-{digest.hex()}.json"
        self._attempts.run(lambda left: self._engine.put(name, [memoryview(data)], left), self._timeout_s)
        with self._lock:
            self._known.add(digest)

    def load(self) -> tuple[dict[bytes, str], dict[bytes, KVSpec], list[str]]:
        """Names and specs by digest, and notes on objects that could not be read."""
        names: dict[bytes, str] = {}
        specs: dict[bytes, KVSpec] = {}
        notes: list[str] = []
        for batch in _batches(name for name, _ in self._engine.list(META)):
            contents = _whole(self._engine, self._attempts, batch, _META_BYTES, self._timeout_s)
            for name, content in zip(batch, contents, strict=True):
                if content is not None:
                    _read_meta(name, content, names, specs, notes)
        with self._lock:
            self._known.update(names, specs)
        return names, specs, notes


def heads(
    engine: Engine, attempts: Attempts, packed: Sequence[bytes], timeout_s: float, *, lookup: bool = False
) -> Sequence[bytes | None]:
    """Whole headers of records, as they lie there; None for what is not there. Raises what a read raises."""
    deadline = time.monotonic() + timeout_s
    names = [object_name(each) for each in packed]
    found = list(_whole(engine, attempts, names, HEAD_BYTES, timeout_s, lookup=lookup))
    longer: dict[int, list[int]] = {}
    for index, head in enumerate(found):
        length = _length(head)
        if length > HEAD_BYTES:
            longer.setdefault(length, []).append(index)
    for length, indices in longer.items():
        asked = [names[index] for index in indices]
        rest = _whole(engine, attempts, asked, length, deadline - time.monotonic(), lookup=lookup)
        for index, head in zip(indices, rest, strict=True):
            found[index] = head
    return found


def verified(head: bytes, name: Name) -> Record | None:
    """The record whose header this is; None if it is damaged or of another name."""
    try:
        record = unpack(head)
        record.check(key=name.key, spec=name.spec, namespace=name.namespace, part=name.part)
    except KVStoreError:
        return None
    return record


def recover(
    engine: Engine, attempts: Attempts, catalog: Catalog, table: LocationTable, meter: Meter, most: int,
    timeout_s: float,
) -> Recovered:  # fmt: skip
    """List the place and enter up to `most` of its records, all as this host's own."""
    names, specs, notes = catalog.load()
    rows = bytearray()
    damaged = 0
    listed = _records(engine)
    for batch in _batches(islice(listed, most)):
        for packed, head in zip(batch, heads(engine, attempts, batch, timeout_s), strict=True):
            record = None if head is None else verified(head, unpack_name(packed))
            if record is None:
                damaged += head is not None
                continue
            location = table.add(packed, record.total_bytes, own=True)
            rows += pack_row(record, location, record.created_ms)
    if damaged:
        meter.count("damaged", damaged)
        notes.append(f"{damaged} records have damaged headers and are left alone")
    if next(listed, None) is not None:
        notes.append(f"more than the {most} records that may be recovered are there; look-ups find the others")
    return Recovered(names, specs, np.frombuffer(rows, RECOVERED_DTYPE).copy(), True, tuple(notes))


def _records(engine: Engine) -> Iterator[bytes]:
    """Packed names of the records in a place, each once."""
    seen: set[bytes] = set()
    for name, _ in engine.list(""):
        packed = parse(name)
        if packed is not None and packed not in seen:
            seen.add(packed)
            yield packed


def _whole(
    engine: Engine, attempts: Attempts, names: Sequence[str], nbytes: int, timeout_s: float, *, lookup: bool = False
) -> Sequence[bytes | None]:
    """The first `nbytes` bytes of objects, tried again where that can help."""
    return attempts.run(lambda left: engine.heads(names, nbytes, left), timeout_s, lookup=lookup)


def _read_meta(
    name: str, content: bytes, names: dict[bytes, str], specs: dict[bytes, KVSpec], notes: list[str]
) -> None:
    try:
        data = json.loads(content)
        if data["version"] > VERSION:
            raise InvalidArgument(f"it is of version {data['version']}")
        kind, _, digest = name.removeprefix(META).removesuffix(".json").partition("-")
        if kind == "namespace" and namespace_digest(data["name"]).hex() == digest:
            names[bytes.fromhex(digest)] = data["name"]
        elif kind == "spec" and (spec := KVSpec.from_dict(data["spec"])).digest.hex() == digest:
            specs[spec.digest] = spec
        else:
            notes.append(f"{name} does not describe what its name says")
    except (ValueError, KeyError, TypeError, KVStoreError) as error:
        notes.append(f"{name} cannot be read ({error})")


def _length(head: bytes | None) -> int:
    """Bytes of the header that begins so; 0 if none does."""
    try:
        return header_length(head) if head is not None else 0
    except KVStoreError:
        return 0


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, _AT_ONCE)):
        yield batch
