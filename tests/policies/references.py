"""Policies in plain Python, written from their papers, for comparison. All sizes are in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import log2

from tests.policies.driver import Reference

Queue = OrderedDict[int, int]  # bytes by key, oldest first


def total(*queues: Queue) -> int:
    return sum(sum(queue.values()) for queue in queues)


class Lru:
    """Least recently used first; a chunk that grows counts as used."""

    def __init__(self, capacity: int) -> None:
        del capacity
        self.held: list[int] = []

    def admit(self, key: int, nbytes: int) -> None:
        del nbytes
        self.hit(key)

    def hit(self, key: int) -> None:
        self.held = [*(each for each in self.held if each != key), key]

    def demand(self, key: int) -> None:
        """Nothing is remembered of what is not here."""

    def remove(self, key: int, evicted: bool) -> None:
        del evicted
        self.held.remove(key)

    def order(self) -> list[int]:
        return list(self.held)


class Fifo(Lru):
    def admit(self, key: int, nbytes: int) -> None:
        del nbytes
        if key not in self.held:
            self.held.append(key)

    def hit(self, key: int) -> None:
        """Makes no difference."""


class Lfu:
    """Uses since it came, then the time at which it had that many."""

    def __init__(self, capacity: int) -> None:
        del capacity
        self.held: dict[int, tuple[float, int]] = {}
        self.uses: dict[int, int] = {}
        self.size: dict[int, int] = {}
        self.turn = 0

    def rank(self, key: int) -> float:
        return self.uses[key]

    def place(self, key: int) -> None:
        self.turn += 1
        self.held[key] = (self.rank(key), self.turn)

    def admit(self, key: int, nbytes: int) -> None:
        self.uses.setdefault(key, 1)
        self.size[key] = nbytes
        self.place(key)

    def hit(self, key: int) -> None:
        self.uses[key] += 1
        self.place(key)

    def demand(self, key: int) -> None:
        """Nothing is remembered of what is not here."""

    def remove(self, key: int, evicted: bool) -> None:
        del evicted, self.held[key], self.uses[key], self.size[key]

    def order(self) -> list[int]:
        return sorted(self.held, key=lambda key: self.held[key])


class Gdsf(Lfu):
    """L + uses · cost / size; the cost of a chunk is its tokens, which `Driver` makes up of its key."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.inflation = 0.0

    def rank(self, key: int) -> float:
        return self.inflation + self.uses[key] * self.cost(key) / self.size[key]

    def cost(self, key: int) -> float:
        return key % 3 + 1

    def remove(self, key: int, evicted: bool) -> None:
        if evicted:
            self.inflation = max(self.inflation, self.held[key][0])
        super().remove(key, evicted)


class S3Fifo:
    def __init__(self, capacity: int) -> None:
        self.capacity, self.small_most = capacity, capacity // 10
        self.ghosts_most = capacity * 9 // 10
        self.small, self.main, self.ghosts = Queue(), Queue(), Queue()
        self.uses: dict[int, int] = {}
        self.asked: set[int] = set()
        self.has_evicted = False

    def admit(self, key: int, nbytes: int) -> None:
        for queue in (self.small, self.main):
            if key in queue:
                queue[key] = nbytes
                return
        overflow = not self.has_evicted and total(self.small) >= self.small_most
        known = key in self.asked
        self.asked.discard(key)
        self.uses[key] = 0
        (self.main if known or overflow else self.small)[key] = nbytes

    def hit(self, key: int) -> None:
        self.uses[key] = min(self.uses[key] + 1, 3)

    def demand(self, key: int) -> None:
        if self.ghosts.pop(key, None) is not None:
            self.asked.add(key)

    def remove(self, key: int, evicted: bool) -> None:
        nbytes = self.small.pop(key, None)
        self.main.pop(key, None)
        del self.uses[key]
        if evicted:
            self.has_evicted = True
            if nbytes is not None:
                self.ghosts[key] = nbytes
                while total(self.ghosts) > self.ghosts_most:
                    self.ghosts.popitem(last=False)

    def order(self) -> list[int]:
        """What `victims` gives, after it has settled what goes first."""
        full = min(self.capacity, total(self.small, self.main))
        main_first = not self.small or total(self.main) > full - full // 10
        while not main_first and self.small and self.uses[next(iter(self.small))] >= 2:
            key, nbytes = self.small.popitem(last=False)
            self.main[key], self.uses[key] = nbytes, 0
        main_first = main_first or not self.small
        while main_first and self.main and self.uses[next(iter(self.main))] > 0:
            key, nbytes = self.main.popitem(last=False)
            self.main[key] = nbytes
            self.uses[key] -= 1
        return [*self.main, *self.small] if main_first else [*self.small, *self.main]


