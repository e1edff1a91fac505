"""What clients have used without a call, told to index and policies."""

from __future__ import annotations

from kvstore import _native
from kvstore.catalog import Namespace
from kvstore.core import Core
from kvstore.policy import Rows

MARKS_AT_ONCE = 1024  # told of under the lock, some 0.1 ms


def drain_marks(core: Core, namespace: Namespace) -> None:
    """Tell of all uses in a namespace that were not told of yet. Takes the store's lock, several times if need be."""
    table = core.shared.table(namespace)
    if table is None:
        return
    for board in core.hazards.boards(namespace.digest):
        for _ in range(_native.MAX_MARKS // MARKS_AT_ONCE):  # and then on to the next, however many there are
            with core.lock:
                marks = board.drain(MARKS_AT_ONCE)
                _tell(core, namespace, *table.used_by(core.index, marks))
            if len(marks) < MARKS_AT_ONCE:
                break


def _tell(core: Core, namespace: Namespace, rows: Rows, tokens: int, read: int) -> None:
    if len(rows):
        core.counters["hit_tokens"] += tokens
        core.counters["hits_dram"] += read
        core.usage.used(rows[::-1].copy(), namespace)  # rows come in the order of use, a prefix leaf first
