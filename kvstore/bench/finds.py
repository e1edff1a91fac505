"""Look-ups of the remote tier's engines: the heads of 100 objects at once, every second of them there.

That is what a look-up asks of a place. Both sides have the same names, ask in turns and want the same bytes of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvstore.bench.measure import Case, Row, expect, measure

NAMES = 100
HEAD_BYTES = 4096
OBJECT_BYTES = 64 << 10
Look = Callable[[Sequence[str]], Sequence[bytes | None]]


def prepared(source: memoryview) -> dict[str, memoryview]:
    """What must be there, by name: half of the names; the others are to be missed."""
    return {
        f"find/{number:03}": source[number * HEAD_BYTES : number * HEAD_BYTES + OBJECT_BYTES]
        for number in range(0, NAMES, 2)
    }


def find_rows(
    there: dict[str, memoryview], raw: Look, ours: Look, *, rounds: int, note: str, pid: int = 0
) -> list[Row]:
    """`raw-find` and `find`, where `there` has been written for both. `Corrupt` where one finds something else."""
    names = [f"find/{number:03}" for number in range(NAMES)]
    expected = [bytes(there[name][:HEAD_BYTES]) if name in there else None for name in names]

    def case(called: str, look: Look, baseline: str = "") -> Case:
        found: list[Sequence[bytes | None]] = [()]

        def run(slot: int) -> None:
            found[slot] = look(names)

        return Case(
            called, run, baseline=baseline, mode=f"{NAMES} names", note=note, server_pid=pid,
            check=lambda slot: expect(list(found[slot]) == expected, called, slot),
        )  # fmt: skip

    return measure([case("raw-find", raw), case("find", ours, "raw-find")], rounds=rounds, slots=1)
