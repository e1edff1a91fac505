"""LMCache's CacheGen on the same chunks, for `kvstore bench codec`: a process in LMCache's own environment.

`python -m kvstore.bench.peers.install` makes that environment. What it decodes comes back, so that its effect on the
model is measured as ours is.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.bench.measure import Row
from kvstore.bench.peers.systems import DRIVERS, default_envs
from kvstore.errors import InvalidArgument, Unavailable

CASE = "lmcache-cachegen"
START_S = 300.0  # importing torch, and numba's compiler
CHUNK_S = 120.0
_BITS = 16

Chunk = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Coded:
    """What became of the chunks: a list entry for each. `threads` are torch's; numba takes what it likes."""

    raw_bytes: int
    nbytes: Sequence[int]
    encode_s: Sequence[float]
    decode_s: Sequence[float]
    memcpy_s: Sequence[float]
    decoded: Sequence[Chunk]
    threads: int

    def row(self, **facts: Any) -> Row:
        """A row of `bench codec`; `facts` add what the caller measured with `decoded`, such as `kl` and `top1`."""
        smaller = self.raw_bytes / sum(self.nbytes)
        memcpy = median(self.memcpy_s)
        return {
            "case": CASE,
            "mode": "",
            "bits": _BITS / smaller,
            "times_smaller": smaller,
            "encode_s": median(self.encode_s),
            "decode_s": median(self.decode_s),
            "encode_ratio": median(self.encode_s) / memcpy,
            "decode_ratio": median(self.decode_s) / memcpy,
            "note": f"LMCache 0.5.6, its serializer and deserializer on the CPU, torch with {self.threads} threads",
            **facts,
        }


def python_of_lmcache(envs: Path | None = None) -> Path | None:
    """The interpreter of LMCache's environment, or None where it is not installed."""
    python = (envs or default_envs()) / "lmcache" / "bin" / "python"
    return python if python.exists() else None


def lmcache_cachegen(chunks: Sequence[Chunk], model: Path, envs: Path | None = None) -> Coded:
    """Encode and decode chunks: uint16, the bits of bfloat16 `[layer, plane, token, head, dim]`, all of one shape.

    `model` is a folder with the model's `config.json`: LMCache takes its bins from the number of layers. Raises
    `InvalidArgument` for no chunks or chunks of several shapes, `Unavailable` where LMCache is not installed or fails.
    """
    if not chunks or len({chunk.shape for chunk in chunks}) != 1:
        raise InvalidArgument("LMCache's CacheGen is compared on chunks of one shape, at least one")
    python = python_of_lmcache(envs)
    if python is None:
        raise Unavailable(
            f"LMCache has no environment in {envs or default_envs()}: python -m kvstore.bench.peers.install"
        )
    with tempfile.TemporaryDirectory(prefix="kvstore-codec-peer-") as folder:
        for number, chunk in enumerate(chunks):
            np.save(Path(folder, f"chunk-{number}.npy"), chunk)
        job = {"folder": folder, "count": len(chunks), "model": str(model)}
        found = _run(python, job, START_S + CHUNK_S * len(chunks))
        decoded = [np.load(Path(folder, f"decoded-{number}.npy")) for number in range(len(chunks))]
    return Coded(
        sum(chunk.nbytes for chunk in chunks), found["bytes"], found["encode_s"], found["decode_s"], found["memcpy_s"],
        decoded, found["threads"],
    )  # fmt: skip


def _run(python: Path, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """What the driver answers."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("KVSTORE_", "PYTHON"))}
    env["PYTHONPATH"] = str(DRIVERS)
    command = [str(python), "-P", "-m", "drivers.codec_lmcache", json.dumps(job)]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"LMCache's CacheGen did not answer within {limit_s:g} s") from None
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-4:])
        raise Unavailable(f"LMCache's CacheGen ended with {done.returncode}: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
