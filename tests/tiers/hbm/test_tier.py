"""What the HBM tier does beyond the suite: tensors, namespaces and their slabs, failures, wrong settings.

That slabs go from one namespace to another is tested on the CPU twin: small ones cannot be handed out on a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvstore.errors import ConfigError, Corrupt, InvalidArgument, NotFound, StorageError, TooLarge, Unavailable  # noqa: E402
from kvstore.testing.records import Sample, aligned_memory, make_sample  # noqa: E402
from kvstore.tiers.base import TierFull  # noqa: E402
from kvstore.tiers.hbm import HbmTier  # noqa: E402
from tests.tiers.hbm.faults import fail, lanes_with  # noqa: E402

MIB = 1 << 20
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
Opener = Callable[..., HbmTier]


def of_namespace(sample: Sample, name: bytes) -> Sample:
    record = dataclasses.replace(sample.record, namespace=name)
    return Sample(record, record.pack(), sample.payload)


def tensor_of(sample: Sample, device: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(sample.content), dtype=torch.uint8).to(device)


@pytest.mark.parametrize("nbytes", [1, 5000, 8192, MIB + 2])
def test_a_payload_in_device_memory(opener: Opener, device: str, nbytes: int) -> None:
    tier, sample, before = opener(), make_sample(1, nbytes), make_sample(2, 2 * MIB)
    tier.delete(before.write_to(tier), before.record.total_bytes)  # what lay there is not to be seen in the padding
    location = tier.write_tensor(sample.header, tensor_of(sample, device), sample.record)
    sample.check_in(tier, location)
    whole = aligned_memory(sample.record.total_bytes)
    tier.read_into(location, 0, whole)
    assert not any(whole[sample.record.header_bytes + nbytes :])
    for where in (device, "cpu"):
        out = torch.zeros(nbytes + 2, dtype=torch.uint8, device=where)
        tier.read_into_tensor(location, sample.record.header_bytes, out[1:-1])
        assert bytes(out.cpu().numpy()) == b"\0" + sample.content + b"\0"


def test_a_payload_of_any_dtype(opener: Opener, device: str) -> None:
    tier = opener()
    values = torch.randn(64, 128).to(torch.bfloat16)
    sample = make_sample(1, values.nbytes)
    np.frombuffer(sample.payload, np.uint8)[: values.nbytes] = values.view(torch.uint8).view(-1).numpy()
    location = tier.write_tensor(sample.header, values.to(device), sample.record)
    found = torch.zeros(64, 128, dtype=torch.bfloat16, device=device)
    tier.read_into_tensor(location, sample.record.header_bytes, found)
    assert torch.equal(found.cpu(), values)
    seen = tier.view(location, sample.record.header_bytes, values.nbytes).view(torch.bfloat16)
    assert torch.equal(seen.cpu(), values.view(-1))


def test_tensors_that_do_not_fit_are_refused(opener: Opener, device: str) -> None:
    tier, sample = opener(), make_sample(1, 8192)
    with pytest.raises(InvalidArgument, match="as many in one piece"):
        tier.write_tensor(sample.header, torch.zeros(8191, dtype=torch.uint8, device=device), sample.record)
    apart = torch.zeros(8192, 2, dtype=torch.uint8, device=device)[:, 0]
    with pytest.raises(InvalidArgument, match="in one piece"):
        tier.write_tensor(sample.header, apart, sample.record)
    location = sample.write_to(tier)
    with pytest.raises(InvalidArgument, match="in one piece"):
        tier.read_into_tensor(location, 0, apart)
    with pytest.raises(Corrupt):
        tier.read_into_tensor(location, 0, torch.zeros(5 * MIB, dtype=torch.uint8, device=device))
    with pytest.raises(InvalidArgument, match="writable"):
        tier.read_into(location, 0, memoryview(bytes(10)))
    with pytest.raises(NotFound):
        tier.read_into(99 << 40, 0, aligned_memory(10))
    with pytest.raises(InvalidArgument, match="no byte -1"):
        tier.read_into(location, -1, aligned_memory(10))


def test_without_ipc_namespaces_share_slabs_and_nothing_is_handed_out(opener: Opener) -> None:
    tier = opener(4 * MIB)
    places = [of_namespace(make_sample(n, 1000), bytes([n]) * 16).write_to(tier) for n in range(5)]
    assert {each >> 40 for each in places} == {0}
    with pytest.raises(Unavailable, match="with ipc"):
        tier.export(places[0], 0, 4096)


def test_with_ipc_a_slab_is_of_one_namespace() -> None:
    tier = HbmTier(8 * MIB, "cpu", slab_bytes=4 * MIB, ipc=True)
    mine, theirs = (of_namespace(make_sample(n, 1000), bytes([n]) * 16) for n in (1, 2))
    first, second = mine.write_to(tier), theirs.write_to(tier)
    assert first >> 40 != second >> 40
    others = of_namespace(make_sample(3, 1000), bytes([3]) * 16)
    with pytest.raises(TierFull):
        others.write_to(tier)
    assert mine.write_to(tier) >> 40 == first >> 40
    tier.close()


def test_an_emptied_slab_goes_to_another_namespace_with_zeros_in_it() -> None:
    tier = HbmTier(4 * MIB, "cpu", slab_bytes=4 * MIB, ipc=True)
    mine, theirs = (of_namespace(make_sample(n, 3 * MIB // n), bytes([n]) * 16) for n in (1, 2))
    location = mine.write_to(tier)
    tier.delete(location, mine.record.total_bytes)
    location = theirs.write_to(tier)
    theirs.check_in(tier, location)
    rest = tier.view(location, theirs.record.total_bytes, 4 * MIB - theirs.record.total_bytes)
    assert not bool(rest.any())
    tier.close()


@CUDA
def test_on_a_gpu_small_slabs_cannot_be_handed_out() -> None:
    with pytest.raises(ConfigError, match="10 MiB or more"):
        HbmTier(8 * MIB, "cuda:0", slab_bytes=4 * MIB, ipc=True)


def test_an_exported_slab_stays_with_its_namespace() -> None:
    tier = HbmTier(4 * MIB, "cpu", slab_bytes=4 * MIB, ipc=True)
    mine, theirs = (of_namespace(make_sample(n, MIB), bytes([n]) * 16) for n in (1, 2))
    location = mine.write_to(tier)
    tier.export(location, 0, 4096)
    tier.delete(location, mine.record.total_bytes)
    with pytest.raises(TierFull):
        theirs.write_to(tier)
    mine.check_in(tier, mine.write_to(tier))
    assert tier.stats()["exported_slabs"] == 1
    tier.close()


def test_a_copy_that_fails_leaves_nothing_behind(opener: Opener) -> None:
    tier, sample = opener(), make_sample(1, 70_000)
    location = sample.write_to(tier)
    used, out = tier.used, aligned_memory(4096)
    with lanes_with(tier, before_read=fail, before_write=fail):
        with pytest.raises(StorageError, match="injected"):
            sample.write_to(tier)
        with pytest.raises(StorageError, match="injected"):
            tier.read_into(location, 0, out)
        outcomes = tier.read_many([(location, 0, out), (99 << 40, 0, out)])
    assert [type(each) for each in outcomes] == [StorageError, NotFound]
    assert (tier.used, tier.stats()["errors"]) == (used, 3)
    sample.check_in(tier, location)
    sample.check_in(tier, sample.write_to(tier))


def test_counters(opener: Opener, device: str) -> None:
    tier, sample = opener(), make_sample(1, 70_000)
    location = sample.write_to(tier)
    sample.check_in(tier, location)
    found = tier.stats()
    assert found["bytes_written"] == found["bytes_read"] == found["live_bytes"] == sample.record.total_bytes
    assert (found["records_written"], found["records_read"], found["device"]) == (1, 1, device)


def test_a_record_longer_than_a_slab(opener: Opener) -> None:
    tier, sample = opener(), make_sample(1, 4 * MIB)
    with pytest.raises(TooLarge):
        sample.write_to(tier)
    assert tier.used == 0


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("hbm", "must be cuda:N or cpu"),
        ("meta", "must be cuda:N or cpu"),
        ("cuda:-1", "must be cuda:N or cpu"),
        ("cuda:999", "no GPU|cuda:0 to"),
        ("cuda:256", "no GPU|cuda:0 to"),
    ],
)
def test_a_device_that_is_not_there_is_refused_at_the_start(device: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HbmTier(MIB, device)


@pytest.mark.parametrize("number", [2, 128, 256, 999])
def test_a_device_is_refused_by_how_many_there_are(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes the number for 8 bits: 256 would be device 0. A machine with two GPUs is made up."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="this process sees 2 GPUs, cuda:0 to cuda:1"):
        HbmTier(MIB, f"cuda:{number}")


def test_sizes_that_cannot_work_are_refused_at_the_start() -> None:
    for capacity, slab in ((4095, 1 << 30), (MIB, 100), (2 << 40, 2 << 40)):
        with pytest.raises(ConfigError, match="slab must be"):
            HbmTier(capacity, "cpu", slab_bytes=slab)


@CUDA
def test_more_than_the_device_has_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="lower the capacity"):
        HbmTier(1 << 41, "cuda:0")


@CUDA
def test_a_payload_that_is_still_being_computed(opener: Opener, device: str) -> None:
    """`write_tensor` takes it as it is when what is queued is done; `read_into_tensor` comes after what is queued."""
    tier, sample = opener(), make_sample(1, MIB)
    busy, due = torch.randn(4096, 4096, device=device), tensor_of(sample, device)
    payload = torch.zeros(MIB, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    for _ in range(30):
        busy = busy @ busy * 1e-3
    payload.copy_(due)
    location = tier.write_tensor(sample.header, payload, sample.record)
    sample.check_in(tier, location)
    for _ in range(30):
        busy = busy @ busy * 1e-3
    payload.zero_()
    tier.read_into_tensor(location, sample.record.header_bytes, payload)
    assert torch.equal(payload, due)
