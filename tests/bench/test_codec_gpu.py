"""The GPU's rows of the codec benchmark."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvstore.bench import codec_gpu
from kvstore.codecs import Block, Form, all_codecs

BLOCK = Block("bfloat16", (0,), 2, 256, 8, 64, ("layer", "kv", "token", "head", "dim"))
FORMS = [Form(all_codecs()["int8"]), Form(all_codecs()["lz4"])]


def chunk() -> memoryview:
    values = np.random.default_rng(0).standard_normal(BLOCK.nbytes // 2).astype(np.float32)
    return memoryview((values.view(np.uint32) >> 16).astype(np.uint16)).cast("B")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_one_row_says_so() -> None:
    assert codec_gpu.rows(FORMS, [(BLOCK, chunk())]) == [
        {"case": "gpu", "mode": "", "skipped": "no CUDA device here", "bar": None, "met": None}
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
def test_a_row_for_each_codec_with_kernels() -> None:
    (row,) = codec_gpu.rows(FORMS, [(BLOCK, chunk())])
    assert (row["case"], row["mode"]) == ("int8", "gpu")
    assert 0 < row["gbps"] < row["memory_gbps"]
    assert row["decode_ratio"] == pytest.approx(row["memory_gbps"] / 2 / row["gbps"])
