"""The servers of a Valkey or Redis: one, or a cluster's masters, each with connections that are kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kvstore.errors import Closed, DeadlineExceeded, KVStoreError, Unavailable
from kvstore.tiers.remote.valkey.wire import Answer, Refusal, Wire, command

SLOTS = 16384


class Address(NamedTuple):
    """Where a server listens: a path for a Unix socket, which has port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Connect = Callable[[Address, float], Any]


class Node:
    """One server and up to `limit` connections to it, the one used last first."""

    def __init__(self, address: Address, connect: Connect, limit: int) -> None:
        self.address = address
        self._connect, self._limit = connect, limit
        self._idle: list[Wire] = []
        self._in_use = 0
        self._freed = threading.Condition(threading.Lock())
        self._closed = False

    def wire(self, deadline: float, *, asking: bool = False) -> Exchange:
        """A connection for one exchange, kept afterwards if every answer was taken."""
        return Exchange(self, deadline, asking)

    def take(self, deadline: float) -> Wire:
        """A connection, one that is kept or a new one; for `Exchange`."""
        with self._freed:
            while self._in_use >= self._limit and not self._closed:
                if not self._freed.wait(max(0.0, deadline - time.monotonic())):
                    raise DeadlineExceeded(f"all connections to {self.address} were in use all the time")
            if self._closed:
                raise Closed(f"the connections to {self.address} are closed")
            self._in_use += 1
            if self._idle:
                return self._idle.pop()
        try:
            return Wire(self._connect(self.address, max(0.001, deadline - time.monotonic())))
        except BaseException:
            self._leave(None)
            raise

    def give(self, wire: Wire) -> None:
        """Take back a connection; it is closed unless every answer was taken."""
        keep = not wire.owed and not self._closed
        self._leave(wire if keep else None)
        if not keep:
            wire.close()

    def drop_idle(self) -> None:
        """Close what is not in use now: a server that went away took all its connections with it."""
        with self._freed:
            idle, self._idle = self._idle, []
        for wire in idle:
            wire.close()

    def close(self) -> None:
        """Close what is not in use now; the rest is closed when it is given back."""
        with self._freed:
            self._closed = True
            self._freed.notify_all()
        self.drop_idle()

    def _leave(self, kept: Wire | None) -> None:
        with self._freed:
            self._in_use -= 1
            if kept is not None:
                self._idle.append(kept)
            self._freed.notify()


class Exchange:
    """A connection for as long as a `with` lasts."""

    __slots__ = ("_asking", "_deadline", "_node", "_wire")

    def __init__(self, node: Node, deadline: float, asking: bool) -> None:
        self._node, self._deadline, self._asking = node, deadline, asking

    def __enter__(self) -> Wire:
        self._wire = self._node.take(self._deadline)
        self._wire.begin(self._deadline, asking=self._asking)
        return self._wire

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Unavailable):
            self._node.drop_idle()
        self._node.give(self._wire)


class Nodes:
    """Which server has which key. `cluster` of None asks the first seed whether there is one."""

    def __init__(
        self, seeds: Sequence[Address], connect: Connect, limit: int, *, cluster: bool | None, timeout_s: float
    ) -> None:
        from valkey.crc import key_slot

        self._slot_of = key_slot
        self._seeds, self._connect, self._limit = seeds, connect, limit
        self._lock = threading.Lock()
        self._known: dict[Address, Node] = {}
        self._slots: list[Node] = []
        self._masters: list[Node] = []
        self.is_cluster = False
        deadline = time.monotonic() + timeout_s
        if cluster if cluster is not None else self._says_cluster(deadline):
            self.is_cluster = True
            self.refresh(deadline)
        else:
            self._masters = [self.at(seeds[0])]

    @property
    def masters(self) -> Sequence[Node]:
        """Every server that has keys."""
        return self._masters

    def of(self, key: bytes) -> Node:
        """The server that has a key."""
        return self._slots[self._slot_of(key)] if self.is_cluster else self._masters[0]

    def at(self, address: Address) -> Node:
        """The server of an address."""
        with self._lock:
            node = self._known.get(address)
            if node is None:
                node = self._known[address] = Node(address, self._connect, self._limit)
            return node

    def redirected(self, refusal: Refusal, deadline: float) -> tuple[Node, bool]:
        """Where `MOVED` or `ASK` sends a request, and whether it must be told that it asks (ASKING)."""
        host, _, port = refusal.text.split()[2].rpartition(":")
        asking = refusal.code == "ASK"
        if not asking:
            self.refresh(deadline)
        return self.at(Address(host.strip("[]") or self._seeds[0].host, int(port))), asking

    def refresh(self, deadline: float) -> None:
        """Ask the cluster who has what, the first server that knows; of a single server nothing. `Unavailable`."""
        if not self.is_cluster:
            return
        addresses = list(dict.fromkeys([*(node.address for node in self._masters), *self._seeds]))
        failure: KVStoreError | None = None
        for index, address in enumerate(addresses):
            # One that hangs must not use up all the time.
            share = (deadline - time.monotonic()) / (len(addresses) - index)
            try:
                self._take_over(address, self._ask(address, time.monotonic() + share, b"CLUSTER", b"SLOTS"))
                return
            except (Unavailable, DeadlineExceeded) as error:
                failure = failure or error
        raise failure or Unavailable("no server of the cluster is known")

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            nodes = list(self._known.values())
        for node in nodes:
            node.close()

    def _says_cluster(self, deadline: float) -> bool:
        answer = self._ask(self._seeds[0], deadline, b"INFO", b"cluster")
        return isinstance(answer, bytes) and b"cluster_enabled:1" in answer

    def _ask(self, address: Address, deadline: float, *words: bytes) -> Answer:
        with self.at(address).wire(deadline) as wire:
            wire.send(command(*words))
            return wire.answer()

    def _take_over(self, asked: Address, answer: Answer) -> None:
        if not isinstance(answer, list):
            raise Unavailable(f"{asked} does not say which server has which keys: {answer!r}")
        slots: list[Node | None] = [None] * SLOTS
        for first, last, host, port in _shares(answer):
            # An empty host stands for the one that was asked.
            node = self.at(Address(host or asked.host, port))
            slots[first : last + 1] = [node] * (last + 1 - first)
        covered = [node for node in slots if node is not None]
        if len(covered) < SLOTS:
            raise Unavailable(f"{SLOTS - len(covered)} of the cluster's {SLOTS} slots have no server")
        with self._lock:
            self._slots, self._masters = covered, list(dict.fromkeys(covered))


def _shares(slots: Sequence[Answer]) -> Iterator[tuple[int, int, str, int]]:
    """First slot, last slot, host and port of each master that CLUSTER SLOTS tells of."""
    for share in slots:
        first, last, master = share[:3] if isinstance(share, list) and len(share) > 2 else (None, None, None)
        host, port = master[:2] if isinstance(master, list) and len(master) > 1 else (None, None)
        if not isinstance(first, int) or not isinstance(last, int) or not isinstance(port, int):
            raise Unavailable(f"the cluster tells of its slots in a way that is not understood: {share!r:.80}")
        yield first, last, host.decode() if isinstance(host, bytes) else "", port
