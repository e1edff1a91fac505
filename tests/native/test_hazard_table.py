"""Hazards against the shared table: who is held, by whom, how long, and what a hostile client achieves."""

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from kvstore._native import (
    HAZARD_TABLE_BYTES,
    HIDDEN,
    MAX_HAZARDS,
    MAX_MARKS,
    HazardBoard,
    HazardTable,
    Index,
    SharedTable,
    SharedTableReader,
    map_file,
)
from kvstore.places import NOWHERE, unpack_places

SPEC = b"spec of scope 0."
HEADER, TOKEN_BYTES = 8192, 64
FOREVER = (1 << 64) - 1
HIGH_WATER, MARKED, ENTRIES = 128, 192, 4096  # where the table has them


def location(number: int, extent: int = 1) -> int:
    return extent << 40 | number * 65536


def ref(key: bytes) -> bytes:
    return struct.pack("<32sII", key, 0, 16)


def now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000_000


class Pair:
    """An index with a shared table, a client's hazards on it and the server's sight of them."""

    def __init__(self, parts: int = 1, entries: int = 1 << 10) -> None:
        self.index, self.table = Index(1 << 15, 3), SharedTable(entries)
        self.index.publish_to(0, self.table, SPEC, parts)
        self.table.open()
        self.reader = SharedTableReader(self.table.fileno(), self.table.nbytes)
        self.near, self.far = socket.socketpair()
        self.hazards = HazardTable(self.near.fileno())
        self.board = HazardBoard(self.hazards.fileno())
        self.memory = map_file(self.hazards.fileno(), HAZARD_TABLE_BYTES, writable=True)
        self.board.honour()

    def store(self, key: bytes, at: int, *, tier: int = 0, codec: int = 0, exact: bool = True, part: int = 0) -> int:
        chunk = self.index.insert_chunk(0, key, bytes(32), 0, 16, 0)
        row = self.index.add_part(chunk, part, 0, 0, 8, 0, 1)
        return self.index.add_placement(row, tier, codec, 0, exact, at, 1024)

    def take(self, *keys: bytes, until: int = FOREVER) -> bytes | None:
        taken = self.hazards.take_each(self.reader, SPEC, b"".join(map(ref, keys)), until, HEADER, TOKEN_BYTES)
        return None if taken is None else taken[0]

    def close(self) -> None:
        self.hazards.end()
        self.near.close()
        self.far.close()

    def write(self, at: int, data: bytes) -> None:
        self.memory[at : at + len(data)] = np.frombuffer(data, np.uint8)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_what_is_taken_is_held_until_it_is_released(pair: Pair) -> None:
    keys = [os.urandom(32) for _ in range(3)]
    for number, key in enumerate(keys):
        pair.store(key, location(number))
    refs = b"".join(map(ref, [*keys[:2], os.urandom(32)]))
    taken = pair.hazards.take_each(pair.reader, SPEC, refs, FOREVER, HEADER, TOKEN_BYTES)
    assert taken is not None
    assert list(unpack_places(taken[1])) == [
        (location(0) + HEADER, 16 * TOKEN_BYTES, 0, 0),
        (location(1) + HEADER, 16 * TOKEN_BYTES, 0, 0),
        (NOWHERE, 0, 0, 0),
    ]
    assert sorted(pair.board.locations()) == [location(0), location(1)]
    assert [pair.board.holds(location(n)) for n in range(3)] == [True, True, False]
    again = pair.take(keys[0])
    assert again is not None
    pair.hazards.release(taken[0])
    assert [pair.board.holds(location(n)) for n in range(3)] == [True, False, False]
    pair.hazards.release(taken[0] + b"\xff" * 8)  # a second time, and numbers that nobody has
    pair.hazards.release(again)
    assert pair.board.locations() == []
    assert pair.hazards.held == 0


def test_a_lookup_holds_what_the_prompt_uses_and_nothing_else(pair: Pair) -> None:
    keys = [os.urandom(32) for _ in range(5)]
    packed = [struct.pack("<32sII", key, 16 * n, 16) for n, key in enumerate(keys)]
    for number in (0, 1, 3):
        chunk = pair.index.insert_chunk(0, keys[number], bytes(32), 16 * number, 16, 0)
        pair.index.add_placement(pair.index.add_part(chunk, 0, 0, 0, 8, 0, 1), 0, 0, 0, True, location(number), 1)
    answer = pair.hazards.take(pair.reader, SPEC, b"".join(packed), FOREVER, HEADER, TOKEN_BYTES)
    assert answer is not None
    tokens, used, present, _, places = answer
    assert (tokens, used, present) == (32, range(2), [True, True, False, True, False])
    assert [each[0] - HEADER for each in unpack_places(places)] == [location(0), location(1)]
    assert sorted(pair.board.locations()) == [location(0), location(1)]
    rows, told, read = pair.table.used_by(pair.index, pair.board.drain(10))
    assert (rows.tolist(), told, read) == ([pair.index.find(0, keys[1]), pair.index.find(0, keys[0])], 32, 0)


