"""The GPU's rows of the codec benchmark."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvstore.bench import codec, codec_gpu, codec_speed
from kvstore.codecs import Block, Form, all_codecs

BLOCK = Block("bfloat16", (0,), 2, 256, 8, 64, ("layer", "kv", "token", "head", "dim"))


def chunk() -> memoryview:
    values = np.random.default_rng(0).standard_normal(BLOCK.nbytes // 2).astype(np.float32)
    return memoryview((values.view(np.uint32) >> 16).astype(np.uint16)).cast("B")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_there_are_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_speed, "WORKING_SET", 48 << 20)
    assert codec_gpu.why_not() == "no CUDA device here"
    assert not [row for row in codec.run(only=["int8"]) if "gpu" in row["mode"]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
@pytest.mark.parametrize("name", ["int8", "int4", "kivi", "lossless"])
def test_a_row_has_what_was_measured(name: str) -> None:
    row = codec_gpu.row(Form(all_codecs()[name]), [(BLOCK, chunk())])
    assert row["case"] == name
    assert 0 < row["gbps"] < row["memory_gbps"]
    assert row["decode_ratio"] == pytest.approx(row["memory_gbps"] / 2 / row["gbps"])
