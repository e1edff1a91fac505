"""`DeviceLayers` on streams that are made up: each runs by itself, as late or as early as its order allows.

The stand-in is harsher than a GPU: what nobody waits for may never run, so that a missing order gives wrong bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvstore.connectors.vllm import _device  # noqa: E402 - needs torch
from kvstore.connectors.vllm._device import DeviceLayers  # noqa: E402 - needs torch
from kvstore.tiers.hbm.blocks import PagedBlocks, Table  # noqa: E402 - needs torch
from kvstore.tiers.hbm.lanes import Lane, Lanes, copy_host  # noqa: E402 - needs torch

LAYERS, BLOCKS, HEADS, TOKENS, DIM = 8, 6, 2, 16, 8


class Stream:
    """What is queued, in order; a step that is not yet possible says False."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []
        self.done = 0

    def queue(self, step: Callable[[], object]) -> None:
        self.steps.append(step)

    def mark(self) -> tuple[Stream, int]:
        return self, len(self.steps)

    def after(self, event: tuple[Stream, int]) -> None:
        other, count = event
        self.queue(lambda: other.done >= count)

    def step(self) -> bool:
        """Run the next step if there is one and its turn has come."""
        if self.done == len(self.steps) or self.steps[self.done]() is False:
            return False
        self.done += 1
        return True


class Machine:
    """All streams; `pace` is how much of what may run does run whenever something is queued."""

    def __init__(self, seed: int, pace: int) -> None:
        self._random, self._pace = random.Random(seed), pace
        self.engine = Stream()
        self.current = self.engine
        self.streams = [self.engine]

    def queue(self, stream: Stream, step: Callable[[], object]) -> None:
        stream.queue(step)
        for _ in range(self._random.randrange(self._pace + 1)):
            self._random.choice(self.streams).step()

    def wait(self, stream: Stream) -> None:
        """Run a stream to its end, and of the others only what it needs, in any order."""
        stuck = 0
        while stream.done < len(stream.steps):
            if not stream.step():
                stuck = 0 if any(other.step() for other in self._random.sample(self.streams, 1)) else stuck + 1
                assert stuck < 1000, "a stream waits for what never comes"

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class MadeUpLane(Lane):
    def __init__(self, home: Lanes, machine: Machine) -> None:
        super().__init__(home)
        self._machine, self._stream = machine, Stream()
        machine.streams.append(self._stream)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self._machine.queue(self._stream, lambda: copy_host(to, source, nbytes))

    def wait(self) -> None:
        self._machine.wait(self._stream)

    def mark(self) -> Any:
        return self._stream.mark()

    def after(self, event: Any) -> None:
        if event is not None:
            self._stream.after(event)

    def current(self) -> Any:
        return self._machine.on(self._stream)


class MadeUpBlocks(PagedBlocks):
    """Blocks whose gathers and scatters are queued on the machine's current stream."""

    machine: Machine

    def gather(self, table: Table, chunk: torch.Tensor, layers: range | None = None) -> None:
        self.machine.queue(self.machine.current, lambda: super(MadeUpBlocks, self).gather(table, chunk, layers))

    def scatter(self, table: Table, chunk: torch.Tensor, layers: range | None = None) -> None:
        self.machine.queue(self.machine.current, lambda: super(MadeUpBlocks, self).scatter(table, chunk, layers))


class Twin:
    """Layers full of random bytes on such a machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int, pace: int) -> None:
        monkeypatch.setattr(_device, "PagedBlocks", MadeUpBlocks)
        monkeypatch.setattr(_device, "WHOLE_BYTES", 0)
        self.layers = [torch.randn(BLOCKS, HEADS, TOKENS, 2 * DIM) for _ in range(LAYERS)]
        self.machine, self.device = Machine(seed, pace), DeviceLayers(self.layers, 2)
        assert isinstance(self.device._blocks, MadeUpBlocks)
        self.device._blocks.machine = self.machine
        lanes = self.device.lanes
        lanes.make = lambda: MadeUpLane(lanes, self.machine)  # type: ignore[method-assign]
        monkeypatch.setattr(DeviceLayers, "fence", lambda own: self.machine.engine.mark())

    def forward(self, blocks: Sequence[int], value: float) -> None:
        """The engine computes what is in some blocks."""

        def fill() -> None:
            for layer in self.layers:
                layer[list(blocks)] = value

        self.machine.queue(self.machine.engine, fill)


def part_of(count: int) -> np.ndarray:
    return np.zeros(LAYERS * 2 * count * TOKENS * HEADS * DIM * 4, np.uint8)


PACES = pytest.mark.parametrize("pace", [0, 3, 50])


@PACES
@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("count", [3, 4])
def test_a_save(monkeypatch: pytest.MonkeyPatch, count: int, registered: bool, pace: int) -> None:
    """It has what the forward before it has written, and nothing of what the blocks' next owner writes."""
    for seed in range(10):
        twin, part = Twin(monkeypatch, seed, pace), part_of(count)
        pin = twin.device.lanes.pins.register(part.data) if registered else None
        twin.forward([1, 2, 5], 7.0)
        finish = twin.device.read([5, 1, 2], count - 3, part)
        twin.forward([1, 2, 5], -3.0)
        finish()
        found = part.view(np.float32).reshape(LAYERS, 2, count, -1)
        assert (found[:, :, count - 3 :] == 7.0).all()
        assert not found[:, :, : count - 3].any()
        if pin is not None:
            pin.close()


@PACES
@pytest.mark.parametrize("count", [3, 4])
def test_a_load(monkeypatch: pytest.MonkeyPatch, count: int, pace: int) -> None:
    """It is whole when it returns, and over what the blocks' last owner was still writing when it began."""
    for seed in range(10):
        twin = Twin(monkeypatch, seed, pace)
        part = np.random.default_rng(seed).integers(0, 256, part_of(count).size, np.uint8)
        twin.forward([0, 3, 4], -3.0)
        twin.device.write([4, 0, 3], count - 3, part, twin.device.fence())
        again = part_of(count)
        finish = twin.device.read([4, 0, 3], count - 3, again)
        finish()
        due = part.reshape(LAYERS * 2, count, -1)[:, count - 3 :]
        assert np.array_equal(again.reshape(LAYERS * 2, count, -1)[:, count - 3 :], due)


def test_saves_and_loads_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(10):
        twin, parts = Twin(monkeypatch, seed, 5), [part_of(1) for _ in range(4)]
        finishes = []
        for number, part in enumerate(parts):
            twin.forward([number], float(number + 1))
            finishes.append(twin.device.read([number], 0, part))
        loaded = np.full(part_of(1).size // 4, 9.0, np.float32).view(np.uint8)
        twin.device.write([2], 0, loaded, twin.device.fence())
        assert all(bool((layer[2] == 9.0).all()) for layer in twin.layers)
        for finish in reversed(finishes):
            finish()
        assert [sorted(set(part.view(np.float32).tolist())) for part in parts] == [[1.0], [2.0], [3.0], [4.0]]


def test_pieces_are_all_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device, "WHOLE_BYTES", 100)
    for count in (1, 3, 4, 5, 32):
        device = DeviceLayers([torch.zeros(2, 1, 4, 8) for _ in range(count)], 2)
        assert [layer for piece in device._cut(100) for layer in piece] == list(range(count))
        assert len(device._cut(100)) == (2 if count > 3 else 1)
        assert len(device._cut(99)) == 1
