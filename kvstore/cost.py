"""What a hit is worth: the time to load stored chunks against the time to compute them again.

Prefill of tokens a to b of a prompt takes `flops_per_token`·(b − a) + `flops_per_token2`·(b² − a²)/2 FLOPs: the weights
for every token, and attention to all tokens before it. So the head of a long prompt is cheap to compute and its tail is
not, while loading costs the same everywhere. `plan` finds the one cut of a run that is quickest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.errors import InvalidArgument

REASONS = (
    "nothing of it is stored",
    "computing all of it is quicker than loading any",
    "loading all of the run is quickest",
    "the end of the run is quicker to compute than to load",
    "the front is computed while the back is loaded",
)


@dataclass(frozen=True, slots=True)
class Prefill:
    """What computing a prompt takes: FLOPs as the module says, `flops_per_s` as measured on the engine.

    `step_s` is one step of the engine's scheduler: a request that loads something waits for one more.
    """

    flops_per_token: float
    flops_per_token2: float
    flops_per_s: float
    step_s: float = 0.0

    def __post_init__(self) -> None:
        if not all(map(isfinite, self.packed)):
            raise InvalidArgument(f"prefill takes a finite time: not {self}")
        if min(self.flops_per_token, self.flops_per_s) <= 0 or min(self.flops_per_token2, self.step_s) < 0:
            raise InvalidArgument(f"prefill takes time, and FLOPs and steps are not negative: not {self}")

    @classmethod
    def of_rate(cls, tokens_per_s: float, step_s: float = 0.0) -> Self:
        """A prefill of so many tokens a second, wherever they stand in the prompt."""
        return cls(1.0, 0.0, tokens_per_s, step_s)

    def flops(self, start: Any, end: Any) -> Any:
        """FLOPs to compute tokens `start` to `end`, all before them being there. Numbers or arrays."""
        return self.flops_per_token * (end - start) + self.flops_per_token2 * (end * end - start * start) / 2

    def seconds(self, start: Any, end: Any) -> Any:
        """How long that takes."""
        return self.flops(start, end) / self.flops_per_s

    @property
    def packed(self) -> tuple[float, float, float, float]:
        """For native code."""
        return self.flops_per_token, self.flops_per_token2, self.flops_per_s, self.step_s


@dataclass(frozen=True, slots=True)
class Prompt:
    """What whoever looks a prompt up would compute without the store: all `tokens` of it, by `prefill`.

    `overlap` says that it can compute from the front of a hit while the back is loaded, and stop where they meet.
    `link_bytes_per_s` is how fast stored bytes come from the store's memory to where they are used; 0: not known, which
    the client of a server makes up for by what it has measured.
    """

    tokens: int
    prefill: Prefill
    overlap: bool = False
    link_bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InvalidArgument(f"a prompt has at least one token, not {self.tokens}")
        if not (isfinite(self.link_bytes_per_s) and self.link_bytes_per_s >= 0):
            raise InvalidArgument(f"a link has a finite speed, not {self.link_bytes_per_s} bytes a second")


class TierSpeed(NamedTuple):
    """What a tier does just now: latency in seconds, stored bytes per second.

    `decode_bytes_per_s` is the codec's speed (0: nothing is decoded), `queue_s` the time until the tier has served what
    was asked of it before.
    """

    latency_s: float
    bytes_per_s: float
    decode_bytes_per_s: float = 0.0
    queue_s: float = 0.0


class Plan(NamedTuple):
    """Load tokens `start` to `end` of the prompt and compute the rest: what is before them while they are loaded.

    `seconds` until the whole prompt has KV; `recompute_s` if nothing were loaded. `start == end`: load nothing.
    """

    start: int
    end: int
    seconds: float
    recompute_s: float
    reason: int

    @property
    def tokens(self) -> int:
        """How many tokens are loaded."""
        return self.end - self.start

    @property
    def why(self) -> str:
        """The reason in words."""
        return f"{REASONS[self.reason]}: {self.seconds * 1e3:.3g} ms instead of {self.recompute_s * 1e3:.3g} ms"


def tokens_between(start: int, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """The tokens of each chunk of a run that begins at `start`; what lies between two chunks belongs to the second."""
    tokens = ends.astype(np.uint32)
    tokens[1:] -= tokens[:-1].copy()
    tokens[:1] -= start
    return tokens


def plan(
    tokens: npt.NDArray[Any], stored: npt.NDArray[Any], tiers: npt.NDArray[Any], *, prefill: Prefill,
    speeds: Sequence[TierSpeed], prompt: int, start: int = 0, overlap: bool = False,
) -> Plan:  # fmt: skip
    """The quickest way to KV for a prompt of `prompt` tokens, of which a run of chunks from `start` on is stored.

    A row a chunk, in prompt order: `tokens` uint32, `stored` bytes uint64, `tiers` uint8, the number in `speeds` of the
    fastest tier that has it. Tiers are read side by side, and what was read is decoded after it. With `overlap` the
    engine can compute from the front of the run while its back is loaded. A few microseconds for a hundred chunks.
    """
    return Plan(*_native.plan_load(tokens, stored, tiers, start, prompt, prefill.packed, speeds, overlap))
