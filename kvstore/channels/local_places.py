"""Parts whose places the server is asked for: brought into DRAM and leased in one call, then copied from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kvstore import wire
from kvstore.api import Fidelity, Want
from kvstore.channels.bulk import BulkBackend
from kvstore.channels.control import Control
from kvstore.channels.lines import Lines
from kvstore.channels.local_life import Life
from kvstore.channels.local_read import fill
from kvstore.channels.local_releases import Releases
from kvstore.channels.stream import Stream
from kvstore.decoding import known_forms
from kvstore.errors import Corrupt, DeadlineExceeded, KVStoreError, Shed, SpecMismatch
from kvstore.places import Place, pack_items, unpack_places
from kvstore.record import RAW
from kvstore.spec import KVSpec
from kvstore.v1 import kvstore_pb2 as pb

WINDOW_BYTES = 256 << 20  # what one call of a large get holds at a time
TRIES = 3
MARGIN_S = 0.002  # by how much the server's milliseconds may be short of ours


class HeldPlaces(NamedTuple):
    """The answer to a Place: it holds until `deadline`, if `life` still lasts."""

    life: Life
    deadline: float
    places: list[Place]
    failures: dict[int, KVStoreError]


class LocalPlaces:
    """What one client asks its server to place, and its copies.

    `life_of` gives the server's life that a line leads to, `new_lease` a name that no lease of the client's has had.
    What cannot be read in place comes by `inline`.
    """

    def __init__(
        self,
        control: Control,
        lines: Lines,
        inline: BulkBackend,
        releases: Releases,
        life_of: Callable[[Stream], Life],
        new_lease: Callable[[], bytes],
    ) -> None:
        self._control, self._lines, self._inline, self._releases = control, lines, inline, releases
        self._life_of, self._new_lease = life_of, new_lease

    def read(
        self,
        spec: KVSpec,
        wants: Sequence[Want],
        left: list[int],
        outcomes: list[Exception | None],
        fidelity: Fidelity,
        verify: bool,
        hold_s: float,
    ) -> None:
        """Copy those of `wants` that are `left`, each call holding its parts for `hold_s`; `outcomes` are entered."""
        for window in _windows(wants, left) if len(left) > 1 else (left,):
            self._read_window(spec, wants, window, outcomes, fidelity, verify, hold_s)

    def ask(
        self, spec: KVSpec, items: bytes, fidelity: Fidelity, verify: bool, lease: bytes, lease_s: float
    ) -> HeldPlaces:
        """Have parts brought into DRAM and leased; without a time limit if `lease_s` is 0."""
        message = pb.PlaceRequest(
            spec=spec.digest,
            items=items,
            fidelity=wire.fidelity_to_number(fidelity),
            lease=lease,
            lease_ms=round(lease_s * 1000),
            verify=verify,
        ).SerializeToString()

        def attempt(line: Stream) -> tuple[Life, float, bytes]:
            life, sent = self._life_of(line), time.monotonic()
            return life, sent, self._lines.exchange(line, pb.METHOD_PLACE, message, self._releases.over())

        life, sent, told = self._control.with_spec(spec, lambda: self._lines.run(attempt))
        answer = pb.PlaceResponse.FromString(told)
        failures = {each.item: wire.failure_from_message(each.failure) for each in answer.failed}
        return HeldPlaces(life, sent + lease_s - MARGIN_S, list(unpack_places(answer.places)), failures)

    def _read_window(
        self,
        spec: KVSpec,
        wants: Sequence[Want],
        left: list[int],
        outcomes: list[Exception | None],
        fidelity: Fidelity,
        verify: bool,
        hold_s: float,
    ) -> None:
        """One call for the places of what is left, its copies, and once more what came too late or was bad."""
        suspicious, find = False, self._control.find_artefact
        for _ in range(TRIES):
            lease = self._new_lease()
            items = pack_items([(wants[number].ref, wants[number].part) for number in left])
            held = self.ask(spec, items, fidelity, suspicious, lease, hold_s)
            again, inline = list[int](), list[int]()
            for at, number in enumerate(left):
                outcome = held.failures.get(at)
                strange = outcome is None and held.places[at][2] not in (RAW, *known_forms())
                if isinstance(outcome, Shed) or strange:  # no room in DRAM, or not to be decoded here: it can be sent
                    inline.append(number)
                    continue
                if outcome is None:
                    outcome = fill(held.life.extents, spec, wants[number], held.places[at], verify, find)
                    if time.monotonic() >= held.deadline or held.life.ended:
                        again.append(number)
                        outcome = DeadlineExceeded(f"the copy took longer than {hold_s} s, {TRIES} times")
                    elif isinstance(outcome, Corrupt | SpecMismatch):
                        suspicious = True
                        again.append(number)
                outcomes[number] = outcome
            self._releases.add(lease)
            if inline:
                rest = self._inline.get(spec, [wants[number] for number in inline], fidelity=fidelity, verify=verify)
                for number, told in zip(inline, rest, strict=True):
                    outcomes[number] = told
            left = again
            if not left:
                break
        self._releases.send_if_many()


def _windows(wants: Sequence[Want], left: list[int]) -> Iterator[list[int]]:
    """What is left in runs of `WINDOW_BYTES`, or of one that is larger."""
    window, nbytes = list[int](), 0
    for number in left:
        size = wants[number].out.nbytes
        if window and nbytes + size > WINDOW_BYTES:
            yield window
            window, nbytes = [], 0
        window.append(number)
        nbytes += size
    yield window
