"""LMCache's CacheGen on the CPU: encodes and decodes chunks from a folder, for `kvstore.bench.codec_peer`.

`python -m drivers.codec_lmcache JOB`, where JOB is JSON: `folder` with `chunk-N.npy` (uint16, the bits of bfloat16
[layer, K and V, token, head, dim]) for N below `count`, and `model`, what LMCache finds the model's configuration
under, which decides its bins. Leaves `decoded-N.npy` beside them and prints one JSON object: `bytes`, `encode_s`,
`decode_s` and `memcpy_s`, a list each, and `threads`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .lmcache import QUIET


def main() -> None:
    """Code every chunk once, after one that is not counted: numba compiles at the first."""
    os.environ.update(QUIET)
    # Whatever the library prints must not get into the answer.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    folder, count = Path(job["folder"]), int(job["count"])
    coder = _Coder(job["model"], np.load(folder / "chunk-0.npy").shape)
    coder.code(np.load(folder / "chunk-0.npy"))
    found: dict[str, Any] = {"bytes": [], "encode_s": [], "decode_s": [], "memcpy_s": []}
    for number in range(count):
        bits = np.load(folder / f"chunk-{number}.npy")
        found["memcpy_s"].append(_memcpy_s(bits))
        decoded, facts = coder.code(bits)
        np.save(folder / f"decoded-{number}.npy", decoded)
        for name, value in facts.items():
            found[name].append(value)
    print(json.dumps({**found, "threads": coder.torch.get_num_threads()}), file=answer, flush=True)


class _Coder:
    """Its serializer and deserializer, made as its engine makes them for chunks of this shape."""

    def __init__(self, model: str, shape: tuple[int, ...]) -> None:
        self.torch = torch = import_module("torch")
        config = import_module("lmcache.v1.config").LMCacheEngineConfig.from_defaults(chunk_size=shape[2])
        metadata = import_module("lmcache.v1.metadata").LMCacheMetadata(model, 1, 1, 0, 0, torch.bfloat16, shape)
        serde = "lmcache.storage_backend.serde.cachegen_"
        self._encoder = import_module(serde + "encoder").CacheGenSerializer(config, metadata)
        self._decoder = import_module(serde + "decoder").CacheGenDeserializer(config, metadata, torch.bfloat16)

    def code(self, bits: Any) -> tuple[Any, dict[str, float]]:
        """The decoded bits, and what it took."""
        tensor = self.torch.from_numpy(bits).view(self.torch.bfloat16)
        encode_s, data = _timed(lambda: self._encoder.to_bytes(tensor))
        decode_s, back = _timed(lambda: self._decoder.from_bytes(data))
        decoded = back.contiguous().view(self.torch.uint16).numpy()
        return decoded, {"bytes": len(data), "encode_s": encode_s, "decode_s": decode_s}


def _timed(step: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = step()
    return time.perf_counter() - start, made


def _memcpy_s(bits: Any) -> float:
    target = np.ones_like(bits)
    return min(_timed(lambda: np.copyto(target, bits))[0] for _ in range(5))


if __name__ == "__main__":
    main()
