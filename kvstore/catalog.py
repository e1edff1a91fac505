"""Small numbers for what keys are scoped by: the namespaces of a store and the specs used in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.errors import InvalidArgument, UnknownNamespace
from kvstore.namespace import check_name, namespace_digest
from kvstore.record import header_bytes, padded
from kvstore.spec import OPAQUE, KVSpec, Part

MAX_SCOPES = 65536


@dataclass(eq=False)
class Namespace:
    """A tenant as the store sees it.

    `codec` is the form of its puts (none: the DRAM tier's), `lossy` whether a lossy copy may be its last, `policy` what
    orders its chunks (none: the store's).
    `promised` counts record bytes of reservations that are not published yet; `tally` what is put natively, too.
    """

    name: str
    quota: int = 0
    ttl_s: float = 0.0
    codec: str | None = None
    lossy: bool = False
    policy: str | None = None
    open: bool = True
    promised: int = 0
    tally: _native.Tally = field(init=False, repr=False, default_factory=_native.Tally)
    digest: bytes = field(init=False)

    @property
    def used(self) -> int:
        """Bytes of records over all tiers."""
        return self.tally.used

    @used.setter
    def used(self, nbytes: int) -> None:
        self.tally.used = nbytes

    @property
    def taken(self) -> int:
        """Bytes that count towards the quota."""
        return self.used + self.promised

    def __post_init__(self) -> None:
        self.digest = namespace_digest(check_name(self.name))


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the bytes of one raw part lie: lengths in bytes, layer groups as `uint64` columns."""

    nbytes: int
    header: int
    total: int
    offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]


@dataclass(eq=False)
class Scope:
    """One spec in one namespace: what the index calls by `number`."""

    number: int
    namespace: Namespace
    spec: KVSpec
    parts: tuple[Part, ...] = field(init=False)
    packed_parts: bytes = field(init=False)
    packed_headers: bytes = field(init=False)
    windowed: bool = field(init=False)
    _geometry: dict[tuple[Part, int], Geometry] = field(default_factory=dict)
    _headers: dict[Part, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = tuple(self.spec.parts())
        self.packed_parts, self.packed_headers = self.table(self.parts)
        self.windowed = any(group.window for group in self.spec.groups)

    def layer_groups(self, part: Part) -> int:
        """How many layer groups a part has."""
        return 1 if self.spec.layout == OPAQUE else len(self.spec.part_layers(part))

    def header_bytes(self, part: Part) -> int:
        """Length of the header of a part's record."""
        known = self._headers.get(part)
        if known is None:
            known = self._headers[part] = header_bytes(self.layer_groups(part))
        return known

    def table(self, parts: Sequence[Part]) -> tuple[bytes, bytes]:
        """Parts, and the lengths of their headers (u32), packed as the index takes them."""
        headers = np.array([self.header_bytes(part) for part in parts], "<u4")
        return b"".join(part.pack() for part in parts), headers.tobytes()

    def headers_of(self, parts: tuple[Part, ...]) -> bytes:
        """The lengths of the headers of parts, as `table` packs them."""
        return self.packed_headers if parts is self.parts else self.table(parts)[1]

    def geometry(self, part: Part, tokens: int) -> Geometry:
        """Lengths and layer groups of a part of a chunk of `tokens` tokens.

        `InvalidArgument` unless the spec has such parts and chunks.
        """
        known = self._geometry.get((part, tokens))
        if known is None:
            self.spec.check_part(part)
            if not 1 <= tokens <= self.spec.chunk_tokens:
                raise InvalidArgument(f"a chunk of this spec has 1 to {self.spec.chunk_tokens} tokens, not {tokens}")
            ranges = np.array(self.spec.layer_ranges(part, tokens), np.uint64)
            nbytes, header = self.spec.part_bytes(part, tokens), header_bytes(len(ranges))
            offsets, lengths = ranges[:, 0].copy(), ranges[:, 1].copy()
            known = Geometry(nbytes, header, header + padded(nbytes), offsets, lengths)
            self._geometry[part, tokens] = known
        return known


class Catalog:
    """Namespaces by name and digest, scopes by number. The store calls it under its lock."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self.scopes: list[Scope] = []
        self._by_digest: dict[bytes, Namespace] = {}
        self._numbers: dict[tuple[bytes, bytes], int] = {}

    def add_namespace(self, namespace: Namespace) -> Namespace:
        """Make a namespace known; one of the same name is kept as it is."""
        kept = self.namespaces.setdefault(namespace.name, namespace)
        self._by_digest[kept.digest] = kept
        return kept

    def namespace(self, name: str) -> Namespace:
        """The namespace of this name; `UnknownNamespace` unless it is configured."""
        found = self.namespaces.get(name)
        if found is None or not found.open:
            raise UnknownNamespace(f"there is no namespace {name!r} here; add it to the configuration")
        return found

    def scope(self, namespace: Namespace, spec: KVSpec) -> Scope:
        """The scope of a spec in a namespace, made on first use."""
        number = self._numbers.get((namespace.digest, spec.digest))
        if number is None:
            if len(self.scopes) >= MAX_SCOPES:
                raise InvalidArgument(f"more than {MAX_SCOPES} specs are in use; restart the store to forget some")
            number = len(self.scopes)
            self.scopes.append(Scope(number, namespace, spec))
            self._numbers[namespace.digest, spec.digest] = number
        return self.scopes[number]

    def find(self, namespace: bytes, spec: bytes) -> Scope | None:
        """The scope of two digests, if it is known."""
        number = self._numbers.get((namespace, spec))
        return None if number is None else self.scopes[number]

    def by_digest(self, digest: bytes) -> Namespace | None:
        """The namespace of this digest, if it is known."""
        return self._by_digest.get(digest)

    def digests(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Namespace and spec digests by scope number, `[n, 16]` each."""
        names = b"".join(scope.namespace.digest for scope in self.scopes)
        specs = b"".join(scope.spec.digest for scope in self.scopes)
        return np.frombuffer(names, "u1").reshape(-1, 16), np.frombuffer(specs, "u1").reshape(-1, 16)
