"""The Valkey, or the cluster, that a directory lies in: requests behind deadlines, two tries and a circuit breaker."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kvstore.errors import ConfigError, DeadlineExceeded, PermissionDenied, Unavailable
from kvstore.tiers.remote.attempts import Attempts
from kvstore.tiers.remote.breaker import Breaker, Circuit
from kvstore.tiers.remote.meter import Meter
from kvstore.tiers.remote.valkey.connect import Connector, parse
from kvstore.tiers.remote.valkey.nodes import Nodes
from kvstore.tiers.remote.valkey.objects import Request, checked, exchange
from kvstore.tiers.remote.valkey.requests import Requests
from kvstore.tiers.remote.valkey.wire import Answer, command

CALL_S = 2.0
CONNECT_S = 5.0
_PROBE_S = 1.0
_CONNECTIONS = 8
_TRIES = 2  # a connection that was kept may have ended
_AT_ONCE = 256


class DirectoryPlace:
    """Requests by key. Each raises what a call to a remote place raises, `Unavailable` at once while it is down.

    Opening raises `ConfigError` for what cannot work, `Unavailable` where nobody answers.
    """

    def __init__(
        self, urls: Sequence[str], username: str, password: str, ca_file: str, cert_file: str, key_file: str
    ) -> None:
        places = [parse(each) for each in urls]
        files = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file} if places[0].tls else {}
        none = {"ca_file": "", "cert_file": "", "key_file": ""}  # those of a plain place are for other servers alone
        connect = Connector(places[0], username, password, {**none, **files, "verify": True})
        addresses = [place.address for place in places]
        try:
            self._nodes = Nodes(addresses, connect, _CONNECTIONS, cluster=None, timeout_s=CONNECT_S)
        except PermissionDenied as error:
            raise ConfigError(f"{error}; give the right peers.username and peers.password") from error
        except DeadlineExceeded as error:
            raise Unavailable(f"{addresses[0]} does not answer within {CONNECT_S:g} s ({error})") from error
        self.meter = Meter(1e9, 2e-4)
        self.breaker = Breaker("directory", self._probe, lambda: None)
        self._requests = Requests(self._nodes)
        self._attempts = Attempts(self.breaker, self.meter, _TRIES)

    @property
    def is_open(self) -> bool:
        """Whether look-ups ask it just now."""
        return self.breaker.circuit is Circuit.CLOSED

    def look_up(self, keys: Sequence[bytes], requests: Sequence[Request], timeout_s: float) -> list[Answer]:
        """Answers to the requests of a look-up, in one round trip to each server."""
        return self._attempts.run(lambda left: self._each(keys, requests, left), timeout_s, lookup=True)

    def each(self, keys: Sequence[bytes], requests: Sequence[Request]) -> list[Answer]:
        """The answers to any number of requests, some hundreds at a time."""
        found: list[Answer] = []
        for start in range(0, len(keys), _AT_ONCE):
            found += self._some(keys[start : start + _AT_ONCE], requests[start : start + _AT_ONCE])
        return found

    def _some(self, keys: Sequence[bytes], requests: Sequence[Request]) -> list[Answer]:
        return self._attempts.run(lambda left: self._each(keys, requests, left), CALL_S)

    def one(self, key: bytes, *words: bytes, timeout_s: float = CALL_S) -> Answer:
        """The answer to one command of a key."""
        request = command(*words)
        return self._attempts.run(
            lambda left: self._requests.exchange(key, time.monotonic() + left, request), timeout_s
        )

    def close(self) -> None:
        """End connections and probes."""
        self.breaker.close()
        self._nodes.close()

    def _each(self, keys: Sequence[bytes], requests: Sequence[Request], left: float) -> list[Answer]:
        return [checked(each) for each in self._requests.each(keys, requests, time.monotonic() + left)]

    def _probe(self) -> None:
        deadline = time.monotonic() + _PROBE_S
        self._nodes.refresh(deadline)
        for node in self._nodes.masters:
            with node.wire(deadline) as wire:
                exchange(wire, command(b"PING"))
