"""What a lossy cache costs the model: the divergence of its next-token distributions from those of the exact cache.

The protocol: float32 arithmetic; the cache of a document's first tokens rounded to bfloat16 is the exact one; every
256-token chunk of it is encoded and decoded; then the next 256 tokens of the document are given to the model, and at
each of them KL(exact ‖ lossy) is taken, in nats. The mean over positions is a document's figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore.calibrate.capture import FOLLOWING, Bits, Captured, Floats, values_of
from kvstore.calibrate.models import Subject


@dataclass(frozen=True, slots=True)
class Verdict:
    """`kl` in nats, the mean over positions; `top1` is the share of positions with the same most likely token."""

    kl: float
    top1: float


class Judge:
    """Judges caches of one document: its first `context` tokens, of which `following` more are then predicted."""

    def __init__(self, subject: Subject, captured: Captured, context: int, following: int = FOLLOWING) -> None:
        import torch

        self._subject = subject
        self._next = torch.tensor([captured.ids[context : context + following]])
        self.exact: Bits = captured.kv[:, :, :context]
        logits = self._logits(values_of(self.exact))
        self._log = torch.log_softmax(logits, -1)
        self._top = logits.argmax(-1)

    def judge(self, cache: Floats) -> Verdict:
        """How far a cache `[layer, 2, token, head, dim]` float32 is from the exact one."""
        import torch

        logits = self._logits(cache)
        log = torch.log_softmax(logits, -1)
        kl = torch.nn.functional.kl_div(log, self._log, log_target=True, reduction="none").sum(-1)
        same = (logits.argmax(-1) == self._top).float()
        return Verdict(float(kl.double().mean()), float(same.mean()))

    def _logits(self, cache: Floats) -> Any:
        import torch
        from transformers import DynamicCache

        held = DynamicCache()
        for number, layer in enumerate(cache):
            keys, values = (torch.from_numpy(np.ascontiguousarray(each.swapaxes(0, 1)))[None] for each in layer)
            held.update(keys, values, number)
        with torch.inference_mode():
            return self._subject.model(self._next, past_key_values=held).logits[0]


def mean(verdicts: Sequence[Verdict]) -> Verdict:
    """The mean over documents."""
    return Verdict(
        sum(each.kl for each in verdicts) / len(verdicts), sum(each.top1 for each in verdicts) / len(verdicts)
    )