@pytest.mark.parametrize(
    "how",
    [{"codec": 1}, {"exact": False}, {"tier": 1}, {"at": 0}, {"at": location(1) + 512}, {"at": location(0, 1 << 16)}],
)
def test_what_cannot_be_read_in_place_is_left_to_the_server(pair: Pair, how: dict[str, int]) -> None:
    key = os.urandom(32)
    pair.store(key, **{"at": location(1), **how})  # type: ignore[arg-type]
    assert pair.take(key) is None
    assert pair.hazards.take(pair.reader, SPEC, ref(key), FOREVER, HEADER, TOKEN_BYTES) is None or "exact" in how
    assert pair.hazards.held == 0


def test_chunks_of_several_parts_are_left_to_the_server() -> None:
    pair, key = Pair(parts=2), os.urandom(32)
    for part in (0, 1):
        pair.store(key, location(part), part=part)
    assert pair.reader.lookup(SPEC, ref(key)) == (16, range(1), [True])
    assert pair.take(key) is None
    pair.close()


def test_a_place_follows_the_chunk(pair: Pair) -> None:
    key = os.urandom(32)
    low = pair.store(key, 4096, tier=1)
    assert pair.take(key) is None
    for turn in range(3):
        placement = pair.store(key, location(turn))
        assert pair.take(key) is not None
        assert pair.board.holds(location(turn))
        pair.index.remove_placement(placement)
        assert pair.take(key) is None
    pair.store(key, location(9))
    pair.index.set_flags(pair.index.find(0, key), HIDDEN)
    assert pair.take(key) is None
    pair.index.set_flags(pair.index.find(0, key), 0)
    assert pair.take(key) is not None
    pair.index.remove_placement(low)
    assert pair.take(key) is not None


def test_two_chunks_of_one_tag_keep_their_own_slots(pair: Pair) -> None:
    """Scopes of one spec are two chunks of one tag: what goes is the one that was taken out."""
    pair.index.publish_to(1, pair.table, SPEC, 1)
    key, placements = os.urandom(32), []
    for scope in (0, 1):
        chunk = pair.index.insert_chunk(scope, key, bytes(32), 0, 16, 0)
        part = pair.index.add_part(chunk, 0, 0, 0, 8, 0, 1)
        placements.append(pair.index.add_placement(part, 0, 0, 0, True, location(scope), 1))
    pair.index.remove_placement(placements[1])
    assert pair.take(key) is not None
    assert pair.board.locations() == [location(0)]
    pair.index.remove_placement(placements[0])
    assert pair.take(key) is None


