"""Measuring a model: what CacheGen profiles offline, once, from samples of its KV.

Static, in the artefact: every channel's mean and range (its anchors' 8 bits), the spread of differences per layer and
plane, that a bin is a multiple of, and the entropy coder's tables. Per chunk there is nothing but symbols, so a chunk
whose values go further than the samples' costs bits (they are written out) and never precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs.artefact import Artefact, ModelShape
from kvstore.codecs.cachegen.bank import choose_bank
from kvstore.codecs.cachegen.reference import anchor_rows
from kvstore.codecs.cachegen.tables import LARGEST, LEVELS, ZERO
from kvstore.codecs.floats import Floats
from kvstore.codecs.rans import SYMBOLS
from kvstore.errors import InvalidArgument

GROUP = 10  # the paper's
THIRDS = (0.5, 1.0, 1.5)  # bins of the layers' thirds, the paper's proportions
# What a level multiplies them with, in units of the spread of differences.
SCALES: Mapping[str, float] = {"finest": 0.125, "fine": 0.25, "medium": 0.4, "coarse": 0.9}
ANCHOR_SHARE = 0.25  # of the bin of differences: a finer one costs bits and brings nothing
CHUNK_TOKENS = 256
_MARGIN = 1.25  # samples do not show the whole range
_LEAST = 1e-9

Samples = Sequence[Sequence[npt.NDArray[np.float32]]]


def profile(samples: Samples, model: ModelShape, *, facts: Mapping[str, Any] | None = None) -> Artefact:
    """The artefact of kind `cachegen` for a model.

    `samples` are documents: each an array float32 `[layer, plane, token, head, dim]` of KV as it is cached (K after
    RoPE), from the prompt's first token on, or a sequence of arrays `[plane, token, head, dim]`; layers are those of
    `model`, in order. `facts` are kept with what is measured. Raises `InvalidArgument` for samples of another shape,
    with fewer than 256 tokens in all, or with NaN or infinity.
    """
    tokens = _checked(samples, model)
    learnt = [
        _measure([document[i] for document in samples], THIRDS[i * len(THIRDS) // len(model.layers)])
        for i in range(len(model.layers))
    ]
    bank, tables, facts_of_bank = choose_bank(np.concatenate([each.counts for each in learnt], axis=2))
    known = {"group": GROUP, "levels": list(LEVELS), "documents": len(samples), "tokens": tokens, **facts_of_bank}
    return Artefact.build(
        "cachegen", model, {**(facts or {}), **known},
        {
            "bank": bank,
            "tables": tables,
            "mean": np.concatenate([each.mean for each in learnt]),
            "anchor_step": np.concatenate([each.anchor_step for each in learnt]),
            "anchor_floor": np.concatenate([each.anchor_floor for each in learnt], axis=1),
            "step": np.concatenate([each.step for each in learnt], axis=1),
        },
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Measured:
    """One layer's share of the artefact's arrays; `counts` [level, anchors or differences, column, symbol]."""

    mean: Floats
    anchor_step: Floats
    anchor_floor: Floats
    step: Floats
    counts: npt.NDArray[np.uint32]


def _measure(documents: Sequence[Floats], times: float) -> _Measured:
    """What one layer of the samples, each [plane, token, head, dim], shows; `times` is its third's share of a bin."""
    planes = len(documents[0])
    anchors, others, places = _cut(documents)
    mean = anchors.mean(axis=0, dtype=np.float64).astype(np.float32)
    widest = np.abs(anchors - mean).max(axis=0) * (_MARGIN / LARGEST)
    # A constant channel needs no more bits than its dtype has.
    anchor_step = np.maximum(widest, np.abs(mean) * 2.0**-10 + _LEAST).astype(np.float32)
    gaps = (others - anchors[places]).reshape(len(others), planes, -1)
    spread = np.sqrt(np.mean(np.square(gaps, dtype=np.float64), axis=(0, 2)))
    step = np.array([np.maximum(SCALES[level] * times * spread, _LEAST) for level in LEVELS], np.float32)
    floor = np.maximum(step * ANCHOR_SHARE, np.float32(_LEAST))
    counts = []
    for level in range(len(LEVELS)):
        each = anchors.shape[1] // planes
        bins = np.maximum(anchor_step, np.repeat(floor[level], each))
        codes = np.rint((anchors - mean) / bins)
        decoded = codes * bins + mean
        rest = np.rint((others - decoded[places]) / np.repeat(step[level], each))
        counts.append(np.stack([_histograms(codes), _histograms(rest)]))
    return _Measured(mean, anchor_step, floor, step, np.stack(counts))


def _cut(documents: Sequence[Floats]) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    """All anchors [n, column], all other tokens [m, column], and the anchor of each of these.

    The documents' first tokens, which stand alone as attention sinks, are left out.
    """
    anchors, others, places, count = [], [], [], 0
    for document in documents:
        values = document[:, 1:].transpose(1, 0, 2, 3).reshape(document.shape[1] - 1, -1)
        for start in range(0, len(values), CHUNK_TOKENS):
            chunk = values[start : start + CHUNK_TOKENS]
            rows = anchor_rows(len(chunk), GROUP, GROUP)
            rest = np.delete(np.arange(len(chunk)), rows)
            anchors.append(chunk[rows])
            others.append(chunk[rest])
            places.append(count + np.searchsorted(rows, rest, side="right") - 1)
            count += len(rows)
    return np.concatenate(anchors), np.concatenate(others), np.concatenate(places)


def _histograms(codes: Floats) -> npt.NDArray[np.uint32]:
    """How often each symbol comes in each column [column, symbol]; 0 where a code has none."""
    columns = codes.shape[1]
    symbols = np.where(np.abs(codes) <= LARGEST, codes + ZERO, 0).astype(np.intp)
    flat = (symbols + np.arange(columns) * SYMBOLS).ravel()
    return np.bincount(flat, minlength=columns * SYMBOLS).reshape(columns, SYMBOLS).astype(np.uint32)


def _checked(samples: Samples, model: ModelShape) -> int:
    """The tokens of all samples."""
    shapes = [model.layers[layer] for layer in sorted(model.layers)]
    tokens = 0
    for number, document in enumerate(samples):
        found = [(each.shape[0], *each.shape[2:]) for each in document]
        if found != shapes:
            raise InvalidArgument(f"sample {number} has layers (planes, heads, dim) {found}; the model has {shapes}")
        if not all(np.isfinite(each).all() for each in document):
            raise InvalidArgument(f"sample {number} has NaN or infinity")
        tokens += document[0].shape[1]
    if tokens < CHUNK_TOKENS:
        raise InvalidArgument(f"{tokens} tokens are too few to measure a model: {CHUNK_TOKENS} at least")
    return tokens
