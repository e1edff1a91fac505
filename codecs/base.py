"""What a codec is, and how a part is encoded and decoded, layer group by layer group.

A stored form is a codec's number and a level. Form 0, `raw`, is the bytes themselves; every other form is a container
of frames (`kvstore.codecs.frame`), one per layer group, each decoded alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore.codecs.artefact import Artefact
from kvstore.codecs.block import Block
from kvstore.codecs.frame import NO_ARTEFACT, Buffer, Frame, frames
from kvstore.errors import Corrupt, InvalidArgument, NotFound, SpecMismatch

Artefacts: TypeAlias = Callable[[bytes], Artefact]


class NotEncodable(InvalidArgument):
    """A codec cannot take these values (NaN or infinity in a lossy one); `lossless` can."""


class Codec(ABC):
    """Encodes and decodes one layer group at a time. Stateless: what it learns of a model is in the artefact."""

    number: ClassVar[int]
    name: ClassVar[str]
    levels: ClassVar[Sequence[str]] = ("",)  # names; a form's level is a place in this list
    exact: ClassVar[bool] = False
    artefact_kind: ClassVar[str] = ""  # of the artefact that it needs (none: "")
    lanes: ClassVar[int] = 0  # of its entropy coder

    @abstractmethod
    def check(self, block: Block) -> None:
        """Raise `InvalidArgument` for a dtype, layout or size that this codec does not take."""

    def groups(self, block: Block, artefact: Artefact | None) -> Sequence[tuple[int, int]]:
        """The layers of each frame, half-open, in order and without a gap: one each unless a codec joins several."""
        del artefact
        return [(0, len(block.layers))] if block.opaque else [(i, i + 1) for i in range(len(block.layers))]

    @abstractmethod
    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        """The body of one frame. `NotEncodable` where the values are not for this codec."""

    @abstractmethod
    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        """Decode a body into the block's raw bytes. `Corrupt` for a body that no encoder makes; never out of bounds."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a part is stored: a codec, its level, and the artefact where it needs one."""

    codec: Codec
    level: int = 0
    artefact: Artefact | None = None

    @property
    def exact(self) -> bool:
        """Whether it gives back every bit."""
        return self.codec.exact

    @property
    def digest(self) -> bytes:
        """The artefact's, or zeros."""
        return NO_ARTEFACT if self.artefact is None else self.artefact.digest

    def __str__(self) -> str:
        level = self.codec.levels[self.level]
        return f"{self.codec.name}:{level}" if level else self.codec.name


@dataclass(frozen=True, slots=True)
class Encoded:
    """A container: `data`, and where in it each layer group's frame lies (`uint64` columns, in bytes)."""

    data: memoryview
    offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]
    form: Form


def encode(raw: Buffer, block: Block, form: Form, *, threads: Executor | None = None) -> Encoded:
    """Encode a part. `raw` has `block.nbytes` bytes in the order of the spec's layout.

    Raises `InvalidArgument` for what the codec does not take, `NotEncodable` for values that it does not,
    `SpecMismatch` for an artefact of another model.
    """
    codec, artefact, raw = form.codec, form.artefact, memoryview(raw).cast("B")
    if raw.nbytes != block.nbytes:
        raise InvalidArgument(f"the block has {block.nbytes} bytes; {raw.nbytes} were given")
    codec.check(block)
    if artefact is not None:
        artefact.check(block)
    elif codec.artefact_kind:
        raise InvalidArgument(f"{codec.name} needs an artefact: kvstore calibrate makes one")

    def one(span: tuple[int, int]) -> tuple[bytes, Buffer]:
        part = block.cut(*span)
        at = span[0] * block.layer_bytes
        return _headed(codec.encode_frame(raw[at : at + part.nbytes], part, form.level, artefact), part, form)

    return _joined(list((threads.map if threads else map)(one, codec.groups(block, artefact))), form)


def seal(bodies: Sequence[Buffer], block: Block, form: Form) -> Encoded:
    """The container of bodies that were made elsewhere, on a GPU say: one for each of the codec's layer groups."""
    groups = form.codec.groups(block, form.artefact)
    return _joined([_headed(body, block.cut(*span), form) for body, span in zip(bodies, groups, strict=True)], form)


def _headed(body: Buffer, block: Block, form: Form) -> tuple[bytes, Buffer]:
    codec = form.codec
    head = Frame.of(codec.number, form.level, block, len(body), lanes=codec.lanes, artefact=form.digest)
    return head.pack(body), body


def _joined(made: Sequence[tuple[bytes, Buffer]], form: Form) -> Encoded:
    lengths = np.array([len(head) + len(body) for head, body in made], np.uint64)
    offsets = np.cumsum(lengths, dtype=np.uint64) - lengths
    data = b"".join(piece for pair in made for piece in pair)
    return Encoded(memoryview(data), offsets, lengths, form)


