"""The table that clients map: what it says against the index, what it refuses, what nobody can do to it."""

import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from kvstore._native import HIDDEN, Index, SharedTable, SharedTableReader
from kvstore.rows import REF_DTYPE
from kvstore.walk import walk
from tests.native.test_index_model import MAX_CHUNKS, AgainstDictionaries, key_of

SPECS = (b"spec of scope 0.", b"spec of scope 1.")
PARTS = (1, 2)
READER = Path(__file__).with_name("shared_reader.py")
STATE, HEARTBEAT = 64, 72  # where the header has them


def pack(key: bytes, position: int = 0, tokens: int = 16) -> bytes:
    return struct.pack("<32sII", key, position, tokens)


def reader_of(table: SharedTable) -> SharedTableReader:
    return SharedTableReader(table.fileno(), table.nbytes)


def opened(entries: int) -> tuple[Index, SharedTable, SharedTableReader]:
    """An index whose scope 0 is published, for specs of one part."""
    index, table = Index(max(entries, 1 << 10), 3), SharedTable(entries)
    index.publish_to(0, table, SPECS[0], 1)
    table.open()
    return index, table, reader_of(table)


def store(index: Index, key: bytes, position: int = 0, tokens: int = 16) -> int:
    chunk = index.insert_chunk(0, key, bytes(32), position, tokens, 0)
    return index.add_placement(index.add_part(chunk, 0, 0, 0, 8, 0, 1), 0, 0, 0, True, 0, 0)


def present(reader: SharedTableReader, refs: bytes) -> list[bool] | None:
    answer = reader.lookup(SPECS[0], refs)
    return None if answer is None else answer[2]


