"""Objects: bytes by name, which other hosts keep in this store as in any remote place.

An object is a chunk of a namespace of its own, of which no client can have a token: its key is the digest of its name,
its bytes the name and what was put. So it is checked, moved down, evicted and brought back like every other chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from kvstore import _native
from kvstore.api import Ack
from kvstore.config import Config
from kvstore.core import Core
from kvstore.errors import ConfigError, Corrupt, InvalidArgument, NotFound, TooLarge
from kvstore.intake import part_scope
from kvstore.keys import NO_PARENT, ChunkRef
from kvstore.session import Session
from kvstore.spec import KVGroup, KVSpec
from kvstore.tiers.remote.object_names import LONGEST, check_name, object_key

NAMESPACE = "kvstore.objects"
BLOCK = 4096
DATA_AT = 256
MOST_BLOCKS = 1 << 16
PAGE = 256
_HEAD = struct.Struct("<HxxxxxxQ")  # length of the name, which follows, and of the data, which begin at `DATA_AT`
assert _HEAD.size + LONGEST <= DATA_AT
# Opaque bytes: one layer, one "token" a block.
_SPEC = KVSpec("objects", "1", "uint8", (KVGroup((0,), latent_dim=BLOCK),), chunk_tokens=MOST_BLOCKS)


def check_namespaces(config: Config) -> None:
    """Raise `ConfigError` where a tenant would see the objects."""
    if NAMESPACE in {each.name for each in config.namespaces}:
        raise ConfigError(f"the namespace {NAMESPACE!r} is for what other servers keep here: call the tenant otherwise")


class Objects:
    """The objects of one store. Any thread may call."""

    def __init__(self, core: Core, session: Session) -> None:
        """`session` is of `NAMESPACE`."""
        self._core, self._session = core, session
        self._scope = session.scope(_SPEC)
        (self._part,) = self._scope.parts

    def teach(self, reads: _native.PeerReads) -> None:
        """Have reads of objects answered natively, where they lie in DRAM."""
        reads.add_objects(part_scope(self._core, self._scope), DATA_AT)

    def put(self, name: str, nbytes: int, fill: Callable[[memoryview], None]) -> bool:
        """Keep an object of so many bytes, which `fill` writes where they stay; False if its name is taken.

        Then nothing was filled, unless another writer was faster meanwhile. `Shed` without room, `TooLarge`.
        """
        key, blocks = object_key(check_name(name)), -(-(DATA_AT + nbytes) // BLOCK)
        if blocks > MOST_BLOCKS:
            raise TooLarge(f"an object has {MOST_BLOCKS * BLOCK - DATA_AT} bytes at most, not {nbytes}")
        if self._ref(key) is not None:
            return False
        reservation = self._session.reserve(_SPEC, ChunkRef(key, NO_PARENT, 0, blocks), self._part)
        with reservation:
            data, called = reservation.data, name.encode()
            data[:DATA_AT] = (_HEAD.pack(len(called), nbytes) + called).ljust(DATA_AT, b"\0")
            if nbytes:
                fill(data[DATA_AT : DATA_AT + nbytes])
            data[DATA_AT + nbytes :] = bytes(len(data) - DATA_AT - nbytes)
            try:
                return reservation.commit(Ack.STORED)
            except InvalidArgument:  # one of another length was put meanwhile
                if self._ref(key) is None:
                    raise
                return False

    def read(self, key: bytes, offset: int, nbytes: int, send: Callable[[memoryview], None]) -> None:
        """Have bytes of the object of a key sent from where they lie. `NotFound`; `Corrupt` beyond its end."""

        def cut(data: memoryview) -> None:
            if offset + nbytes > len(data):
                raise Corrupt(f"an object of {len(data)} bytes has not the {offset + nbytes} asked for")
            send(data[offset : offset + nbytes])

        self._see(key, cut)

    def heads(self, names: Sequence[str], nbytes: int) -> Sequence[bytes | None]:
        """The first bytes of each object, None for what is not there."""
        found: list[bytes | None] = []
        for name in names:
            try:
                self._see(object_key(check_name(name)), lambda data: found.append(bytes(data[:nbytes])))
            except NotFound:
                found.append(None)
        return found

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""
        if names:
            self._session.delete(_SPEC, [object_key(check_name(name)) for name in names])

    def list(self, prefix: str, cursor: int) -> tuple[Sequence[tuple[str, int]], int]:
        """Names and lengths of some objects, and the cursor for the next ones (0: that was all)."""
        page = self._session.chunks(cursor, PAGE)
        found = list[tuple[str, int]]()
        for info in page.chunks:
            try:
                self._see_ref(
                    ChunkRef(info.key, info.parent, info.position, info.tokens),
                    lambda name, data: found.append((name, len(data))),
                )
            except NotFound:
                continue
        return [each for each in found if each[0].startswith(prefix)], page.cursor

    def _see(self, key: bytes, look: Callable[[memoryview], None]) -> None:
        ref = self._ref(key)
        if ref is None:
            raise NotFound(f"there is no object of key {key.hex()}")

        def checked(called: str, data: memoryview) -> None:
            if object_key(called) != key:
                raise Corrupt(f"the object of key {key.hex()} says that it is {called!r}")
            look(data)

        self._see_ref(ref, checked)

    def _see_ref(self, ref: ChunkRef, look: Callable[[str, memoryview], None]) -> None:
        """Have a chunk's name and data looked at, held where they lie."""
        with self._session.view(_SPEC, ref, self._part) as view:
            memory = view.data
            length, nbytes = _HEAD.unpack_from(memory)
            if DATA_AT + nbytes > len(memory) or length > LONGEST:
                raise Corrupt(f"chunk {ref.key.hex()} is no object")
            look(bytes(memory[_HEAD.size : _HEAD.size + length]).decode(), memory[DATA_AT : DATA_AT + nbytes])

    def _ref(self, key: bytes) -> ChunkRef | None:
        """The chunk of a key, as far as it is there and stays."""
        core = self._core
        with core.lock:
            row = core.index.find(self._scope.number, key)
            if row < 0 or row in core.doomed or not core.index.chunk_parts(row):
                return None
            return ChunkRef(key, NO_PARENT, 0, core.index.chunk(row).tokens)
