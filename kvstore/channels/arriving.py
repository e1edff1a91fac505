"""Checksums of bytes on their way in, taken while they are warm in the cache."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.errors import InvalidArgument, SpecMismatch
from kvstore.record import GROUP_DTYPE
from kvstore.spec import KVSpec, Part

PIECE_BYTES = 1 << 20
_MAX_KNOWN = 4096


@dataclass(frozen=True)
class Groups:
    """Where layer groups lie, one after another from 0 on: `uint64` columns, and where each ends.

    `places` is offset and length of each in its whole part, packed as in a record.
    """

    places: bytes
    offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]
    ends: list[int]
    spec: bytes = b""

    @cached_property
    def raw(self) -> _native.RawPart:
        """The same for native code, of a whole raw part."""
        return _native.RawPart(self.spec, self.offsets, self.lengths, self.ends[-1])

    @classmethod
    def of(cls, spec: KVSpec, part: Part, tokens: int, layers: tuple[int, int] | None = None) -> Groups:
        """Those of a raw part, or of some of its layer groups, as if they began at 0. Raises `InvalidArgument`."""
        key = (spec.digest, part, tokens, layers)
        found = _known.get(key)
        if found is None:
            ranges = np.array(spec.layer_ranges(part, tokens), np.uint64)
            first, end = layers or (0, len(ranges))
            if not 0 <= first < end <= len(ranges):
                raise InvalidArgument(f"layers {layers} are outside the part's {len(ranges)} layer groups")
            offsets, lengths = ranges[first:end].T.copy()
            offsets -= offsets[0]
            found = cls(ranges[first:end].tobytes(), offsets, lengths, (offsets + lengths).tolist(), spec.digest)
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[key] = found
        return found

    @classmethod
    def of_frames(cls, packed: bytes) -> Groups:
        """Those that a record names for frames that are sent, as if they began at 0.

        `SpecMismatch` unless each begins where the one before ends.
        """
        rows = np.frombuffer(packed, GROUP_DTYPE) if packed and not len(packed) % GROUP_DTYPE.itemsize else None
        if rows is None:
            raise SpecMismatch(f"{len(packed)} bytes are no layer groups")
        offsets, lengths = rows["offset"] - rows["offset"][0], rows["length"].copy()
        ends = np.cumsum(lengths, dtype=np.uint64)
        if not np.array_equal(offsets, ends - lengths):
            raise SpecMismatch("the frames that the server announced do not follow one another")
        places = rows.view(np.uint8).reshape(-1, GROUP_DTYPE.itemsize)[:, :16].tobytes()
        return cls(places, offsets, lengths, ends.tolist())

    def expected(self, packed: bytes) -> bytes | None:
        """The digests in a record's `groups`; None unless that names just these layer groups."""
        if len(packed) != 2 * len(self.places):
            return None
        if len(self.ends) == 1:
            places, digests = packed[:16], packed[16:]
        else:
            rows = np.frombuffer(packed, np.uint8).reshape(-1, 32)
            places, digests = rows[:, :16].tobytes(), rows[:, 16:].tobytes()
        return digests if places == self.places else None


_known: dict[Any, Groups] = {}


class Arriving:
    """A buffer that is filled from its front."""

    def __init__(self, data: memoryview, groups: Groups) -> None:
        self.data = data
        self.filled = 0
        self._groups = groups
        self._digests: list[bytes] = []
        self._hashed = 0  # groups
        self._taken = 0  # bytes
        self._state: _native.Xxh3_128 | None = None  # of a group that comes in several pieces

    @property
    def digests(self) -> bytes:
        """xxh3-128 of every layer group, one after the other; all of them once the buffer is full."""
        return b"".join(self._digests)

    def read(self, read_into: Callable[[memoryview], None]) -> None:
        """Have all of it read by something that fills what it is given."""
        total = len(self.data)
        for start in range(0, total, PIECE_BYTES):
            end = min(start + PIECE_BYTES, total)
            read_into(self.data[start:end])
            self.reached(end)

    def write(self, piece: memoryview) -> None:
        """Copy a piece to its place."""
        end = self.filled + len(piece)
        self.data[self.filled : end] = piece
        self.reached(end)

    def reached(self, end: int) -> None:
        """All before `end` is there."""
        self.filled = end
        ends, first = self._groups.ends, self._hashed
        whole = bisect_right(ends, end)
        if whole > first and self._state is not None:
            self._state.update(self.data[self._taken : ends[first]])
            self._digests.append(self._state.digest())
            self._state, first = None, first + 1
        if whole == first + 1:
            self._digests.append(_native.xxh3_128(self.data[ends[first - 1] if first else 0 : ends[first]]))
        elif whole > first:
            offsets, lengths = self._groups.offsets[first:whole], self._groups.lengths[first:whole]
            self._digests.append(_native.xxh3_128_many(self.data, offsets, lengths).tobytes())
        if whole > self._hashed:
            self._hashed, self._taken = whole, ends[whole - 1]
        if self._taken < end and ends[whole] - self._taken > PIECE_BYTES:
            self._begin(end)

    def _begin(self, end: int) -> None:
        """Take in what there is of a group that is larger than a piece."""
        if self._state is None:
            self._state = _native.Xxh3_128()
        self._state.update(self.data[self._taken : end])
        self._taken = end
