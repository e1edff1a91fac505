"""What can go wrong below a tier, and the tests of what a tier makes of it.

A tier's own tests say how each fault is brought about, at the boundary where the tier leaves Python for a file, a
socket or memory: everything above is the real thing. `TierConformance` has the tests of this module.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from enum import Enum

from kvstore.catalog import Namespace, Scope
from kvstore.checked import verify_record
from kvstore.errors import Corrupt, DeadlineExceeded, StorageError, Unavailable
from kvstore.record import Record
from kvstore.testing.records import NAMESPACE, Sample, aligned_memory, make_sample, make_spec
from kvstore.tiers.base import Tier, TierFull

PATIENCE_S = 60.0  # for a tier to give up on what hangs; its own deadline is to be far shorter


class Fault(Enum):
    """While it is injected, of everything that a tier asks of what lies below it:"""

    SHORT_READ = "short read"  # a read gets the first half of what it asks for, and nothing after that
    READ_ERROR = "read error"  # a read fails (EIO, a broken connection, a status 500)
    WRITE_ERROR = "write error"  # a write of payload fails, not for want of room
    NO_SPACE = "no space"  # a write of payload fails for want of room (ENOSPC, out of memory, over quota)
    SLOW = "slow"  # every call takes 20 ms longer
    HUNG = "hung"  # no call returns before the fault ends
    BIT_FLIP = "bit flip"  # one bit is flipped somewhere in what each read gives
    TORN_WRITE = "torn write"  # half of a write arrives, and then the process dies (`kvstore.testing.kills.die`)


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """While this lasts, an attribute of a module, a class or an object is `value`."""
    held = vars(owner)
    had, before = name in held, held.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before) if had else delattr(owner, name)


@contextmanager
def raises(*kinds: type[Exception]) -> Iterator[None]:
    """Assert that the block raises one of these."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"nothing was raised; expected {', '.join(kind.__name__ for kind in kinds)}")


def read_verified(tier: Tier, location: int, sample: Sample, out: memoryview | None = None) -> Record:
    """Read a whole record as the store does, checked against its identity and checksums. `Corrupt`, `StorageError`."""
    memory = aligned_memory(sample.record.total_bytes) if out is None else out
    tier.read_into(location, 0, memory)
    scope = Scope(0, Namespace(NAMESPACE), make_spec())
    return verify_record(memory, scope, sample.record.key, sample.record.part, tier.name)


