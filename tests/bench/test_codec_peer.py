"""LMCache's CacheGen beside ours: what is asked of its process, with a stand-in for it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from kvstore.bench.codec_peer import CASE, Coded, lmcache_cachegen, python_of_lmcache
from kvstore.errors import InvalidArgument, Unavailable

CHUNKS = [np.full((2, 2, 4, 1, 8), value, np.uint16) for value in (16256, 16384)]
STAND_IN = """#!{python}
import json, sys
import numpy as np
job = json.loads(sys.argv[-1])
for number in range(job["count"]):
    chunk = np.load(f"{{job['folder']}}/chunk-{{number}}.npy")
    np.save(f"{{job['folder']}}/decoded-{{number}}.npy", chunk + 1)
print("something that a library says")
each = {{"bytes": 64, "encode_s": 2.0, "decode_s": 1.0, "memcpy_s": 0.5}}
print(json.dumps({{**{{name: [value] * job["count"] for name, value in each.items()}}, "threads": 1}}))
"""


def environment(folder: Path, program: str) -> Path:
    python = folder / "lmcache" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(program, encoding="utf-8")
    python.chmod(0o755)
    return folder


def test_chunks_come_back_with_their_figures(tmp_path: Path) -> None:
    envs = environment(tmp_path, STAND_IN.format(python=sys.executable))
    coded = lmcache_cachegen(CHUNKS, Path("model"), envs)
    assert [chunk.tolist() for chunk in coded.decoded] == [(chunk + 1).tolist() for chunk in CHUNKS]
    row = coded.row(kl=0.05)
    assert (row["case"], row["times_smaller"], row["bits"], row["kl"]) == (CASE, 4.0, 4.0, 0.05)
    assert (row["encode_ratio"], row["decode_ratio"]) == (4.0, 2.0)


def test_what_fails_says_why(tmp_path: Path) -> None:
    envs = environment(tmp_path, "#!/bin/sh\necho no such model >&2\nexit 3\n")
    with pytest.raises(Unavailable, match="3: no such model"):
        lmcache_cachegen(CHUNKS, Path("model"), envs)


def test_without_an_environment(tmp_path: Path) -> None:
    assert python_of_lmcache(tmp_path) is None
    with pytest.raises(Unavailable, match=r"kvstore\.bench\.peers\.install"):
        lmcache_cachegen(CHUNKS, Path("model"), tmp_path)


def test_chunks_of_several_shapes(tmp_path: Path) -> None:
    for chunks in ([], [CHUNKS[0], CHUNKS[1][:, :, :3]]):
        with pytest.raises(InvalidArgument):
            lmcache_cachegen(chunks, Path("model"), tmp_path)


def test_a_row_needs_no_quality() -> None:
    coded = Coded(1000, [100, 100], [1.0, 3.0], [2.0, 2.0], [1.0, 1.0], [], 2)
    assert coded.row()["times_smaller"] == 5.0
