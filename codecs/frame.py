"""A frame: one layer group of a part, encoded. A container is frames one after the other, in order of layers.

A frame's header says all that is needed to decode it but the artefact, which it names by digest; so any layer group
is read, verified and decoded alone. 64 bytes, little-endian:

    offset  bytes
       0      4   magic "KVC1"
       4      2   version, 1
       6      2   number of the codec
       8      2   level of the codec
      10      1   dtype (1 float32, 2 bfloat16, 3 float16, 4 float8_e4m3fn, 5 float8_e5m2, 6 int8, 7 uint8)
      11      1   planes: 2 (K, V), 1 (latent), 0 (opaque bytes)
      12      2   first layer, counted in the part
      14      2   layers
      16      4   tokens
      20      4   position of the first token
      24      2   heads
      26      2   dim
      28      2   lanes of the entropy coder (0: none)
      30      2   zeros
      32      8   length of the body, which follows the header
      40     16   digest of the artefact (zeros: none)
      56      8   xxh3-64 of header[0:56] ‖ xxh3-64 of the body as u64

The decoded bytes are in the order of the spec's layout. Opaque bytes: dim is 0 and tokens, heads say nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from kvstore import _native
from kvstore.codecs.block import DTYPE_CODES, Block
from kvstore.errors import Corrupt, SpecMismatch

Buffer: TypeAlias = memoryview | bytes | bytearray
MAGIC = b"KVC1"
VERSION = 1
HEADER_BYTES = 64
NO_ARTEFACT = bytes(16)
_LAYOUT = struct.Struct("<4sHHHBBHHIIHHHHQ16sQ")
_SUMMED = HEADER_BYTES - 8
assert _LAYOUT.size == HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header. `body` is the length of what follows it."""

    codec: int
    level: int
    dtype: int
    planes: int
    first: int
    layers: int
    tokens: int
    position: int
    heads: int
    dim: int
    lanes: int
    body: int
    artefact: bytes = NO_ARTEFACT

    @classmethod
    def of(
        cls, codec: int, level: int, block: Block, body: int, *, lanes: int = 0, artefact: bytes = NO_ARTEFACT
    ) -> Frame:
        """The header for one layer group of a part."""
        opaque = block.opaque
        return cls(
            codec, level, DTYPE_CODES[block.dtype], 0 if opaque else block.planes, block.first, len(block.layers),
            block.tokens, block.position, block.heads, 0 if opaque else block.dim, lanes, body, artefact,
        )  # fmt: skip

    def pack(self, body: Buffer) -> bytes:
        """The 64 bytes that stand before `body`."""
        head = _LAYOUT.pack(
            MAGIC, VERSION, self.codec, self.level, self.dtype, self.planes, self.first, self.layers, self.tokens,
            self.position, self.heads, self.dim, self.lanes, 0, self.body, self.artefact, 0,
        )[:_SUMMED]  # fmt: skip
        return head + _checksum(head, body)

    def check(self, block: Block) -> None:
        """Raise `SpecMismatch` unless this frame holds exactly the layers of `block`."""
        asked = Frame.of(self.codec, self.level, block, self.body, lanes=self.lanes, artefact=self.artefact)
        if self != asked:
            raise SpecMismatch(f"the frame holds {self}; what is asked for is {asked}")


def read_frame(data: memoryview, *, verify: bool = True) -> tuple[Frame, memoryview]:
    """The frame that begins `data`, and its body. `Corrupt` if it is none, is cut off or damaged."""
    if len(data) < HEADER_BYTES or bytes(data[:4]) != MAGIC:
        raise Corrupt(f"no frame starts here: {len(data)} bytes, beginning {bytes(data[:4])!r}")
    (_, version, codec, level, dtype, planes, first, layers, tokens, position, heads, dim, lanes, zeros, body,
     artefact, _) = _LAYOUT.unpack_from(data)  # fmt: skip
    if version != VERSION or zeros:
        raise Corrupt(f"frame version {version} is not known here; this build reads version {VERSION}")
    if body > len(data) - HEADER_BYTES:
        raise Corrupt(f"the frame is cut off: its body has {body} bytes and {len(data) - HEADER_BYTES} are here")
    inside = data[HEADER_BYTES : HEADER_BYTES + body]
    if verify and _checksum(bytes(data[:_SUMMED]), inside) != data[_SUMMED:HEADER_BYTES]:
        raise Corrupt("the frame does not match its checksum")
    frame = Frame(codec, level, dtype, planes, first, layers, tokens, position, heads, dim, lanes, body, artefact)
    return frame, inside


def frames(container: memoryview, *, verify: bool = True) -> Iterator[tuple[Frame, memoryview]]:
    """The frames of a container, or of some layer groups of one, in order."""
    while container:
        frame, body = read_frame(container, verify=verify)
        yield frame, body
        container = container[HEADER_BYTES + frame.body :]


def _checksum(head: bytes, body: Buffer) -> bytes:
    inner = int(_native.xxh3_64(body)).to_bytes(8, "little")
    return int(_native.xxh3_64(head + inner)).to_bytes(8, "little")