class Arc:
    """The paper's T1, T2, B1, B2 and p; a step of p is the size of the ghost that comes back."""

    def __init__(self, capacity: int) -> None:
        self.c, self.p = capacity, 0.0
        self.t1, self.t2, self.b1, self.b2 = Queue(), Queue(), Queue(), Queue()
        self.came_back: int | None = None
        self.in_b2 = False

    def demand(self, key: int) -> None:
        self.came_back, self.in_b2 = None, False
        b1, b2 = total(self.b1), total(self.b2)
        if key in self.b1:
            self.p = min(self.p + self.b1.pop(key) * max(b2 / max(b1, 1), 1), self.c)
            self.came_back = key
        elif key in self.b2:
            self.p = max(self.p - self.b2.pop(key) * max(b1 / max(b2, 1), 1), 0)
            self.came_back, self.in_b2 = key, True

    def admit(self, key: int, nbytes: int) -> None:
        for queue in (self.t1, self.t2):
            if key in queue:
                queue[key] = nbytes
                return
        if key == self.came_back:
            self.t2[key] = nbytes
        else:
            while self.b1 and total(self.t1, self.b1) + nbytes > self.c:
                self.b1.popitem(last=False)
            while self.b2 and total(self.t1, self.t2, self.b1, self.b2) + nbytes > 2 * self.c:
                self.b2.popitem(last=False)
            self.t1[key] = nbytes
        self.came_back, self.in_b2 = None, False

    def hit(self, key: int) -> None:
        nbytes = self.t1.pop(key) if key in self.t1 else self.t2.pop(key)
        self.t2[key] = nbytes

    def remove(self, key: int, evicted: bool) -> None:
        here, ghosts = (self.t1, self.b1) if key in self.t1 else (self.t2, self.b2)
        nbytes = here.pop(key)
        if evicted:
            ghosts[key] = nbytes
            while self.b1 and total(self.t1, self.b1) > self.c:
                self.b1.popitem(last=False)
            while self.b2 and total(self.t1, self.t2, self.b1, self.b2) > 2 * self.c:
                self.b2.popitem(last=False)

    def order(self) -> list[int]:
        once = total(self.t1)
        if not self.t2 or once > self.p or (once == self.p and self.in_b2):
            return [*self.t1, *self.t2]
        return [*self.t2, *self.t1]


class Mq:
    least_life = 10_000

    def __init__(self, capacity: int) -> None:
        self.ghosts_most = 4 * capacity
        self.queues = [Queue() for _ in range(8)]
        self.uses: dict[int, int] = {}
        self.expires: dict[int, int] = {}
        self.ghosts: OrderedDict[int, tuple[int, int]] = OrderedDict()  # bytes and uses
        self.now = self.descents = 0

    def life(self) -> int:
        return max(self.least_life, sum(map(len, self.queues)) + 1)

    def use(self, key: int, nbytes: int) -> None:
        self.now += 1
        self.expires[key] = self.now + self.life()
        self.queues[min(7, int(log2(self.uses[key])))][key] = nbytes

    def adjust(self) -> None:
        for k in range(1, 8):
            key = next(iter(self.queues[k]), None)
            if key is not None and self.expires[key] < self.now:
                self.queues[k - 1][key] = self.queues[k].pop(key)
                self.descents += 1
                self.expires[key] = self.now + self.life()

    def admit(self, key: int, nbytes: int) -> None:
        for queue in self.queues:
            if key in queue:
                queue[key] = nbytes
                return
        self.uses[key] = self.ghosts.pop(key, (0, 0))[1] + 1
        self.use(key, nbytes)
        self.adjust()

    def hit(self, key: int) -> None:
        queue = next(queue for queue in self.queues if key in queue)
        self.uses[key] += 1
        life = self.life()
        nbytes = queue.pop(key)
        self.use(key, nbytes)
        self.expires[key] = self.now + life
        self.adjust()

    def demand(self, key: int) -> None:
        """Ghosts are looked at when they come back."""

    def remove(self, key: int, evicted: bool) -> None:
        queue = next(queue for queue in self.queues if key in queue)
        nbytes, uses = queue.pop(key), self.uses.pop(key)
        if evicted:
            self.ghosts[key] = (nbytes, uses)
            while sum(each for each, _ in self.ghosts.values()) > self.ghosts_most:
                self.ghosts.popitem(last=False)

    def order(self) -> list[int]:
        return [key for queue in self.queues for key in queue]


REFERENCES: dict[str, Callable[[int], Reference]] = {
    "lru": Lru, "fifo": Fifo, "lfu": Lfu, "gdsf": Gdsf, "s3fifo": S3Fifo, "arc": Arc, "mq": Mq,
}  # fmt: skip
