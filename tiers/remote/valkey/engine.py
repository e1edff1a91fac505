"""Valkey and Redis as an engine of the remote tier: a single server or a cluster, over TCP, TLS or a Unix socket.

The client library connects and authenticates; requests and values go past its own reading and writing (`wire`).

An object lies under the key `PREFIX{NAME}`: a preamble of 40 bytes, then its first bytes, up to `piece_bytes` of
them. The rest of a longer one lies in pieces under `PREFIX{NAME}:NONCE:NUMBER`, the nonce new with every write, so
that two writers do not mix. The braces put all of them into one slot of a cluster: an object is deleted by one
command, is lost with one server or not at all, and needs one connection; load is spread by there being many objects.

Pieces are written first and expire after a minute. The first key is written last, if it is not there yet, and from
then on the object is found; then the others' expiry is lifted, and its own last. So a writer that dies leaves
nothing: what it left expires.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from kvstore.errors import (
    ConfigError,
    Corrupt,
    DeadlineExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.object_names import check_name
from kvstore.tiers.remote.valkey.connect import Connector, parse
from kvstore.tiers.remote.valkey.nodes import Nodes
from kvstore.tiers.remote.valkey.objects import (
    PREAMBLE_BYTES,
    Preamble,
    batches,
    checked,
    cut,
    exchange,
    read_value,
    scan,
    set_new,
)
from kvstore.tiers.remote.valkey.requests import Requests
from kvstore.tiers.remote.valkey.wire import Wire, command, gathered

MIB = 1 << 20
PIECE_BYTES = 64 * MIB
LEFTOVER_S = 60
LIST_TIMEOUT_S = 10.0
_LEAST_PIECE = 64 << 10
_LOOK_FIRST = 2 * MIB  # a longer object is not sent before it is known not to be there
_DEFAULT_LIMIT = 512 * MIB


class ValkeyEngine(Engine):
    """Objects in the server at `url`, or in the cluster that it is part of.

    `url` is `valkey://[user[:password]@]host[:port][/database]`, `valkeys://…` for TLS (`redis`, `rediss` mean the
    same) or `unix:///path`; of a cluster several may be given, for when one is down. `password` and `username` count
    before those in the URL. `ca_file` is what a server's certificate is checked against (the system's if empty),
    `cert_file` and `key_file` are the client's own. All keys begin with `prefix`. Objects longer than `piece_bytes`
    are split; the server's own limit counts if it is lower. With `ttl_s` an object goes that long after it was
    written. Up to `connections` are opened to each server. `cluster` of None asks the server.

    Raises `ConfigError` for what cannot work, wrong credentials included, and `Unavailable` where nobody answers.
    """

    kind: ClassVar[str] = "valkey"

    def __init__(
        self, url: str | Sequence[str], *, password: str = "", username: str = "", ca_file: str = "",
        cert_file: str = "", key_file: str = "", verify: bool = True, prefix: str = "kvstore/",
        piece_bytes: int = PIECE_BYTES, ttl_s: float = 0.0, connections: int = 8, cluster: bool | None = None,
        connect_s: float = 5.0,
    ) -> None:  # fmt: skip
        urls = [url] if isinstance(url, str) else list(url)
        if piece_bytes < _LEAST_PIECE:
            raise ConfigError(f"piece_bytes must be at least {_LEAST_PIECE}, not {piece_bytes}")
        if ttl_s < 0 or connections < 1:
            raise ConfigError(f"ttl_s must not be negative nor connections below 1, not {ttl_s:g} and {connections}")
        if any(each in prefix for each in "{}*?[]\\ "):
            raise ConfigError(f"prefix {prefix!r} must have no braces, blanks or marks of a pattern")
        places = [parse(each) for each in urls]
        if not places:
            raise ConfigError("a valkey engine needs a url")
        files = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file, "verify": verify}
        connect = Connector(places[0], username, password, files)
        self._prefix, self._ttl_ms = prefix.encode(), int(ttl_s * 1000)
        addresses = [place.address for place in places]
        try:
            self._nodes = Nodes(addresses, connect, connections, cluster=cluster, timeout_s=connect_s)
            self._requests = Requests(self._nodes)
            self._piece = min(piece_bytes, self._server_limit(connect_s) - PREAMBLE_BYTES)
            self.probe(connect_s)
        except PermissionDenied as error:
            raise ConfigError(f"{error}; give the right username and password") from error
        except DeadlineExceeded as error:
            raise Unavailable(f"{addresses[0]} does not answer within {connect_s:g} s ({error})") from error

    def put(self, name: str, pieces: Sequence[memoryview], timeout_s: float) -> bool:
        deadline, key = time.monotonic() + timeout_s, self._key(name)
        total = sum(piece.nbytes for piece in pieces)
        if total > self._piece:
            return self._put_split(key, pieces, total, deadline)
        if total > _LOOK_FIRST and self._is_there(key, deadline):
            return False
        preamble = Preamble(total, total, bytes(8))
        return self._requests.at(key, deadline, lambda wire: set_new(wire, key, preamble, pieces, self._ttl_ms))

    def _put_split(self, key: bytes, pieces: Sequence[memoryview], total: int, deadline: float) -> bool:
        preamble = Preamble(total, self._piece, secrets.token_hex(4).encode())
        leftover_ms = min(LEFTOVER_S * 1000, self._ttl_ms or LEFTOVER_S * 1000)
        keys = [*preamble.further(key), key]

        def write(wire: Wire) -> bool:
            try:
                for number, further in enumerate(keys[:-1], 1):
                    part = cut(pieces, number * self._piece, (number + 1) * self._piece)
                    wire.send(gathered([b"SET", further], part, [b"PX", b"%d" % leftover_ms]))
                    checked(wire.answer())
                new = set_new(wire, key, preamble, cut(pieces, 0, self._piece), leftover_ms)
            except TierFull:
                exchange(wire, command(b"UNLINK", *keys[:-1]))
                raise
            if new:
                self._lift(wire, keys)
            else:
                exchange(wire, command(b"UNLINK", *keys[:-1]))
            return new

        there = self._first_bytes([key], 0, deadline)[0]
        if there is None:
            return self._requests.at(key, deadline, write)
        found = Preamble.unpack(there, repr(key))
        # Its writer may have died before it lifted the expiry; once more does no harm.
        self._requests.at(key, deadline, lambda wire: self._lift(wire, [*found.further(key), key]))
        return False

    def _lift(self, wire: Wire, keys: Sequence[bytes]) -> None:
        """Let keys live as long as they should, which are about to expire as leftovers."""
        for batch in batches(keys):
            if self._ttl_ms:
                wire.send(*(command(b"PEXPIRE", key, b"%d" % self._ttl_ms) for key in batch))
            else:
                wire.send(*(command(b"PERSIST", key) for key in batch))
            for _ in batch:
                checked(wire.answer())

    def read_into(self, name: str, offset: int, out: memoryview, timeout_s: float) -> None:
        deadline, key = time.monotonic() + timeout_s, self._key(name)
        end = offset + out.nbytes
        # As a rule all of it is in the first value. Where that is shorter, the preamble tells why.
        in_first = out.nbytes and end <= self._piece
        if in_first and self._read_part(key, key, PREAMBLE_BYTES + offset, out, deadline) == out.nbytes:
            return
        there = self._first_bytes([key], 0, deadline)[0]
        if there is None:
            raise NotFound(f"{name} is not there (any more)")
        preamble = Preamble.unpack(there, name)
        if end > preamble.total:
            raise Corrupt(f"{name} has {preamble.total} bytes, not the {end} asked for")
        keys = [key, *preamble.further(key)]
        done = 0
        while done < out.nbytes:
            number, at = divmod(offset + done, preamble.here)
            part = out[done : done + preamble.here - at]
            at += 0 if number else PREAMBLE_BYTES
            got = self._read_part(key, keys[number], at, part, deadline)
            if got < len(part):
                if got:
                    raise Corrupt(f"{name} is cut off")
                self._requests.exchange(key, deadline, command(b"UNLINK", *keys))  # so that it can be written again
                raise NotFound(f"the server has let go of a piece of {name}")
            done += len(part)

    def _read_part(self, key: bytes, where: bytes, at: int, out: memoryview, deadline: float) -> int:
        return self._requests.at(key, deadline, lambda wire: read_value(wire, where, at, out))

    def heads(self, names: Sequence[str], nbytes: int, timeout_s: float) -> Sequence[bytes | None]:
        found = self._first_bytes([self._key(name) for name in names], nbytes, time.monotonic() + timeout_s)
        return [None if each is None else each[PREAMBLE_BYTES:] for each in found]

    def delete(self, names: Sequence[str], timeout_s: float) -> None:
        deadline, keys = time.monotonic() + timeout_s, [self._key(name) for name in names]
        there = [
            (key, found)
            for key, found in zip(keys, self._first_bytes(keys, 0, deadline), strict=True)
            if found is not None
        ]
        requests = []
        for key, found in there:
            try:
                further = Preamble.unpack(found, repr(key)).further(key)
            except Corrupt:
                further = []
            requests.append(command(b"UNLINK", key, *further))
        for answer in self._requests.each([key for key, _ in there], requests, deadline):
            checked(answer)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        pattern = b"%s{%s*}" % (self._prefix, prefix.encode())
        for node in self._nodes.masters:
            cursor = b"0"
            while True:
                deadline = time.monotonic() + LIST_TIMEOUT_S
                with node.wire(deadline) as wire:
                    cursor, keys = scan(wire, cursor, pattern)
                yield from self._sizes(keys, deadline)
                if cursor == b"0":
                    break

    def _sizes(self, keys: Sequence[bytes], deadline: float) -> Iterator[tuple[str, int]]:
        for key, found in zip(keys, self._first_bytes(keys, 0, deadline), strict=True):
            if found is None:
                continue
            name = key[len(self._prefix) + 1 : -1].decode()
            try:
                yield name, Preamble.unpack(found, name).total
            except Corrupt:
                yield name, len(found)

    def probe(self, timeout_s: float) -> None:
        """Every server that has keys must serve them; a cluster is asked first which these are now."""
        deadline = time.monotonic() + timeout_s
        self._nodes.refresh(deadline)
        for node in self._nodes.masters:
            with node.wire(deadline) as wire:
                if not self._nodes.is_cluster:
                    exchange(wire, command(b"PING"))
                    continue
                told = exchange(wire, command(b"CLUSTER", b"INFO"))
                if not isinstance(told, bytes) or b"cluster_state:ok" not in told:
                    raise Unavailable(f"{node.address} says that the cluster is not whole")

    def close(self) -> None:
        self._nodes.close()

    def _key(self, name: str) -> bytes:
        return b"%s{%s}" % (self._prefix, check_name(name).encode())

    def _server_limit(self, timeout_s: float) -> int:
        """The longest value that the server takes; where it does not tell, what servers take unless told."""
        with self._nodes.masters[0].wire(time.monotonic() + timeout_s) as wire:
            wire.send(command(b"CONFIG", b"GET", b"proto-max-bulk-len"))
            answer = wire.answer()
        told = answer[1] if isinstance(answer, list) and len(answer) == 2 else None
        return int(told) if isinstance(told, bytes) else _DEFAULT_LIMIT

    def _is_there(self, key: bytes, deadline: float) -> bool:
        return bool(self._requests.exchange(key, deadline, command(b"EXISTS", key)))

    def _first_bytes(self, keys: Sequence[bytes], nbytes: int, deadline: float) -> Sequence[bytes | None]:
        """The preamble of each object and `nbytes` bytes behind it; None for one that is not there."""
        end = b"%d" % (PREAMBLE_BYTES + nbytes - 1)
        found: list[bytes | None] = []
        for batch in batches(keys):
            requests = [command(b"GETRANGE", key, b"0", end) for key in batch]
            for answer in self._requests.each(batch, requests, deadline):
                value = checked(answer)
                found.append(value if isinstance(value, bytes) and value else None)
        return found
