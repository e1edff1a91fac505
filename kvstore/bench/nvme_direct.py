"""From a drive into device memory: kvikio, as the tier chooses it, beside plain reads by way of pinned memory.

Both read the same records layer by layer (`kvstore.tiers.nvme.direct`), in turns; every byte is compared on the device.
`first` is the time until the first layer of all records is there and computing can begin. Without a GPU, or without
kvikio, there is nothing to compare, and only the plain way is measured.

    python -m kvstore.bench.nvme_direct FOLDER [DEVICE]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from kvstore.bench.contest import folder_in
from kvstore.bench.measure import Bar, Row, percentile, report
from kvstore.testing.records import Sample, make_sample
from kvstore.tiers.nvme import NvmeTier
from kvstore.tiers.nvme.direct import DeviceRead, DeviceReader, open_reader

MIB = 1 << 20
LAYERS = 32
AT_LEAST = Bar(ratio=1.0)


def run(path: Path, device: str = "cuda", *, sizes: Sequence[int] = (1 * MIB, 4 * MIB, 32 * MIB), rounds: int = 15,
        records: int = 8) -> list[Row]:  # fmt: skip
    """Rows `first` and `all` of every way there is, for batches of `records` records of each size."""
    rows = []
    with folder_in(path, "direct") as folder, ExitStack() as stack:
        capacity = 2 * records * (sum(sizes) + MIB) + 1024 * MIB
        tier = stack.enter_context(closing(NvmeTier(folder / "t", capacity=capacity, reserve_bytes=0)))
        tier.recover()
        readers = [stack.enter_context(closing(open_reader(tier, device, kvikio=False)))]
        chosen = stack.enter_context(closing(open_reader(tier, device)))
        if not chosen.mode.startswith("off"):
            readers.append(chosen)
        for size in sizes:
            rows += _measure(
                tier, readers, device, [make_sample(n, size, groups=LAYERS) for n in range(records)], rounds
            )
    return rows


def _measure(
    tier: NvmeTier, readers: Sequence[DeviceReader], device: str, samples: Sequence[Sample], rounds: int
) -> list[Row]:
    size, reads = len(samples[0].content), list[DeviceRead]()
    expected = [torch.frombuffer(bytearray(sample.content), dtype=torch.uint8).to(device) for sample in samples]
    for sample in samples:
        target = torch.zeros(size, dtype=torch.uint8, device=device)
        header = sample.record.header_bytes
        reads.append(DeviceRead(sample.write_to(tier), header, sample.record.groups, target))
    taken: list[tuple[list[float], list[float]]] = [([], []) for _ in readers]
    for turn in range(rounds + 1):
        for reader, (first, whole) in zip(readers, taken, strict=True):
            for read in reads:
                read.target.zero_()
            _wait(device)
            times = _read(reader, reads, device)
            if any(not torch.equal(read.target, right) for read, right in zip(reads, expected, strict=True)):
                raise AssertionError(f"{reader.mode}: other bytes arrived than were written")
            if turn:  # the first warms up
                first.append(times[0])
                whole.append(times[1])
    rows = []
    for which, case in enumerate(("first", "all")):
        base = percentile(taken[0][which], 0.5)
        for reader, times_of in zip(readers, taken, strict=True):
            rows.append(_row(case, reader.mode, size, len(samples), times_of[which], base))
    return rows


def _read(reader: DeviceReader, reads: Sequence[DeviceRead], device: str) -> tuple[float, float]:
    """Seconds until the first layer, and until all of all records."""
    start, first = time.perf_counter(), 0.0
    for arrived in reader.layers(reads):
        for outcome in arrived.outcomes:
            if outcome is not None:
                raise outcome
        if not first:
            _wait(device)
            first = time.perf_counter() - start
    _wait(device)
    return first, time.perf_counter() - start


def _row(case: str, mode: str, size: int, records: int, seconds: Sequence[float], base: float) -> Row:
    """A row for one way; the plain one is the baseline."""
    p50, plain = percentile(seconds, 0.5), mode.startswith("off")
    row: Row = {
        "case": f"{'plain' if plain else 'kvikio'}-{case}", "mode": mode, "bytes": size, "p50_s": p50,
        "p99_s": percentile(seconds, 0.99), "gbps": records * size / p50 / 1e9 if case == "all" else None,
        "baseline": None if plain else f"plain-{case}", "ratio": None if plain else base / p50, "rounds": len(seconds),
        "note": f"{records} records of {LAYERS} layers at once", "bar": None, "met": None,
    }  # fmt: skip
    if not plain:
        AT_LEAST.judge(row)
    return row


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def main(argv: Sequence[str]) -> int:
    """Print the rows as JSON."""
    if not 1 <= len(argv) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    result: dict[str, Any] = report("nvme-direct", run(Path(argv[0]), *argv[1:]))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
