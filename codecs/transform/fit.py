"""Learn a transform from a model's own KV: principal components in the domain where noise costs the model alike.

For a section with channel covariance C and weight W (noise e costs eᵀWe), L = W^½ gives y = Lx whose noise costs the
same in every direction; the eigenvectors of LCL are the components, one step for all of them is the best allocation
(reverse water-filling), and x = L⁻¹Uz. The matrix L⁻¹U is stored as int8; the encoder inverts what is stored, so its
rounding costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs.artefact import Artefact, ModelShape
from kvstore.codecs.floats import Floats
from kvstore.codecs.transform import levels
from kvstore.codecs.transform.levels import Group
from kvstore.codecs.transform.plan import KIND, MAX_DIMENSIONS, VARIANTS
from kvstore.codecs.transform.rotary import Rotary
from kvstore.errors import InvalidArgument

MAX_JOINT = 2048
TOKENS_PER_DIMENSION = 5  # fewer calibrate nothing; 20 and more are good
SAMPLE_TOKENS = 4096  # that tables are trained on


@dataclass(frozen=True, eq=False)
class Documents:
    """KV to learn from: `arrays`, float32 `[layer, plane, token, head, dim]` each, from a prompt's first token on.

    `rotated` says that keys are as the cache holds them. Arrays may be memory-mapped; each is read three times.
    """

    arrays: Sequence[npt.NDArray[np.float32]]
    rotary: Sequence[Rotary]  # per layer
    rotated: bool = True
    sinks: int = 4

    def values(self, number: int, layers: Sequence[int]) -> Floats:
        """`[token, channel]` of some layers of a document, keys before rotation, without the sinks."""
        found = np.array(self.arrays[number][list(layers)], np.float32)
        for place, layer in enumerate(layers):
            if self.rotated and self.rotary[layer].pairs:
                self.rotary[layer].turn_back(found[place, 0], 0)
        return found[:, :, self.sinks :].transpose(2, 0, 1, 3, 4).reshape(found.shape[2] - self.sinks, -1)


@dataclass(eq=False)
class Fitted:
    """A transform without steps: `artefact` adds levels, `simulate` tells what one would give."""

    model: ModelShape
    variant: str
    documents: Documents
    groups: Sequence[Group]
    _made: dict[Any, Artefact] = field(default_factory=dict)

    def artefact(self, steps: Mapping[str, float], facts: Mapping[str, Any] | None = None) -> Artefact:
        """An artefact with these levels, each by its step λ in the weighted domain (the finest comes first).

        `facts` are added to the artefact's: where it comes from, what it was measured to give.
        """
        rotary = self.documents.rotary[0]
        own = {
            "variant": self.variant,
            "groups": [list(group.layers) for group in self.groups],
            "sinks": self.documents.sinks,
            "rotary": {"style": rotary.style, "start": rotary.start, "scaling": rotary.scaling},
            "steps": dict(steps),
        }
        arrays = levels.arrays_of(self.groups, list(steps.values()))
        for group in self.groups:
            for layer in group.layers:
                arrays[f"rotary.{layer}"] = self.documents.rotary[layer].frequencies
        return Artefact.build(KIND, self.model, {**(facts or {}), **own, "levels": list(steps)}, arrays)

    def simulate(self, values: Floats, step: float, position: int = 0) -> tuple[Floats, float]:
        """What the codec would give at a step: the reconstruction of float32 `[layer, plane, token, head, dim]` as the
        cache holds it, and its bits (entropies, escapes, low bits, sinks; without frames, 64 + 40 bytes each, and the
        flush of streams, 64 bytes each)."""
        found = self._made.get(step)
        if found is None:
            found = self._made[step] = self.artefact({"near": step})
        return levels.simulate(found, "near", values, position)


def fit(
    model: ModelShape,
    documents: Documents,
    variant: str,
    weights: Sequence[npt.NDArray[np.floating[Any]]],
    sensitivity: npt.NDArray[np.floating[Any]],
    *,
    groups: Sequence[Sequence[int]] | None = None,
    ridge: float = 0.01,
) -> Fitted:
    """Learn a transform. `weights[layer]` is `[plane, head, dim, dim]`, the cost of noise in a head's channels.

    `sensitivity` `[layer, plane]` is the KL per unit of so weighted noise. `groups` are the layers that a transform
    joins (variant `joint`). `ridge` is added to the weights' diagonals, as a share of their mean. `InvalidArgument` for
    fewer than 5 tokens per dimension, and a joint transform of more than 2,048.
    """
    if variant not in VARIANTS:
        raise InvalidArgument(f"no variant {variant!r}: {', '.join(VARIANTS)}")
    if groups is None:
        groups = [(layer,) for layer in sorted(model.layers)]
    made = []
    for layers in groups:
        planes, heads, dim = model.layers[layers[0]]
        count, dimensions = {
            "head": (planes * heads, dim),
            "layer": (planes, heads * dim),
            "joint": (1, len(layers) * planes * heads * dim),
        }[variant]
        _check(documents, variant, dimensions)
        weight = np.concatenate([weights[layer].reshape(-1, dim, dim).astype(np.float64) for layer in layers])
        weight = np.stack([_ridged(each, ridge) for each in weight])
        scale = np.concatenate([sensitivity[layer] for layer in layers]).astype(np.float64)
        if variant == "joint":
            weight *= np.repeat(scale, heads)[:, None, None]
            scale = np.array([np.trace(weight, axis1=1, axis2=2).mean() / dim])
            weight /= scale  # groups differ in what a unit of noise costs, and so in their steps
        elif variant == "head":
            scale = np.repeat(scale, heads)
        made.append(_group(documents, tuple(layers), weight, scale, count, dimensions))
    return Fitted(model, variant, documents, made)


def _check(documents: Documents, variant: str, dimensions: int) -> None:
    limit = MAX_JOINT if variant == "joint" else MAX_DIMENSIONS
    if dimensions > limit:
        raise InvalidArgument(f"a {variant} transform has at most {limit:,} dimensions, not {dimensions:,}")
    tokens = sum(array.shape[2] - documents.sinks for array in documents.arrays)
    if tokens < TOKENS_PER_DIMENSION * dimensions:
        raise InvalidArgument(
            f"{tokens:,} tokens are too few for {dimensions:,} dimensions: at least "
            f"{TOKENS_PER_DIMENSION * dimensions:,}, and {20 * dimensions:,} are good"
        )


def _ridged(weight: npt.NDArray[np.float64], ridge: float) -> npt.NDArray[np.float64]:
    mean = np.trace(weight) / len(weight)
    return weight + np.eye(len(weight)) * (ridge * mean if mean > 0 else 1.0)


def _group(
    documents: Documents,
    layers: tuple[int, ...],
    weight: npt.NDArray[np.float64],
    sensitivity: Any,
    count: int,
    size: int,
) -> Group:
    mean, covariance = _moments(documents, layers, count, size)
    by_section = weight.reshape(count, -1, *weight.shape[1:])
    matrix, row = np.empty((count, size, size), np.int8), np.empty((count, size), np.float32)
    for index in range(count):
        basis = _basis(covariance[index], by_section[index])
        row[index] = np.abs(basis).max(1) / 127
        matrix[index] = np.rint(basis / row[index][:, None])
    sample = _sample(documents, layers, count) - mean[:, None]
    inverses = np.linalg.inv(row[:, :, None].astype(np.float64) * matrix)
    components = sample @ np.ascontiguousarray(inverses.transpose(0, 2, 1).astype(np.float32))
    kept = weight.astype(np.float16) if count == 1 and len(weight) > 1 else None
    return Group(layers, matrix, row, mean, np.asarray(sensitivity), components, kept)


def _moments(documents: Documents, layers: tuple[int, ...], count: int, size: int) -> tuple[Floats, Any]:
    """Mean `[section, D]` and covariance `[section, D, D]` over all documents."""
    total, sums, products = 0, np.zeros((count, size)), np.zeros((count, size, size))
    for number in range(len(documents.arrays)):
        values = _by_section(documents.values(number, layers), count)
        total += values.shape[1]
        sums += values.sum(1, dtype=np.float64)
        products += values.transpose(0, 2, 1) @ values
    mean = sums / total
    return mean.astype(np.float32), products / total - mean[:, :, None] * mean[:, None, :]


def _basis(covariance: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """L⁻¹U, components in order of falling variance; L is block-diagonal by head."""
    values, vectors = np.linalg.eigh(weight)
    root = vectors * np.sqrt(values)[:, None, :] @ vectors.transpose(0, 2, 1)
    undo = vectors / np.sqrt(values)[:, None, :] @ vectors.transpose(0, 2, 1)
    heads, dim = weight.shape[:2]
    blocks = covariance.reshape(heads, dim, heads, dim)
    whitened = np.einsum("hij,hjgk,gkl->higl", root, blocks, root, optimize=True).reshape(covariance.shape)
    _, components = np.linalg.eigh((whitened + whitened.T) / 2)
    falling = components[:, ::-1].reshape(heads, dim, -1)
    made: npt.NDArray[np.float64] = (undo @ falling).reshape(covariance.shape)
    return made


def _sample(documents: Documents, layers: tuple[int, ...], count: int) -> Floats:
    """Values `[section, token, D]` of tokens that are spread over all documents."""
    tokens = sum(array.shape[2] - documents.sinks for array in documents.arrays)
    every = -(-tokens // SAMPLE_TOKENS)
    found = [documents.values(number, layers)[number % every :: every] for number in range(len(documents.arrays))]
    return _by_section(np.concatenate(found), count)


def _by_section(values: Floats, count: int) -> Floats:
    """`[token, channel]` as `[section, token, D]`."""
    return np.ascontiguousarray(values.reshape(len(values), count, -1).transpose(1, 0, 2))
