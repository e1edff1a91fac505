"""What decoding costs on a GPU, against the bandwidth of its memory in the same run.

The chunks of a case are decoded together, as a load of a long prefix would. `gbps` are raw bytes written per second of
the kernels alone, with what they read already on the device; `whole_p50_s` adds headers, checksums and the upload.
`memory_gbps` is what a copy on the device reads and writes per second; `decode_ratio` the kernels' time over that of a
copy of the raw bytes (lower is better).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np

from kvstore.bench.measure import Row, expect
from kvstore.codecs import Artefact, Block, Form, decode, encode
from kvstore.errors import NotFound

WORKING_SET = 256 << 20
ROUNDS = 20


def why_not() -> str:
    """Why nothing can be measured here; empty where it can."""
    for name in ("torch", "triton"):
        if find_spec(name) is None:
            return f"{name} is not installed"
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device here"


def row(form: Form, chunks: Sequence[tuple[Block, memoryview]]) -> Row:
    """The row of a form that has kernels, decoding `chunks` (raw bytes each), on a machine with a CUDA device.

    They are repeated to 256 MiB, each with memory of its own on the device. What is decoded is compared with what the
    host decodes.
    """
    import torch

    from kvstore.codecs import gpu

    containers = [encode(raw, block, form).data for block, raw in chunks]
    times = -(-WORKING_SET // sum(block.nbytes for block, _ in chunks))
    blocks = [block for block, _ in chunks] * times
    total = sum(block.nbytes for block in blocks)
    device = torch.device("cuda")
    outs = [torch.zeros(block.nbytes, dtype=torch.uint8, device=device) for block in blocks]
    source, target = (torch.zeros(total, dtype=torch.uint8, device=device) for _ in range(2))
    artefacts = _artefacts_of(form)
    batch = gpu.Batch(containers * times, blocks, outs, artefacts=artefacts)
    batch.upload()
    cases: dict[str, Callable[[], Any]] = {"decode": batch.launch, "copy": lambda: target.copy_(source)}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()  # compiles, and allocates
    batch.wait()
    _check(containers, chunks, outs, artefacts)
    for _ in range(ROUNDS):
        for name, run in cases.items():
            seconds[name].append(_timed(run))
    whole = median(_whole(containers * times, blocks, outs, artefacts) for _ in range(3))
    taken, copied = median(seconds["decode"]), median(seconds["copy"])
    level = form.codec.levels[form.level]
    return {
        "case": form.codec.name,
        "mode": f"{level}/gpu" if level else "gpu",
        "device": torch.cuda.get_device_name(device),
        "bytes": total,
        "p50_s": taken,
        "whole_p50_s": whole,
        "gbps": total / taken / 1e9,
        "memory_gbps": 2 * total / copied / 1e9,
        "baseline": "device-copy",
        "decode_ratio": taken / copied,
        "times_smaller": total / (times * sum(len(each) for each in containers)),
        "note": f"{len(blocks)} chunks in one batch",
        "bar": None,
        "met": None,
    }


def _timed(run: Callable[[], Any]) -> float:
    """Seconds on the device."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _whole(containers: Sequence[memoryview], blocks: Sequence[Block], outs: Sequence[Any], artefacts: Any) -> float:
    from kvstore.codecs import gpu

    start = time.perf_counter()
    gpu.decode(containers, blocks, outs, artefacts=artefacts)
    return time.perf_counter() - start


def _check(
    containers: Sequence[memoryview], chunks: Sequence[tuple[Block, memoryview]], outs: Sequence[Any], artefacts: Any
) -> None:
    for slot, out in enumerate(outs):
        container, (block, _) = containers[slot % len(containers)], chunks[slot % len(chunks)]
        due = np.zeros(block.nbytes, np.uint8)
        decode(container, due.data, block, artefacts=artefacts)
        expect(np.array_equal(out.cpu().numpy(), due), "decode on a GPU", slot)


def _artefacts_of(form: Form) -> Callable[[bytes], Artefact]:
    def found(digest: bytes) -> Artefact:
        if form.artefact is None or form.artefact.digest != digest:
            raise NotFound(f"the artefact {digest.hex()} is not the form's")
        return form.artefact

    return found
