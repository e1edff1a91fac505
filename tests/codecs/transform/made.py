"""Artefacts for tests: fitted to noise with a spectrum, so that no model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvstore.codecs import Artefact, Block, ModelShape
from kvstore.codecs.floats import from_float32, to_float32
from kvstore.codecs.transform.fit import Documents, Fitted, fit
from kvstore.codecs.transform.rotary import Rotary
from kvstore.spec import CANONICAL_AXES

Floats = npt.NDArray[np.float32]


def noise(seed: int, layers: int, planes: int, tokens: int, heads: int, dim: int) -> Floats:
    """Correlated channels with means and a few outliers, float32 `[layer, plane, token, head, dim]`."""
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(layers, planes, heads * dim, heads * dim)) / np.sqrt(heads * dim)
    mix *= 3.0 * np.exp(-np.arange(heads * dim) / (heads * dim / 4))[:, None]
    mean = rng.normal(size=(layers, planes, 1, heads * dim))
    values = np.random.default_rng(seed).standard_t(6, size=(layers, planes, tokens, heads * dim)) @ mix + mean
    return values.reshape(layers, planes, tokens, heads, dim).astype(np.float32)


@lru_cache(maxsize=16)
def fitted(
    variant: str, layers: int, planes: int, heads: int, dim: int, style: str = "half", start: int = 0, pairs: int = -1,
    joined: int = 0, scaling: float = 1.0,
) -> Fitted:  # fmt: skip
    """A transform of a model of this shape, keys rotated by two bases in turn."""
    pairs = dim // 2 if pairs < 0 else pairs
    rotary = [Rotary.of_base(base, pairs, style=style, start=start, scaling=scaling) for base in [1e4, 1e6] * layers][
        :layers
    ]
    size = {"head": dim, "layer": heads * dim, "joint": (joined or 1) * planes * heads * dim}[variant]
    arrays = [noise(seed, layers, planes, 4 * size + 40, heads, dim) for seed in (2, 3)]
    rng = np.random.default_rng(4)
    roots = rng.normal(size=(layers, planes, heads, dim, dim))
    weights = [each @ each.transpose(0, 1, 3, 2) / dim for each in roots]
    groups = [range(i, i + joined) for i in range(0, layers, joined)] if joined else None
    model = ModelShape("noise", dict.fromkeys(range(layers), (planes, heads, dim)))
    return fit(model, Documents(arrays, rotary), variant, weights, rng.uniform(0.3, 3, (layers, planes)), groups=groups)


@lru_cache(maxsize=16)
def artefact(variant: str, *shape: int, **rest: object) -> Artefact:
    """With levels from fine (shifts, escapes) to coarse (few live components)."""
    made = fitted(variant, *shape, **rest)  # type: ignore[arg-type]
    return made.artefact({"near": 0.01, "matches-fp8": 0.2, "small": 1.5})


def block_of(
    layers: Sequence[int], planes: int, tokens: int, heads: int, dim: int, *, dtype: str = "bfloat16",
    axes: tuple[str, ...] = CANONICAL_AXES, position: int = 0, first_head: int = 0,
) -> Block:  # fmt: skip
    """A block of these layers."""
    return Block(dtype, tuple(layers), planes, tokens, heads, dim, axes, position, first_head=first_head)


def raw_of(values: Floats, block: Block) -> bytearray:
    """The block's bytes in its layout."""
    raw = bytearray(block.nbytes)
    block.canonical(raw)[...] = from_float32(np.ascontiguousarray(values), block.dtype)
    return raw


def values_of(raw: bytearray | memoryview, block: Block) -> Floats:
    """The floats of a block's bytes."""
    return np.array(to_float32(np.ascontiguousarray(block.canonical(raw)), block.dtype))
