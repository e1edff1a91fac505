"""How much of each record a device gets: as much as keeps all of them busy for as long."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore import _native

MOST = 16
_CLOSE = 0.15  # of the proportions that are asked for; two measurements of one device differ by as much
_STALE = 0.25
_ENOUGH = 64 << 20  # bytes of each device, before its rate is believed
Sample = tuple[int, int, int]  # bytes, nanoseconds, records


def units_for(rates: Sequence[float]) -> list[int]:
    """The smallest whole numbers, `MOST` at most, in proportion to some rates within 15% (or as near as can be)."""
    top, units = max(rates), [1] * len(rates)
    for most in range(1, MOST + 1):
        units = [max(1, round(rate / top * most)) for rate in rates]
        if _error(units, rates) <= _CLOSE:
            break
    return units


def shares(capacity: int, units: Sequence[int], limits: Sequence[int]) -> list[int]:
    """`capacity` bytes divided in proportion to `units`, with no more than its limit for each."""
    given = [0] * len(units)
    open_, left = set(range(len(units))), min(capacity, sum(limits))
    while open_ and left > 0:
        total = sum(units[each] for each in open_)
        wanted = {each: left * units[each] // total for each in open_}
        over = [each for each in open_ if given[each] + wanted[each] >= limits[each]]
        if not over:
            for each in open_:
                given[each] += wanted[each]
            break
        for each in over:
            left -= limits[each] - given[each]
            given[each] = limits[each]
            open_.discard(each)
    return given


def scanned_rates(memory: _native.StripedMemory, out: memoryview, devices: int) -> list[float]:
    """Bytes per second that each device gives alone, the best of three turns."""
    best = [1 << 62] * devices
    for _ in range(3):
        for device in range(devices):
            best[device] = min(best[device], memory.scan(out, [device]))
    return [len(out) / max(each, 1) * 1e9 for each in best]


class Balance:
    """Units per device, from what the devices give and take while the tier is used."""

    def __init__(self, units: Sequence[int]) -> None:
        self.units = list(units)
        self._before: list[Sample] = [(0, 0, 0)] * len(units)

    def follow(self, samples: Sequence[Sample]) -> bool:
        """Whether the units have changed: those there were are off by a quarter, by enough samples."""
        new = [(now[0] - then[0], now[1] - then[1]) for now, then in zip(samples, self._before, strict=True)]
        if any(nbytes < _ENOUGH or nanoseconds <= 0 for nbytes, nanoseconds in new):
            return False
        self._before = list(samples)
        rates = [nbytes / nanoseconds for nbytes, nanoseconds in new]
        if _error(self.units, rates) <= _STALE:
            return False
        units, self.units = self.units, units_for(rates)
        return units != self.units


def _error(units: Sequence[int], rates: Sequence[float]) -> float:
    """By how much of itself the part of a device is off, at most."""
    return max(abs(unit / sum(units) * sum(rates) / rate - 1) for unit, rate in zip(units, rates, strict=True))
