"""Removes the artefacts that no record names any more."""

from __future__ import annotations

from kvstore.catalog import Scope
from kvstore.codecs import all_codecs
from kvstore.copies import Copies
from kvstore.core import ROWS_AT_ONCE, Copy, Core
from kvstore.errors import KVStoreError
from kvstore.record import NO_ARTEFACT, RAW
from kvstore.spec import Part


def sweep(core: Core, copies: Copies) -> int:
    """Remove what is neither configured nor shipped and named by no record; how many. Raises what reading raises.

    An artefact that is not configured encodes nothing new, so one that no record names will be named by none. The
    index does not say which artefact a record was made with: the headers are read of those whose codec needs one.
    """
    stale = core.coder.artefacts.stale()
    needing = {codec.number for codec in all_codecs().values() if codec.artefact_kind}
    plain = {codec.number for codec in all_codecs().values()} - needing | {RAW}
    start = 0
    while stale and start >= 0:
        core.check_open()
        with core.lock:
            rows, start = core.index.chunks(start, ROWS_AT_ONCE)
            held = [each for row in rows.tolist() for each in _held(core, row, plain)]
        try:
            stale -= {copies.header(copy).artefact for _, _, _, copy in held} - {NO_ARTEFACT}
        finally:
            for each in held:
                copies.finish(*each)
    core.coder.artefacts.remove(stale)
    return len(stale)


def sweep_quietly(core: Core, copies: Copies) -> None:
    """`sweep` beside everything else; what fails is tried again at the next start."""
    try:
        sweep(core, copies)
    except KVStoreError:
        with core.lock:
            core.counters["artefact_sweep_failed"] += 1


def _held(core: Core, row: int, plain: set[int]) -> list[tuple[Scope, bytes, Part, Copy]]:
    """A chunk's copies whose records may name an artefact, with a reader on each. Needs the lock."""
    found, chunk = [], core.index.chunk(row)
    scope = core.catalog.scopes[chunk.scope]
    for placement in core.placements(row):
        place = core.index.placement(placement)
        if place.codec not in plain:
            part = core.index.part(place.part)
            which = Part(part.group, part.rank, (part.layer_start, part.layer_end))
            found.append((scope, chunk.key, which, core.hold(placement, scope, which)))
    return found
