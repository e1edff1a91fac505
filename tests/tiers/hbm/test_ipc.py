"""A record of one process's tier, seen in place by another: the files of the CPU twin, and CUDA IPC."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kvstore.errors import ConfigError, InvalidArgument, Unavailable  # noqa: E402 - needs torch
from kvstore.testing.records import make_sample  # noqa: E402 - needs torch
from kvstore.tiers.hbm import HbmTier, Importer  # noqa: E402 - needs torch
from kvstore.tiers.hbm.ipc import check_alone  # noqa: E402 - needs torch
from kvstore.tiers.hbm.slabs import Slab  # noqa: E402 - needs torch

MIB = 1 << 20


class Exporter:
    """The other process."""

    def __init__(self, device: str) -> None:
        program = [sys.executable, str(Path(__file__).with_name("exporter.py")), device]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        told = json.loads(self._line())
        self.handles: list[bytes] = [each.encode() for each in told["handles"]]
        self.slabs: list[int] = told["slabs"]

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(30) == 0

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def exporter(device: str) -> Iterator[Exporter]:
    other = Exporter(device)
    yield other
    other.close()


def test_another_process_sees_the_record_where_it_lies(exporter: Exporter, device: str) -> None:
    importer = Importer()
    seen = [importer.open(each) for each in exporter.handles]
    assert all(str(each.device) == device for each in seen)
    for number, each in enumerate(seen):
        assert bytes(each.cpu().numpy()) == make_sample(number, 100_000 + number).content
    # Records of one slab are one mapping, and what one process changes the other sees: nothing was copied.
    assert len({each.untyped_storage().data_ptr() for each in seen}) == len(set(exporter.slabs)) == 2
    assert exporter.ask("1") == make_sample(1, 100_001).content[:8].hex()
    seen[1][:8] = torch.arange(8, dtype=torch.uint8)
    if device != "cpu":
        torch.cuda.synchronize()
    assert exporter.ask("1") == bytes(range(8)).hex()
    importer.close()
    assert bytes(seen[2].cpu().numpy()) == make_sample(2, 100_002).content, "a view outlives its importer"
    del seen, each
    gc.collect()
    assert exporter.ask("close") == "closed"


def test_one_reader_leaves_and_another_goes_on(exporter: Exporter) -> None:
    first, second = Importer(), Importer()
    kept = second.open(exporter.handles[0])
    first.open(exporter.handles[0])
    first.close()
    gc.collect()
    assert bytes(kept.cpu().numpy()) == make_sample(0, 100_000).content
    again = Importer().open(exporter.handles[3])
    assert bytes(again.cpu().numpy()) == make_sample(3, 100_003).content
    del kept, again
    second.close()


def test_memory_that_is_gone_is_unavailable() -> None:
    other = Exporter("cpu")
    assert other.ask("close") == "closed"
    with pytest.raises(Unavailable):
        Importer().open(other.handles[0])
    other.close()
    with pytest.raises(Unavailable):
        Importer().open(other.handles[1])


class Allocations:
    """Stands in for a device's context: says where an allocation lies."""

    def __init__(self, start: int, nbytes: int) -> None:
        self.found = start, nbytes

    def allocation(self, address: int) -> tuple[int, int]:
        return self.found


@pytest.mark.parametrize(("before", "more"), [(0, 4 * MIB), (512, 512)])
def test_a_slab_in_an_allocation_with_others_is_refused_at_the_start(before: int, more: int) -> None:
    slab = Slab.make(0, 8 * MIB, torch.device("cpu"))
    check_alone(slab, Allocations(slab.address, slab.nbytes + MIB))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="other tensors"):
        check_alone(slab, Allocations(slab.address - before, slab.nbytes + more))  # type: ignore[arg-type]
    slab.close()


def test_what_is_no_handle_is_refused() -> None:
    tier, sample = HbmTier(8 * MIB, "cpu", slab_bytes=8 * MIB, ipc=True), make_sample(1, 5000)
    good = tier.export(sample.write_to(tier), sample.record.header_bytes, 5000)
    assert bytes(Importer().open(good).numpy()) == sample.content
    told = json.loads(good)
    wrong = [
        {"start": -1}, {"nbytes": 8 * MIB}, {"nbytes": "5"}, {"v": 2}, {"slab": 7}, {"open": {}}, {"slab_bytes": True},
        {"open": {"device": "cpu"}}, {"open": {"device": "cpu", "file": 9999.5}}, {"open": None},
    ]  # fmt: skip
    for each in wrong:
        with pytest.raises(InvalidArgument):
            Importer().open(json.dumps(told | each).encode())
    for junk in (b"", b"null", b"[]", b"\xff\xfe", b"KVH1"):
        with pytest.raises(InvalidArgument):
            Importer().open(junk)
    with pytest.raises(Unavailable):
        Importer().open(json.dumps(told | {"slab_bytes": 16 * MIB}).encode())
    with pytest.raises(Unavailable, match="GPU"):
        Importer().open(json.dumps(told | {"open": {"device": "no such GPU"}}).encode())
    tier.close()
