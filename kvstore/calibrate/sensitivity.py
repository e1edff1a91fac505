"""Which errors in a cache cost the model: the Fisher information of its predictions in keys and values.

A small error e in the cache gives KL(exact ‖ lossy) = ½ eᵀFe, where F is the sum over the predicted positions of the
second moments of d log p(y) / d cache, y drawn from the model's own predictions. One backward pass over all positions
estimates it for every layer at once: gradients of draws at different positions are independent and have mean zero, so
the cross terms of their sum vanish. Injecting noise into one layer's keys or values after the other, which measures
the same, takes a forward pass each and tells one number where this tells a `[dim, dim]` matrix of every head.

On SmolLM2 what a few documents show of keys holds for others: whitened by it, keys cost 0.6 bits an element less, where
the second moments of queries are one part of it. Of values it does not hold (0.1 bits more): they are whitened by what
the output projection makes of them, and only how much a head counts is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.calibrate.capture import Captured, Floats, context_of, rotate, values_of
from kvstore.calibrate.models import Subject

DRAWS = 2
KEY_RIDGE, VALUE_RIDGE = 0.15, 0.1  # of the mean of a diagonal, for directions that the documents did not show


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """`fisher` `[layer, plane, head, dim, dim]`: noise of covariance C in a head's channels, at every token and in
    keys before rotation, costs tr(CF) nats a predicted token. `output` `[layer, head, dim, dim]` is ΣWᵀW over the
    output projections of a KV head's query heads, by which errors of values reach the residual stream.
    """

    fisher: Floats
    output: Floats

    def weights(self) -> tuple[Floats, Floats]:
        """What noise costs, smoothed, `[layer, plane, head, dim, dim]`, and the scale of each plane.

        The diagonals of a plane's weights are 1 in the mean; `scale` `[layer, plane]` is the KL a predicted token of a
        unit of so weighted noise in one channel.
        """
        made = np.empty(self.fisher.shape)
        made[:, 0] = _ridged(self.fisher[:, 0].astype(np.float64), KEY_RIDGE)
        projected = _ridged(_unit(self.output.astype(np.float64)), VALUE_RIDGE)
        size = projected.shape[-1]
        cost = np.trace(self.fisher[:, 1] @ np.linalg.inv(projected), axis1=-2, axis2=-1) / size
        made[:, 1] = projected * cost[..., None, None]
        scale = np.maximum(np.trace(made, axis1=3, axis2=4).mean(2) / size, 1e-20)
        return (made / scale[:, :, None, None, None]).astype(np.float32), scale.astype(np.float32)


def measure(
    subject: Subject,
    documents: Sequence[Captured],
    *,
    sinks: int,
    draws: int = DRAWS,
    advance: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """The mean over documents, whose first tokens are cached and the rest predicted (`context_of`).

    The first `sinks` tokens do not count: they are stored exactly. `advance` is called once a document.
    """
    import torch

    total = np.zeros((subject.layers, 2, subject.heads, subject.dim, subject.dim))
    random, positions = torch.Generator().manual_seed(0), 0
    for document in documents:
        context = context_of(document)
        positions += draws * (len(document.ids) - context)
        for gradient in _gradients(subject, document, context, draws, random):
            for layer, rotation in enumerate(subject.rotations):
                keys, values = gradient[layer]
                # The rotation is orthogonal up to its scale, which a gradient has once and not its inverse.
                before = rotate(keys, rotation, back=True) * np.float32(rotation.scale**2)
                for plane, states in enumerate((before, values)):
                    by_head = states[sinks:].transpose(1, 0, 2)
                    total[layer, plane] += by_head.transpose(0, 2, 1) @ by_head
        advance()
    return Sensitivity((total / (2 * positions)).astype(np.float32), subject.output_moments())


def _gradients(subject: Subject, document: Captured, context: int, draws: int, random: Any) -> list[Floats]:
    """d log p(y) / d cache `[layer, 2, token, head, dim]`, one of each draw of y at every position."""
    import torch
    from transformers import DynamicCache

    held, leaves = DynamicCache(), []
    for number, layer in enumerate(document.kv[:, :, :context]):
        pair = [torch.from_numpy(values_of(plane).swapaxes(0, 1).copy())[None].requires_grad_() for plane in layer]
        leaves += pair
        held.update(*pair, number)
    subject.model.requires_grad_(False)
    with torch.enable_grad():
        logits = subject.model(torch.tensor([document.ids[context:]]), past_key_values=held).logits[0]
        log = torch.log_softmax(logits, -1)
        chosen = torch.multinomial(log.detach().exp(), draws, replacement=True, generator=random)
        sums = log.gather(1, chosen).sum(0)
        made = []
        for draw in range(draws):
            found = torch.autograd.grad(sums[draw], leaves, retain_graph=draw + 1 < draws)
            flat = np.stack([each[0].transpose(0, 1).numpy() for each in found])
            made.append(flat.reshape(len(flat) // 2, 2, *flat.shape[1:]))
    return made


def _unit(matrices: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Matrices over the mean of their diagonals."""
    mean = np.trace(matrices, axis1=-2, axis2=-1) / matrices.shape[-1]
    made: npt.NDArray[np.float64] = matrices / np.maximum(mean, 1e-30)[..., None, None]
    return made


def _ridged(matrices: npt.NDArray[np.float64], ridge: float) -> npt.NDArray[np.float64]:
    mean = np.trace(matrices, axis1=-2, axis2=-1) / matrices.shape[-1]
    made: npt.NDArray[np.float64] = matrices + np.eye(matrices.shape[-1]) * (ridge * mean)[..., None, None]
    return made
