"""What this host owns in a place when it is started again: what its ledger says, and the place does not contradict."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.errors import KVStoreError
from kvstore.tiers.base import Recovered, TierFull
from kvstore.tiers.nvme.rows import pack_row, row_bytes
from kvstore.tiers.remote.attempts import Attempts
from kvstore.tiers.remote.catalog import heads, verified
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.ledger import Ledger, Noted
from kvstore.tiers.remote.names import PACKED_BYTES, unpack
from kvstore.tiers.remote.table import LocationTable

SAMPLE = 256  # records that are looked at to see whether the place is the one that it was
_AT_ONCE = 256


def recover_owned(
    engine: Engine, attempts: Attempts, table: LocationTable, ledger: Ledger, timeout_s: float
) -> Recovered:
    """Enter what a ledger has into the table, and free its slots of what is not there or not this host's.

    Asked of the place are the records that were being written when the last process ended, and a sample of the others:
    where none of it is left the place was emptied, and the whole ledger is void. Where the place does not answer the
    records that were being written stay noted for the next start.
    """
    names, specs, notes = ledger.catalog.load()
    noted = _without_twins(ledger, ledger.load())
    packed = packed_names(noted.rows)
    sample = _drawn(noted)
    asked = np.concatenate([np.flatnonzero(~noted.kept), sample])
    good = noted.kept.copy()
    try:
        for start in range(0, len(asked), _AT_ONCE):
            batch = asked[start : start + _AT_ONCE]
            found = heads(engine, attempts, [packed[each].tobytes() for each in batch], timeout_s)
            good[batch] = [_is_there(head, noted.rows[each]) for head, each in zip(found, batch, strict=True)]
    except KVStoreError as error:
        notes.append(f"what was being written to the shared place could not be looked at: {error}")
        return _entered(table, noted, packed, good, names, specs, [*ledger.notes, *notes])
    if len(sample) and not good[sample].any():
        notes.append(f"nothing is left in the shared place of the {noted.kept.sum()} records that this host had there")
        good[noted.kept] = False
    for each in np.flatnonzero(good & ~noted.kept):
        ledger.keep(int(noted.slots[each]))
    for each in np.flatnonzero(~good):
        ledger.free(int(noted.slots[each]))
    return _entered(table, noted, packed, good, names, specs, [*ledger.notes, *notes])


def packed_names(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The packed name of every row, `[n, 72]`."""
    part = np.stack([rows["group"], rows["rank"], rows["layer_start"], rows["layer_end"]], axis=1).astype("<u2")
    return np.hstack([rows["namespace"], rows["spec"], rows["key"], part.view(np.uint8).reshape(len(rows), 8)])


def _without_twins(ledger: Ledger, noted: Noted) -> Noted:
    """Each record once: that which is known to be there before one that may be, else the younger one."""
    order = np.lexsort((-noted.rows["created_ms"], ~noted.kept))
    names = packed_names(noted.rows[order]).view(f"V{PACKED_BYTES}").reshape(-1)
    first = np.sort(np.unique(names, return_index=True)[1])
    for slot in np.delete(noted.slots[order], first):
        ledger.free(int(slot))
    chosen = order[first]
    return Noted(noted.slots[chosen], noted.kept[chosen], noted.rows[chosen])


def _drawn(noted: Noted) -> npt.NDArray[np.int64]:
    kept = np.flatnonzero(noted.kept)
    return kept if len(kept) <= SAMPLE else np.random.default_rng().choice(kept, SAMPLE, replace=False)


def _is_there(head: bytes | None, row: npt.NDArray[Any]) -> bool:
    """Whether the record of a row is what begins so: of the same time as well, so it is not another host's."""
    record = None if head is None else verified(head, unpack(packed_names(row.reshape(1))[0].tobytes()))
    return record is not None and pack_row(record, 0, record.created_ms) == row.tobytes()


def _entered(
    table: LocationTable, noted: Noted, packed: npt.NDArray[np.uint8], good: npt.NDArray[np.bool_],
    names: dict[bytes, str], specs: dict[bytes, Any], notes: list[str],
) -> Recovered:  # fmt: skip
    """The good rows with their locations, the youngest first as long as the table has room."""
    chosen = np.flatnonzero(good)
    chosen = chosen[np.argsort(-noted.rows["created_ms"][chosen], kind="stable")]
    rows = noted.rows[chosen].copy()
    lengths = row_bytes(rows).tolist()
    for number, (each, nbytes) in enumerate(zip(chosen.tolist(), lengths, strict=True)):
        try:
            location = table.add(packed[each].tobytes(), nbytes, own=True, tag=int(noted.slots[each]))
        except TierFull as full:
            notes.append(f"{len(rows) - number} records of this host in the shared place are left alone: {full}")
            rows = rows[:number]
            break
        rows["location"][number] = location
    return Recovered(names, specs, rows, True, tuple(notes))
