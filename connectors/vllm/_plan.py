"""What the scheduler tells the workers in one step. Plain data: it crosses processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvstore.connectors.vllm._reports import UNASKED
from kvstore.keys import ChunkRef

Blocks = tuple[list[int], ...]  # block ids, one list for each KV group
NULL_BLOCK = 0  # vLLM's placeholder for a block that has left a sliding window


@dataclass(slots=True)
class LoadJob:
    """Load tokens `start` to `end` (multiples of the block size) of a request.

    `refs` are the chunks that hold them, `blocks` the request's block tables from token 0 on. Chunks that end after
    token `exact` may be lossy copies.
    """

    request: str
    start: int
    end: int
    refs: tuple[ChunkRef, ...]
    blocks: Blocks
    exact: int


@dataclass(slots=True)
class SaveJob:
    """Store one chunk, whose tokens lie in `blocks`. Workers report what becomes of one that has a `number`."""

    request: str
    ref: ChunkRef
    blocks: Blocks
    number: int = UNASKED


@dataclass(slots=True)
class HintJob:
    """Tell the store that a prompt comes back in so many seconds (0: never), once all of it is stored."""

    refs: tuple[ChunkRef, ...]
    awaited_s: float


@dataclass
class Plan:
    """One step: what to load, what to save after its forward, what to save before anything is overwritten.

    `hints` are for one of the workers, after all saves so far.
    """

    loads: list[LoadJob] = field(default_factory=list)
    saves: list[SaveJob] = field(default_factory=list)
    final_saves: list[SaveJob] = field(default_factory=list)
    hints: list[HintJob] = field(default_factory=list)
    idle: bool = False


def first_block(table: Sequence[int], *, windowed: bool) -> int | None:
    """From which block on a chunk's part of one KV group can be stored; None where it has left its window."""
    gone = next((n for n, block in enumerate(table) if block != NULL_BLOCK), len(table))
    return None if gone == len(table) or NULL_BLOCK in table[gone:] or (gone and not windowed) else gone
