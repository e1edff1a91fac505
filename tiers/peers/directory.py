"""The directory: which host holds which record, kept in a Valkey (or a cluster) that all hosts reach; see `layout`."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from kvstore.errors import KVStoreError
from kvstore.tiers.peers.layout import BUCKETS, LIFE_BYTES, Layout, Slot, slot_of
from kvstore.tiers.peers.lives import Lives
from kvstore.tiers.peers.place import DirectoryPlace
from kvstore.tiers.remote.valkey.wire import command

_SWEPT = 64  # hashes that are freed of dead entries at every renewal
_MOST_WRONG = 4096  # entries that wait to be taken out


class Directory:
    """One host's way to the directory.

    `url` and the rest are those of `ValkeyEngine`. A thread renews the lease, three times in `lease_s`, learns which
    other hosts live, and takes entries out whose hosts do not. Raises `ConfigError`, `Unavailable`.
    """

    def __init__(
        self, url: str | Sequence[str], *, group: str = "default", username: str = "", password: str = "",
        ca_file: str = "", cert_file: str = "", key_file: str = "", lease_s: float = 5.0,
    ) -> None:  # fmt: skip
        urls = [url] if isinstance(url, str) else list(url)
        self._place = DirectoryPlace(urls, username, password, ca_file, cert_file, key_file)
        self._layout = Layout(group)
        self._lives = Lives(self._place, self._layout, lease_s)
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._where = ""
        self._begun: Callable[[], None] = _nothing
        self._listener: Callable[[], None] = _nothing
        self._wrong: list[tuple[Slot, bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvstore-peers-lease", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """`ok`, or since when and why it is not to be had."""
        return self._place.breaker.state

    @property
    def is_open(self) -> bool:
        """Whether look-ups ask it just now."""
        return self._place.is_open

    @property
    def life(self) -> bytes:
        """What this host's entries say; empty while it advertises nothing."""
        return self._lives.own

    @property
    def alive(self) -> Mapping[bytes, str]:
        """Where the other hosts are reached, by life, as of the last time that it was asked."""
        return self._lives.alive

    def advertise(self, where: str, begun: Callable[[], None]) -> None:
        """From now on this host has a lease. `begun` is called whenever a new life begins, of which nothing is entered.

        That is at the start, and when the lease was lost: with the directory's content, or since it was out of reach.
        """
        with self._lock:
            self._where, self._begun = where, begun
        with contextlib.suppress(KVStoreError):  # the thread goes on trying
            self._renew()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever it was asked which hosts live, in this directory's own thread."""
        self._listener = listener

    def look_up(self, names: Sequence[bytes], timeout_s: float) -> Sequence[tuple[bytes, str] | None]:
        """Of each packed name the life of another host that holds it, and where that is reached.

        One round trip, and some more where a host is new. Raises what a look-up of a remote place raises.
        """
        deadline = time.monotonic() + timeout_s
        lives = self._ask([slot_of(name) for name in names], timeout_s)
        if self._lives.may_be_new(lives):
            with contextlib.suppress(KVStoreError):  # what is known already stays good
                self._lives.learn(deadline - time.monotonic())
        alive, own = self._lives.alive, self._lives.own
        return [None if life is None or life == own or life not in alive else (life, alive[life]) for life in lives]

    def _ask(self, slots: Sequence[Slot], timeout_s: float) -> list[bytes | None]:
        """The life that each slot's entry names, and in the same round trip which of the known ones live."""
        keys, requests, groups = self._layout.ask(slots)
        known = list(self._lives.alive)
        if known:
            keys, requests = [*keys, self._layout.lives], [*requests, self._lives.question(known)]
        answers = self._place.look_up(keys, requests, timeout_s)
        if known:
            self._lives.take(known, answers.pop())
        lives: list[bytes | None] = [None] * len(slots)
        for group, answer in zip(groups, answers, strict=True):
            for index, life in zip(group, answer if isinstance(answer, list) else (), strict=False):
                lives[index] = life if isinstance(life, bytes) and len(life) == LIFE_BYTES else None
        return lives

    def publish(self, names: Sequence[bytes], life: bytes) -> None:
        """Enter what this host holds, in the life that it had when it looked."""
        self._place.each(*self._layout.publish(map(slot_of, names), life))
        self._place.meter.count("published", len(names))

    def withdraw(self, names: Sequence[bytes], life: bytes) -> None:
        """Take out what a life does not hold any more."""
        self._place.each(*self._layout.withdraw(map(slot_of, names), life))
        self._place.meter.count("withdrawn", len(names))

    def lost(self, name: bytes, life: bytes) -> None:
        """Another host does not have what an entry says: it is taken out by and by."""
        with self._lock:
            if len(self._wrong) < _MOST_WRONG:
                self._wrong.append((slot_of(name), life))

    def stats(self) -> dict[str, float | int | str]:
        """What was entered, and how the directory is."""
        counts = self._place.meter.counts()
        told = {name: counts[name] for name in ("published", "withdrawn", "swept")}
        return {"directory": self.state, "directory_opened": self._place.breaker.opened, **told}

    def close(self) -> None:
        """Give the lease up and close. A second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if self.life and self.is_open:
            with contextlib.suppress(KVStoreError):  # it expires
                self._lives.end()
        self._place.close()

    def _run(self) -> None:
        while not self._stop.wait(self._lease_s / 3 * random.uniform(0.9, 1.0)):
            with contextlib.suppress(KVStoreError):  # the breaker knows
                self._renew()
                self._listener()
                self._sweep()

    def _renew(self) -> None:
        with self._lock:
            where, begun = self._where, self._begun
        new = bool(where) and self._lives.renew(where)
        self._lives.learn()
        if new:
            begun()

    def _sweep(self) -> None:
        """Take out entries of some hashes whose hosts are gone, and those that were found to be wrong."""
        with self._lock:
            wrong, self._wrong = self._wrong, []
        keys = [self._layout.bucket(number) for number in random.sample(range(BUCKETS), _SWEPT)]
        answers = self._place.each(keys, [command(b"HGETALL", key) for key in keys])
        entries: dict[bytes, list[Slot]] = {}
        for key, answer in zip(keys, answers, strict=True):
            bucket, words = int(key[-4:], 16), answer if isinstance(answer, list) else []
            for field, life in zip(words[::2], words[1::2], strict=False):
                if isinstance(field, bytes) and isinstance(life, bytes):
                    entries.setdefault(life, []).append(Slot(bucket, field))
        for life in self._lives.over(list(entries)):
            wrong += [(slot, life) for slot in entries[life]]
        for life in {life for _, life in wrong}:
            slots = [slot for slot, of in wrong if of == life]
            self._place.each(*self._layout.withdraw(slots, life))
            self._place.meter.count("swept", len(slots))


def _nothing() -> None:
    """Where nobody wants to know."""
