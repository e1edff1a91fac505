"""What an engine's paged blocks cost on a GPU: gathering and scattering them, and a part's way from and to host memory.

`gather` and `scatter` take 2,048 tokens of a Llama-3.1-8B (256 MiB) in one launch and are timed on the device; their
baseline is a copy of as many bytes there (a copy reads and writes each byte, and so do they). `layers-read` and
`layers-write` are what the vLLM connector does for a chunk of 256 tokens (32 MiB), host memory included, against one
copy between host memory of the same kind (registered, or what the driver makes of other) and the device.

    python -m kvstore.bench.tier_hbm_blocks
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from kvstore.bench.measure import Bar, Case, Row, expect, measure, percentile, report

LAYERS, HEADS, TOKENS, DIM, BLOCKS = 32, 8, 16, 128, 512
LAYOUTS = {"LBHNC": (0, 1, 2, 3, 4), "LBNHC": (0, 1, 3, 2, 4), "BLHNC": (1, 0, 2, 3, 4)}
BAR, BUS_BAR = Bar(ratio=0.8), Bar(ratio=0.9)
_MANY, _CHUNK = 128, 16  # blocks of a launch that is timed, and of a chunk


def run(*, rounds: int = 50, advance: Callable[[], None] = lambda: None) -> list[Row]:
    """Rows on this machine's first GPU; `mode` is the layout of vLLM's blocks, or what the host memory is."""
    import torch

    rows: list[Row] = []
    for layout in LAYOUTS:
        rows += _device_rows(torch, layout, rounds)
        advance()
    for mode in ("registered", "pageable"):
        rows += _bus_rows(torch, mode, rounds)
        advance()
    return rows


def layers_of(torch: Any, layout: str) -> list[Any]:
    """vLLM's views `[block, head, token, content]` over one piece of memory in a physical order."""
    shape, axes = (LAYERS, BLOCKS, HEADS, TOKENS, 2 * DIM), LAYOUTS[layout]
    memory = torch.randn([shape[axis] for axis in axes], dtype=torch.bfloat16, device="cuda")
    return list(memory.permute([axes.index(axis) for axis in range(5)]))


def _device_rows(torch: Any, layout: str, rounds: int) -> list[Row]:
    from kvstore.tiers.hbm.blocks import PagedBlocks

    layers = layers_of(torch, layout)
    blocks, reference = PagedBlocks(layers, 2), PagedBlocks(layers, 2, kernel=False)
    table = blocks.table(np.random.default_rng(0).permutation(BLOCKS)[:_MANY].tolist())
    chunk, target = blocks.chunk(_MANY), blocks.chunk(_MANY)
    blocks.gather(table, chunk)
    reference.gather(table, target)
    expect(bool(torch.equal(chunk, target)), "gather", 0)
    every = blocks.table(range(BLOCKS))
    before, after = blocks.chunk(BLOCKS), blocks.chunk(BLOCKS)
    reference.gather(every, before)
    blocks.scatter(table, chunk)
    reference.gather(every, after)
    expect(bool(torch.equal(before, after)), "scatter", 0)
    del before, after
    cases: dict[str, Callable[[], Any]] = {
        "device-copy": lambda: target.copy_(chunk),
        "gather": lambda: blocks.gather(table, target),
        "scatter": lambda: blocks.scatter(table, chunk),
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 3):
        for name, act in cases.items():
            seconds = _timed(torch, act)
            if number >= 3:
                taken[name].append(seconds)
    return [_row(name, layout, chunk.nbytes, taken) for name in cases]


def _timed(torch: Any, act: Callable[[], Any]) -> float:
    """Seconds on the device. A kernel that spins for a millisecond first lets the launch come before its turn."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)
    start.record()
    act()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _row(case: str, mode: str, nbytes: int, taken: dict[str, list[float]]) -> Row:
    p50, base = median(taken[case]), median(taken["device-copy"])
    row: Row = {
        "case": case, "mode": mode, "bytes": nbytes, "p50_s": p50, "p99_s": percentile(taken[case], 0.99),
        "gbps": nbytes / p50 / 1e9, "memory_gbps": 2 * nbytes / p50 / 1e9, "baseline": None, "ratio": None,
        "p99_ratio": None, "rounds": len(taken[case]), "note": "on the device; memory_gbps counts bytes read and "
        "written", "bar": None, "met": None,
    }  # fmt: skip
    if case != "device-copy":
        row |= {"baseline": "device-copy", "ratio": base / p50}
        BAR.judge(row)
    return row


def _bus_rows(torch: Any, mode: str, rounds: int) -> list[Row]:
    from kvstore.connectors.vllm._device import DeviceLayers

    layers = layers_of(torch, "LBHNC")
    device, draw = DeviceLayers(layers, 2), np.random.default_rng(0)
    nbytes = LAYERS * 2 * _CHUNK * TOKENS * HEADS * DIM * 2
    slots = 8
    memory, raw_memory = (np.frombuffer(mmap.mmap(-1, slots * nbytes), np.uint8) for _ in range(2))
    memory[::4096], raw_memory[::4096] = 1, 1
    pins = [device.pins.register(each.data) for each in (raw_memory, memory) if mode == "registered"]
    tables = [draw.permutation(BLOCKS)[:_CHUNK].tolist() for _ in range(slots)]
    raw, stream = torch.empty(nbytes, dtype=torch.uint8, device="cuda"), torch.cuda.current_stream()
    raw_host = torch.from_numpy(raw_memory)

    def part(slot: int) -> Any:
        return memory[slot * nbytes : (slot + 1) * nbytes]

    def copy(slot: int, *, to_host: bool) -> None:
        host = raw_host[slot * nbytes : (slot + 1) * nbytes]
        if to_host:
            host.copy_(raw, non_blocking=True)
        else:
            raw.copy_(host, non_blocking=True)
        stream.synchronize()

    def check(slot: int) -> None:
        again = np.zeros(nbytes, np.uint8)
        device.read(tables[slot], 0, again)()
        expect(np.array_equal(again, part(slot)), "the vLLM connector's layers", slot)

    cases = [
        Case("raw-read", lambda slot: copy(slot, to_host=True), nbytes, mode=mode),
        Case("layers-read", lambda slot: device.read(tables[slot], 0, part(slot))(), nbytes, "raw-read", mode,
             check=check),
        Case("raw-write", lambda slot: copy(slot, to_host=False), nbytes, mode=mode),
        Case("layers-write", lambda slot: device.write(tables[slot], 0, part(slot), device.fence()), nbytes,
             "raw-write", mode, check=check),
    ]  # fmt: skip
    rows = measure(cases, rounds=rounds, slots=slots)
    for row in rows:
        if row["baseline"] and mode == "registered":
            BUS_BAR.judge(row)
    for pin in pins:
        pin.close()
    return rows


if __name__ == "__main__":
    print(json.dumps(report("hbm-blocks", run())))
