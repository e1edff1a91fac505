"""Records read in the order of their layers: into memory of the CPU everywhere, onto a device where there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.errors import Corrupt, InvalidArgument, NotFound
from kvstore.testing import Fault, Sample, make_sample
from kvstore.tiers.nvme import NvmeTier, direct
from kvstore.tiers.nvme.direct import DeviceRead, DeviceReader, open_reader
from tests.tiers.nvme.faults import disk_fault

torch = pytest.importorskip("torch")
MIB = 1 << 20
Opener = Callable[..., NvmeTier]
HAS_GPU = Path("/dev/nvidiactl").exists()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device"))]


@pytest.fixture
def tier(opener: Opener) -> NvmeTier:
    found = opener(capacity=64 * MIB, segment_bytes=4 * MIB)
    found.recover()
    return found


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["kvikio", "posix"])
def reader(request: pytest.FixtureRequest, tier: NvmeTier, device: str) -> Iterator[DeviceReader]:
    if request.param and device == "cpu":
        pytest.skip("kvikio needs a CUDA device")
    found = open_reader(tier, device, kvikio=request.param)
    yield found
    found.close()


def put(tier: NvmeTier, count: int, device: str, nbytes: int = 1 << 20, groups: int = 8) -> list[tuple[Sample, Any]]:
    found = []
    for number in range(count):
        sample = make_sample(number, nbytes, groups=groups)
        target = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        location = sample.write_to(tier)
        found.append((sample, DeviceRead(location, sample.record.header_bytes, sample.record.groups, target)))
    return found


def content(read: DeviceRead, end: int) -> bytes:
    """The layer groups of a target up to `end`."""
    nbytes = int(read.groups["length"][:end].sum())
    return bytes(read.target[:nbytes].cpu().numpy())


def test_layers_arrive_in_order_and_right(
    tier: NvmeTier, reader: DeviceReader, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "BATCH_BYTES", 1 << 20)
    put_ = put(tier, 6, device)
    ends = []
    for arrived in reader.layers([read for _, read in put_]):
        assert list(arrived.outcomes) == [None] * 6
        for sample, read in put_:
            nbytes = int(read.groups["length"][: arrived.end].sum())
            assert content(read, arrived.end) == sample.content[:nbytes]
        ends.append((arrived.first, arrived.end))
    assert ends[0] == (0, 1), "the first layer comes alone"
    assert len(ends) > 2
    assert [end for _, end in ends] == [first for first, _ in ends[1:]] + [8]


def test_odd_lengths(tier: NvmeTier, reader: DeviceReader, device: str) -> None:
    for nbytes, groups in ((1, 1), (4097, 2), (300_001, 7)):
        for sample, read in put(tier, 3, device, nbytes, groups):
            assert [each.outcomes for each in reader.layers([read])][-1] == (None,)
            assert content(read, groups) == sample.content
    assert list(reader.layers([])) == []


def test_one_bad_record_harms_no_other(tier: NvmeTier, reader: DeviceReader, device: str) -> None:
    put_ = put(tier, 4, device)
    harmed = put_[2][1]
    held = tier.borrow(harmed.location, harmed.header_bytes + 600_000, 4)
    fd = os.open(held.path, os.O_WRONLY)
    os.pwrite(fd, b"harm", held.offset)
    os.close(fd)
    held.give_back()
    last = list(reader.layers([read for _, read in put_]))[-1]
    assert [type(each) for each in last.outcomes] == [type(None), type(None), Corrupt, type(None)]
    for sample, read in put_:
        if read is not harmed:
            assert content(read, 8) == sample.content
    gone = DeviceRead(1 << 60, 4096, harmed.groups, harmed.target)
    assert isinstance(next(iter(reader.layers([gone]))).outcomes[0], NotFound)


def test_a_target_that_does_not_fit_is_refused(tier: NvmeTier, reader: DeviceReader, device: str) -> None:
    (_, read), (_, other) = put(tier, 1, device)[0], put(tier, 1, device, groups=4)[0]
    short = DeviceRead(read.location, read.header_bytes, read.groups, read.target[:-1])
    with pytest.raises(InvalidArgument, match="does not fit"):
        list(reader.layers([short]))
    with pytest.raises(InvalidArgument, match="8 and of 4 layer groups"):
        list(reader.layers([read, other]))


def test_what_is_being_read_when_it_ends_early(tier: NvmeTier, reader: DeviceReader, device: str) -> None:
    """Nothing is written to a target afterwards, and the tier can be closed."""
    put_ = put(tier, 6, device)
    layers = reader.layers([read for _, read in put_])
    next(layers)
    layers.close()
    for _, read in put_:
        read.target.zero_()
    assert not any(int(read.target.count_nonzero()) for _, read in put_)
    reader.close()
    tier.close()


def test_the_mode_is_told(tier: NvmeTier, device: str) -> None:
    assert tier.stats()["gpudirect"] == "off: not asked for"
    reader = open_reader(tier, device)
    assert tier.stats()["gpudirect"] == reader.mode
    assert reader.mode == "off: no CUDA" if device == "cpu" else reader.mode in {"on", "compat"}
    reader.close()


def test_bits_flipped_on_the_way_are_noticed(tier: NvmeTier) -> None:
    put_ = put(tier, 4, "cpu")
    reader = open_reader(tier, "cpu")
    with disk_fault(Fault.BIT_FLIP):
        last = list(reader.layers([read for _, read in put_]))[-1]
    assert any(isinstance(each, Corrupt) for each in last.outcomes)
    for (sample, read), outcome in zip(put_, last.outcomes, strict=True):
        assert outcome is not None or np.array_equal(read.target.numpy(), np.frombuffer(sample.content, np.uint8))
    reader.close()
