"""Which errors in a cache cost the model: the Fisher information of its predictions in keys and values.

A small error e in the cache gives KL(exact ‖ lossy) = ½ eᵀFe, where F is the sum over the predicted positions of the
second moments of d log p(y) / d cache, y drawn from the model's own predictions. One backward pass over all positions
estimates it for every layer at once: gradients of draws at different positions are independent and have mean zero, so
the cross terms of their sum vanish. Injecting noise into one layer's keys or values after the other, which measures
the same, takes a forward pass each and tells one number where this tells a `[dim, dim]` matrix of every head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore.calibrate.capture import Captured, Floats, rotate, values_of
from kvstore.calibrate.models import Subject

DRAWS = 2


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """`weights` `[layer, plane, head, dim, dim]`: noise of covariance C in a head's channels, at every token and in
    keys before rotation, costs tr(CW) nats a predicted token. `shared` is the same over all heads of a plane,
    `[layer, plane, head · dim, head · dim]`.
    """

    shared: Floats
    heads: int

    @property
    def weights(self) -> Floats:
        """The blocks of `shared` that lie on its diagonal, one a head."""
        layers, planes, size, _ = self.shared.shape
        dim = size // self.heads
        whole = self.shared.reshape(layers, planes, self.heads, dim, self.heads, dim)
        return np.stack([whole[:, :, head, :, head] for head in range(self.heads)], axis=2)


def measure(
    subject: Subject,
    documents: Sequence[Captured],
    context: int,
    *,
    sinks: int,
    draws: int = DRAWS,
    advance: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """The mean over documents, each with `context` tokens in the cache and the rest predicted.

    The first `sinks` tokens do not count: they are stored exactly. `advance` is called once a document.
    """
    import torch

    size = subject.heads * subject.dim
    total = np.zeros((subject.layers, 2, size, size))
    random = torch.Generator().manual_seed(0)
    for document in documents:
        for gradient in _gradients(subject, document, context, draws, random):
            for layer, rotation in enumerate(subject.rotations):
                keys, values = gradient[layer]
                # The rotation is orthogonal up to its scale, which a gradient has once and not its inverse.
                before = rotate(keys, rotation, back=True) * np.float32(rotation.scale**2)
                for plane, states in enumerate((before, values)):
                    flat = states[sinks:].reshape(-1, size)
                    total[layer, plane] += flat.T @ flat
        advance()
    positions = sum(len(document.ids) - context for document in documents) * draws
    return Sensitivity((total / (2 * positions)).astype(np.float32), subject.heads)


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
