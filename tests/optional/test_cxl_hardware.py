"""The CXL tier on real NUMA nodes without processors and on real device-DAX, where there are such.

`python tests/optional/cxl_guest.py` runs this in a QEMU guest that has two of each. What lies on the devices that
KVSTORE_TEST_DAX names (`/dev/dax0.0:/dev/dax1.0`) is lost; without it none is touched.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvstore import _native, numa
from kvstore.errors import ConfigError
from kvstore.testing import PersistentTierConformance, make_sample
from kvstore.tiers.base import Recovered, Tier
from kvstore.tiers.cxl import CxlTier, wipe
from tests.tiers.cxl import test_conformance as cases
from tests.tiers.test_dram import ready

MIB = 1 << 20
NODES = sorted(set(numa.nodes_with_memory()) - set(numa.nodes_with_cpus()))
DEVICES = [Path(each) for each in os.environ.get("KVSTORE_TEST_DAX", "").split(":") if each]
needs_nodes = pytest.mark.skipif(len(NODES) < 2, reason="needs two NUMA nodes without processors")
needs_devices = pytest.mark.skipif(len(DEVICES) < 2, reason="needs two DAX devices (KVSTORE_TEST_DAX)")


@needs_nodes
class TestNodes(cases.OnDevices):
    def open(self) -> CxlTier:
        return CxlTier(cases.CAPACITY, nodes=NODES[:2])


@needs_nodes
def test_each_device_is_its_node() -> None:
    tier = CxlTier(128 * MIB, nodes=NODES[:2], weights=[1, 1])
    sample = make_sample(1, 40 * MIB)
    location = sample.write_to(tier)
    sample.check_in(tier, location)
    for region, node in zip(tier._regions, NODES, strict=False):
        assert {_native.node_of(region.view(at, 4096)) for at in range(0, 64 * MIB, 2 * MIB)} == {node}
    print({name: value for name, value in tier.stats().items() if "device" in name or name == "weights"})
    tier.close()


@needs_nodes
def test_more_than_the_nodes_have() -> None:
    with pytest.raises(ConfigError, match="free; lower it"):
        CxlTier(1 << 40, nodes=NODES)


@needs_nodes
@pytest.mark.parametrize("nodes", [[0], [0, NODES[0] if NODES else 0], NODES[:2]])
def test_extents_of_dram_lie_on_nodes_in_turn(nodes: list[int]) -> None:
    tier = ready(8 * 4 * MIB, 4 * MIB, nodes=nodes)
    places = [tier.reserve(b"n" * 16, 4 * MIB) for _ in range(8)]
    found = [_native.node_of(tier.view(at, 4096 * 100, 4096)) for at in places]
    assert {node: found.count(node) for node in found} == dict.fromkeys(nodes, 8 // len(nodes))
    print(tier.stats())
    tier.close()


@needs_devices
class TestDax(cases.OnDevices, PersistentTierConformance):
    def open(self) -> CxlTier:
        tier = CxlTier(cases.CAPACITY, paths=DEVICES[:2], persistent=True, weights=[1, 1], threads=2)
        assert [region.mapped for region in tier._regions] == ["MAP_SYNC"] * 2
        assert all(region.direct for region in tier._regions)
        return tier

    def make_tier(self) -> Tier:
        wipe(DEVICES[:2])
        return super().make_tier()

    def reopen(self) -> tuple[Tier, Recovered]:
        tier = self.open()
        return tier, tier.recover()

    def place(self) -> str | None:
        return "/dev"

    def go_to(self, place: str) -> None:
        assert place == "/dev"


@needs_devices
def test_a_device_that_forgets() -> None:
    wipe(DEVICES[:2])
    tier = CxlTier(paths=DEVICES[:2])
    sample = make_sample(1, 20 * MIB)
    sample.check_in(tier, sample.write_to(tier))
    print(tier.stats())
    tier.close()