def test_time_ends_a_hazard(pair: Pair) -> None:
    key = os.urandom(32)
    pair.store(key, location(1))
    grace_ms = 3000  # for which it counts longer than it says
    assert pair.take(key, until=now_ms() - grace_ms + 1000) is not None
    assert pair.board.holds(location(1))
    deadline = time.monotonic() + 30
    while pair.board.holds(location(1)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert pair.board.locations() == []


def test_nothing_is_taken_that_the_server_does_not_honour(pair: Pair) -> None:
    key = os.urandom(32)
    pair.store(key, location(1))
    fresh = HazardTable(pair.near.fileno())
    assert not fresh.is_honoured
    assert fresh.take_each(pair.reader, SPEC, ref(key), FOREVER, HEADER, TOKEN_BYTES) is None
    assert fresh.held == 0
    held = pair.take(key)
    assert held is not None
    assert pair.hazards.is_honoured
    pair.board.end()
    assert not pair.hazards.is_honoured
    assert pair.take(key) is None
    pair.board.honour()
    pair.table.close()
    assert pair.take(key) is None


def test_nothing_is_taken_once_the_server_has_hung_up(pair: Pair) -> None:
    key = os.urandom(32)
    pair.store(key, location(1))
    assert pair.take(key) is not None
    pair.far.close()
    assert pair.take(key) is None
    assert pair.hazards.is_honoured, "what was taken before is still there"


def test_an_ended_table_leaves_the_memory_alone(pair: Pair) -> None:
    """As after a fork: what is held is the parent's."""
    key = os.urandom(32)
    pair.store(key, location(1))
    held = pair.take(key)
    assert held is not None
    pair.hazards.end()
    pair.hazards.release(held)
    assert pair.board.holds(location(1))
    assert not pair.hazards.is_honoured


def test_a_full_table_takes_no_more_and_loses_nothing(pair: Pair) -> None:
    key = os.urandom(32)
    pair.store(key, location(1))
    held = [pair.take(*[key] * 1024) for _ in range(MAX_HAZARDS // 1024)]
    assert None not in held
    assert pair.take(key) is None
    pair.hazards.release(held.pop() or b"")
    assert pair.take(key) is not None
    for each in held:
        pair.hazards.release(each or b"")
    assert pair.board.locations() == [location(1)]


def test_marks_that_find_no_room_are_lost_and_counted(pair: Pair) -> None:
    key = os.urandom(32)
    pair.store(key, location(1))
    for _ in range(MAX_MARKS // 1024 + 1):
        pair.hazards.release(pair.take(*[key] * 1024) or b"")
    assert pair.board.lost == 1024
    drained = [len(pair.board.drain(1000)) for _ in range(18)]
    assert sum(drained) == MAX_MARKS
    pair.take(key)
    rows, tokens, read = pair.table.used_by(pair.index, pair.board.drain(1000))
    assert (rows.tolist(), tokens, read) == ([pair.index.find(0, key)], 0, 1)


def test_a_hostile_table_misleads_nobody(pair: Pair) -> None:
    rng, key = np.random.default_rng(3), os.urandom(32)
    pair.store(key, location(1))
    pair.write(HIGH_WATER, struct.pack("<I", 0xFFFFFFFF))
    assert pair.board.locations() == []
    for head in (0, 1, MAX_MARKS, MAX_MARKS + 1, 1 << 40, FOREVER):
        pair.write(MARKED, struct.pack("<Q", head))
        marks = pair.board.drain(500)
        assert len(marks) <= 500
        pair.table.used_by(pair.index, marks)
    pair.write(ENTRIES, rng.bytes(HAZARD_TABLE_BYTES - ENTRIES))
    pair.write(MARKED, struct.pack("<Q", FOREVER))
    pair.board.drain(1)
    pair.write(MARKED, struct.pack("<Q", 1000))
    for _ in range(20):
        rows, _, _ = pair.table.used_by(pair.index, pair.board.drain(MAX_MARKS))
        assert set(rows.tolist()) <= {pair.index.find(0, key)}
    assert not pair.board.holds(location(1))
    assert len(pair.board.locations()) <= MAX_HAZARDS
    for _ in range(30):
        pair.write(0, rng.bytes(HAZARD_TABLE_BYTES))
        pair.board.locations()
        pair.board.drain(MAX_MARKS)
        pair.board.holds(location(random.randrange(100)))


def test_a_place_is_not_given_out_again_while_it_is_held(pair: Pair) -> None:
    """The whole protocol: takers in threads, a server that moves chunks as fast as it can between few places."""
    keys = [os.urandom(32) for _ in range(8)]
    owner = np.full(16, -1)  # by place: which chunk's bytes lie there
    over, wrong, taken = threading.Event(), list[tuple[int, int]](), [0]

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not over.is_set():
            number = rng.randrange(len(keys))
            got = pair.hazards.take_each(pair.reader, SPEC, ref(keys[number]), FOREVER, HEADER, TOKEN_BYTES)
            if got is None:
                continue
            ((at, _, _, _),) = unpack_places(got[1])
            for _ in range(3):
                time.sleep(0)
                found = int(owner[(at - HEADER - location(0)) // 65536])
                if found != number:
                    wrong.append((number, found))
            taken[0] += 1
            pair.hazards.release(got[0])

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for each in readers:
        each.start()
    rng, free, waiting = random.Random(9), list(range(16)), list[int]()
    live: dict[int, tuple[int, int]] = {}
    end = time.monotonic() + 3
    while time.monotonic() < end and not wrong:
        number = rng.randrange(len(keys))
        if number in live:
            placement, place = live.pop(number)
            pair.index.remove_placement(placement)
            waiting.append(place)
        elif free:
            place = free.pop(rng.randrange(len(free)))
            owner[place] = number
            live[number] = (pair.store(keys[number], location(place)), place)
        still = [each for each in waiting if pair.board.holds(location(each))]
        free += [each for each in waiting if each not in still]
        waiting = still
        if rng.random() < 0.1:
            pair.table.beat()
    over.set()
    for each in readers:
        each.join()
    assert wrong == []
    assert taken[0] > 50
