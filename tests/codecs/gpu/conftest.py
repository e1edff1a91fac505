"""Where kernels run, and data that looks like KV."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kvstore.codecs import rans

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
)
INTERPRETED = pytest.param(
    "cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled for the GPU here")
)


@pytest.fixture(params=[INTERPRETED, CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The interpreter on the CPU, or a GPU."""
    return torch.device(request.param)


def bank(seed: int = 0) -> npt.NDArray[np.uint16]:
    """Six tables: one symbol alone, peaked, wide, flat, lopsided, and one without most symbols."""
    at = np.arange(256)
    counts = [
        at == 128,
        np.exp(-np.abs(at - 128) / 0.4),
        np.exp(-np.abs(at - 128) / 12.0),
        np.ones(256),
        np.random.default_rng(seed).exponential(size=256) ** 4,
        (at % 37 == 3) * (1.0 + at),
    ]
    return np.stack([rans.quantize_freqs(each) for each in counts])


def symbols_of(
    freqs: npt.NDArray[np.uint16], tables: npt.NDArray[np.uint8], tokens: int, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Symbols uint8 `[tokens, columns]` as their tables expect them."""
    draw = np.random.default_rng(seed)
    columns = [draw.choice(256, tokens, p=freqs[each] / freqs[each].sum()) for each in tables]
    return np.stack(columns, 1).astype(np.uint8)
