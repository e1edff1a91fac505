"""A reservation: memory of the arena for one part, filled in place by whoever holds it."""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvstore import _native
from kvstore.api import Ack
from kvstore.errors import Closed, Corrupt
from kvstore.loan import Loan

if TYPE_CHECKING:
    from kvstore.core import Core
    from kvstore.slot import Slot
    from kvstore.writer import Writer


class StoreReservation:
    """Memory of the arena for one part; see `kvstore.api.Reservation`."""

    def __init__(self, core: Core, writer: Writer, slot: Slot) -> None:
        self._core, self._writer, self._slot = core, writer, slot
        self._open = True
        self._loan = Loan(self._core.dram.view(slot.location, slot.geometry.header, slot.geometry.nbytes))

    @property
    def data(self) -> memoryview:
        """Memory to fill, of the exact length of the part."""
        return self._loan.data

    def commit(self, ack: Ack = Ack.STORED, *, expect: bytes = b"") -> bool:
        """Hash what was written and publish it; see `kvstore.api.Reservation.commit`."""
        slot, geometry = self._slot, self._slot.geometry
        if not self._open:
            raise Closed("this reservation was committed or aborted already")
        self._writer.check_ack(ack, geometry)
        digests = _native.xxh3_128_many(self.data, geometry.offsets, geometry.lengths)
        if expect and digests.tobytes() != expect:
            self.abort()
            raise Corrupt(f"the bytes of chunk {slot.ref.key.hex()} do not match the checksums sent with them")
        self._take()
        try:
            placed, copy = self._writer.publish(slot, digests, ack)
        finally:
            self._core.loans.end(self._loan, self._nothing if slot.placed else partial(self._writer.give_up, slot))
        self._writer.ensure(slot.scope, slot.ref.key, slot.part, copy, ack)
        return placed

    @property
    def is_open(self) -> bool:
        """Whether it was neither committed nor aborted."""
        return self._open

    def abort(self) -> None:
        """Give the memory back unless it was published."""
        try:
            self._take()
        except Closed:
            return
        self._core.loans.end(self._loan, partial(self._writer.give_up, self._slot))

    def _take(self) -> None:
        """End the reservation, for one caller alone: what is done with its memory is up to that one."""
        with self._core.lock:
            if not self._open:
                raise Closed("this reservation was committed or aborted already")
            self._open = False
            self._writer.count_no_longer(self._slot)

    def _nothing(self) -> None:
        """The memory belongs to a chunk now."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