class Published(AgainstDictionaries):
    """Every change to an index of two scopes, one published from the start and one later, in a table as large as
    it must be or far too small."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: dict[tuple[int, int], int] = {}
        self.next_row = -2  # scope 0 is not attached yet

    @initialize(entries=st.sampled_from([1, MAX_CHUNKS]))
    def publish(self, entries: int) -> None:
        self.table = SharedTable(entries)
        self.index.publish_to(1, self.table, SPECS[1], PARTS[1])
        self.table.open()
        self.reader = reader_of(self.table)

    @precondition(lambda self: self.next_row == -2)
    @rule()
    def publish_the_other(self) -> None:
        self.index.publish_to(0, self.table, SPECS[0], PARTS[0])
        self.next_row = 0
        with pytest.raises(ValueError, match="published already"):
            self.index.publish_to(0, self.table, SPECS[0], PARTS[0])

    @precondition(lambda self: self.next_row >= 0)
    @rule(limit=st.integers(1, 4))
    def enter_some(self, limit: int) -> None:
        self.next_row = self.index.publish_rows(self.next_row, limit)

    @precondition(lambda self: self.chunks)
    @rule(data=st.data(), flags=st.sampled_from([0, HIDDEN, HIDDEN, HIDDEN | 8, 8]))
    def hide(self, data: st.DataObject, flags: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.chunks)))
        self.index.set_flags(self.chunks[name].row, flags)
        self.hidden[name] = flags

    @invariant()
    def readers_see_the_same(self) -> None:
        if not hasattr(self, "reader"):
            return
        self.hidden = {name: flags for name, flags in self.hidden.items() if name in self.chunks}
        for scope in (1,) if self.next_row != -1 else (0, 1):
            expected = [self.is_visible((scope, number), PARTS[scope]) for number in range(21)]
            for number, there in enumerate(expected):
                answer = self.reader.lookup(SPECS[scope], pack(key_of(number), number))
                if answer is None:
                    assert self.table.overflowed
                else:
                    assert answer[2] == [there]
            assert sum(expected) <= 16 or self.table.overflowed

    @invariant()
    def room_is_used(self) -> None:
        """Never overflowed with a table of the right size, and never for long with one that is too small."""
        if not hasattr(self, "reader") or self.next_row >= 0:
            return
        scopes = (1,) if self.next_row == -2 else (0, 1)
        count = sum(self.is_visible(name, PARTS[name[0]]) for name in self.chunks if name[0] in scopes)
        if count == 0:
            assert self.table.overflowed == 0

    def is_visible(self, name: tuple[int, int], parts: int) -> bool:
        chunk = self.chunks.get(name)
        if chunk is None or self.hidden.get(name, 0) & HIDDEN:
            return False
        return sum(any(exact for _, exact in tiers.values()) for tiers in chunk.parts.values()) == parts


TestPublished = Published.TestCase
TestPublished.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)

refs_in_order = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=40).map(sorted)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(refs_in_order, st.integers(0, 70).map(lambda n: [(16 * i, 16) for i in range(n)])),
    st.randoms(use_true_random=False),
    st.sampled_from([0, 0.1, 0.6, 1]),
)
def test_a_prompt_reaches_as_far_as_the_walk_says(refs: list[tuple[int, int]], random: object, missing: float) -> None:
    """A plain chain, gaps, tails, the same chunk twice."""
    index, _, reader = opened(1 << 10)
    column = np.zeros(len(refs), REF_DTYPE)
    for i, (position, tokens) in enumerate(refs):
        column[i] = (np.frombuffer(struct.pack("<II", position, tokens) * 4, "u1"), position, tokens)
        if random.random() >= missing:  # type: ignore[attr-defined]
            key = column["key"][i].tobytes()
            if index.find(0, key) < 0:
                store(index, key, position, tokens)
    flags = np.array([index.find(0, each.tobytes()) >= 0 for each in column["key"]], np.uint8)
    reach = walk(column, flags)
    answer = reader.lookup(SPECS[0], column.tobytes())
    assert answer is not None
    tokens, used, there = answer
    assert (tokens, list(used), there) == (reach.tokens, list(reach.indexes()), flags.astype(bool).tolist())
    assert isinstance(used, range) == isinstance(reach.used, range)


def test_ends_wrap_as_they_do_in_the_walk() -> None:
    index, _, reader = opened(16)
    column = np.zeros(3, REF_DTYPE)
    column["key"][:, 0], column["position"], column["tokens"] = [1, 2, 3], [0xFFFFFFF0, 0, 8], [16, 8, 9]
    for each in column:
        store(index, each["key"].tobytes(), int(each["position"]), int(each["tokens"]))
    answer = reader.lookup(SPECS[0], column.tobytes())
    assert answer is not None
    assert answer[:2] == (walk(column, np.ones(3, np.uint8)).tokens, range(3))


@pytest.mark.parametrize("change", ["key", "position", "tokens", "spec"])
def test_a_tag_is_of_all_that_names_a_chunk(change: str) -> None:
    index, _, reader = opened(64)
    key = os.urandom(32)
    store(index, key, 32, 16)
    assert reader.lookup(SPECS[0], pack(key, 32, 16)) == (48, range(1), [True])
    for bit in range({"key": 256, "position": 32, "tokens": 32, "spec": 128}[change]):
        at = {"key": 0, "position": 256, "tokens": 288, "spec": 320}[change] + bit
        named = bytearray(pack(key, 32, 16) + SPECS[0])
        named[at // 8] ^= 1 << at % 8
        answer = reader.lookup(bytes(named[40:]), bytes(named[:40]))
        assert answer is not None
        assert answer[2] == [False], bit


def test_at_half_load_nothing_overflows() -> None:
    entries = 1 << 16
    index = Index(entries, 3)
    table = SharedTable(entries)
    index.publish_to(0, table, SPECS[0], 1)
    for number in range(entries):
        store(index, np.random.default_rng(number).bytes(32) if number < 64 else os.urandom(32))
    assert table.overflowed == 0
    assert table.nbytes == 4096 + 32 * entries


def test_an_overflowed_table_still_says_what_it_has_and_recovers() -> None:
    index, table, reader = opened(1)  # 16 slots
    placed = {key: store(index, key) for key in (os.urandom(32) for _ in range(40))}
    assert table.overflowed == 24
    answers = [present(reader, pack(key)) for key in placed]
    assert answers.count([True]) == 16
    assert answers.count(None) == 24
    assert present(reader, pack(os.urandom(32))) is None
    for key in list(placed)[5:]:
        index.remove_placement(placed.pop(key))
    assert table.overflowed == sum(present(reader, pack(key)) is None for key in placed)
    for key, placement in placed.items():
        index.remove_placement(placement)
        store(index, key)
    assert table.overflowed == 0
    assert present(reader, b"".join(pack(key) for key in placed)) == [True] * 5
    assert present(reader, pack(os.urandom(32))) == [False]


def test_nothing_is_said_before_the_table_is_open_nor_after() -> None:
    index, table = Index(16, 3), SharedTable(16)
    index.publish_to(0, table, SPECS[0], 1)
    key = os.urandom(32)
    store(index, key)
    reader = reader_of(table)
    assert present(reader, pack(key)) is None
    table.open()
    assert present(reader, pack(key)) == [True]
    assert present(reader, b"") == []
    assert present(reader, pack(key) + b"x") is None
    with pytest.raises(ValueError, match="16 bytes"):
        reader.lookup(b"short", pack(key))
    table.close()
    assert present(reader, pack(key)) is None


FORKS = """
import os, sys
from kvstore._native import SharedTable, SharedTableReader
table = SharedTable(16)
table.open()
reader = SharedTableReader(table.fileno(), table.nbytes)
if (child := os.fork()) == 0:
    del table
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
sys.exit(reader.lookup(bytes(16), bytes(40)) is None)
"""


def test_the_end_of_a_forked_child_is_not_the_owners() -> None:
    subprocess.run([sys.executable, "-c", FORKS], check=True)


def test_a_reader_that_is_closed_says_nothing_even_in_the_middle_of_a_call() -> None:
    _, table, reader = opened(1 << 12)
    refs, done = os.urandom(40 * 20_000), threading.Event()
    readers = [reader_of(table) for _ in range(200)]
    table.beat()

    def ask() -> None:
        for each in readers:
            each.lookup(SPECS[0], refs)
        done.set()

    asking = threading.Thread(target=ask)
    asking.start()
    while not done.is_set():
        for each in readers:
            each.close()
    asking.join()
    reader.close()
    reader.close()
    assert present(reader, refs[:40]) is None


# Files that are no table, or not one to trust


def forged(table: SharedTable, change: Callable[[bytearray], object], seals: int | None = None) -> tuple[int, int]:
    """A copy of a table in a memfd of our own, changed; still writable unless sealed otherwise."""
    data = bytearray(os.pread(table.fileno(), table.nbytes, 0))
    change(data)
    fd = os.memfd_create("forged", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if seals is None else seals)
    return fd, len(data)


def put_u64(at: int, value: int) -> Callable[[bytearray], object]:
    return lambda data: struct.pack_into("<Q", data, at, value)


def put_u32(at: int, value: int) -> Callable[[bytearray], object]:
    return lambda data: struct.pack_into("<I", data, at, value)


@pytest.mark.parametrize(
    "change",
    [
        put_u64(0, 0),
        put_u32(8, 1),
        put_u32(12, 4),
        put_u64(16, 0),
        put_u64(16, 1 << 40),
        put_u64(16, 256),
        lambda data: data.extend(bytes(64)),
        lambda data: data.__delitem__(slice(4096, None)),
        lambda data: data.__delitem__(slice(100, None)),
        lambda data: data.__delitem__(slice(4096 + 64, None)),
        lambda data: data.__setitem__(slice(None), os.urandom(len(data))),
        lambda data: data.clear(),
    ],
)
def test_a_header_that_is_not_ours_is_refused(change: Callable[[bytearray], object]) -> None:
    fd, nbytes = forged(SharedTable(512), change)
    with pytest.raises(ValueError, match="no shared index"):
        SharedTableReader(fd, nbytes)
    os.close(fd)


def test_a_file_that_could_shrink_or_is_none_is_refused(tmp_path: Path) -> None:
    table = SharedTable(512)
    for seals in (0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW):
        fd, nbytes = forged(table, lambda data: None, seals)
        with pytest.raises(ValueError, match="sealed"):
            SharedTableReader(fd, nbytes)
        os.close(fd)
    copied = tmp_path / "table"
    copied.write_bytes(os.pread(table.fileno(), table.nbytes, 0))
    with copied.open("rb") as file, pytest.raises(ValueError, match="sealed"):
        SharedTableReader(file.fileno(), table.nbytes)
    for nbytes in (0, 4096, table.nbytes - 64, table.nbytes + 4096, 1 << 50):
        with pytest.raises(ValueError, match="bytes, not"):
            SharedTableReader(table.fileno(), nbytes)
    fd = os.dup(table.fileno())
    os.close(fd)
    with pytest.raises(OSError, match="descriptor"):
        SharedTableReader(fd, table.nbytes)


@pytest.mark.parametrize(("age_ms", "answers"), [(0, True), (1500, True), (2600, False), (-60_000, False)])
def test_a_server_that_is_not_heard_of_is_not_believed(age_ms: int, answers: bool) -> None:
    index, table, _ = opened(16)
    key = os.urandom(32)
    store(index, key)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000_000
    fd, nbytes = forged(table, put_u64(HEARTBEAT, now - age_ms))
    reader = SharedTableReader(fd, nbytes)
    assert present(reader, pack(key)) == ([True] if answers else None)
    os.pwrite(fd, struct.pack("<I", 7), STATE)
    assert present(reader, pack(key)) is None
    os.close(fd)


def punch(fd: int, offset: int, nbytes: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, 3, ctypes.c_long(offset), ctypes.c_long(nbytes)) != 0:  # PUNCH_HOLE | KEEP_SIZE
        raise OSError(ctypes.get_errno(), "fallocate")


ATTACKS: Sequence[Callable[[int, int], object]] = [
    lambda fd, nbytes: os.pwrite(fd, b"x", 5000),
    lambda fd, nbytes: os.ftruncate(fd, 0),
    lambda fd, nbytes: os.ftruncate(fd, nbytes * 2),
    lambda fd, nbytes: os.posix_fallocate(fd, nbytes, 4096),
    lambda fd, nbytes: punch(fd, 4096, 4096),
    lambda fd, nbytes: mmap.mmap(fd, nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    lambda fd, nbytes: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("reopen", [False, True], ids=["as-given", "reopened"])
def test_nobody_but_the_owner_writes(attack: Callable[[int, int], object], reopen: bool) -> None:
    index, table, reader = opened(512)
    key = os.urandom(32)
    store(index, key)
    fd = os.open(f"/proc/self/fd/{table.fileno()}", os.O_RDWR) if reopen else os.dup(table.fileno())
    with pytest.raises(PermissionError):
        attack(fd, table.nbytes)
    os.close(fd)
    other = os.urandom(32)
    store(index, other)
    assert present(reader, pack(key) + pack(other)) == [True, True]


def test_the_mapping_of_a_reader_cannot_be_made_writable() -> None:
    table = SharedTable(512)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    at = libc.mmap(None, table.nbytes, mmap.PROT_READ, mmap.MAP_SHARED, table.fileno(), 0)
    assert libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(table.nbytes), mmap.PROT_READ | mmap.PROT_WRITE) == -1
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(table.nbytes))


def test_another_process_reads_while_the_owner_churns() -> None:
    """What is there all the time is never missing, what never was there is never present."""
    index, table, _ = opened(256)
    rng = np.random.default_rng(5)
    always, never, churned = ([rng.bytes(32) for _ in range(n)] for n in (60, 60, 196))
    for key in always:
        store(index, key)
    asked = b"".join(pack(key) for key in [*always, *never, *churned])
    command = [sys.executable, str(READER), str(table.fileno()), str(table.nbytes), "60"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[table.fileno()]) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(SPECS[0] + asked)
        child.stdin.flush()
        assert child.stdout.readline() == b"ready\n"
        live: dict[bytes, int] = {}
        for step in range(150_000):
            key = churned[int(rng.integers(len(churned)))] if step % 64 == 0 else churned[step % len(churned)]
            if key in live:
                index.remove_placement(live.pop(key))
            else:
                live[key] = store(index, key)
            if step % 1000 == 0:
                table.beat()
        child.stdin.close()
        answered, unanswered, lost, phantom, seen = map(int, child.stdout.read().split())
    assert child.returncode == 0
    assert answered > 100 * (unanswered + 1)
    assert (lost, phantom) == (0, 0)
    assert seen > 0, "the reader must have watched the churn"
