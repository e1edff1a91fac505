"""Reading: from DRAM where it lies, from a slower tier by way of DRAM."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, as_completed, wait
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.api import Fidelity, Want
from kvstore.backlog import Waiting
from kvstore.catalog import Scope
from kvstore.checked import fill_from, miss
from kvstore.core import DRAM, Copy, Core
from kvstore.decoding import OwnView, raw_record
from kvstore.errors import Closed, Corrupt, KVStoreError, Shed, SpecMismatch
from kvstore.keys import ChunkRef
from kvstore.loader import Loader
from kvstore.loan import Loan
from kvstore.places import NOWHERE, pack_items, unpack_places
from kvstore.record import RAW, Record, unpack
from kvstore.spec import Part

TELLING_BYTES = 1 << 20  # a get of fewer says nothing of how fast memory is copied


class Reader:
    """Hands out the bytes of copies, loaded into DRAM where need be."""

    def __init__(self, core: Core, loader: Loader) -> None:
        self._core = core
        self._loader = loader

    def get(self, scope: Scope, wants: Sequence[Want], fidelity: Fidelity, verify: bool) -> Sequence[Exception | None]:
        """Fill every destination; one outcome each, in order."""
        outcomes = list[Exception | None]([None] * len(wants))
        held, cold = self._hold_all(scope, wants, fidelity, outcomes)
        mine, others = next(iter(cold), None), list(cold)[1:]
        try:
            submit, work, began = self._loader.submit_load, self._get_cold, time.perf_counter()
            loads = [(i, submit(cold[i], work, scope, wants[i], fidelity)) for i in others]
            for each in held.items:
                outcomes[each.number] = self._fill_held(scope, wants[each.number], each, verify)
            copied_s = 0.0 if cold or verify else time.perf_counter() - began
        finally:
            self._let_go(held)
            if mine is not None:
                cold[mine].leave()  # its turn has come
        self._learn_copying(wants, outcomes, copied_s)
        for each in held.items:
            if isinstance(outcomes[each.number], Corrupt | SpecMismatch):
                want = wants[each.number]
                self._loader.copies.reject(scope, want.ref.key, want.part, each.copy(scope, want.part))
        if mine is not None:
            outcomes[mine] = self._get_cold(scope, wants[mine], fidelity)
        for i, load in loads:
            try:
                outcomes[i] = load.result()
            except CancelledError:
                outcomes[i] = Closed("the store was closed before the load began")
        return outcomes

    def _learn_copying(self, wants: Sequence[Want], outcomes: Sequence[Exception | None], seconds: float) -> None:
        """A get that had nothing to load has shown what it takes to copy out of DRAM."""
        nbytes = sum(want.out.nbytes for want, outcome in zip(wants, outcomes, strict=True) if outcome is None)
        if seconds > 0 and nbytes >= TELLING_BYTES:
            plain_s = nbytes / self._core.dram.speed.read_bytes_per_s
            with self._core.lock:
                self._core.forecasts.copied(DRAM, seconds, plain_s)

    def get_each(
        self, scope: Scope, wants: Sequence[Want], fidelity: Fidelity, verify: bool
    ) -> Iterator[tuple[int, Exception | None]]:
        """Fill every destination and tell each one's outcome: misses and DRAM copies, then loads as they end."""
        outcomes = list[Exception | None]([None] * len(wants))
        held, cold = self._hold_all(scope, wants, fidelity, outcomes)
        copies, bad, loads = {each.number: each for each in held.items}, list[_Held](), dict[Any, int]()
        try:
            for i, waiting in cold.items():
                loads[self._loader.submit_load(waiting, self._get_cold, scope, wants[i], fidelity)] = i
            for i in sorted({*range(len(wants))}.difference(cold)):
                if i in copies:
                    outcomes[i] = self._fill_held(scope, wants[i], copies[i], verify)
                    if isinstance(outcomes[i], Corrupt | SpecMismatch):
                        bad.append(copies[i])
                yield i, outcomes[i]
            for load in as_completed(loads):
                yield loads[load], load.result()
        except CancelledError:
            raise Closed("the store was closed before the load began") from None
        finally:
            self._let_go(held)
            for each in bad:
                want = wants[each.number]
                self._loader.copies.reject(scope, want.ref.key, want.part, each.copy(scope, want.part))
            for load in loads:
                load.cancel()
            wait(loads)  # nobody writes to the destinations once this has ended

    def view(self, scope: Scope, ref: ChunkRef, part: Part, fidelity: Fidelity, encoded: bool) -> StoreView | OwnView:
        """A part where it lies in DRAM, loaded first if need be; one that is encoded decoded, unless asked as it is."""
        copy = self._loader.hold_in_dram(scope, ref, part, fidelity, count=True)
        if copy.form == RAW or encoded:
            return StoreView(self._core, copy)
        good = True
        try:
            return self._decoded_view(scope, ref, part, copy)
        except (Corrupt, SpecMismatch):
            good = False
            raise
        finally:
            self._core.let_go([copy])
            if not good:
                self._loader.copies.reject(scope, ref.key, part, copy)

    def _decoded_view(self, scope: Scope, ref: ChunkRef, part: Part, copy: Copy) -> OwnView:
        data = np.empty(scope.spec.part_bytes(part, ref.tokens), np.uint8).data
        memory = self._core.dram.view(copy.location, 0, copy.header + copy.stored)
        fill_from(memory, scope, Want(ref, part, data), copy, False, self._core.coder)
        return OwnView(raw_record(unpack(memory[: copy.header]), data, scope.spec), data)

    def _hold_all(
        self, scope: Scope, wants: Sequence[Want], fidelity: Fidelity, outcomes: list[Exception | None]
    ) -> tuple[_HeldItems, dict[int, Waiting]]:
        """The copies in DRAM, each with a reader on it, and the indexes of what has to be loaded and is waited for."""
        core, held, cold = self._core, list[_Held](), dict[int, Waiting]()
        core.check_open()
        items = pack_items([(want.ref, want.part) for want in wants])
        with core.lock:
            found = core.find_items(scope, items, fidelity)
            placements = found.placements.tolist()
            for i, place in enumerate(unpack_places(found.places)):
                if place[0] != NOWHERE:
                    held.append(_Held(i, placements[i], *place))
                elif placements[i] >= 0:
                    row = core.index.placement(placements[i])
                    cold[i] = core.backlog.enter(row.tier, row.stored)
                else:
                    scope.spec.check_part(wants[i].part)
                    outcomes[i] = miss(wants[i].ref, wants[i].part)
            readers = found.placements
            if len(held) < len(wants):
                readers = np.array([each.placement for each in held], np.int64)
            core.usage.found(scope, found)
            core.index.add_readers(readers)
        return _HeldItems(held, readers), cold

    def _let_go(self, held: _HeldItems) -> None:
        core = self._core
        with core.lock:
            core.index.drop_readers(held.readers)
            core.room.notify_all()

    def _fill_held(self, scope: Scope, want: Want, held: _Held, verify: bool) -> Exception | None:
        """Copy what is wanted out of a DRAM copy; a whole raw part, which nearly all are, by the shortest way."""
        out = want.out
        if verify or want.layers is not None or held.form or out.nbytes != held.stored or out.readonly:
            return self._loader.fill(scope, want, held.copy(scope, want.part), verify)
        try:
            _native.copy(out, self._core.dram.view(held.location, 0, held.stored))
        except KVStoreError as error:
            return error
        return None

    def _get_cold(self, scope: Scope, want: Want, fidelity: Fidelity) -> Exception | None:
        try:
            copy = self._loader.hold_in_dram(scope, want.ref, want.part, fidelity)
        except Shed:
            return self._loader.read_around(scope, want, fidelity)
        except KVStoreError as error:
            return error
        outcome = None
        try:
            outcome = self._loader.fill(scope, want, copy, verify=False)
            return outcome
        finally:
            self._core.let_go([copy])
            if isinstance(outcome, Corrupt | SpecMismatch):
                self._loader.copies.reject(scope, want.ref.key, want.part, copy)


