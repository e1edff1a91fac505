"""Loading ahead: what waiting requests need is in DRAM before their turn, within a bound of bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.config import DramConfig, NvmeConfig
from kvstore.connectors.vllm._ahead import Ahead
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._scheduler import Scheduler
from kvstore.errors import ConfigError, Unavailable
from kvstore.spec import OPAQUE, KVSpec
from tests.connectors.vllm.test_scheduler import BLOCK, matched, request, step

MiB = 1 << 20
CHUNK = 64
SPEC = KVSpec.dense("ahead", layers=4, kv_heads=8, head_dim=128, chunk_tokens=CHUNK, layout=OPAQUE)  # 1 MiB a chunk


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def prompt(number: int, tokens: int = 3 * CHUNK) -> Any:
    made = request(tokens, f"r{number}")
    made.all_token_ids[:] = range(100_000 * number + 1, 100_000 * number + 1 + tokens)
    return made


@pytest.fixture
def client(tmp_path: Path) -> Iterator[kvstore.Client]:
    """A store that was closed with four prompts of three chunks on its disk, and nothing in DRAM."""
    dram, nvme = DramConfig(64 * MiB, 64 * MiB), NvmeConfig(tmp_path / "nvme", 256 * MiB, 64 * MiB, 0, 2)
    config = kvstore.Config(dram=dram, nvme=nvme)
    with kvstore.open(config) as writing:
        for number in range(4):
            for ref in writing.chain(SPEC, prompt(number).all_token_ids).refs:
                writing.put(SPEC, ref, np.full(SPEC.part_bytes(SPEC.part(), ref.tokens), number, np.uint8))
    with kvstore.open(config) as opened:
        yield opened


def side_of(client: kvstore.Client, **options: Any) -> Scheduler:
    return Scheduler(client, SPEC, BLOCK, Options(lookup_wait_ms=1.0, **options), loads=True, saves=True)


def in_dram(client: kvstore.Client) -> int:
    """Chunks in DRAM."""
    return sum("dram" in {place.tier for place in info.placements} for info in client.list())


def test_requests_that_wait_find_dram_when_their_turn_comes(client: kvstore.Client) -> None:
    side, waiting = side_of(client), [prompt(number) for number in range(4)]
    assert in_dram(client) == 0
    for each in waiting:
        side.arrived(each)
    until(lambda: in_dram(client) == 12)  # nobody has asked for a load
    loaded = client.stats()["counters"]["loaded_nvme"]
    assert matched(side, waiting[3]) == (3 * CHUNK, True)
    side.allocated(waiting[3], ([*range(1, 20)],), 3 * CHUNK)
    (load,) = side.plan(step()).loads
    for ref in load.refs:
        assert (np.asarray(client.get(SPEC, ref)).view(np.uint8) == 3).all()
    assert client.stats()["counters"]["loaded_nvme"] == loaded == 12
    assert side.counts.take()["prefetched_chunks"] == 12
    side.close()


def test_no_more_is_loaded_ahead_than_the_bound_allows(client: kvstore.Client) -> None:
    side, waiting = side_of(client, prefetch_mib=7), [prompt(number) for number in range(4)]
    ahead = side._ahead
    for each in waiting:
        side.arrived(each)
        until(lambda name=each.request_id: name in {*ahead._asked, *ahead._waiting})
    until(lambda: in_dram(client) == 6)  # two prompts of three
    assert [matched(side, each) for each in waiting] == [(3 * CHUNK, True)] * 4
    assert in_dram(client) == 6
    side.allocated(waiting[0], ([*range(1, 20)],), 3 * CHUNK)  # its turn: another one is loaded ahead
    until(lambda: in_dram(client) == 9)
    side.finished(waiting[1], ([],))  # given up
    until(lambda: in_dram(client) == 12)
    side.close()


def test_of_a_prompt_beyond_the_bound_the_beginning_is_loaded(client: kvstore.Client) -> None:
    side = side_of(client, prefetch_mib=2)
    side.arrived(prompt(0))
    until(lambda: in_dram(client) == 2)
    cold = [info.position for info in client.list() if "dram" not in {place.tier for place in info.placements}]
    assert sum(position == 2 * CHUNK for position in cold) == 4
    assert side.counts.take()["prefetched_chunks"] == 2
    side.close()


def test_it_can_be_turned_off(client: kvstore.Client) -> None:
    side, asked = side_of(client, prefetch_mib=0), prompt(0)
    side.arrived(asked)
    assert matched(side, asked) == (3 * CHUNK, True)
    side.close()  # which waits for what was under way
    assert in_dram(client) == 0
    with pytest.raises(ConfigError, match="prefetch_mib must not be negative"):
        Options.of({"prefetch_mib": -1})


class _Hit:
    def __init__(self, cold: tuple[Any, ...]) -> None:
        self.cold = cold


class _Failing:
    asked = 0

    def prefetch(self, *_: Any, **__: Any) -> int:
        self.asked += 1
        raise Unavailable("the store is gone")


def test_a_store_that_fails_and_a_request_that_is_gone_hold_nothing_up(client: kvstore.Client) -> None:
    refs, failing = client.chain(SPEC, prompt(0).all_token_ids).refs, _Failing()
    ahead = Ahead(failing, SPEC, 3 * MiB, kvstore.Fidelity.EXACT, Counts(), lambda call: call())  # type: ignore[arg-type]
    ahead.begin("late", _Hit(refs))  # type: ignore[arg-type]
    assert failing.asked == 0, "its turn came before the answer"
    for name in ("one", "two"):
        ahead.expect(name)
        ahead.begin(name, _Hit(refs))  # type: ignore[arg-type]
    assert failing.asked == 1
    ahead.end("one")
    assert failing.asked == 2
    ahead.end("two")
    assert (ahead._asked, ahead._expected, len(ahead._waiting)) == ({}, set(), 0)
