"""What a hit in device memory costs an engine, beside the same hit in DRAM, of a real server with `[hbm]`.

The server keeps chunks of 256 tokens of a Llama-3.1-8B (32 MiB; small ones on the CPU twin) in DRAM, and brings them to
the device because they are asked for. Every chunk's bytes are compared on the device, where the server keeps them. Then
each round takes one chunk into an engine's paged blocks both ways, a call to the server included:

- `load`: from DRAM, as the vLLM connector loads: a view of memory that is registered with the device, over the bus;
- `in-place`: from the device memory of the server, scattered from where it lies;
- `places-1`, `places-all`: the call alone, for one chunk and for all.

    python -m kvstore.bench.tier_hbm_server [--device cuda:0] [--chunks 100] [--limit-s 240]

It prints one JSON object, and ends by itself after the limit.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from types import FrameType
from typing import Any

import numpy as np

from kvstore.bench.measure import Case, Row, expect, measure, report
from kvstore.bench.processes import Server, server
from kvstore.client import Client
from kvstore.errors import DeadlineExceeded, KVStoreError
from kvstore.keys import Chain, ChunkRef
from kvstore.spec import KVSpec

MIB, GIB = 1 << 20, 1 << 30
CHUNKS, LIMIT_S = 100, 240
_BLOCK, _BLOCKS = 16, 512
_SPEC = KVSpec.dense("bench", layers=32, kv_heads=8, head_dim=128, chunk_tokens=256)
_TWIN = KVSpec.dense("bench", layers=4, kv_heads=2, head_dim=64, chunk_tokens=256)
_PAUSE_S = 0.02
_AGAIN_S = 20  # after which it is told again, if it was lost on the way, or the server does not stop


def run(*, device: str = "", chunks: int = CHUNKS, rounds: int = CHUNKS) -> tuple[list[Row], Row]:
    """The rows, and what the server says of its device memory. `device` empty: a GPU where there is one."""
    import torch

    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    spec = _TWIN if device == "cpu" else _SPEC
    record = spec.part_bytes(spec.part(), spec.chunk_tokens) + 64 * 1024
    slab = min(GIB, -(-record * chunks // MIB) * MIB)
    slabs = -(-chunks // (slab // record))
    flags = ("--hbm-devices", device, "--hbm-capacity", str(slabs * slab), "--hbm-slab", str(slab))
    dram = -(-record * (chunks + 2) // MIB) * MIB
    with server(dram, *flags) as running, running.connect("local") as client:
        with closing(_Contest(running, client, spec, device, chunks)) as contest:
            rows = measure(contest.cases(), rounds=rounds, slots=chunks)
            told = client.stats()
        keep = ("hits", "written", "used", "exported_slabs", "registered_bytes", "errors", "write_bytes_per_s")
        facts = {name: told["tiers"]["hbm"][name] for name in keep}
        return rows, {"device": device, "chunks": chunks, "promoted_s": contest.promoted_s, "hbm": facts,
                      "notes": told["notes"]}  # fmt: skip


class _Late(BaseException):
    """The time is over: nobody but `main` takes this for a failure of his own."""


class _Contest:
    """Stored chunks that lie in DRAM and on the device, and an engine's blocks there."""

    def __init__(self, running: Server, client: Client, spec: KVSpec, device: str, chunks: int) -> None:
        import torch

        from kvstore.connectors.vllm._device import DeviceLayers
        from kvstore.connectors.vllm._pinned import Pinned

        self._torch, self._client, self._spec, self._device, self._pid = torch, client, spec, device, running.pid
        self._refs = Chain.of(np.arange(chunks * spec.chunk_tokens), spec.chunk_tokens).refs
        self._nbytes = spec.part_bytes(spec.part(), spec.chunk_tokens)
        self._base = np.random.default_rng(0).integers(0, 1 << 63, self._nbytes // 8, np.uint64)
        group = spec.groups[0]
        shape = (_BLOCKS, group.kv_heads, _BLOCK, 2 * group.head_dim)
        layers = [torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in group.layers]
        self._layers, self._blocks = layers, DeviceLayers(layers, 2)
        draw, count = np.random.default_rng(1), spec.chunk_tokens // _BLOCK
        self._tables = [draw.permutation(_BLOCKS)[:count].tolist() for _ in range(chunks)]
        self._pinned = Pinned(self._blocks.pins)
        try:
            for slot, ref in enumerate(self._refs):
                client.put(
                    spec, ref, self._content(slot).view(np.uint16).reshape(spec.part_shape(spec.part(), ref.tokens))
                )
            self.promoted_s = self._promote()
            self._check_on_the_device()
            client.view(spec, self._refs[0]).close()  # maps the server's memory, which is registered then
            _wait(lambda: self._blocks.pins.nbytes >= chunks * self._nbytes, "the server's memory is not registered")
        except BaseException:
            self.close()
            raise

    def cases(self) -> list[Case]:
        """Interleaved by `measure`."""
        note = f"{len(self._refs)} chunks in turn, each in DRAM and on {self._device}; a call to the server included"

        def case(name: str, act: Callable[[int], None], **more: Any) -> Case:
            return Case(name, act, mode="local", note=note, server_pid=self._pid, **more)

        copied: dict[str, Any] = {"nbytes": self._nbytes, "before": self._wipe, "check": self._check}
        return [
            case("load", self._load, **copied),
            case("in-place", self._in_place, baseline="load", **copied),
            case("places-1", lambda slot: self._places(self._refs[slot : slot + 1])),
            case("places-all", lambda slot: self._places(self._refs)),
        ]

    def close(self) -> None:
        """Let go of the server's memory."""
        self._pinned.close()

    def _load(self, slot: int) -> None:
        with self._client.view(self._spec, self._refs[slot]) as view:
            part = np.frombuffer(view.data, np.uint8)
            self._blocks.write(self._tables[slot], 0, part, self._blocks.fence())
            del part

    def _in_place(self, slot: int) -> None:
        with self._client.device_views(self._spec, [self._refs[slot]], device=self._device) as views:
            self._blocks.write_from(self._tables[slot], 0, views.tensors[0], self._blocks.fence())

    def _places(self, refs: Sequence[ChunkRef]) -> None:
        self._client.device_views(self._spec, refs, device=self._device).close()

    def _promote(self) -> float:
        """Ask until all chunks lie on the device; the seconds that took."""
        began = time.monotonic()

        def all_there() -> bool:
            with self._client.device_views(self._spec, self._refs, device=self._device) as views:
                return views.found == len(self._refs)

        _wait(all_there, "not all chunks came to the device")
        return time.monotonic() - began

    def _check_on_the_device(self) -> None:
        torch = self._torch
        with self._client.device_views(self._spec, self._refs, device=self._device) as views:
            for slot, tensor in enumerate(views.tensors):
                due = torch.from_numpy(self._content(slot).view(np.uint8)).to(self._device)
                expect(bool(torch.equal(tensor, due)), "the server's memory on the device", slot)

    def _wipe(self, slot: int) -> None:
        for layer in self._layers:
            layer[self._tables[slot]] = 0
        if self._device != "cpu":
            self._torch.cuda.synchronize()

    def _check(self, slot: int) -> None:
        found = np.zeros(self._nbytes, np.uint8)
        self._blocks.read(self._tables[slot], 0, found)()
        expect(np.array_equal(found.view(np.uint64), self._content(slot)), "an engine's blocks", slot)

    def _content(self, slot: int) -> Any:
        """What chunk `slot` holds: random words, of which one in 64 says whose they are."""
        words = self._base.copy()
        words[::64] ^= np.uint64((slot + 1) * 0x9E3779B97F4A7C15 & 0xFFFF_FFFF_FFFF_FFFF)
        return words


def _wait(true: Callable[[], bool], otherwise: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"{otherwise} within {seconds:g} s")
        time.sleep(_PAUSE_S)


def _end_after(seconds: int) -> None:
    """Raise in this thread after so long, which stops the server; and end the process if that does not help."""

    def late(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise _Late(f"this took longer than {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    faulthandler.dump_traceback_later(seconds + 45, exit=True)


def main(arguments: Sequence[str]) -> int:
    """Run it; 1 where it failed, with the reason in the object that it prints."""
    parser = argparse.ArgumentParser(prog="python -m kvstore.bench.tier_hbm_server")
    parser.add_argument("--device", default="", help="cuda:N or cpu (a GPU, where there is one)")
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    parser.add_argument("--rounds", type=int, default=CHUNKS)
    parser.add_argument("--limit-s", type=int, default=LIMIT_S)
    args = parser.parse_args(arguments)
    _end_after(args.limit_s)
    try:
        rows, facts = run(device=args.device, chunks=args.chunks, rounds=args.rounds)
    except (KVStoreError, RuntimeError, _Late) as error:  # torch raises the second
        print(json.dumps(report("tier-hbm-server", [], failed=f"{type(error).__name__}: {error}")))
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps(report("tier-hbm-server", rows, **facts)))
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