@dataclass(slots=True)
class _HeldItems:
    """Copies in DRAM and their placements, on each of which there is a reader."""

    items: list[_Held]
    readers: npt.NDArray[np.int64]


class _Held(NamedTuple):
    """The DRAM copy of one item: `location` is that of its payload."""

    number: int
    placement: int
    location: int
    stored: int
    form: int
    first_valid: int

    def copy(self, scope: Scope, part: Part) -> Copy:
        """The whole record."""
        header = scope.header_bytes(part)
        return Copy(self.placement, DRAM, self.location - header, self.stored, self.form, header)


class StoreView:
    """Read-only bytes of the arena; see `kvstore.api.View`."""

    def __init__(self, core: Core, copy: Copy) -> None:
        self._core = core
        self._copy: Copy | None = copy
        self._header = core.dram.view(copy.location, 0, copy.header)
        self._loan = Loan(core.dram.view(copy.location, copy.header, copy.stored), readonly=True)

    @property
    def data(self) -> memoryview:
        """The part's bytes, until the view is closed."""
        return self._loan.data

    @property
    def record(self) -> Record:
        """The header of what is viewed."""
        if self._copy is None:
            raise Closed("this view was closed already")
        return unpack(self._header)

    def close(self) -> None:
        """Let the bytes go, as soon as no array stands on them. A second call does nothing."""
        copy, self._copy = self._copy, None
        if copy is not None:
            self._core.loans.end(self._loan, partial(self._core.let_go, [copy]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
