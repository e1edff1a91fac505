"""Lanes: one user at a time, also where one is kept for another thread; and copies over the edges of pins."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvstore.errors import InvalidArgument  # noqa: E402 - needs torch
from kvstore.tiers.hbm.lanes import Lane, Lanes  # noqa: E402 - needs torch

MIB = 1 << 20


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


def test_a_lane_that_is_kept_comes_back_with_its_next_use() -> None:
    lanes = Lanes(torch.device("cpu"))
    with lanes.take() as kept:
        kept.keep()
    with lanes.take() as other:
        assert other is not kept
        with kept:
            pass
        with lanes.take() as again:
            assert again is kept
    seen = []

    def fail() -> None:
        with lanes.take() as lane:
            seen.append(lane)
            lane.keep()
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    with lanes.take() as found:
        assert found is seen[0], "what fails keeps no lane"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
def test_copies_over_the_edges_of_registered_memory() -> None:
    """The driver refuses a copy of which a part is registered (`Pins.pieces` is tested in `test_pinning`)."""
    lanes, memory = Lanes(torch.device("cuda", 0)), mmap.mmap(-1, 4 * MIB)
    host = np.frombuffer(memory, np.uint8)
    host[:] = np.random.default_rng(0).integers(0, 256, host.size, np.uint8)
    due, inside = host.copy(), torch.zeros(4 * MIB, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    pins = [lanes.pins.register(host[at : at + MIB].data) for at in (MIB // 2, 2 * MIB)]
    for at, nbytes in ((0, 4 * MIB), (MIB, MIB), (5, 100), (MIB // 2, MIB)):
        with lanes.take() as lane:
            lane.write([(inside.data_ptr() + at, host.ctypes.data + at, nbytes)])
            lane.wait()
    assert np.array_equal(inside.cpu().numpy(), due)
    host[:] = 0
    with lanes.take() as lane:
        lane.read([(inside.data_ptr(), host.ctypes.data, 4 * MIB)])
        lane.wait()
    assert np.array_equal(host, due)
    for pin in pins:
        pin.close()
    host.flags.writeable = False
    pin = lanes.pins.register(host.data)
    with pytest.raises(InvalidArgument, match="for reading only"), lanes.take() as lane:
        lane.read([(inside.data_ptr(), host.ctypes.data, MIB)])
    pin.close()
