"""What vLLM tells others of the store: Prometheus counters, hits by source, KV events."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import prompt, transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SOURCE = "vllm:prompt_tokens_cached_by_source"
BLOCK, PROMPT = 32, 1000
STORED = PROMPT // BLOCK * BLOCK
PATIENCE_S = 20.0


class Router:
    """Listens to an engine's KV events, which it takes apart into blocks."""

    def __init__(self, socket: Path) -> None:
        import zmq

        endpoint = f"ipc://{socket}"
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)  # to what vLLM is going to bind
        self.config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint}
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        self._socket.close(linger=0)

    def hear(self, seconds: float) -> None:
        """Take in what comes within a time."""
        import msgspec

        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._socket.poll(left * 1000):
                _, events, *_ = msgspec.msgpack.decode(self._socket.recv_multipart()[2])
                self.events += events

    def stored(self, medium: str) -> list[dict[str, Any]]:
        """The events of blocks that came to be there."""
        return [each for each in self.events if each["type"] == "BlockStored" and each["medium"] == medium]

    def blocks(self, medium: str, group: int = 0) -> dict[bytes, tuple[Any, ...]]:
        """By hash: the parent's hash, the tokens and the extra keys of each block that was told of."""
        told: dict[bytes, tuple[Any, ...]] = {}
        for each in self.stored(medium):
            if each["group_idx"] != group:
                continue
            names, tokens = each["block_hashes"], each["token_ids"]
            extras = each.get("extra_keys") or [None] * len(names)
            assert (each["block_size"], len(tokens), len(extras)) == (BLOCK, len(names) * BLOCK, len(names))
            for n, parent in enumerate([each["parent_block_hash"], *names[:-1]]):
                told[names[n]] = (parent, tokens[n * BLOCK : (n + 1) * BLOCK], extras[n])
        return told

    def hear_until(self, blocks: int, group: int = 0) -> dict[bytes, tuple[Any, ...]]:
        """The blocks in the store, once so many have been told of, and no more after that."""
        end = time.monotonic() + PATIENCE_S
        while len(self.blocks("STORAGE", group)) < blocks:
            assert time.monotonic() < end, f"{len(self.blocks('STORAGE', group))} of {blocks} blocks were told of"
            self.hear(0.2)
        self.hear(0.5)
        return self.blocks("STORAGE", group)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    listening = Router(tmp_path / "events")
    yield listening
    listening.close()


def test_counters_and_hits_by_source(start, server, llama):
    cold = start(llama, transfer(server.address))
    cold.ask(prompt(PROMPT))
    assert cold.metrics("vllm:kvstore_lookups") == 1
    assert cold.metrics("vllm:kvstore_hit_tokens") == 0
    assert [cold.metrics(SOURCE, source=each) for each in ("host", "disk")] == [0, 0]
    cold.close()

    warm = start(llama, transfer(server.address))
    warm.ask(prompt(PROMPT))
    assert warm.metrics("vllm:kvstore_hit_tokens") == STORED
    assert warm.metrics("vllm:kvstore_loads") == 1
    assert warm.metrics("vllm:kvstore_loads_failed") == 0
    assert warm.metrics("vllm:kvstore_loaded_bytes") == STORED * 4 * 2 * 64 * 2 * 4  # layers, heads, dim, K and V
    assert warm.metrics("vllm:external_prefix_cache_hits") == STORED
    assert [warm.metrics(SOURCE, source=each) for each in ("host", "disk")] == [STORED, 0]

    server.stop()
    server.start()
    warm.ask_until_cached(prompt(PROMPT))
    assert [warm.metrics(SOURCE, source=each) for each in ("host", "disk")] == [STORED, STORED]
    assert warm.metrics(SOURCE, source="external_unspecified") == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_events_name_the_blocks_as_vllm_does(start, server, llama, router, ranks):
    options: dict[str, Any] = {"processes": True, "enable_prefix_caching": True, "kv_events_config": router.config}
    if ranks > 1:
        options |= {"tensor_parallel_size": 2, "distributed_executor_backend": "mp",
                    "env": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}  # fmt: skip
    engine = start(llama, transfer(server.address), **options)
    engine.ask(prompt(PROMPT), salt="a tenant")
    # Nothing is asked after it: the engine itself goes on until the last event is out.
    told = router.hear_until(PROMPT // BLOCK)
    assert told == router.blocks("GPU")
    chain, name = [], None
    while (child := next((each for each, (parent, _, _) in told.items() if parent == name), None)) is not None:
        chain.append(told[child])
        name = child
    assert [token for _, tokens, _ in chain for token in tokens] == prompt(PROMPT)[:STORED]
    assert [extra for _, _, extra in chain] == [["a tenant"], *[None] * (PROMPT // BLOCK - 1)]


def test_windows_are_told_of_by_their_groups(start, server, gemma, router):
    engine = start(gemma, transfer(server.address), processes=True, enable_prefix_caching=True,
                   kv_events_config=router.config, max_num_batched_tokens=300)  # fmt: skip
    engine.ask(prompt(PROMPT))
    router.hear(1.0)
    whole = next(each for each in router.stored("GPU") if each.get("kv_cache_spec_sliding_window") is None)
    router.hear_until(PROMPT // BLOCK, group=whole["group_idx"])
    kinds = [
        {each["group_idx"]: (each["kv_cache_spec_kind"], each.get("kv_cache_spec_sliding_window")) for each in events}
        for events in (router.stored("STORAGE"), router.stored("GPU"))
    ]
    assert kinds[0] == kinds[1]
    assert len({kind for kind, _ in kinds[0].values()}) == 2
    known = router.blocks("GPU", whole["group_idx"])  # vLLM's own of a window name more tokens than blocks
    for number in kinds[0]:
        ours = router.blocks("STORAGE", number)
        assert ours
        assert {name: known[name] for name in ours} == ours


def test_what_is_not_stored_is_not_told(start, server, llama, router):
    engine = start(llama, transfer(server.address, timeout_s=1.0, retry_s=1.0), processes=True,
                   enable_prefix_caching=True, kv_events_config=router.config)  # fmt: skip
    server.stop(signal.SIGKILL)
    engine.ask(prompt(PROMPT))
    router.hear(4.0)
    assert len(router.blocks("GPU")) == PROMPT // BLOCK
    assert router.blocks("STORAGE") == {}
