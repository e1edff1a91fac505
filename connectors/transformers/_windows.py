"""A sliding layer that keeps what left its window until that is stored."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class RecordedWindow(DynamicSlidingWindowLayer):  # type: ignore[misc]  # transformers is untyped
    """`DynamicSlidingWindowLayer` with `record_past` for good, and `trim` to end what `crop` ends there.

    Assisted generation calls `crop` after every step, which in the original drops all that left the window.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values `[1, kv_heads, tokens, head_dim]`; those that attention sees."""
        self.record_past = True  # generate() turns it off where it was on for it alone
        states: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states, *args, **kwargs)
        return states

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens and keep all before them."""
        before = self.keys.shape[-2] if self.is_initialized else 0
        DynamicLayer.crop(self, tokens_to_remove)
        if self.is_initialized:
            self.cumulative_length -= before - self.keys.shape[-2]

    def trim(self) -> None:
        """Drop what no later token attends to."""
        if self.is_initialized and self.keys.shape[-2] >= self.sliding_window:
            self.keys = self.keys[:, :, -self.sliding_window + 1 :].clone()  # a view would keep all of it
            self.values = self.values[:, :, -self.sliding_window + 1 :].clone()

    def reaches(self, tokens: int) -> bool:
        """Whether the layer could be cropped to its first `tokens` tokens and go on."""
        held = self.keys.shape[-2] if self.is_initialized else 0
        return bool(self.cumulative_length - held <= max(0, tokens - self.sliding_window + 1))