class FaultChecks(ABC):
    """Tests of what a tier does about faults. One that a tier cannot have is not tested."""

    @abstractmethod
    def make_tier(self) -> Tier:
        """A fresh, empty tier on which `recover` was called."""

    def inject(self, tier: Tier, fault: Fault) -> AbstractContextManager[None] | None:
        """While the context lasts, what lies below `tier` has this fault. None: it cannot have it.

        With a deadline of its own a tier is to be made with one of a second or so, or HUNG takes long to test. A
        device that cannot be given up on has no HUNG.
        """
        del tier, fault
        return None

    def test_a_read_that_fails_is_an_error_for_itself_alone(self) -> None:
        self._reads_fail(Fault.READ_ERROR, StorageError, Corrupt)

    def test_a_read_that_comes_short_is_an_error_for_itself_alone(self) -> None:
        self._reads_fail(Fault.SHORT_READ, StorageError, Corrupt)

    def _reads_fail(self, fault: Fault, *kinds: type[Exception]) -> None:
        with closing(self.make_tier()) as tier:
            samples = [make_sample(number, 9000 + 70_000 * number) for number in range(4)]
            places = [(sample.write_to(tier), sample) for sample in samples]
            context = self.inject(tier, fault)
            if context is None:
                return
            with context:
                for location, sample in places:
                    with raises(*kinds):
                        read_verified(tier, location, sample)
                requests = [(at, 0, aligned_memory(sample.record.total_bytes)) for at, sample in places]
                outcomes = tier.read_many(requests)
                assert [each for each in outcomes if not isinstance(each, kinds)] == []
            self.after_outage(tier)
            for location, sample in places:
                sample.check_in(tier, location)
            late = make_sample(99, 50_000)
            late.check_in(tier, late.write_to(tier))

    def test_a_write_that_fails_costs_nothing_that_was_stored(self) -> None:
        self._writes_fail(Fault.WRITE_ERROR, StorageError)

    def test_a_place_without_room_costs_nothing_that_was_stored(self) -> None:
        self._writes_fail(Fault.NO_SPACE, TierFull, StorageError)

    def _writes_fail(self, fault: Fault, *kinds: type[Exception]) -> None:
        with closing(self.make_tier()) as tier:
            before = [make_sample(number, 9000 + 70_000 * number) for number in range(4)]
            places = [(sample.write_to(tier), sample) for sample in before]
            used = tier.used
            context = self.inject(tier, fault)
            if context is None:
                return
            with context:
                for number in range(10, 20):
                    with raises(*kinds):
                        make_sample(number, 200_000).write_to(tier)
                assert tier.used == used, "a write that failed keeps its room"
                for location, sample in places:
                    sample.check_in(tier, location)
            self.after_outage(tier)
            for number in range(10, 20):
                sample = make_sample(number, 200_000)
                places.append((sample.write_to(tier), sample))
            for location, sample in places:
                sample.check_in(tier, location)
            assert tier.used == sum(sample.record.total_bytes for _, sample in places)

    def test_a_slow_place_is_still_right(self) -> None:
        with closing(self.make_tier()) as tier:
            context = self.inject(tier, Fault.SLOW)
            if context is None:
                return
            with context:
                places = [(sample.write_to(tier), sample) for sample in map(make_sample, range(3), (1, 9000, 300_000))]
                for location, sample in places:
                    sample.check_in(tier, location)
                requests = [(at, 0, aligned_memory(sample.record.total_bytes)) for at, sample in places]
                assert list(tier.read_many(requests)) == [None] * 3

    def test_a_place_that_hangs_is_given_up_on(self) -> None:
        with closing(self.make_tier()) as tier:
            sample = make_sample(1, 50_000)
            location = sample.write_to(tier)
            context = self.inject(tier, Fault.HUNG)
            if context is None:
                return
            with context:
                reading = ended(lambda: sample.check_in(tier, location))
                writing = ended(lambda: make_sample(2, 50_000).write_to(tier))
            for outcome in (reading, writing):
                assert isinstance(outcome, StorageError | DeadlineExceeded | Unavailable), outcome
            self.after_outage(tier)
            sample.check_in(tier, location)

    def after_outage(self, tier: Tier) -> None:
        """Wait until the tier tries again what it has given up on."""

    def test_a_flipped_bit_is_never_taken_for_right(self) -> None:
        with closing(self.make_tier()) as tier:
            samples = [make_sample(number, nbytes) for number, nbytes in enumerate((1, 5000, 200_000, 900_000))]
            places = [(sample.write_to(tier), sample) for sample in samples]
            context = self.inject(tier, Fault.BIT_FLIP)
            if context is None:
                return
            noticed = 0
            with context:
                for location, sample in places * 10:
                    out = aligned_memory(sample.record.total_bytes)
                    try:
                        record = read_verified(tier, location, sample, out)
                    except Corrupt:
                        noticed += 1
                        continue
                    # The bit was in padding or in what only the place is sealed with.
                    assert out[record.header_bytes : record.header_bytes + record.stored] == sample.content
            assert noticed > 10
            for location, sample in places:
                sample.check_in(tier, location)


def ended(work: Callable[[], object]) -> BaseException | None:
    """What `work` raised, None if nothing; AssertionError if it has not ended in `PATIENCE_S`."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except Exception as error:  # noqa: BLE001 - handed to the caller
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert outcome, f"nothing came back within {PATIENCE_S:g} s"
    return outcome[0]
