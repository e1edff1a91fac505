"""`kvstore bench tier cxl`: the tier over two files on tmpfs against copies between the same kinds of memory.

The files stand in for device-DAX: they are mapped and written as such devices are. The baseline is `_native.copy`
between process memory and a third file on the same tmpfs, mapped the same way, in the same rounds. Volatile and
persistent tiers are measured; both write header, payload and padding, and the persistent one its slot and its mark.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from kvstore import _native
from kvstore.bench.contest import check_sizes, folder_in
from kvstore.bench.measure import Bar, Case, Row, expect, measure
from kvstore.errors import StorageError
from kvstore.namespace import namespace_digest
from kvstore.record import Record, group_table
from kvstore.spec import KVSpec, Part
from kvstore.tiers.cxl import CxlTier

MIB = 1 << 20
SIZES = (256 << 10, MIB, 4 * MIB, 16 * MIB)
BAR = Bar(ratio=0.9)
_WORKING_SET = 512 * MIB
_HUGE = 2 * MIB
_SPEC = KVSpec.dense("bench", layers=1, kv_heads=1, head_dim=64)
_NOTE = "files on tmpfs stand in for CXL devices: the machine's own DRAM, simulated as far as bandwidth goes"


def run(
    path: Path = Path("/dev/shm"),
    *,
    sizes: Sequence[int] = SIZES,
    rounds: int = 60,
    devices: int = 2,
    threads: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Rows for `raw-read`, `read`, `raw-write` and `write` at each of `sizes` (bytes), on `devices` files in `path`.

    Works in a new folder and removes it. `StorageError` if there is too little room.
    """
    check_sizes(sizes)
    room = shutil.disk_usage(path).free
    if room < 5 * _WORKING_SET:
        raise StorageError(f"{path} has {room} bytes free and the benchmark needs {5 * _WORKING_SET}; choose another")
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = stack.enter_context(folder_in(path, "cxl"))
        contest = stack.enter_context(closing(_Contest(folder, devices, threads)))
        for size in sizes:
            rows += contest.measure(size, rounds, advance)
    return rows


class _Contest:
    """A raw file, a volatile and a persistent tier, and memory of this process to copy from and to."""

    def __init__(self, folder: Path, devices: int, threads: int | None) -> None:
        self._raw = _mapped(_file(folder / "raw", _WORKING_SET))
        self._tiers: dict[str, CxlTier] = {}
        for mode in ("volatile", "persistent"):
            each = (_WORKING_SET + 64 * MIB) // devices // _HUGE * _HUGE + 16 * MIB
            paths = [_file(folder / f"{mode}-{number}", each) for number in range(devices)]
            tier = CxlTier(paths=paths, persistent=mode == "persistent", threads=threads, name=mode)
            tier.recover()
            tier.describe("bench", _SPEC)
            self._tiers[mode] = tier
        self._source, self._target = (_own_memory(_WORKING_SET) for _ in range(2))
        words = np.frombuffer(self._source, np.uint64)
        words[:] = np.random.default_rng(0).integers(0, 1 << 63, len(words), dtype=np.uint64)

    def measure(self, size: int, rounds: int, advance: Callable[[], None]) -> list[Row]:
        """The rows of one size: a group of cases for each direction."""
        slots = min(_WORKING_SET // size - 2, 256)
        cases = [_Slots(self, mode, size, slots) for mode in self._tiers]
        rows: list[Row] = []
        for direction in ("write", "read"):
            base = self._raw_case(direction, size)
            rows += measure(
                [base, *(each.case(direction, base.name) for each in cases)], rounds=rounds, slots=slots,
                advance=advance,
            )  # fmt: skip
        for row in rows:
            if row["baseline"]:
                row["case"] = row["case"].partition(" ")[0]
                BAR.judge(row)
        for each in cases:
            each.forget()
        return rows

    def _raw_case(self, direction: str, size: int) -> Case:
        there, source, target = self._raw, self._source, self._target

        def write(slot: int) -> None:
            _native.copy(there[slot * size : (slot + 1) * size], source[slot * size : (slot + 1) * size])

        def read(slot: int) -> None:
            _native.copy(target[slot * size : (slot + 1) * size], there[slot * size : (slot + 1) * size])

        def check(slot: int) -> None:
            piece = slice(slot * size, (slot + 1) * size)
            expect(target[piece] == source[piece], "raw-read", slot)

        if direction == "write":
            return Case("raw-write", write, size, mode="copy", note=_NOTE)
        return Case("raw-read", read, size, mode="copy", note=_NOTE, check=check)

    def close(self) -> None:
        """Close the tiers."""
        for tier in self._tiers.values():
            tier.close()


class _Slots:
    """Records of one size in one tier, a slot each."""

    def __init__(self, contest: _Contest, mode: str, size: int, slots: int) -> None:
        self._tier, self._mode, self._size = contest._tiers[mode], mode, size
        self._pieces = [contest._source[slot * size : (slot + 1) * size] for slot in range(slots)]
        self._outs = [contest._target[slot * size : (slot + 1) * size] for slot in range(slots)]
        self._records = [_record(piece) for piece in self._pieces]
        self._headers = [record.pack() for record in self._records]
        self._at = [self._write(slot) for slot in range(slots)]

    def _write(self, slot: int) -> int:
        return self._tier.write(self._headers[slot], self._pieces[slot], self._records[slot])

    def case(self, direction: str, baseline: str) -> Case:
        """One of the two."""
        tier, at, header, outs = self._tier, self._at, len(self._headers[0]), self._outs

        def delete(slot: int) -> None:
            tier.delete(at[slot], self._records[slot].total_bytes)

        def write(slot: int) -> None:
            at[slot] = self._write(slot)

        def read(slot: int) -> None:
            tier.read_into(at[slot], header, outs[slot])

        def check_written(slot: int) -> None:
            read(slot)
            check(slot)

        def check(slot: int) -> None:
            expect(outs[slot] == self._pieces[slot], f"{direction} ({self._mode})", slot)

        mode = f"{self._mode}, weights {tier.stats()['weights']}"
        name = f"{direction} {self._mode}"
        if direction == "write":
            return Case(
                name, write, self._size, baseline, mode, _NOTE, before=delete, check=check_written
            )  # fmt: skip
        return Case(name, read, self._size, baseline, mode, _NOTE, check=check)

    def forget(self) -> None:
        """Make room for the next size."""
        for at, record in zip(self._at, self._records, strict=True):
            self._tier.delete(at, record.total_bytes)


def _record(piece: memoryview) -> Record:
    digest = np.frombuffer(_native.xxh3_128(piece), np.uint8).reshape(1, 16)
    key = hashlib.sha256(digest.tobytes()).digest()
    groups = group_table([(0, len(piece))], digest)
    return Record(
        key, bytes(32), _SPEC.digest, namespace_digest("bench"), Part(), 0, 256, len(piece), len(piece), groups
    )  # fmt: skip


def _file(path: Path, nbytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(nbytes)
    return path


def _mapped(path: Path) -> memoryview:
    with path.open("r+b") as file:
        memory, _ = _native.map_aligned(file.fileno(), path.stat().st_size, _HUGE)
    _native.populate(memory)
    return memory.data


def _own_memory(nbytes: int) -> memoryview:
    memory, _ = _native.map_aligned(-1, nbytes, _HUGE)
    _native.populate(memory)
    return memory.data