def decode(
    container: Buffer,
    out: memoryview,
    block: Block,
    *,
    layers: tuple[int, int] | None = None,
    artefacts: Artefacts | None = None,
    verify: bool = True,
    threads: Executor | None = None,
) -> None:
    """Decode some layers of a part (half-open, counted in the part; none: all) into `out`, their raw bytes.

    `container` holds the frames of these layers: all of the part's, or those that cover `layers`. `artefacts` gives an
    artefact by digest and raises `NotFound` for one that is not there. `verify=False` skips the frames' checksums for
    bytes that a record's have vouched for. Raises `Corrupt`, `SpecMismatch`, `NotFound`.
    """
    first, end = layers or (0, len(block.layers))
    wanted = block.cut(first, end)
    out = memoryview(out).cast("B")
    if out.nbytes != wanted.nbytes:
        raise InvalidArgument(f"the destination has {out.nbytes} bytes; what was asked for has {wanted.nbytes}")

    def one(opened: Opened) -> None:
        frame, each, codec = opened.frame, opened.block, opened.codec
        start, stop = frame.first, frame.first + frame.layers
        inner_first, inner_end = max(start, first), min(stop, end)
        if (inner_first, inner_end) == (start, stop):
            at = (start - first) * block.layer_bytes
            codec.decode_frame(opened.body, frame, each, out[at : at + each.nbytes], opened.artefact)
            return
        whole = memoryview(bytearray(each.nbytes))
        codec.decode_frame(opened.body, frame, each, whole, opened.artefact)
        at, skip = (inner_first - first) * block.layer_bytes, (inner_first - start) * block.layer_bytes
        length = (inner_end - inner_first) * block.layer_bytes
        out[at : at + length] = whole[skip : skip + length]

    due = open_frames(container, block, layers=(first, end), artefacts=artefacts, verify=verify)
    for _ in (threads.map if threads else map)(one, due):
        pass


@dataclass(frozen=True, slots=True)
class Opened:
    """A frame that is what its header says, and fits: `codec` can decode `body` into the layers of `block`."""

    frame: Frame
    body: memoryview
    block: Block
    codec: Codec
    artefact: Artefact | None


def open_frames(
    container: Buffer,
    block: Block,
    *,
    layers: tuple[int, int] | None = None,
    artefacts: Artefacts | None = None,
    verify: bool = True,
) -> list[Opened]:
    """The frames that hold some layers of a part, in order, checked against its block; raises as `decode` does."""
    first, end = layers or (0, len(block.layers))
    return [
        _opened(frame, body, block.cut(start, stop), artefacts)
        for frame, body, start, stop in _covering(
            memoryview(container).cast("B"), first, end, len(block.layers), verify
        )
    ]


def _opened(frame: Frame, body: memoryview, block: Block, artefacts: Artefacts | None) -> Opened:
    frame.check(block)
    codec, artefact = codec_of(frame.codec), None
    codec.check(block)
    if frame.artefact != NO_ARTEFACT:
        if artefacts is None:
            raise NotFound(f"the artefact {frame.artefact.hex()} of a {codec.name} chunk is not here")
        artefact = artefacts(frame.artefact)
        artefact.check(block)
    if not 0 <= frame.level < len(codec.levels) or frame.lanes != codec.lanes:
        raise Corrupt(f"{codec.name} has no level {frame.level} with {frame.lanes} lanes")
    return Opened(frame, body, block, codec, artefact)


def _covering(
    container: memoryview, first: int, end: int, layers: int, verify: bool
) -> list[tuple[Frame, memoryview, int, int]]:
    """The frames that hold layers `first` to `end` of `layers`, which must follow one another without a gap."""
    due: list[tuple[Frame, memoryview, int, int]] = []
    at = first
    for frame, body in frames(container, verify=verify):
        stop = frame.first + frame.layers
        if stop > layers:
            raise Corrupt(f"a frame holds the layers {frame.first} to {stop} of a part that has {layers}")
        if stop <= first or frame.first >= end:
            continue
        if frame.first > at or (due and frame.first != at):
            break
        due.append((frame, body, frame.first, stop))
        at = stop
    if at < end:
        raise Corrupt(f"the container lacks layer {at} of the layers {first} to {end}")
    return due


_CODECS: dict[int, Codec] = {}


def register(codec: Codec) -> None:
    """Make a codec known by its number; a second one of a number or name is an `InvalidArgument`."""
    for known in _CODECS.values():
        if codec.number == known.number or codec.name == known.name:
            raise InvalidArgument(f"{codec.name} ({codec.number}) is taken by {known.name} ({known.number})")
    if codec.number <= 0:
        raise InvalidArgument("a codec's number is positive: 0 is raw")
    _CODECS[codec.number] = codec


def codec_of(number: int) -> Codec:
    """The codec of a number; `SpecMismatch` for one that this build does not have."""
    found = _CODECS.get(number)
    if found is None:
        raise SpecMismatch(f"form {number} is not known to this build, which has {sorted(_CODECS)}")
    return found


def form_name(number: int) -> str:
    """The codec's name, or its number where this build does not have it."""
    if not number:
        return "raw"
    found = _CODECS.get(number)
    return found.name if found else f"form-{number}"


def all_codecs() -> Mapping[str, Codec]:
    """Every codec by name; `raw` is none, it is the absence of one."""
    return {codec.name: codec for codec in _CODECS.values()}
