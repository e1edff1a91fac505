"""The scheduler's side without vLLM: what is asked, loaded and saved, and that it never waits for the store."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.config import DramConfig
from kvstore.connectors.vllm._lookups import Lookups
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._scheduler import Scheduler
from kvstore.errors import ConfigError, Unavailable
from kvstore.spec import OPAQUE, KVGroup, KVSpec

BLOCK, CHUNK = 32, 64
SPEC = KVSpec.dense("m", layers=2, kv_heads=1, head_dim=8, chunk_tokens=CHUNK, layout=OPAQUE)


@pytest.fixture
def client():
    with kvstore.open(kvstore.Config(dram=DramConfig(capacity=64 << 20, extent=64 << 20))) as opened:
        yield opened


def request(tokens: int, name: str = "r", **more: Any) -> Any:
    fields: dict[str, Any] = {
        "prompt_embeds": None,
        "lora_request": None,
        "mm_features": [],
        "cache_salt": None,
        "num_preemptions": 0,
        "kv_transfer_params": None,
    }
    ids = list(range(1, tokens + 1))
    hashes = [f"block {n}".encode() for n in range(tokens // BLOCK)]
    return SimpleNamespace(request_id=name, all_token_ids=ids, num_prompt_tokens=tokens, num_computed_tokens=0,
                           **{**fields, "block_hashes": hashes, **more})  # fmt: skip


def step(*computed: tuple[Any, int, int]) -> Any:
    """A scheduler's output: (request, computed before, scheduled now)."""
    tables = lambda name: (list(range(1, 100)),)  # noqa: E731
    return SimpleNamespace(
        total_num_scheduled_tokens=sum(now for _, _, now in computed),
        num_scheduled_tokens={each.request_id: now for each, _, now in computed},
        scheduled_new_reqs=[
            SimpleNamespace(req_id=r.request_id, num_computed_tokens=before) for r, before, _ in computed
        ],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
        kv_connector_block_state=SimpleNamespace(get_block_ids=tables),
    )


def scheduler(client: Any, **options: Any) -> Scheduler:
    return Scheduler(client, SPEC, BLOCK, Options(lookup_wait_ms=1.0, **options), loads=True, saves=True)


def matched(side: Scheduler, asked: Any, computed: int = 0) -> tuple[int, bool]:
    while True:
        found, is_async = side.matched(asked, computed)
        if found is not None:
            return found, is_async


def store(client: Any, tokens: int) -> None:
    for ref in client.chain(SPEC, list(range(1, tokens + 1))).refs:
        client.put(SPEC, ref, np.zeros(SPEC.part_bytes(SPEC.part(), ref.tokens), np.uint8))


@pytest.mark.parametrize(
    ("stored", "asked", "local", "expected"),
    [(256, 256, 0, 256), (256, 256, 224, 32), (256, 257, 0, 256), (256, 300, 0, 256), (256, 300, 128, 128),
     (256, 300, 256, 0), (0, 300, 0, 0), (224, 300, 0, 224), (160, 300, 0, 160), (256, 20, 0, 0)],
)  # fmt: skip
def test_hits_are_whole_blocks(client, stored, asked, local, expected):
    store(client, stored)
    side = scheduler(client)
    assert matched(side, request(asked), local) == (expected, expected > 0)
    side.close()


def test_asking_twice_changes_nothing(client):
    store(client, 256)
    side, asked = scheduler(client), request(300)
    assert [matched(side, asked) for _ in range(3)] == [(256, True)] * 3
    assert side.plan(step()).loads == []
    side.allocated(asked, ([*range(1, 20)],), 256)
    side.allocated(asked, ([*range(1, 20)],), 0)
    (load,) = side.plan(step()).loads
    assert (load.start, load.end, len(load.refs)) == (0, 256, 4)
    # After a load, well or not, nothing more is loaded: what is missing is computed.
    side.loaded({"r"})
    assert matched(side, asked) == (0, False)
    side.close()


def test_what_is_saved(client):
    side, asked = scheduler(client), request(200)
    assert matched(side, asked) == (0, False)
    side.allocated(asked, (), 0)
    first = side.plan(step((asked, 0, 150)))
    assert [(job.ref.position, job.ref.tokens) for job in first.saves] == [(0, 64), (64, 64)]
    # The prompt's end: its tail in whole blocks, since another answer will follow the same prompt.
    second = side.plan(step((asked, 150, 50)))
    assert [(job.ref.position, job.ref.tokens) for job in second.saves] == [(128, 64)]
    asked.all_token_ids += range(1000, 1100)
    third = side.plan(step((asked, 200, 56)))
    assert [(job.ref.position, job.ref.tokens, job.blocks) for job in third.saves] == [(192, 64, ([7, 8],))]
    asked.num_computed_tokens = 299
    side.finished(asked, ([*range(1, 20)],))
    (last,) = side.plan(step()).final_saves
    assert (last.ref.position, last.ref.tokens) == (256, 32)
    assert last.ref == client.chain(SPEC, asked.all_token_ids[:288]).refs[-1]
    side.close()


