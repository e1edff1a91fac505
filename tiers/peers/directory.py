"""The directory: which host holds which record, kept in a Valkey (or a cluster) that all hosts reach; see `layout`."""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from kvstore.errors import ConfigError, DeadlineExceeded, KVStoreError, PermissionDenied, Unavailable
from kvstore.tiers.peers.layout import BUCKETS, LIFE_BYTES, Layout, Slot, slot_of
from kvstore.tiers.remote.attempts import Attempts
from kvstore.tiers.remote.breaker import Breaker, Circuit
from kvstore.tiers.remote.meter import Meter
from kvstore.tiers.remote.valkey.connect import Connector, parse
from kvstore.tiers.remote.valkey.nodes import Nodes
from kvstore.tiers.remote.valkey.objects import Request, batches, checked, exchange
from kvstore.tiers.remote.valkey.requests import Requests
from kvstore.tiers.remote.valkey.wire import Answer, command

CALL_S = 2.0
CONNECT_S = 5.0
_CONNECTIONS = 8
_TRIES = 2  # a connection that was kept may have ended
_SWEPT = 64  # hashes that are freed of dead entries at every renewal
_DEAD = 4096  # lives remembered to be over
_ASK_AGAIN_S = 0.2
Result = TypeVar("Result")


class Directory:
    """One host's way to the directory.

    `url` and the rest are those of `ValkeyEngine`. A thread renews the lease, three times in `lease_s`, learns which
    other hosts live, and takes entries out whose hosts do not. Raises `ConfigError`, `Unavailable`.
    """

    def __init__(
        self, url: str | Sequence[str], *, group: str = "default", username: str = "", password: str = "",
        ca_file: str = "", cert_file: str = "", key_file: str = "", lease_s: float = 5.0,
    ) -> None:  # fmt: skip
        places = [parse(each) for each in ([url] if isinstance(url, str) else url)]
        tls = places[0].tls
        files = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file} if tls else {}
        none = {"ca_file": "", "cert_file": "", "key_file": ""}
        connect = Connector(places[0], username, password, {**none, **files, "verify": True})
        addresses = [place.address for place in places]
        try:
            self._nodes = Nodes(addresses, connect, _CONNECTIONS, cluster=None, timeout_s=CONNECT_S)
        except PermissionDenied as error:
            raise ConfigError(f"{error}; give the right peers.username and peers.password") from error
        except DeadlineExceeded as error:
            raise Unavailable(f"{addresses[0]} does not answer within {CONNECT_S:g} s ({error})") from error
        self._requests = Requests(self._nodes)
        self._layout = Layout(group)
        self._lease_s = lease_s
        self._meter = Meter(1e9, 2e-4)
        self._breaker = Breaker("directory", self._probe, lambda: None)
        self._attempts = Attempts(self._breaker, self._meter, _TRIES)
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._alive: Mapping[bytes, str] = {}
        self._dead: dict[bytes, None] = {}
        self._asked_lives = 0.0
        self._life, self._advertised = b"", ""
        self._begun: Callable[[], None] = lambda: None
        self._listener: Callable[[], None] = lambda: None
        self._lost: list[tuple[Slot, bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvstore-peers-lease", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """`ok`, or since when and why it is not to be had."""
        return self._breaker.state

    @property
    def is_open(self) -> bool:
        """Whether look-ups ask it just now."""
        return self._breaker.circuit is Circuit.CLOSED

    @property
    def life(self) -> bytes:
        """What this host's entries say; empty while it advertises nothing."""
        return self._life

    @property
    def alive(self) -> Mapping[bytes, str]:
        """Where the other hosts are reached, by life, as of the last time that it was asked."""
        return self._alive

    def advertise(self, address: str, begun: Callable[[], None]) -> None:
        """From now on this host has a lease. `begun` is called whenever a new life begins, of which nothing is entered.

        That is at the start, and when the lease was lost: with the directory's content, or since it was out of reach.
        """
        with self._lock:
            self._advertised, self._begun = address, begun
        try:
            self._renew()
        except KVStoreError:
            return  # the thread goes on trying

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever it was asked which hosts live, in this directory's own thread."""
        self._listener = listener

    def look_up(self, names: Sequence[bytes], timeout_s: float) -> Sequence[tuple[bytes, str] | None]:
        """Of each packed name the life of another host that holds it, and where that is reached.

        One round trip, a second where a host is new. Raises what a look-up of a remote place raises.
        """
        slots = [slot_of(name) for name in names]
        deadline = time.monotonic() + timeout_s
        lives = self._attempts.run(lambda left: self._ask(slots, left), timeout_s, lookup=True)
        if any(life is not None and self._is_new(life) for life in lives) and self._may_ask_lives():
            with contextlib.suppress(KVStoreError):  # what is known already stays good
                self._attempts.run(self._learn, deadline - time.monotonic(), lookup=True)
        alive, own = self._alive, self._life
        return [None if life is None or life == own or life not in alive else (life, alive[life]) for life in lives]

    def publish(self, names: Sequence[bytes], life: bytes) -> None:
        """Enter what this host holds, in the life that it had when it looked."""
        self._each(*self._layout.publish(map(slot_of, names), life))
        self._meter.count("published", len(names))

    def withdraw(self, names: Sequence[bytes], life: bytes) -> None:
        """Take out what a life does not hold any more."""
        self._each(*self._layout.withdraw(map(slot_of, names), life))
        self._meter.count("withdrawn", len(names))

    def lost(self, name: bytes, life: bytes) -> None:
        """Another host does not have what an entry says: it is taken out by and by."""
        with self._lock:
            if len(self._lost) < _DEAD:
                self._lost.append((slot_of(name), life))

    def stats(self) -> dict[str, float | int | str]:
        """What was asked and entered, and how the directory is."""
        told = self._meter.counts(("published", "withdrawn", "swept", "errors", "timeouts"))
        return {"directory": self.state, "directory_opened": self._breaker.opened, **told}

    def close(self) -> None:
        """Give the lease up and close. A second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if self._life and self.is_open:
            try:
                self._single(command(b"DEL", self._layout.lease(self._life)), CALL_S)
                self._single(command(b"SREM", self._layout.lives, self._life), CALL_S)
            except KVStoreError:
                self._meter.count("errors")  # it expires
        self._breaker.close()
        self._nodes.close()

    def _run(self) -> None:
        while not self._stop.wait(self._lease_s / 3 * random.uniform(0.9, 1.0)):
            try:
                self._renew()
                self._listener()
                self._sweep()
            except KVStoreError:
                continue  # the breaker knows

    def _renew(self) -> None:
        """Renew the lease, or begin another life where there is none to renew."""
        with self._renewing:
            began = self._keep_lease()
        self._timed(self._learn)
        if began:
            self._begun()

    def _keep_lease(self) -> bool:
        """Whether a life has begun."""
        with self._lock:
            address, life = self._advertised, self._life
        lease_ms, began = b"%d" % int(self._lease_s * 1000), False
        if address:
            if not (life and self._ask_one(command(b"PEXPIRE", self._layout.lease(life), lease_ms))):
                life, began = secrets.token_bytes(LIFE_BYTES), True
                self._ask_one(command(b"SET", self._layout.lease(life), address.encode(), b"PX", lease_ms))
            self._ask_one(command(b"SADD", self._layout.lives, life))
            self._life = life
        return began

    def _ask(self, slots: Sequence[Slot], left: float) -> list[bytes | None]:
        """The life that each slot's entry names, and in the same round trip which of the known ones live."""
        keys, requests, groups = self._layout.ask(slots)
        known = list(self._alive)
        if known:
            keys = [*keys, self._layout.lives]
            requests = [*requests, command(b"MGET", *map(self._layout.lease, known))]
        answers = [checked(each) for each in self._requests.each(keys, requests, time.monotonic() + left)]
        if known:
            self._take_leases(known, answers.pop())
        lives: list[bytes | None] = [None] * len(slots)
        for group, answer in zip(groups, answers, strict=True):
            for index, life in zip(group, answer if isinstance(answer, list) else (), strict=False):
                lives[index] = life if isinstance(life, bytes) and len(life) == LIFE_BYTES else None
        return lives

    def _learn(self, left: float) -> None:
        """Find out which hosts live."""
        deadline = time.monotonic() + left
        members = self._single(command(b"SMEMBERS", self._layout.lives), left)
        lives = [each for each in members if isinstance(each, bytes)] if isinstance(members, list) else []
        others = [life for life in lives if life != self._life]
        if others:
            leases = command(b"MGET", *map(self._layout.lease, others))
            self._take_leases(others, self._single(leases, deadline - time.monotonic()), learnt=True)
        else:
            self._alive = {}
        gone = [life for life in others if life not in self._alive]
        if gone:
            self._single(command(b"SREM", self._layout.lives, *gone), max(0.001, deadline - time.monotonic()))

    def _take_leases(self, lives: Sequence[bytes], answer: Answer, *, learnt: bool = False) -> None:
        """Take over what is said of leases; `learnt` if it is of all lives that there are."""
        told = answer if isinstance(answer, list) else [None] * len(lives)
        alive = {
            life: where.decode(errors="replace")
            for life, where in zip(lives, told, strict=True)
            if isinstance(where, bytes)
        }
        with self._lock:
            # What another thread has learnt meanwhile of lives that were not asked for here stays.
            kept = {} if learnt else {life: at for life, at in self._alive.items() if life not in lives}
            self._alive = {**kept, **alive}
            for life in lives:
                if life not in alive:
                    self._dead[life] = None
            while len(self._dead) > _DEAD:
                del self._dead[next(iter(self._dead))]

    def _is_new(self, life: bytes) -> bool:
        return life != self._life and life not in self._alive and life not in self._dead

    def _may_ask_lives(self) -> bool:
        """Whether it is time to ask for hosts: an entry of one that nobody knows must not cost every look-up a call."""
        now = time.monotonic()
        with self._lock:
            if now - self._asked_lives < _ASK_AGAIN_S:
                return False
            self._asked_lives = now
            return True

    def _sweep(self) -> None:
        """Take out entries of some hashes whose hosts are gone, and those that were found to be wrong."""
        with self._lock:
            wrong, self._lost = self._lost, []
        keys = [self._layout.bucket(number) for number in random.sample(range(BUCKETS), _SWEPT)]
        answers = self._each(keys, [command(b"HGETALL", key) for key in keys])
        entries: dict[bytes, list[Slot]] = {}
        for key, answer in zip(keys, answers, strict=True):
            bucket, words = int(key[-4:], 16), answer if isinstance(answer, list) else []
            for field, life in zip(words[::2], words[1::2], strict=False):
                if isinstance(field, bytes) and isinstance(life, bytes):
                    entries.setdefault(life, []).append(Slot(bucket, field))
        for life in self._over(list(entries)):
            wrong += [(slot, life) for slot in entries[life]]
        for life in {life for _, life in wrong}:
            slots = [slot for slot, of in wrong if of == life]
            self._each(*self._layout.withdraw(slots, life))
            self._meter.count("swept", len(slots))

    def _over(self, lives: Sequence[bytes]) -> list[bytes]:
        """Those of some lives that have no lease."""
        if not lives:
            return []
        answer = self._ask_one(command(b"MGET", *map(self._layout.lease, lives)))
        return [life for life, at in zip(lives, answer, strict=True) if at is None] if isinstance(answer, list) else []

    def _each(self, keys: Sequence[bytes], requests: Sequence[Request]) -> Sequence[Answer]:
        """The answers to requests, some hundreds at a time. Raises where one is refused."""
        found: list[Answer] = []
        for batch, part in zip(batches(keys), batches(requests), strict=True):  # type: ignore[arg-type]

            def ask(left: float, batch: Sequence[bytes] = batch, part: Sequence[Request] = part) -> list[Answer]:  # type: ignore[assignment]
                return [checked(each) for each in self._requests.each(batch, part, time.monotonic() + left)]

            found += self._attempts.run(ask, CALL_S)
        return found

    def _timed(self, call: Callable[[float], Result]) -> Result:
        return self._attempts.run(call, CALL_S)

    def _ask_one(self, request: Request) -> Answer:
        return self._timed(lambda left: self._single(request, left))

    def _single(self, request: Request, left: float) -> Answer:
        return self._requests.exchange(self._layout.lives, time.monotonic() + left, request)

    def _probe(self) -> None:
        deadline = time.monotonic() + 1.0
        self._nodes.refresh(deadline)
        for node in self._nodes.masters:
            with node.wire(deadline) as wire:
                exchange(wire, command(b"PING"))
