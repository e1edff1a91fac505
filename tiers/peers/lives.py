"""Lives of hosts: this one's lease, and who else has one."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping, Sequence

from kvstore.tiers.peers.layout import LIFE_BYTES, Layout
from kvstore.tiers.peers.place import CALL_S, DirectoryPlace
from kvstore.tiers.remote.valkey.objects import Request
from kvstore.tiers.remote.valkey.wire import Answer, command

_DEAD = 4096  # lives remembered to be over
_ASK_AGAIN_S = 0.2


class Lives:
    """What is known of hosts' lives.

    `alive` says where the others are reached, `own` is this host's life, empty for none.
    """

    def __init__(self, place: DirectoryPlace, layout: Layout, lease_s: float) -> None:
        self._place, self._layout = place, layout
        self._lease_ms = b"%d" % int(lease_s * 1000)
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._dead: dict[bytes, None] = {}
        self._asked = 0.0
        self.alive: Mapping[bytes, str] = {}
        self.own = b""

    def renew(self, where: str) -> bool:
        """Renew this host's lease; True if there was none to renew, so that another life has begun."""
        with self._renewing:
            life = self.own
            kept = life and self._ask(b"PEXPIRE", self._layout.lease(life), self._lease_ms)
            if not kept:
                life = secrets.token_bytes(LIFE_BYTES)
                self._ask(b"SET", self._layout.lease(life), where.encode(), b"PX", self._lease_ms)
            self._ask(b"SADD", self._layout.lives, life)
            self.own = life
            return not kept

    def end(self) -> None:
        """Give this host's lease up."""
        self._ask(b"DEL", self._layout.lease(self.own))
        self._ask(b"SREM", self._layout.lives, self.own)

    def learn(self, timeout_s: float = CALL_S) -> None:
        """Find out which other hosts live."""
        deadline = time.monotonic() + timeout_s
        members = self._ask(b"SMEMBERS", self._layout.lives, timeout_s=timeout_s)
        lives = [each for each in members if isinstance(each, bytes)] if isinstance(members, list) else []
        others = [life for life in lives if life != self.own]
        self.take(others, self._leases(others, deadline - time.monotonic()), all_of_them=True)
        gone = [life for life in others if life not in self.alive]
        if gone:
            self._ask(b"SREM", self._layout.lives, *gone, timeout_s=deadline - time.monotonic())

    def over(self, lives: Sequence[bytes]) -> Sequence[bytes]:
        """Those of some lives that have no lease."""
        answer = self._leases(lives)
        return [life for life, where in zip(lives, answer, strict=True) if where is None]

    def question(self, lives: Sequence[bytes]) -> Request:
        """What asks for the leases of lives, at the key of `Layout.lives`."""
        return command(b"MGET", *map(self._layout.lease, lives))

    def take(self, lives: Sequence[bytes], answer: Answer, *, all_of_them: bool = False) -> None:
        """Take over the answer to a `question`; `all_of_them` if there are no other lives."""
        told = answer if isinstance(answer, list) else [None] * len(lives)
        alive = {
            life: where.decode(errors="replace")
            for life, where in zip(lives, told, strict=True)
            if isinstance(where, bytes)
        }
        with self._lock:
            # What another thread has learnt meanwhile of lives that were not asked for here stays.
            kept = {} if all_of_them else {life: at for life, at in self.alive.items() if life not in lives}
            self.alive = {**kept, **alive}
            self._dead |= dict.fromkeys(life for life in lives if life not in alive)
            while len(self._dead) > _DEAD:
                del self._dead[next(iter(self._dead))]

    def may_be_new(self, lives: Sequence[bytes | None]) -> bool:
        """Whether it is time to `learn`, for a life that nobody here knows: such must not cost every look-up a call."""
        if all(life in (None, self.own) or life in self.alive or life in self._dead for life in lives):
            return False
        now = time.monotonic()
        with self._lock:
            if now - self._asked < _ASK_AGAIN_S:
                return False
            self._asked = now
            return True

    def _leases(self, lives: Sequence[bytes], timeout_s: float = CALL_S) -> list[Answer]:
        answer = self._ask(b"MGET", *map(self._layout.lease, lives), timeout_s=timeout_s) if lives else []
        return answer if isinstance(answer, list) else [None] * len(lives)

    def _ask(self, *words: bytes, timeout_s: float = CALL_S) -> Answer:
        return self._place.one(self._layout.lives, *words, timeout_s=timeout_s)
