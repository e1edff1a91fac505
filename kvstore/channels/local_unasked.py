"""What a client on the server's host does without a call. None, or what is left, is for the server to answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from kvstore.api import Found, Query, Want
from kvstore.channels.local_leases import Lease
from kvstore.channels.local_life import Life
from kvstore.channels.local_read import fill, header_length, is_of
from kvstore.channels.local_view import LocalView
from kvstore.decoding import FindArtefact
from kvstore.keys import ChunkRef
from kvstore.places import NOWHERE, unpack_places
from kvstore.spec import KVSpec

EndView = Callable[[Callable[[], None], LocalView], None]


def lookup(life: Life, query: Query) -> tuple[Found, Lease] | None:
    """A look-up with a lease, which is still to be remembered or released."""
    hazards = life.hazards
    answer = None if hazards is None else hazards.lookup(query)
    if answer is None:
        return None
    found, (places, numbers, deadline) = answer
    parts = {query.spec.all_parts[0]: 0}
    lease = Lease(query.spec.digest, query.refs, found.used, parts, places, query.fidelity, deadline, hazards, numbers)
    return found, lease


def read(
    life: Life, spec: KVSpec, wants: Sequence[Want], asked: list[int], verify: bool, hold_s: float, find: FindArtefact
) -> list[int]:
    """Copy those of the wants asked for that can be read where they lie; the rest."""
    hazards = life.hazards
    taken = None if hazards is None else hazards.read(spec, [wants[number].ref for number in asked], hold_s)
    if hazards is None or taken is None:
        return asked
    rest, (part,) = list[int](), spec.all_parts
    try:
        for number, place in zip(asked, unpack_places(taken.places), strict=True):
            want = wants[number]
            good = place[0] != NOWHERE and want.part == part
            good = good and fill(life.extents, spec, want, place, verify, find) is None
            if not good or time.monotonic() >= taken.deadline or not hazards.honoured or life.ended:
                rest.append(number)
    finally:
        hazards.release(taken.numbers)
    return rest


def view(life: Life, spec: KVSpec, ref: ChunkRef, end: EndView) -> LocalView | None:
    """A chunk where it lies; `end` is told how to let it go, when the view is closed."""
    hazards = life.hazards
    taken = None if hazards is None else hazards.read(spec, (ref,), None)
    if hazards is None or taken is None:
        return None
    made = None
    try:
        ((location, stored, _, _),) = unpack_places(taken.places)
        header = header_length(spec, spec.all_parts[0])
        memory = life.extents.memory(location, header, stored)
        if memory is not None and is_of(memory, spec, ref):  # else of an extent that only a call makes known
            made = LocalView(memory, header, partial(end, partial(hazards.release, taken.numbers)))
    finally:
        if made is None:
            hazards.release(taken.numbers)
    return made
