"""Lanes: what goes through the pinned buffer comes out as it went in, whatever the pieces."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvstore.tiers.hbm.lanes import Lane, Lanes, _loads  # noqa: E402 - needs torch


class Recorded(Lane):
    """A lane of the CPU twin that reaches only some host memory, and whose copies happen as late as they may.

    It stands in for a GPU: what is queued is done when it is waited for and not before, so that a half of the pinned
    buffer that is used again too early gives wrong bytes.
    """

    def __init__(self, home: Lanes, room: int) -> None:
        super().__init__(home, torch.empty(2 * room, dtype=torch.uint8))
        self.reached: set[int] = set()
        self._queue: list[tuple[int, int, int]] = []
        self._marks = [0, 0]

    def reaches(self, address: int, nbytes: int, *, writing: bool) -> bool:
        return address in self.reached

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self._queue.append((to, source, nbytes))

    def wait(self) -> None:
        self._run(len(self._queue))
        super().wait()

    def _mark(self, half: int) -> None:
        self._marks[half] = len(self._queue)

    def _reached(self, half: int) -> None:
        self._run(self._marks[half])

    def _run(self, count: int) -> None:
        for to, source, nbytes in self._queue[:count]:
            super().copy(to, source, nbytes)
        del self._queue[:count]
        self._marks = [max(0, mark - count) for mark in self._marks]


@pytest.mark.parametrize("room", [1, 7, 64, 4096])
def test_pieces_of_all_sizes(room: int) -> None:
    choose = random.Random(room)
    lane = Recorded(Lanes(torch.device("cpu")), room)
    for _ in range(40):
        sizes = [choose.choice((0, 1, room, choose.randrange(1, 4 * room + 2))) for _ in range(choose.randrange(1, 8))]
        total = sum(sizes)
        host, inside, back = (np.random.default_rng(total).integers(0, 256, total, np.uint8) for _ in range(3))
        inside[:], back[:] = 0, 0
        starts = np.cumsum([0, *sizes])[:-1].tolist()
        addresses = [each.ctypes.data for each in (inside, host, back)]
        there = [(addresses[0] + at, addresses[1] + at, size) for at, size in zip(starts, sizes, strict=True)]
        here = [(addresses[0] + at, addresses[2] + at, size) for at, size in zip(starts, sizes, strict=True)]
        lane.reached = {move[1] for move in (*there, *here) if choose.random() < 0.3}
        with lane:
            cut = choose.randrange(len(there) + 1)
            lane.write(there[:cut])  # two writes before one wait: the pinned buffer is still in use
            lane.write(there[cut:])
            lane.wait()
            assert np.array_equal(inside, host)
            lane.read(here)
            assert np.array_equal(back, host)


def test_loads_are_cut_where_they_are_full() -> None:
    moves = [(100, 1000, 5), (200, 2000, 0), (300, 3000, 12)]
    assert list(_loads(moves, 8)) == [[(100, 1000, 5), (300, 3000, 3)], [(303, 3003, 8)], [(311, 3011, 1)]]
    assert list(_loads(moves, 17)) == [[(100, 1000, 5), (300, 3000, 12)]]
    assert list(_loads([], 8)) == []


def test_lanes_are_used_again_and_by_one_at_a_time() -> None:
    lanes = Lanes(torch.device("cpu"))
    with lanes.take() as first, lanes.take() as second:
        assert first is not second
    with lanes.take() as again:
        assert again in (first, second)
    seen: list[Lane] = []

    def use(_: int) -> None:
        with lanes.take() as lane:
            seen.append(lane)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(use, range(200)))
    assert len(set(map(id, seen))) <= 6
    with pytest.raises(ValueError, match="on purpose"), lanes.take() as lost:
        raise ValueError("on purpose")
    with lanes.take() as found:
        assert found is lost
