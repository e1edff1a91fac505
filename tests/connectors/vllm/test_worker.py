"""A worker's steps without work, over a real store and blocks in host memory, without vLLM."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.connectors.vllm import _worker
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._plan import LoadJob, Plan

from .test_scheduler import BLOCK, SPEC, client

torch = pytest.importorskip("torch")

__all__ = ["client"]  # a fixture
TOKENS, TABLE, LAYERS = 256, list(range(1, 9)), ["layers.0", "layers.1"]
BLOCK_BYTES = SPEC.part_bytes(SPEC.part(), BLOCK) // len(LAYERS)


class Held:
    """A client whose reads begin once they are let go."""

    def __init__(self, client: Any) -> None:
        self._client, self.go = client, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def view(self, *args: Any, **named: Any) -> Any:
        assert self.go.wait(60)
        return self._client.view(*args, **named)


@pytest.fixture
def held(client: Any) -> Held:
    return Held(client)


@pytest.fixture
def caches() -> dict[str, Any]:
    return {name: torch.zeros(len(TABLE) + 1, BLOCK_BYTES, dtype=torch.uint8) for name in LAYERS}


@pytest.fixture
def worker(held: Held, caches: dict[str, Any]) -> Iterator[_worker.Worker]:
    groups = [SimpleNamespace(layer_names=LAYERS)]
    side = _worker.Worker(held, SPEC, BLOCK, Options(), 0, groups, None)  # type: ignore[arg-type]
    side.register(caches)
    yield side
    held.go.set()
    side.close()


def loading(client: Any) -> Plan:
    """Stores a prompt whose every byte is 3, and loads it."""
    refs = client.chain(SPEC, list(range(1, TOKENS + 1))).refs
    for ref in refs:
        client.put(SPEC, ref, np.full(SPEC.part_bytes(SPEC.part(), ref.tokens), 3, np.uint8))
    return Plan([LoadJob("r", 0, TOKENS, tuple(refs), (TABLE,), TOKENS)], idle=True)


def test_an_empty_step_lasts_until_a_load_is_over(client, held, worker, caches, monkeypatch):
    monkeypatch.setattr(_worker, "REST_S", 60.0)
    worker.load(loading(client))
    letting_go = threading.Timer(0.1, held.go.set)
    letting_go.start()
    worker.rest()
    assert worker.results() == ({"r"}, set())
    assert all((caches[name][TABLE] == 3).all() and not caches[name][0].any() for name in LAYERS)
    report = worker.report()
    assert report is not None
    assert (list(report.loads), report.loads["r"].nbytes, report.done) == (
        ["r"],
        SPEC.part_bytes(SPEC.part(), TOKENS),
        {},
    )
    assert report.loads["r"].seconds > 0
    assert worker.report() is None
    worker.rest()  # without a load there is nothing to wait for
    assert worker.results() == (set(), set())
    letting_go.join()


def test_a_load_that_takes_long_does_not_hold_the_engine_up(client, held, worker, monkeypatch):
    monkeypatch.setattr(_worker, "REST_S", 0.01)
    worker.load(loading(client))
    worker.rest()
    assert worker.results() == (set(), set())
    monkeypatch.setattr(_worker, "REST_S", 60.0)
    held.go.set()
    worker.rest()
    assert worker.results() == ({"r"}, set())
