"""The transform codec: a linear transform in a weighted domain, one step, static tables, rANS (form 9)."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.codecs.artefact import Artefact
from kvstore.codecs.base import Codec
from kvstore.codecs.block import Block
from kvstore.codecs.floats import require_floats
from kvstore.codecs.frame import Buffer, Frame
from kvstore.codecs.transform.native import NativePlan
from kvstore.codecs.transform.plan import KIND, groups_of, plan_of
from kvstore.errors import Corrupt, InvalidArgument


class Transform(Codec):
    """Keys before rotation and values, transformed per head, per layer or over several layers.

    The artefact says which, how, and which of the levels it has. Decoding gives the same bits on every host.
    """

    number = 9
    name = "transform"
    levels = ("near", "matches-fp8", "matches-int4", "small")
    artefact_kind = KIND
    lanes = 32

    def check(self, block: Block) -> None:
        """`InvalidArgument` for a dtype other than bfloat16, float16, float32, an opaque layout, too many tokens."""
        require_floats(self.name, block)
        if not 1 <= block.tokens <= 65536:
            raise InvalidArgument(f"a chunk has 1 to 65536 tokens, not {block.tokens}")

    def groups(self, block: Block, artefact: Artefact | None) -> Sequence[tuple[int, int]]:
        """One layer each, or those that the artefact joins."""
        return super().groups(block, None) if artefact is None else groups_of(artefact, block)

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        """The body of one frame (`kvstore.codecs.transform.body`)."""
        if artefact is None:
            raise InvalidArgument("the transform codec needs an artefact: kvstore calibrate makes one")
        return self._native(artefact, block, level).encode(raw, block)

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        """Decode a body; bit for bit what every host gives."""
        if artefact is None:
            raise Corrupt("a frame of the transform codec names no artefact")
        self._native(artefact, block, frame.level).decode(body, block, out)

    def _native(self, artefact: Artefact, block: Block, level: int) -> NativePlan:
        key = ("native", block.layers, block.first_head, block.heads, level)
        return artefact.prepared(key, lambda: NativePlan(plan_of(artefact, block, self.levels[level]), block))
