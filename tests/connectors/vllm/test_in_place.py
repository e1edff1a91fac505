"""Loads of what the store keeps on the engine's device: a real store, its CPU twin, and blocks as a GPU has them.

The blocks are CPU tensors, gathered and scattered by torch, that say that they are on a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.config import Config, DramConfig, HbmConfig
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._loads import Loads
from kvstore.connectors.vllm._plan import LoadJob
from kvstore.device_views import DeviceViews
from kvstore.errors import Unavailable
from kvstore.keys import Chain, ChunkRef
from kvstore.spec import KVSpec

torch = pytest.importorskip("torch")

from kvstore.connectors.vllm._device import DeviceLayers  # noqa: E402 - needs torch

MiB = 1 << 20
LAYERS, HEADS, DIM, BLOCK = 3, 2, 8, 16
SPEC = KVSpec.dense("in-place", layers=LAYERS, kv_heads=HEADS, head_dim=DIM, dtype="float16", chunk_tokens=4 * BLOCK)
REFS = Chain.of(np.arange(3 * 4 * BLOCK), SPEC.chunk_tokens).refs
TABLE = [7, 3, 11, 1, 2, 9, 4, 8, 5, 10, 12, 6]  # the blocks of a prompt of three chunks
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")


def array(ref: ChunkRef) -> Any:
    generator = np.random.default_rng(ref.position)
    return generator.standard_normal(SPEC.part_shape(SPEC.part(), ref.tokens)).astype(np.float16)


def fresh(where: str = "cpu") -> list[Any]:
    return [torch.full((14, HEADS, BLOCK, 2 * DIM), -7.0, dtype=torch.float16, device=where) for _ in range(LAYERS)]


class DeviceBlocks:
    """`Blocks` over one group of `DeviceLayers`, which counts what comes which way."""

    block_tokens = BLOCK

    def __init__(self) -> None:
        self.tensors = fresh()
        self.device = torch.device("cpu")
        self._layers = DeviceLayers(self.tensors, 2)
        self.loaded = self.in_place = 0
        self.error: Exception | None = None

    def fence(self) -> Any:
        return self._layers.fence()

    def write(self, group: int, source: Any, first: int, table: Sequence[int], after: Any) -> None:
        self.loaded += 1
        self._layers.write(table, first, source, after)

    def write_from(self, group: int, source: Any, first: int, table: Sequence[int], after: Any) -> None:
        if self.error is not None:
            raise self.error
        self.in_place += 1
        self._layers.write_from(table, first, source, after)


def holds(tensors: Sequence[Any], start: int, end: int) -> bool:
    """Whether the blocks hold tokens `start` to `end` of the prompt, and the others nothing."""
    expected = [each.cpu() for each in fresh()]
    for ref in REFS:
        for layer, (keys, values) in enumerate(torch.from_numpy(array(ref))):
            for n in range(ref.tokens // BLOCK):
                at = ref.position + n * BLOCK
                if start <= at < end:
                    rows = slice(n * BLOCK, (n + 1) * BLOCK)
                    both = torch.cat([keys[rows], values[rows]], dim=-1)  # [token, head, content]
                    expected[layer][TABLE[at // BLOCK]] = both.transpose(0, 1)
    return all(torch.equal(each.cpu(), due) for each, due in zip(tensors, expected, strict=True))


@pytest.fixture
def client() -> Iterator[kvstore.Client]:
    config = Config(DramConfig(8 * MiB, 8 * MiB), HbmConfig(4 * MiB, ("cpu",), 4 * MiB))
    with kvstore.open(config) as made:
        for ref in REFS:
            made.put(SPEC, ref, array(ref))
        yield made


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def bring(client: kvstore.Client) -> None:
    def there() -> bool:
        with client.device_views(SPEC, REFS, device="cpu") as views:
            return views.found == len(REFS)

    eventually(there)


def load(
    client: kvstore.Client, start: int = 0, end: int = 3 * 4 * BLOCK
) -> tuple[DeviceBlocks, dict[str, float], Any]:
    """Load a prompt: the blocks, what was counted, and the outcome."""
    blocks, counts = DeviceBlocks(), Counts()
    return blocks, *again(client, blocks, counts, start, end)


def again(
    client: kvstore.Client, blocks: DeviceBlocks, counts: Counts, start: int = 0, end: int = 3 * 4 * BLOCK
) -> tuple[dict[str, float], Any]:
    loads = Loads(client, SPEC, 0, blocks, 2, counts)  # type: ignore[arg-type]
    try:
        loads.start(LoadJob("r", start, end, REFS, (TABLE,), end))
        outcomes: list[Any] = []

        def ended() -> bool:
            loads.wait(0.1)
            outcomes.extend(loads.take())
            return bool(outcomes)

        eventually(ended)
    finally:
        loads.close()
    assert client.stats()["gauges"]["leases"] == 0
    return counts.take(), outcomes[0]


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize(("first", "count"), [(0, 4), (1, 2), (3, 1), (0, 3)])
def test_a_part_on_the_device_is_scattered_as_one_in_host_memory_is(where: str, first: int, count: int) -> None:
    part = np.ascontiguousarray(array(REFS[0])).view(np.uint8).reshape(-1)
    layers, expected = fresh(where), fresh(where)
    DeviceLayers(expected, 2).write(TABLE[:count], first, part)
    on_device = torch.from_numpy(part.copy()).to(where)
    DeviceLayers(layers, 2).write_from(TABLE[:count], first, on_device)
    assert all(torch.equal(one, other) for one, other in zip(layers, expected, strict=True))
    with pytest.raises(IndexError):
        DeviceLayers(layers, 2).write_from(TABLE[:4], 1, on_device)


@pytest.mark.parametrize(("start", "end"), [(0, 192), (16, 176), (64, 128)])
def test_what_lies_on_the_device_is_scattered_from_there(client: kvstore.Client, start: int, end: int) -> None:
    bring(client)
    blocks, counts, outcome = load(client, start, end)
    assert (outcome.failed_at, outcome.reason) == (None, "")
    assert holds(blocks.tensors, start, end)
    assert (blocks.in_place, blocks.loaded) == (counts["in_place"], 0)
    assert "in_place_failed" not in counts


def test_what_does_not_lie_there_is_loaded_and_comes_there_with_use(client: kvstore.Client) -> None:
    blocks, counts, outcome = load(client)
    assert (outcome.failed_at, counts, blocks.loaded) == (None, {}, 3)
    assert holds(blocks.tensors, 0, 192)
    eventually(lambda: client.stats()["tiers"]["hbm"]["written"] == 3)
    blocks, counts, outcome = load(client)
    assert (outcome.failed_at, counts, blocks.loaded) == (None, {"in_place": 3}, 0)
    assert holds(blocks.tensors, 0, 192)


def test_a_store_without_device_memory_is_loaded_from_as_ever() -> None:
    with kvstore.open(Config(DramConfig(8 * MiB, 8 * MiB))) as plain:
        for ref in REFS:
            plain.put(SPEC, ref, array(ref))
        blocks, counts, outcome = load(plain)
        assert (outcome.failed_at, counts, blocks.loaded) == (None, {}, 3)
        assert holds(blocks.tensors, 0, 192)


def test_memory_that_cannot_be_opened_is_counted_and_not_asked_for_again(
    client: kvstore.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(client)
    asked = []

    def refuse(*args: Any, **options: Any) -> None:
        asked.append(args)
        raise Unavailable("this process sees no such GPU")

    monkeypatch.setattr(client, "device_views", refuse)
    blocks, counts, outcome = load(client)
    assert (outcome.failed_at, counts, blocks.loaded, len(asked)) == (None, {"in_place_failed": 1}, 3, 1)
    assert holds(blocks.tensors, 0, 192)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: invalid argument"), Unavailable("gone")])
def test_a_scatter_that_fails_is_done_over_the_bus(client: kvstore.Client, error: Exception) -> None:
    bring(client)
    blocks, counts = DeviceBlocks(), Counts()
    blocks.error = error
    told, outcome = again(client, blocks, counts)
    assert (outcome.failed_at, blocks.loaded) == (None, 3)
    assert told["in_place_failed"] >= 1
    assert holds(blocks.tensors, 0, 192)


def test_what_was_read_when_the_server_had_ended_does_not_count(
    client: kvstore.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(client)
    monkeypatch.setattr(DeviceViews, "over", property(lambda views: True))
    blocks, counts, outcome = load(client)
    assert (outcome.failed_at, counts, blocks.in_place, blocks.loaded) == (None, {}, 3, 3)
    assert holds(blocks.tensors, 0, 192)
