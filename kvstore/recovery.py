"""What a persistent tier brings back when it is opened, entered into the index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.catalog import Namespace
from kvstore.core import Core
from kvstore.record import BLOCK
from kvstore.rows import EXPORT_DTYPE, NO_ROW
from kvstore.tiers.base import RECOVERED_DTYPE, Recovered, Tier

_SAME = {"form": "codec", "location": "loc", "created_ms": "last_use"}
_NOT_INDEXED = ("namespace", "spec", "_pad", "header_blocks")


def index_recovered(core: Core, number: int) -> Sequence[str]:
    """Enter everything that a tier brings back into the index; what had to be mended, in words."""
    tier = core.tiers[number]
    recovered = tier.recover()
    rows = recovered.rows[np.argsort(recovered.rows["created_ms"], kind="stable")]
    notes, let_go = list(recovered.notes), list[npt.NDArray[Any]]()
    with core.lock:
        scopes, known = _scopes(core, recovered, rows)
        if not known.all():
            notes.append(f"{int((~known).sum())} records of unknown namespaces or specs were let go")
            let_go.append(rows[~known])
            rows, scopes = rows[known], scopes[known]
        spare, entered = _insert(core, number, rows, scopes)
        if spare:
            notes.append(
                f"{spare} records more than max_chunks={core.config.max_chunks} allows were let go, oldest first"
            )
            let_go.append(rows[:spare])
            rows, scopes = rows[spare:], scopes[spare:]
        _admit(core, number, rows, scopes, entered)
    for gone in (*let_go, rows[entered == NO_ROW]):
        _forget(tier, gone)
    return notes


def _insert(
    core: Core, number: int, rows: npt.NDArray[Any], scopes: npt.NDArray[np.uint32]
) -> tuple[int, npt.NDArray[np.uint32]]:
    """Enter as many rows as the index has room for beside what other tiers have brought back: how many of the first
    were left out, and the placements of the others. Needs the lock."""
    spare = max(0, len(rows) - core.config.max_chunks)
    while True:
        exported = _export_rows(rows[spare:], scopes[spare:], number)
        try:
            return spare, core.index.bulk_insert(exported.view(np.uint8), number)
        except OverflowError:
            spare += -(-(len(rows) - spare) // 8)


def _scopes(
    core: Core, recovered: Recovered, rows: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """The scope number of every row, and whether its namespace and spec are known."""
    pairs = np.empty(len(rows), "V32")
    pairs.view("u1").reshape(-1, 32)[:, :16] = rows["namespace"]
    pairs.view("u1").reshape(-1, 32)[:, 16:] = rows["spec"]
    kinds, inverse = np.unique(pairs, return_inverse=True)
    numbers = np.zeros(len(kinds), np.uint32)
    known = np.zeros(len(kinds), bool)
    for i, kind in enumerate(kinds):
        name, spec = recovered.namespaces.get(kind.tobytes()[:16]), recovered.specs.get(kind.tobytes()[16:])
        if name is not None and spec is not None:
            namespace = core.catalog.add_namespace(Namespace(name, open=False))
            numbers[i], known[i] = core.catalog.scope(namespace, spec).number, True
    return numbers[inverse], known[inverse]


def _export_rows(rows: npt.NDArray[Any], scopes: npt.NDArray[np.uint32], tier: int) -> npt.NDArray[Any]:
    exported = np.zeros(len(rows), EXPORT_DTYPE)
    for field in RECOVERED_DTYPE.names or ():
        if field not in _NOT_INDEXED:
            exported[_SAME.get(field, field)] = rows[field]
    exported["scope"], exported["tier"] = scopes, tier
    return exported


def _admit(
    core: Core, tier: int, rows: npt.NDArray[Any], scopes: npt.NDArray[np.uint32], entered: npt.NDArray[np.uint32]
) -> None:
    """Tell policies and namespaces about what came back, in the order of `rows`."""
    good = entered != NO_ROW
    chunks, owners = np.zeros(len(rows), np.int64), np.full(len(rows), -1)
    namespaces = list[Namespace]()
    for number in np.unique(scopes[good]):
        scope = core.catalog.scopes[int(number)]
        mine = good & (scopes == number)
        chunks[mine] = core.index.find_many(scope.number, np.ascontiguousarray(rows["key"][mine]))
        if scope.namespace not in namespaces:
            namespaces.append(scope.namespace)
        owners[mine] = namespaces.index(scope.namespace)
        scope.namespace.used += int(_record_bytes(rows[mine]).sum())
    for owner, namespace in enumerate(namespaces):
        core.usage.restored(tier, namespace, chunks[owners == owner])


def _record_bytes(rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Length of every record, header and padding included."""
    return (rows["header_blocks"] + -(-rows["stored"].astype(np.int64) // BLOCK)) * BLOCK


def _forget(tier: Tier, rows: npt.NDArray[Any]) -> None:
    for location, nbytes in zip(rows["location"].tolist(), _record_bytes(rows).tolist(), strict=True):
        tier.delete(location, nbytes)
