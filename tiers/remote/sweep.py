"""What nobody may want any more in a place: records older than some age, whoever wrote them, and artefacts of none.

For the shares of hosts that never come back, by one command and not by every host. Who still has such a record finds it
missing, which is a miss, and writes it again with the next put.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from kvstore.record import MAGIC
from kvstore.tiers.nvme.rows import created_at
from kvstore.tiers.remote.artefacts import PREFIX
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.names import parse

TIMEOUT_S = 60.0  # for a call
_AT_ONCE = 256
_HEAD_BYTES = 256
_ARTEFACT = slice(128, 144)


@dataclass
class Swept:
    """What went (or would go), and what stays, in bytes and objects."""

    records: int = 0
    record_bytes: int = 0
    artefacts: int = 0
    artefact_bytes: int = 0
    left_records: int = 0
    left_bytes: int = 0


def sweep(engine: Engine, before_ms: int, *, delete: bool) -> Swept:
    """Delete the records made before that time (Unix milliseconds), then the artefacts that none of the others names.

    Without `delete` nothing is changed. An artefact that comes while this runs stays. A record whose header is damaged
    stays for whoever reads it, who deletes it. Raises what the engine does; what is done by then stays done.
    """
    artefacts = dict(engine.list(PREFIX))
    named, swept = set[str](), Swept()
    records = ((name, nbytes) for name, nbytes in engine.list("") if parse(name) is not None)
    for batch in _batches(records):
        old = list[str]()
        heads = engine.heads([name for name, _ in batch], _HEAD_BYTES, TIMEOUT_S)
        for (name, nbytes), head in zip(batch, heads, strict=True):
            if head is None:
                continue
            if _is_old(head, before_ms):
                old.append(name)
                swept.records += 1
                swept.record_bytes += nbytes
            else:
                named.add(PREFIX + head[_ARTEFACT].hex())
                swept.left_records += 1
                swept.left_bytes += nbytes
        _delete(engine, old, delete)
    stale = [name for name in artefacts if name not in named]
    swept.artefacts, swept.artefact_bytes = len(stale), sum(artefacts[name] for name in stale)
    _delete(engine, stale, delete)
    return swept


def _is_old(head: bytes, before_ms: int) -> bool:
    return len(head) == _HEAD_BYTES and head.startswith(MAGIC) and created_at(head) < before_ms


def _delete(engine: Engine, names: Sequence[str], delete: bool) -> None:
    if names and delete:
        engine.delete(names, TIMEOUT_S)


def _batches(items: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    items = iter(items)
    while batch := list(islice(items, _AT_ONCE)):
        yield batch
