"""One other host, as this one sees it: its connections and a circuit breaker of its own."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence

from kvstore.channels.peer import PeerLines, split_address
from kvstore.errors import Unavailable
from kvstore.tiers.remote.attempts import Attempts
from kvstore.tiers.remote.breaker import Breaker, Circuit
from kvstore.tiers.remote.meter import Meter

PLAIN, TLS = "bulk://", "bulks://"
PROBE_S = 1.0
_TRIES = 2  # a connection that was kept may have ended


class Dialer:
    """How other hosts are reached: with the token of peers, over TLS where they advertise it.

    `context` makes TLS contexts. With `secure` a host that advertises none is refused, which would be told the token.
    """

    def __init__(self, token: str, context: Callable[[], ssl.SSLContext], *, secure: bool) -> None:
        self._token, self._secure = token, secure
        self._make, self._made = context, dict[str, ssl.SSLContext]()

    def __call__(self, where: str) -> PeerLines:
        """Connections to `bulk://HOST:PORT` or `bulks://HOST:PORT`. `Unavailable` for what this host will not dial."""
        tls = where.startswith(TLS)
        if not tls and (self._secure or not where.startswith(PLAIN)):
            raise Unavailable(f"a peer says that it is reached at {where!r}, which is no bulks://HOST:PORT")
        try:
            host, port = split_address(where.removeprefix(TLS if tls else PLAIN))
        except ValueError as error:
            raise Unavailable(f"a peer says where it is reached: {error}") from None
        if tls and "context" not in self._made:
            self._made["context"] = self._make()
        context = self._made["context"] if tls else None
        return PeerLines(host, port, token=self._token, context=context, name=f"the peer at {where}")


class Peer:
    """Calls to one host's life. While it is down they fail at once, and a probe finds out when it is back."""

    def __init__(self, life: bytes, where: str, lines: PeerLines, meter: Meter) -> None:
        self.life, self.where = life, where
        self._lines = lines
        self._breaker = Breaker(f"peer {where}", lambda: lines.probe(PROBE_S), lambda: None)
        self._attempts = Attempts(self._breaker, meter, _TRIES)

    @property
    def state(self) -> str:
        """`ok`, or since when and why it is down."""
        return self._breaker.state

    @property
    def is_up(self) -> bool:
        """Whether look-ups ask it."""
        return self._breaker.circuit is Circuit.CLOSED

    def find(self, names: Sequence[bytes], timeout_s: float, *, used: bool = False) -> Sequence[bytes]:
        """Rows of packed names; see `PeerLines.find`."""
        return self._attempts.run(lambda left: self._lines.find(names, left, used=used), timeout_s, lookup=True)

    def read(self, name: bytes, offset: int, out: memoryview, timeout_s: float, *, form: int, total: int) -> None:
        """Fill `out` from a record; see `PeerLines.read_record`."""

        def attempt(left: float) -> None:
            self._lines.read_record(name, offset, out, left, form=form, total=total)

        self._attempts.run(attempt, timeout_s)

    def close(self) -> None:
        """End the connections and the probes."""
        self._lines.close()
        self._breaker.close()
