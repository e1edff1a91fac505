"""The conformance suite for engines of the remote tier. Subclass it, say how to open one, and let pytest collect it.

    class TestMine(EngineConformance):
        def make_engine(self) -> Engine: ...
        def another(self) -> Engine: ...

The place must take 64 MiB at least. Needs no pytest itself.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from itertools import pairwise

import numpy as np

from kvstore.errors import Corrupt, DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from kvstore.testing.faults import raises
from kvstore.testing.records import aligned_memory
from kvstore.tiers.remote.engine import Engine

SIZES = (0, 1, 4095, 4096, 100_001, 1 << 20, (5 << 20) + 3)
NAMES = ("a", "a/b", "a/b/c", "ab", "a.b/c-d_e", "0/1", "x" * 200, "/".join("nested-" + c for c in "abcdefgh"))
GIVEN_UP_S = 0.3


def content(seed: int, nbytes: int) -> memoryview:
    """Random bytes in writable memory."""
    memory = aligned_memory(nbytes)
    np.frombuffer(memory, np.uint8)[:] = np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)
    return memory


class EngineConformance(ABC):
    """What every engine does."""

    timeout_s = 20.0

    @abstractmethod
    def make_engine(self) -> Engine:
        """An engine over a fresh, empty place."""

    @abstractmethod
    def another(self) -> Engine:
        """One more over the place of the last `make_engine`, as another host has it."""

    def hang(self, engine: Engine) -> AbstractContextManager[None] | None:
        """Within it the place takes calls and answers none; None where that cannot be made to happen."""
        del engine
        return None

    # One object.

    def test_reads_back_what_was_put(self) -> None:
        with closing(self.make_engine()) as engine:
            for seed, nbytes in enumerate(SIZES):
                whole = content(seed, nbytes)
                assert self.put(engine, f"object-{seed}", whole)
                assert self.read(engine, f"object-{seed}", nbytes) == whole

    def test_joins_pieces(self) -> None:
        with closing(self.make_engine()) as engine:
            whole = content(1, 300_000)
            cuts = [0, 0, 1, 4096, 4097, 150_000, 150_000, 300_000]
            pieces = [whole[a:b] for a, b in pairwise(cuts)]
            assert self.put(engine, "pieces", *pieces)
            assert self.put(engine, "read-only", memoryview(b"head"), whole.toreadonly())
            assert self.put(engine, "many", *[whole[at : at + 100] for at in range(0, 300_000, 100)])
            assert self.put(engine, "none")
            assert self.read(engine, "pieces", 300_000) == whole
            assert self.read(engine, "read-only", 300_004) == b"head" + bytes(whole)
            assert self.read(engine, "many", 300_000) == whole
            assert bytes(self.read(engine, "none", 0)) == b""

    def test_memory_is_the_callers_again_after_a_put(self) -> None:
        with closing(self.make_engine()) as engine:
            whole = content(1, 1 << 20)
            expected = bytes(whole)
            assert self.put(engine, "a", whole)
            whole[:] = bytes(1 << 20)
            assert self.read(engine, "a", 1 << 20) == expected

    def test_what_is_there_is_not_replaced(self) -> None:
        with closing(self.make_engine()) as engine, closing(self.another()) as other:
            first, second = content(1, 70_000), content(2, 80_000)
            assert self.put(engine, "a/b", first)
            assert not self.put(engine, "a/b", second)
            assert not self.put(other, "a/b", second)
            assert self.read(other, "a/b", 70_000) == first
            with raises(Corrupt):
                self.read(engine, "a/b", 80_000)

    def test_one_of_many_writers_wins(self) -> None:
        with closing(self.make_engine()) as engine, closing(self.another()) as other, ThreadPoolExecutor(6) as threads:
            for number in range(5):
                writers, ready = [engine, other] * 3, threading.Barrier(6)

                def write(seed: int, who: Engine, ready: threading.Barrier = ready, number: int = number) -> bool:
                    whole = content(seed, 200_000 + seed)
                    ready.wait()
                    return self.put(who, f"contended/{number}", whole)

                won = list(threads.map(write, range(6), writers))
                assert sum(won) == 1, won
                seed = won.index(True)
                assert self.read(engine, f"contended/{number}", 200_000 + seed) == content(seed, 200_000 + seed)

    def test_another_host_sees_it(self) -> None:
        with closing(self.make_engine()) as engine, closing(self.another()) as other:
            whole = content(1, 10_000)
            assert self.put(engine, "shared/one", whole)
            assert self.read(other, "shared/one", 10_000) == whole
            assert list(other.list("")) == [("shared/one", 10_000)]
            other.delete(["shared/one"], self.timeout_s)
            assert self.heads(engine, ["shared/one"]) == [None]

    # Reading.

    def test_reads_any_range_into_memory_of_any_alignment(self) -> None:
        choose = random.Random(1)
        with closing(self.make_engine()) as engine:
            whole = content(1, 300_001)
            assert self.put(engine, "a", whole)
            for _ in range(60):
                at = choose.choice((0, 4096, choose.randrange(300_000)))
                nbytes = min(choose.choice((0, 1, 4096, choose.randrange(1, 300_000))), 300_001 - at)
                out = aligned_memory(nbytes, choose.choice((0, 1, 512)))
                engine.read_into("a", at, out, self.timeout_s)
                assert out == whole[at : at + nbytes], (at, nbytes)

    def test_reads_ranges_of_a_long_object(self) -> None:
        with closing(self.make_engine()) as engine:
            whole = content(1, 20 << 20)
            assert self.put(engine, "long", whole)
            for at, nbytes in ((0, 20 << 20), (1, (20 << 20) - 1), ((8 << 20) - 1, (8 << 20) + 2)):
                assert self.read(engine, "long", nbytes, at) == whole[at : at + nbytes]

    def test_reads_touch_nothing_beside_their_destination(self) -> None:
        with closing(self.make_engine()) as engine:
            whole = content(1, 50_000)
            assert self.put(engine, "a", whole)
            for shift in (0, 1, 4000):
                memory = aligned_memory(70_000)
                memory[:] = b"\xaa" * 70_000
                engine.read_into("a", 0, memory[shift : shift + 50_000], self.timeout_s)
                assert memory[:shift] == b"\xaa" * shift
                assert memory[shift : shift + 50_000] == whole
                assert memory[shift + 50_000 :] == b"\xaa" * (20_000 - shift)

    def test_an_object_that_is_shorter_is_corrupt(self) -> None:
        with closing(self.make_engine()) as engine:
            assert self.put(engine, "a", content(1, 5000))
            assert self.put(engine, "empty")
            for offset, nbytes in ((0, 5001), (4999, 2), (5000, 1), (5001, 1), (1 << 30, 4096)):
                with raises(Corrupt):
                    self.read(engine, "a", nbytes, offset)
            with raises(Corrupt):
                self.read(engine, "empty", 1)
            assert bytes(self.read(engine, "a", 0, 5000)) == b""

    def test_what_is_not_there(self) -> None:
        with closing(self.make_engine()) as engine:
            assert self.put(engine, "a/b", content(1, 10))
            for name in ("b", "a", "a/b/c", "a/bb"):
                for nbytes in (10, 0):
                    with raises(NotFound):
                        self.read(engine, name, nbytes)
            assert self.heads(engine, ["b", "a", "a/b/c", "a/bb"]) == [None] * 4
            engine.delete(["b", "a", "a/b/c"], self.timeout_s)
            assert self.read(engine, "a/b", 10) == content(1, 10)

    def test_heads_come_in_order(self) -> None:
        with closing(self.make_engine()) as engine:
            names = [f"heads/{number:02}" for number in range(40)]
            for number, name in enumerate(names[::2]):
                assert self.put(engine, name, content(number, 100 + 50 * number))
            heads = self.heads(engine, [*names, names[0], "absent"], 500)
            expected = [None if i % 2 else bytes(content(i // 2, 100 + 50 * (i // 2)))[:500] for i in range(40)]
            assert heads == [*expected, expected[0], None]
            assert self.heads(engine, []) == []
            assert self.put(engine, "empty")
            assert self.heads(engine, ["empty"]) == [b""]

    # Names, deleting, listing.

    def test_names(self) -> None:
        with closing(self.make_engine()) as engine:
            for seed, name in enumerate(NAMES):
                assert self.put(engine, name, content(seed, 100 + seed))
            for seed, name in enumerate(NAMES):
                assert self.read(engine, name, 100 + seed) == content(seed, 100 + seed)
            assert sorted(engine.list("")) == sorted((name, 100 + seed) for seed, name in enumerate(NAMES))

    def test_names_that_are_none_are_refused(self) -> None:
        with closing(self.make_engine()) as engine:
            for name in ("", "/", "/a", "a/", "a//b", "..", "a/../b", ".", "a/.", "A", "a b", "ä", "~tmp/x", "x" * 201):
                with raises(InvalidArgument):
                    self.put(engine, name, content(1, 10))
                with raises(InvalidArgument):
                    self.read(engine, name, 10)
                with raises(InvalidArgument):
                    self.heads(engine, [name])
                with raises(InvalidArgument):
                    engine.delete([name], self.timeout_s)

    def test_what_was_deleted_is_gone_and_can_be_put_again(self) -> None:
        with closing(self.make_engine()) as engine:
            names = [f"d/{number}" for number in range(20)]
            for name in names:
                assert self.put(engine, name, content(1, 1000))
            engine.delete(names[:19], self.timeout_s)
            engine.delete([], self.timeout_s)
            assert list(engine.list("")) == [(names[19], 1000)]
            with raises(NotFound):
                self.read(engine, names[0], 1000)
            assert self.put(engine, names[0], content(2, 500))
            assert self.read(engine, names[0], 500) == content(2, 500)

    def test_lists_by_prefix(self) -> None:
        with closing(self.make_engine()) as engine:
            assert list(engine.list("")) == []
            assert list(engine.list("no/such/")) == []
            names = ["n1/a", "n1/ab", "n1/b/c", "n10/a", "n2/a", "top"]
            for size, name in enumerate(names):
                assert self.put(engine, name, content(1, size))
            sizes = {name: size for size, name in enumerate(names)}
            for prefix in ("", "n1", "n1/", "n1/a", "n1/ab", "n1/b", "n1/b/", "n1/b/c", "n1/c", "t", "top", "n", "x"):
                found = list(engine.list(prefix))
                assert dict(found) == {name: size for name, size in sizes.items() if name.startswith(prefix)}, prefix
                assert len(found) == len(dict(found))

    # Threads, time, the end.

    def test_many_threads(self) -> None:
        with closing(self.make_engine()) as engine, ThreadPoolExecutor(8) as threads:

            def work(number: int) -> bool:
                whole, name = content(number, 3000 + number * 997), f"t/{number % 7}/{number}"
                assert self.put(engine, name, whole)
                same = self.read(engine, name, whole.nbytes) == whole
                if number % 3 == 0:
                    engine.delete([name], self.timeout_s)
                return same

            assert all(threads.map(work, range(60)))
            assert len(list(engine.list("t/"))) == 40

    def test_a_place_that_hangs_holds_nobody(self) -> None:
        with closing(self.make_engine()) as engine:
            whole = content(1, 100_000)
            assert self.put(engine, "a", whole)
            hanging = self.hang(engine)
            if hanging is None:
                return
            out, source = aligned_memory(100_000), content(2, 100_000)
            calls: Sequence[Callable[[], object]] = (
                lambda: engine.read_into("a", 0, out, GIVEN_UP_S),
                lambda: engine.put("late", [source], GIVEN_UP_S),
                lambda: engine.heads(["a", "b"], 100, GIVEN_UP_S),
                lambda: engine.delete(["never"], GIVEN_UP_S),
            )
            with hanging:
                for call in calls:
                    with raises(DeadlineExceeded, Unavailable):
                        call()
                out[:] = b"\xaa" * 100_000
                source[:] = bytes(100_000)
            assert self.read(engine, "a", 100_000) == whole
            assert out == b"\xaa" * 100_000, "a read that was given up went on"
            (head,) = self.heads(engine, ["late"], 100_000)
            assert head is None or head == content(2, 100_000), "a put that was given up sent other bytes"

    def test_closing_twice_is_allowed(self) -> None:
        engine = self.make_engine()
        assert self.put(engine, "a", content(1, 10))
        engine.close()
        engine.close()
        assert type(engine).kind

    # In the words of these tests.

    def put(self, engine: Engine, name: str, *pieces: memoryview) -> bool:
        """Put with the suite's deadline."""
        return engine.put(name, pieces, self.timeout_s)

    def read(self, engine: Engine, name: str, nbytes: int, offset: int = 0) -> memoryview:
        """Memory that a read filled."""
        out = aligned_memory(nbytes)
        engine.read_into(name, offset, out, self.timeout_s)
        return out

    def heads(self, engine: Engine, names: Sequence[str], nbytes: int = 100) -> list[bytes | None]:
        """Heads with the suite's deadline."""
        return list(engine.heads(names, nbytes, self.timeout_s))