def test_a_model_with_windows_is_left_a_token_to_compute(client):
    """The last token, computed again, would need one more at the other end of its window than there is."""
    spec = KVSpec("w", "", "bfloat16", (KVGroup((0,), 1, 8), KVGroup((1,), 1, 8, window=64)), chunk_tokens=CHUNK)
    for ref in client.chain(spec, list(range(1, 257))).refs:
        for part in spec.parts():
            client.put(spec, ref, np.zeros(spec.part_bytes(part, ref.tokens), np.uint8), part=part)
    side = Scheduler(client, spec, BLOCK, Options(lookup_wait_ms=1.0), loads=True, saves=True)
    assert matched(side, request(256)) == (192, True)  # where the chunk before ends
    assert matched(side, request(257, "other")) == (256, True)
    side.close()


def test_after_a_reset_nothing_is_loaded_or_saved(client):
    store(client, 256)
    side, before = scheduler(client), request(200, name="before")
    before.all_token_ids[:] = range(9001, 9201)
    assert matched(side, before) == (0, False)
    side.allocated(before, (), 0)
    before.num_computed_tokens = 200
    side.finished(before, ([*range(1, 20)],))
    side.stop()
    # Its blocks may hold something else by now: the weights are new, or the memory was given back.
    assert side.plan(step()).final_saves == []
    asked = request(300)
    side.arrived(asked)
    assert matched(side, asked) == (0, False)
    side.allocated(asked, (), 0)
    assert side.plan(step((asked, 0, 300))).saves == []
    side.finished(asked, ([*range(1, 20)],))
    assert side.plan(step()).final_saves == []
    side.close()


def test_nothing_is_saved_of_a_request_that_ends_while_it_is_loaded(client):
    store(client, 256)
    side, asked = scheduler(client), request(300)
    matched(side, asked)
    side.allocated(asked, ([*range(1, 20)],), 256)
    asked.num_computed_tokens = 256  # vLLM sets it before anything has come
    side.finished(asked, ([*range(1, 20)],))
    assert side.plan(step()).final_saves == []
    side.close()


def test_salts_and_embeddings(client):
    store(client, 256)
    side = scheduler(client)
    assert matched(side, request(300, "a", cache_salt="x")) == (0, False)
    embedded = request(300, "b", prompt_embeds=object())
    assert matched(side, embedded) == (0, False)
    assert side.plan(step((embedded, 0, 300))).saves == []
    side.close()


def test_a_store_that_stands_still_is_waited_for_a_counted_number_of_times(client, monkeypatch):
    """Every wait goes through one place, with the configured limit; beyond the deadline it is a miss."""
    still, limits = threading.Event(), []
    monkeypatch.setattr(client, "lookup", lambda *args, **more: still.wait() and None)
    side = scheduler(client, lookup_timeout_s=0.05)
    asked = request(300)
    side.arrived(asked)
    future = side._tracked["r"].asked
    result = future.result
    monkeypatch.setattr(future, "result", lambda timeout=None: limits.append(timeout) or result(timeout))
    answers = []
    while not answers or answers[-1] is None:
        answers.append(side.matched(asked, 0)[0])
    assert set(answers[:-1]) <= {None}
    assert answers[-1] == 0
    assert set(limits) == {1e-3}
    assert len(limits) == side.lookups.waits == len(answers)
    # From now on it is left alone: no wait at all.
    assert side.lookups.down
    assert side.matched(request(300, "other"), 0) == (0, False)
    assert side.lookups.waits == len(answers)
    still.set()
    side.close()


def test_a_store_that_is_gone_is_left_alone_for_a_while(client, monkeypatch):
    calls = []

    def gone(*args: Any, **more: Any) -> Any:
        calls.append(1)
        raise Unavailable("nobody listens")

    monkeypatch.setattr(client, "lookup", gone)
    side = scheduler(client, retry_s=60.0)
    for n in range(5):
        assert matched(side, request(300, f"r{n}")) == (0, False)
    assert len(calls) == 1
    side.close()


def test_an_error_that_nobody_expects_is_a_miss_that_is_told(client, monkeypatch, caplog):
    def wrong(*args: Any, **more: Any) -> Any:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(client, "lookup", wrong)
    side = scheduler(client)
    assert matched(side, request(300)) == (0, False)
    assert side.lookups.down
    side.close()
    assert "ZeroDivisionError: by nothing" in caplog.text


def test_leases_end(client):
    store(client, 256)
    side = scheduler(client)
    for n in range(3):
        asked = request(300, f"r{n}")
        matched(side, asked)
        side.finished(asked, ([],))
    asked = request(300, "never asked for")
    side.arrived(asked)
    side.finished(asked, ([],))
    side.close()
    deadline = time.monotonic() + 30
    while any(each.leases for each in client.list()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(each.leases for each in client.list())


@pytest.mark.parametrize("given", [{"sever": "x"}, {"readers": 0}, {"lease_s": "1"}, {"server": "a", "config": "b"}])
def test_options_that_are_wrong_are_told(given):
    with pytest.raises(ConfigError, match="kv_connector_extra_config"):
        Options.of(given)


def test_lookups_say_which_requests_have_no_key(client, tmp_path):
    lookups = Lookups(client, SPEC, BLOCK, Options(), leased=True)
    from kvstore.connectors.vllm._extras import Origin

    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    origin = Origin((1, str(tmp_path), False), "", ())
    first = lookups.ask([1] * 100, origin).result()
    assert first.extras is not None
    assert first.extras.lora
    (tmp_path / "adapter_model.safetensors").write_bytes(b"another")
    assert lookups.ask([1] * 100, origin).result().extras is None
    assert lookups.ask([1] * 100, Origin((2, "no/folder", False), "", ())).result().extras is None
    lookups.close()
