"""The transform codec in C++ (codecs/native/transform*), for a plan."""

from __future__ import annotations

from typing import Any

from kvstore import _native
from kvstore.codecs.base import NotEncodable
from kvstore.codecs.block import Block
from kvstore.codecs.frame import Buffer
from kvstore.codecs.transform.body import sinks_of
from kvstore.codecs.transform.plan import Plan
from kvstore.errors import Corrupt


class NativePlan:
    """A plan laid out for the native loops. Immutable, for any thread."""

    def __init__(self, plan: Plan, block: Block) -> None:
        self._rotary, self._sinks = plan.rotary, plan.sinks
        sections: list[Any] = [
            (each.column, each.matrix, each.scale, each.mean, each.forward) for each in plan.sections
        ]
        turns = [(each.pairs, each.start, each.style == "interleaved") for each in plan.rotary]
        self._native = _native.TransformPlan(
            plan.bank, plan.tables, plan.shift, plan.rounding, sections, turns, block.planes, block.heads, block.dim
        )

    def encode(self, raw: Buffer, block: Block) -> bytes:
        """The body of a frame. `NotEncodable` for NaN, infinity, and values that are out of proportion."""
        sinks = sinks_of(block.position, block.tokens, self._sinks)
        tables: list[Any] = [each.tables_back(block.position + sinks, block.tokens - sinks) for each in self._rotary]
        try:
            return self._native.encode(raw, block.dtype, block.tokens, sinks, block.strides(), tables)
        except ValueError as error:
            raise NotEncodable(f"the transform codec cannot take {error}; lossless can") from None

    def decode(self, body: Buffer, block: Block, out: memoryview) -> None:
        """Decode a body into the block's raw bytes. `Corrupt` for a body that no encoder makes."""
        sinks = sinks_of(block.position, block.tokens, self._sinks)
        tables: list[Any] = [each.tables(block.position + sinks, block.tokens - sinks) for each in self._rotary]
        if not self._native.decode(body, out, block.dtype, block.tokens, sinks, block.strides(), tables):
            raise Corrupt(f"no encoder makes this body of {len(body)} bytes for {block.tokens} tokens")
