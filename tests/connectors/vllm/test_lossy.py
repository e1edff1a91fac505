"""Lossy copies are loaded only where they are asked for, and nothing computed after them is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.config import DramConfig, NamespaceConfig
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._scheduler import Scheduler
from kvstore.connectors.vllm._taint import Taint
from kvstore.errors import ConfigError
from kvstore.spec import KVSpec

from .test_scheduler import BLOCK, CHUNK, matched, request, step

SPEC = KVSpec.dense("m", layers=2, kv_heads=1, head_dim=32, chunk_tokens=CHUNK)


@pytest.fixture
def lossy():
    """A store whose puts are int8."""
    namespace = NamespaceConfig("default", codec="int8", lossy=True)
    config = kvstore.Config(dram=DramConfig(capacity=64 << 20, extent=64 << 20), namespaces=(namespace,))
    with kvstore.open(config) as opened:
        yield opened


def store(client: Any, tokens: int) -> None:
    for ref in client.chain(SPEC, list(range(1, tokens + 1))).refs:
        random = np.random.default_rng(ref.position).standard_normal(SPEC.part_shape(SPEC.part(), ref.tokens))
        client.put(SPEC, ref, (random.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))


def scheduler(client: Any, fidelity: str) -> Scheduler:
    options = Options(lookup_wait_ms=1.0, fidelity=fidelity)
    return Scheduler(client, SPEC, BLOCK, options, loads=True, saves=True)


def admitted(side: Scheduler, asked: Any, local: int = 0) -> int:
    found, _ = matched(side, asked, local)
    side.allocated(asked, ([*range(1, 40)],), found)
    return found


def test_an_exact_reader_finds_nothing_lossy(lossy):
    store(lossy, 256)
    side = scheduler(lossy, "exact")
    assert matched(side, request(300)) == (0, False)
    side.close()


def test_what_follows_a_lossy_load_is_not_stored(lossy):
    store(lossy, 128)
    side, asked = scheduler(lossy, "lossy"), request(300)
    assert admitted(side, asked) == 128
    (load,) = side.plan(step()).loads
    assert (load.end, load.exact) == (128, 0)
    side.loaded({"r"})
    assert side.plan(step((asked, 128, 172))).saves == []
    asked.num_computed_tokens = 300
    side.finished(asked, ([*range(1, 40)],))
    assert side.plan(step()).final_saves == []
    assert side.counts.take()["saves_tainted"] == 1
    side.close()


def test_a_request_without_lossy_tokens_is_stored_as_ever(lossy):
    side, asked = scheduler(lossy, "lossy"), request(200)
    assert admitted(side, asked) == 0
    assert [job.ref.position for job in side.plan(step((asked, 0, 200))).saves] == [0, 64, 128]
    side.close()


def test_taint_is_inherited_through_the_engines_own_cache(lossy):
    store(lossy, 128)
    side, first = scheduler(lossy, "lossy"), request(300)
    assert admitted(side, first) == 128
    side.plan(step((first, 128, 172)))
    # An answer's blocks get their hashes while it is written.
    first.all_token_ids += range(301, 321)
    first.block_hashes.append(b"block 9")
    side.plan(step((first, 300, 20)))
    # The second request finds all of the first in vLLM's own cache and goes on from there.
    second = request(640, name="second", block_hashes=[f"block {n}".encode() for n in range(20)])
    assert admitted(side, second, local=320) == 0
    assert side.plan(step((second, 320, 320))).saves == []
    # A third shares nothing with it, a fourth only what is exact.
    third = request(192, name="third", block_hashes=[f"other {n}".encode() for n in range(6)])
    third.all_token_ids[:] = range(5000, 5192)
    assert admitted(side, third, local=64) == 0
    assert [job.ref.position for job in side.plan(step((third, 64, 128))).saves] == [0, 64, 128]
    side.close()


def test_exact_chunks_in_front_stay_exact_and_are_preferred(lossy, tmp_path):
    with kvstore.open(kvstore.Config(dram=DramConfig(capacity=64 << 20, extent=64 << 20))) as exact:
        store(exact, 256)
        side = scheduler(exact, "lossy")
        asked = request(300)
        assert admitted(side, asked) == 256
        (load,) = side.plan(step()).loads
        assert load.exact == 256
        side.loaded({"r"})
        assert [job.ref.position for job in side.plan(step((asked, 256, 44))).saves] == [256]
        side.close()


def test_taint_forgets_the_least_recently_asked_for():
    taint = Taint(2)
    taint.mark([b"a", b"b"])
    assert taint.first([b"x", b"a"]) == 1
    taint.mark([b"c"])
    assert (taint.first([b"a"]), taint.first([b"b"]), taint.first([b"c"])) == (0, None, 0)


def test_a_wrong_fidelity_is_refused():
    with pytest.raises(ConfigError, match="'exact' or 'lossy'"):
        Options.of({"fidelity": "near"})
