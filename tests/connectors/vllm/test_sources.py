"""What vLLM is told of where a hit's tokens came from."""

from __future__ import annotations

import pytest

import kvstore
from kvstore.config import DramConfig, NvmeConfig

from .test_scheduler import CHUNK, matched, request, scheduler, store


def on_disk(folder, first, more):
    """A store that was closed with `first` tokens of a prompt on its disk; it has the rest up to `more` in DRAM."""
    dram = DramConfig(capacity=64 << 20, extent=64 << 20)
    config = kvstore.Config(dram=dram, nvme=NvmeConfig(folder, 256 << 20, 64 << 20, 0, 2))
    with kvstore.open(config) as client:
        store(client, first)
    opened = kvstore.open(config)
    store(opened, more)
    return opened


@pytest.mark.parametrize(
    ("local", "external", "cold"),
    [(0, 256, 128), (0, 96, 96), (32, 224, 96), (128, 128, 0), (96, 64, 32)],
)
def test_what_lies_on_disk_is_counted_in_the_part_that_is_loaded(tmp_path, local, external, cold):
    with on_disk(tmp_path / "nvme", 2 * CHUNK, 256) as client:
        side, asked = scheduler(client), request(300)
        assert matched(side, asked, local) == (256 - local, True)
        side.allocated(asked, ([*range(1, 20)],), external)
        assert side.cold(asked, external) == cold
        side.close()


def test_of_a_request_that_is_not_known_nothing_is_cold(tmp_path):
    with on_disk(tmp_path / "nvme", CHUNK, CHUNK) as client:
        side = scheduler(client)
        assert side.cold(request(300), 64) == 0
        side.close()
