"""The native part of the CXL tier against a model: what was written is read, wherever it lies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._native import STRIPED_BEYOND, STRIPED_MISSING, STRIPED_NO_ROOM, StripedMemory, map_aligned

BLOCK = 4096


def make(
    sizes: list[int], units: list[int], *, unit: int = BLOCK, helpers: int = 0, records: int = 64
) -> StripedMemory:
    devices = [np.zeros(size, np.uint8) for size in sizes]
    memory = StripedMemory(devices, records, unit, helpers)
    for device, size in enumerate(sizes):
        memory.release(device, 0, size // BLOCK * BLOCK)
    memory.set_units(units)
    return memory


def payload(seed: int, nbytes: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8).tobytes()


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["write", "remove", "read", "weigh"]), st.integers(0, 1 << 30), st.integers(1, 60_000)),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(10, 60), min_size=1, max_size=4), st.integers(1, 3), OPERATIONS)
def test_against_a_model(blocks: list[int], unit: int, operations: list[tuple[str, int, int]]) -> None:
    memory = make([each * BLOCK for each in blocks], [1] * len(blocks), unit=unit * BLOCK)
    model: dict[int, bytes] = {}
    for what, pick, size in operations:
        if what == "write":
            header, body = payload(pick, BLOCK), payload(pick + 1, size)
            location = memory.write(header, body, size)
            if location == STRIPED_NO_ROOM:
                continue
            assert 0 <= location < 1 << 63
            assert location not in model
            model[location] = header + body + bytes(-size % BLOCK)
        elif what == "weigh":
            memory.set_units([1 + (pick >> 4 * each) % 16 for each in range(len(blocks))])
        elif model:
            location = sorted(model)[pick % len(model)]
            if what == "remove":
                assert memory.remove(location)
                assert not memory.remove(location)
                del model[location]
                continue
            whole = model[location]
            start = pick % len(whole)
            out = bytearray(min(size, len(whole) - start))
            assert memory.read(location, start, out) == 0
            assert out == whole[start : start + len(out)]
            assert sum(nbytes for _, _, nbytes in memory.where(location, start, len(out))) == len(out)
    assert memory.used == sum(map(len, model.values()))
    assert memory.records == len(model)
    for location, whole in model.items():
        out = bytearray(len(whole))
        assert memory.read(location, 0, out) == 0
        assert out == whole
        assert memory.remove(location)
    assert memory.write(payload(1, BLOCK), bytes(max(blocks) * BLOCK), (max(blocks) - 1) * BLOCK) >= 0, "room is whole"


@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_large_records_with_and_without_helpers(helpers: int) -> None:
    memory = make([8 << 20] * 2, [2, 1], unit=64 << 10, helpers=helpers)
    bodies = {memory.write(payload(n, BLOCK), payload(n, 3_000_001), 3_000_001): n for n in range(4)}
    outs = {location: bytearray(3_000_001) for location in bodies}
    for _ in range(3):
        assert memory.read_many([(location, BLOCK, out) for location, out in outs.items()]) == [0] * 4
        for location, number in bodies.items():
            assert outs[location] == payload(number, 3_000_001)
            outs[location][:] = bytes(3_000_001)
    assert memory.writes[2] == 4
    assert memory.reads[2] == 12


def test_outcomes() -> None:
    memory = make([20 * BLOCK], [1])
    location = memory.write(bytes(BLOCK), b"x" * 5000, 5000)
    assert memory.read(location, 0, bytearray(3 * BLOCK)) == 0
    assert memory.read(location, 1, bytearray(3 * BLOCK)) == STRIPED_BEYOND
    assert memory.read(location, 1 << 63, bytearray(1)) == STRIPED_BEYOND
    assert memory.read(location + 1, 0, bytearray(1)) == STRIPED_MISSING
    assert memory.read(location ^ 1 << 33, 0, bytearray(1)) == STRIPED_MISSING
    assert memory.where(location + 1, 0, 1) == []


def test_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="1 to 12 devices"):
        StripedMemory([], 1, BLOCK, 0)
    with pytest.raises(ValueError, match="1 to 12 devices"):
        StripedMemory([bytearray(BLOCK)] * 13, 1, BLOCK, 0)
    with pytest.raises(ValueError, match="whole blocks"):
        StripedMemory([bytearray(BLOCK)], 1, 100, 0)
    with pytest.raises(ValueError, match="writable"):
        StripedMemory([bytes(BLOCK)], 1, BLOCK, 0)
    with pytest.raises(ValueError, match="a slot for each record"):
        StripedMemory([bytearray(BLOCK)], 17, BLOCK, 0, map_aligned(-1, BLOCK)[0])
    memory = make([4 * BLOCK], [1])
    with pytest.raises(ValueError, match="double free"):
        memory.release(0, 0, BLOCK)
    with pytest.raises(ValueError, match="no such device"):
        memory.release(1, 0, BLOCK)
    for units in ([], [0], [1, 1]):
        with pytest.raises(ValueError, match="a number of units"):
            memory.set_units(units)
    with pytest.raises(ValueError, match="whole blocks"):
        memory.write(b"short", b"", 0)
    with pytest.raises(ValueError, match="aligned to their length"):
        StripedMemory([bytearray(BLOCK)], 2, BLOCK, 0, map_aligned(-1, BLOCK)[0][8:])
    with pytest.raises(ValueError, match="no slots"):
        memory.restore()
    with pytest.raises(ValueError, match="longer than"):
        memory.scan(bytearray(5 * BLOCK), [0])
    with pytest.raises(ValueError, match="no such device"):
        memory.scan(bytearray(BLOCK), [3])
