"""What no policy can exceed: the dual of the linear programme of offline caching.

Keeping a chunk from one use to the next gains what the later use would cost, and takes its bytes at every moment in
between; at no moment do the bytes exceed the capacity. Give every moment k a price p_k ≥ 0 a byte. Whatever is kept,
what it gains beyond its price is at most the sum of max(0, gain − bytes · price of its interval), and what all of it
pays is at most capacity · Σ p_k. So the sum of both is an upper bound for *any* prices: of every policy, with any
foresight, whole chunks or pieces, without the condition that a prefix counts only behind its head. One price for all
moments is the bound of PFOO-U (Berger, Beckmann, Harchol-Balter, SIGMETRICS 2018); prices that rise where the cache
is short come near the programme's optimum. They are found by subgradient descent, and the best bound seen counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvstore.sim.trace import Column, Trace

STEPS = 40


@dataclass(frozen=True)
class Intervals:
    """From one use of a chunk to its next, as far as that counts: moments `begin` to `end` (request numbers).

    A chunk is kept over the moments begin … end − 1, moment k being the time between the requests `first` − 1 + k and
    the one after it. `chunk` [intervals] says of which.
    """

    begin: Column
    end: Column
    chunk: Column
    moments: int
    _order: Column
    _uses: Column  # where each use begins in `_order`: a prompt may have a segment twice
    _later: Column  # the use that ends each interval

    def gains(self, by_event: Column) -> Column:
        """What every interval gains, of what each of the trace's events would."""
        if not len(self._uses):
            return np.empty(0)
        return np.add.reduceat(by_event[self._order], self._uses)[self._later]


def intervals(trace: Trace, first: int) -> Intervals:
    """Those whose later use is in request `first` or after it; what is before `first` − 1 costs nothing."""
    request = trace.request_of()
    order = np.lexsort((request, trace.chunk))
    chunk, at = trace.chunk[order], request[order]
    new = np.ones(len(order), bool)
    new[1:] = (chunk[1:] != chunk[:-1]) | (at[1:] != at[:-1])
    uses = np.flatnonzero(new)
    chunk, at = chunk[uses], at[uses]
    later = np.flatnonzero((chunk[1:] == chunk[:-1]) & (at[1:] >= first)) + 1
    zero = max(0, first - 1)
    return Intervals(
        np.maximum(at[later - 1], zero) - zero, at[later] - zero, chunk[later],
        max(1, trace.requests - zero), order, uses, later,
    )  # fmt: skip


def upper_bound(found: Intervals, gain: Column, size: Column, capacity: int, *, steps: int = STEPS) -> float:
    """The most that can be gained with `capacity` bytes: `gain` and `size` (bytes) of every interval, float64."""
    useful = (gain > 0) & (size <= capacity)
    begin, end, gain, size = found.begin[useful], found.end[useful], gain[useful], size[useful]
    everything = float(gain.sum())
    if not len(gain) or not capacity:
        return 0.0
    prices = np.full(found.moments, _one_price(begin, end, gain, size, capacity, found.moments))
    best, target = np.inf, 0.0
    for step in range(steps):
        paid = np.concatenate([[0.0], np.cumsum(prices)])
        profit = gain - size * (paid[end] - paid[begin])
        kept = profit > 0
        value = float(profit[kept].sum() + capacity * paid[-1])
        best = min(best, value)
        change = np.bincount(begin[kept], size[kept], found.moments + 1)
        change -= np.bincount(end[kept], size[kept], found.moments + 1)
        slack = capacity - np.cumsum(change)[:-1]
        slack[(prices <= 0) & (slack > 0)] = 0
        length = float(slack @ slack)
        if length == 0:
            break
        # What the kept intervals gain in proportion to the room that there is estimates the optimum (Polyak's step).
        target = max(target, best * (1 - 0.5 / (2 + step)))
        prices = np.maximum(0, prices - (value - min(target, value)) / length * slack)
    return min(best, everything)


def _one_price(begin: Column, end: Column, gain: Column, size: Column, capacity: int, moments: int) -> float:
    """The best price that is the same at every moment: that at which the kept bytes fill the cache over all of them."""
    area = size * (end - begin)
    density = gain / area
    order = np.argsort(-density)
    filled = np.searchsorted(np.cumsum(area[order]), float(capacity) * moments)
    return float(density[order[filled]]) if filled < len(order) else 0.0
