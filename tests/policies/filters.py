"""The filter in front of a tier, in plain Python: what the native one is compared with."""

from __future__ import annotations

from collections import OrderedDict
from fractions import Fraction

DAY_MS = 86_400_000


class Filter:
    """`kvstore._native.Admission`, exact in time and bytes."""

    def __init__(self, second_touch: bool, bytes_per_day: int, capacity: int) -> None:
        self.second_touch, self.bytes_per_day, self.capacity = second_touch, bytes_per_day, capacity
        self.left_bytes = self.most = Fraction(bytes_per_day, 4)
        self.at_ms: int | None = None
        self.promised = self.written = 0
        self.ghosts: OrderedDict[int, int] = OrderedDict()
        self.room: int | None = None  # None: it was never full
        self.kept_out = self.to_let_in = 0
        self.low = self.spent = False

    def judge(self, key: int, used: bool) -> str:
        if self.spent:
            return "budget_spent"
        if self.room is None or self.room > 0 or used or key in self.ghosts:
            return "open"
        if self.low:
            return "budget_low"
        return "used_once" if self.second_touch and not self.to_let_in else "open"

    def begin(self, nbytes: int) -> None:
        self.promised += nbytes
        self.kept_out = max(0, self.kept_out - 16 * nbytes)
        self.to_let_in = max(0, self.to_let_in - nbytes)
        self._watch()

    def end(self, nbytes: int) -> None:
        self.promised -= nbytes

    def settle(self, written: int, now_ms: int) -> None:
        if self.at_ms is not None:
            self.left_bytes += Fraction(self.bytes_per_day * max(0, now_ms - self.at_ms), DAY_MS)
        self.left_bytes = min(self.left_bytes, self.most) - max(0, written - self.written)
        self.at_ms, self.written = now_ms, max(written, self.written)
        self._watch()

    def refuse(self, why: str, nbytes: int) -> None:
        if why == "used_once":
            self.kept_out += nbytes
            if self.kept_out >= self.capacity:
                self.kept_out, self.to_let_in = 0, max(1, self.capacity // 16)

    def remember(self, key: int, nbytes: int) -> None:
        self.ghosts.pop(key, None)
        self.ghosts[key] = nbytes
        while sum(self.ghosts.values()) > 4 * self.capacity:
            self.ghosts.popitem(last=False)

    def came(self, nbytes: int) -> None:
        self.room = None if self.room is None else max(0, self.room - nbytes)

    def left(self, nbytes: int) -> None:
        self.room = None if self.room is None else self.room + nbytes

    def was_full(self) -> None:
        self.room = 0

    def _watch(self) -> None:
        if self.bytes_per_day:
            left = self.left_bytes - self.promised
            self.spent = left <= 0 or (self.spent and left < self.most / 8)
            self.low = left < self.most / 2 or (self.low and left < self.most * 5 / 8)
