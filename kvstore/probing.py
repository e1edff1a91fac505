"""A few bytes now and then of what look-ups left out, so that what was too slow once is not left alone for ever.

What is not loaded is not measured either. So a client whose look-ups leave something out, and that has read nothing for
a while, reads the end of it beside, for the time that this takes. Nobody waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from kvstore.api import Backend, Found, Query, Want
from kvstore.errors import KVStoreError
from kvstore.keys import ChunkRef

PROBE_S = 0.25  # the least time between a read and a probe, and between two probes
FIRST_PROBE_S, FIRST_PROBES = 0.05, 16  # while little is known of the way
PROBE_SHARE = 0.1  # of the time that they may take
PROBE_BYTES = 8 << 20
END_S = 5.0  # a probe whose backend is closed fails at once, or is nearly done


class Probing:
    """For one client. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due = time.monotonic() + min(PROBE_S, FIRST_PROBE_S)
        self._running = self._ended = False
        self._thread: threading.Thread | None = None
        self._probes = 0

    def end(self) -> None:
        """Begin none any more, and wait for the one under way; after the backend was closed.

        A thread that the interpreter's end meets in native code would take it down.
        """
        with self._lock:
            self._ended = True
            running = self._thread
        if running is not None and running is not threading.current_thread():
            running.join(END_S)

    def read(self) -> None:
        """Something was read, and has been measured by that."""
        self._due = max(self._due, time.monotonic() + self._pause_s)

    def left_out(self, backend: Backend, query: Query, refs: Sequence[ChunkRef], found: Found) -> None:
        """A look-up left out chunks of `refs`, which are there and not worth loading."""
        with self._lock:
            if self._running or self._ended or time.monotonic() < self._due:
                return
            self._running = True
            wants = _wants(query, refs, found)
            self._thread = threading.Thread(
                target=self._probe, args=(backend, query, wants), name="kvstore-probe", daemon=True
            )
            self._thread.start()

    def _probe(self, backend: Backend, query: Query, wants: Sequence[Want]) -> None:
        began = time.monotonic()
        try:
            backend.get(query.spec, wants, fidelity=query.fidelity)
        except KVStoreError:
            pass  # nobody has asked for it
        finally:
            now = time.monotonic()
            with self._lock:
                self._probes += 1
                self._running, self._due = False, now + max(self._pause_s, (now - began) / PROBE_SHARE)

    @property
    def _pause_s(self) -> float:
        return PROBE_S if self._probes >= FIRST_PROBES else min(PROBE_S, FIRST_PROBE_S)


def _wants(query: Query, refs: Sequence[ChunkRef], found: Found) -> Sequence[Want]:
    """The last chunks of what was left out, as many as a probe reads."""
    part = query.parts[0] if query.parts else query.spec.all_parts[0]
    reached = found.plan.end if found.plan is not None else found.tokens
    chosen, nbytes = list[ChunkRef](), 0
    for ref, there in zip(reversed(refs), reversed(found.present), strict=True):
        if there and reached <= ref.position and ref.end <= reached + found.left_out and nbytes < PROBE_BYTES:
            chosen.append(ref)
            nbytes += query.spec.part_bytes(part, ref.tokens)
    memory = np.ones(nbytes, np.uint8).data
    wants, at = list[Want](), 0
    for ref in chosen:
        end = at + query.spec.part_bytes(part, ref.tokens)
        wants.append(Want(ref, part, memory[at:end]))
        at = end
    return wants
