"""Keys: SHA-256 over what was said, never over an engine's own block hashes.

A prefix key chains over the chunks of a prompt, so it stands for a chunk's tokens *and all before them*; a
content key hashes a chunk's own tokens alone, for reuse at any position. Both are the same in every process, host,
language and engine:

    root   = SHA-256("kvstore/root/1\\0" ‖ extras)
    prefix = SHA-256("kvstore/prefix/1\\0" ‖ parent ‖ extras of the chunk ‖ u32 tokens ‖ token ids as u32)
    content= SHA-256("kvstore/content/1\\0" ‖ extras of the chunk ‖ u32 tokens ‖ token ids as u32)

all numbers little-endian; extras are length-prefixed and sorted, see `Extras`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.errors import InvalidArgument

KEY_BYTES = 32
REF_BYTES = 40
NO_PARENT = bytes(KEY_BYTES)
_REF = struct.Struct("<32sII")
_U32 = struct.Struct("<I")
_ITEM = struct.Struct("<qI")
TokenIds = Sequence[int] | npt.NDArray[Any]


def check_key(key: bytes) -> bytes:
    """Return `key` if it has 32 bytes, or raise `InvalidArgument`."""
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        shown = f"{len(key)} bytes" if isinstance(key, bytes | bytearray | memoryview) else type(key).__name__
        raise InvalidArgument(f"a key is {KEY_BYTES} bytes, not {shown}")
    return key


@dataclass(frozen=True, slots=True)
class Extras:
    """What makes equal token ids mean different KV.

    `lora` is the digest of the adapter's content, `salt` any text that keeps callers apart, `multimodal` the
    (position, tokens, digest) of each image or sound and the run of placeholder tokens it stands in.
    """

    lora: bytes = b""
    salt: str = ""
    multimodal: tuple[tuple[int, int, bytes], ...] = ()

    def root(self) -> bytes:
        """The parent of the first chunk."""
        fields = _sized(self.lora) + _sized(self.salt.encode())
        return hashlib.sha256(b"kvstore/root/1\0" + fields).digest()

    def within(self, start: int, end: int) -> bytes:
        """The canonical bytes of the multimodal items that reach into `[start, end)`, relative to `start`.

        An item that began before counts too (its offset is negative): a content key must tell two images apart
        even where a chunk holds nothing but the middle of one.
        """
        items = sorted((at - start, n, each) for at, n, each in self.multimodal if at < end and at + n > start)
        return _U32.pack(len(items)) + b"".join(_ITEM.pack(at, n) + _sized(each) for at, n, each in items)


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """One chunk of a prompt: its key, its parent's key, its first token's position, how many tokens."""

    key: bytes
    parent: bytes
    position: int
    tokens: int

    @property
    def end(self) -> int:
        """The position after the chunk's last token."""
        return self.position + self.tokens


@dataclass(frozen=True)
class Chain:
    """The chunks of one prompt: full ones of `chunk_tokens`, then a shorter tail.

    `ids` is a read-only u32 array of all token ids. Computed once per request; `refs` is what a look-up asks.
    """

    ids: npt.NDArray[np.uint32]
    chunk_tokens: int
    extras: Extras = field(default_factory=Extras)

    @classmethod
    def of(cls, tokens: TokenIds, chunk_tokens: int, extras: Extras | None = None) -> Chain:
        """Check and freeze token ids (integers of 0 to 2³²-1, one axis)."""
        if chunk_tokens < 1:
            raise InvalidArgument(f"a chunk has at least 1 token, not {chunk_tokens}")
        try:
            ids = np.asarray(tokens)
        except ValueError as error:
            raise InvalidArgument(f"token ids are integers on one axis: {error}") from None
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise InvalidArgument(f"token ids are integers on one axis, not {ids.dtype} of shape {ids.shape}")
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) > 0xFFFFFFFF):
            raise InvalidArgument(f"token ids must be 0 to 2**32-1; these go from {ids.min()} to {ids.max()}")
        frozen = np.array(ids, dtype="<u4")
        frozen.flags.writeable = False
        return cls(frozen, chunk_tokens, extras or Extras())

    @cached_property
    def refs(self) -> tuple[ChunkRef, ...]:
        """Every chunk, the tail included."""
        found: list[ChunkRef] = []
        parent = self.extras.root()
        for start in range(0, len(self.ids), self.chunk_tokens):
            ref = self._ref(parent, start, min(self.chunk_tokens, len(self.ids) - start))
            found.append(ref)
            parent = ref.key
        return tuple(found)

    @cached_property
    def packed(self) -> bytes:
        """`refs` as look-up records."""
        return pack_refs(self.refs)

    def tails(self, position: int, block_tokens: int) -> tuple[ChunkRef, ...]:
        """The chunk at `position` cut at every engine block: what a shorter prompt may have stored there.

        Longest first, and never the chunk itself. `position` is the start of one of `refs`.
        """
        index = position // self.chunk_tokens
        if position % self.chunk_tokens or index >= len(self.refs):
            return ()
        whole = self.refs[index]
        cuts = range(block_tokens, whole.tokens, block_tokens)
        return tuple(self._ref(whole.parent, position, cut) for cut in reversed(cuts))

    def content_key(self, ref: ChunkRef) -> bytes:
        """The key of a chunk's own tokens, whatever stands before them."""
        body = self._body(ref.position, ref.tokens)
        return hashlib.sha256(b"kvstore/content/1\0" + body).digest()

    def _ref(self, parent: bytes, start: int, tokens: int) -> ChunkRef:
        key = hashlib.sha256(b"kvstore/prefix/1\0" + parent + self._body(start, tokens)).digest()
        return ChunkRef(key, parent, start, tokens)

    def _body(self, start: int, tokens: int) -> bytes:
        ids = self.ids[start : start + tokens].tobytes()
        return self.extras.within(start, start + tokens) + _U32.pack(tokens) + ids


def pack_refs(refs: Iterable[ChunkRef]) -> bytes:
    """Look-up records of 40 bytes each, little-endian: key, u32 position, u32 tokens."""
    return b"".join(_REF.pack(ref.key, ref.position, ref.tokens) for ref in refs)


def pack_keys(keys: Iterable[bytes]) -> bytes:
    """Keys of 32 bytes each, one after the other."""
    return b"".join(check_key(key) for key in keys)


def unpack_keys(data: bytes) -> list[bytes]:
    """The inverse of `pack_keys`."""
    if len(data) % KEY_BYTES:
        raise InvalidArgument(f"keys have {KEY_BYTES} bytes each; {len(data)} is no multiple")
    return [data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES)]


def _sized(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data
