"""A circuit breaker: while a place is down, every call fails at once, and a thread of its own asks when it is back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from enum import Enum

from kvstore.errors import KVStoreError, Unavailable

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


class Circuit(Enum):
    """What may pass."""

    CLOSED = "closed"  # everything
    SUSPECT = "suspect"  # a call ran out of its short time: reads and writes do, look-ups wait for the probe's word
    OPEN = "open"  # nothing
    HALF_OPEN = "half-open"  # nothing but the probe that is under way


class Breaker:
    """Opens with the first call that fails, and closes when `probe` (which raises where the place is down) returns.

    Probes come one at a time, from a thread that lives as long as the outage: the first at once, then after pauses
    that double up to 2 s, drawn at random so that hosts do not ask in step. `recovered` is called before it closes.
    """

    def __init__(self, name: str, probe: Callable[[], None], recovered: Callable[[], None]) -> None:
        self._name, self._probe, self._recovered = name, probe, recovered
        self._lock = threading.Lock()
        self._circuit = Circuit.CLOSED
        self._reason = ""
        self._since = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.opened = self.probes = 0

    @property
    def circuit(self) -> Circuit:
        """What may pass now."""
        return self._circuit

    @property
    def state(self) -> str:
        """`ok`, or since when and why the place is down."""
        with self._lock:
            if self._circuit is Circuit.CLOSED:
                return "ok"
            return f"down for {time.monotonic() - self._since:.0f} s ({self._circuit.value}): {self._reason}"

    def check(self, *, lookup: bool = False) -> None:
        """Raise `Unavailable` if a call must not pass."""
        circuit = self._circuit
        if circuit is Circuit.CLOSED or (circuit is Circuit.SUSPECT and not lookup):
            return
        raise Unavailable(f"{self._name} is {self.state}")

    def failed(self, error: KVStoreError, *, suspect: bool = False) -> None:
        """A call failed for good; `suspect` if it had little time, so that the place may be well all the same."""
        with self._lock:
            if self._stop.is_set() or self._circuit in {Circuit.OPEN, Circuit.HALF_OPEN}:
                return
            was = self._circuit
            self._circuit = Circuit.SUSPECT if suspect else Circuit.OPEN
            self._reason = str(error)
            if was is Circuit.CLOSED:
                self._since = time.monotonic()
            if self._circuit is Circuit.OPEN:
                self.opened += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name=f"kvstore-{self._name}-probe", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the probes."""
        with self._lock:
            self._stop.set()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _watch(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stop.is_set():
            if self._ask():
                return
            self._stop.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _ask(self) -> bool:
        with self._lock:
            if self._circuit is Circuit.OPEN:
                self._circuit = Circuit.HALF_OPEN
            self.probes += 1
        try:
            self._probe()
            self._recovered()
        except KVStoreError as error:
            with self._lock:
                if self._circuit is Circuit.SUSPECT:
                    self.opened += 1
                self._circuit, self._reason = Circuit.OPEN, str(error)
            return False
        with self._lock:
            self._circuit, self._thread = Circuit.CLOSED, None
        return True
