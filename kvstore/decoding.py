"""Encoded parts back into raw bytes, wherever their destination is: in the store's process or in a client's."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore import _native, codecs
from kvstore.codecs import Artefact, Block
from kvstore.codecs.frame import read_frame
from kvstore.errors import Closed, Corrupt, InvalidArgument, KVStoreError, NotFound
from kvstore.keys import ChunkRef
from kvstore.record import NO_ARTEFACT, RAW, Record, group_table
from kvstore.spec import KVSpec, Part

SHARED_BYTES = 4 << 20
MOST_THREADS = 4
FindArtefact: TypeAlias = Callable[[bytes], Artefact]


class _Joined(ThreadPoolExecutor):
    """Threads whose `map` ends when all its calls have: none still writes to a destination that was given back."""

    def map(self, fn: Callable[..., Any], *iterables: Any, **options: Any) -> Any:
        """As `Executor.map`."""
        del options
        calls = [self.submit(fn, *each) for each in zip(*iterables, strict=True)]
        wait(calls)
        return [call.result() for call in calls]


@cache
def _shared_threads(count: int) -> Executor:
    return _Joined(count, "kvstore-decode")


os.register_at_fork(after_in_child=_shared_threads.cache_clear)


def threads_for(nbytes: int) -> Executor | None:
    """Threads of this process to decode so many raw bytes with; None where waking them is not worth it."""
    cores = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    return _shared_threads(cores) if cores > 1 and nbytes >= SHARED_BYTES else None


def known_forms() -> tuple[int, ...]:
    """The numbers of the forms that this build decodes, raw not among them."""
    return tuple(sorted(codec.number for codec in codecs.all_codecs().values()))


def check_known(form: int, artefact: bytes, find: FindArtefact, key: bytes) -> None:
    """Raise `NotFound` unless a stored form can be decoded here: its codec is known, its artefact at hand."""
    if form != RAW and form not in known_forms():
        raise NotFound(f"chunk {key.hex()} is stored in form {form}, which this build does not know: a miss")
    if artefact != NO_ARTEFACT:
        try:
            find(artefact)
        except NotFound as error:
            raise NotFound(f"chunk {key.hex()} cannot be decoded: {error}") from None


def layer_count(spec: KVSpec, part: Part) -> int:
    """How many layer groups a raw part has, which is what readers count in."""
    return len(spec.layer_ranges(part, 1))


def covering(
    payload: memoryview, groups: npt.NDArray[Any], layers: tuple[int, int] | None, count: int
) -> tuple[int, int]:
    """The frames of an encoded part (rows of its record's `groups`, half-open) that cover some of its `count` layers.

    `InvalidArgument` for layers that it does not have, `Corrupt` where its frames are no frames.
    """
    if layers is None:
        return 0, len(groups)
    first, end = layers
    if not 0 <= first < end <= count:
        raise InvalidArgument(f"layers {layers} are outside the part's {count} layer groups")
    if len(groups) in (1, count):
        return (0, 1) if len(groups) == 1 else layers
    due = []
    for row, (offset, length) in enumerate(zip(groups["offset"].tolist(), groups["length"].tolist(), strict=True)):
        frame, _ = read_frame(payload[offset : offset + length], verify=False)
        if frame.first < end and frame.first + frame.layers > first:
            due.append(row)
    if not due:
        raise Corrupt(f"no frame of this part holds the layers {first} to {end}")
    return due[0], due[-1] + 1


def decode_layers(
    frames: memoryview,
    out: memoryview,
    spec: KVSpec,
    ref: ChunkRef,
    part: Part,
    layers: tuple[int, int] | None,
    find: FindArtefact,
    *,
    threads: Executor | None = None,
) -> None:
    """Decode layers of a part (none: all) into `out` from the frames that cover them, whose checksums have held.

    In this thread, or in `threads`, a frame at a time.
    `NotFound` where the codec or the artefact is not here, `Corrupt` for bytes that no encoder makes, and
    `SpecMismatch` for those of another part.
    """
    block = Block.of(spec, part, ref.tokens, ref.position)
    if block.opaque:
        layers = None
    for form in _forms_in(frames):
        if form not in known_forms():
            raise NotFound(f"chunk {ref.key.hex()} is stored in form {form}, which this build does not know: a miss")
    try:
        codecs.decode(frames, out, block, layers=layers, artefacts=find, verify=False, threads=threads)
    except NotFound as error:
        raise NotFound(f"chunk {ref.key.hex()} cannot be decoded: {error}") from None
    except KVStoreError:
        raise
    except ImportError as error:
        raise NotFound(f"chunk {ref.key.hex()} cannot be decoded here: {error}") from error
    except Exception as error:  # a codec is anybody's code, and may raise anything where bytes are not its own
        raise Corrupt(f"chunk {ref.key.hex()} cannot be decoded: {type(error).__name__}: {error}") from error


def _forms_in(frames: memoryview) -> set[int]:
    return {read_frame(frames, verify=False)[0].codec} if len(frames) else set()


def raw_record(record: Record, data: memoryview, spec: KVSpec) -> Record:
    """The header for a part that was decoded: of raw bytes, but no more exact than what they were decoded from."""
    ranges = spec.layer_ranges(record.part, record.tokens)
    offsets, lengths = np.array(ranges, np.uint64).T.copy()
    groups = group_table(ranges, _native.xxh3_128_many(data, offsets, lengths))
    return replace(record, stored=record.logical, groups=groups, form=RAW, level=0, artefact=NO_ARTEFACT)


class OwnView:
    """Bytes of a part in memory of their own; see `kvstore.api.View`."""

    def __init__(self, record: Record, data: memoryview) -> None:
        self._record, self._data = record, data.toreadonly()
        self._open = True

    @property
    def data(self) -> memoryview:
        """The part's raw bytes, which stay what they are."""
        return self._data

    @property
    def record(self) -> Record:
        """The header that fits them."""
        if not self._open:
            raise Closed("this view was closed already")
        return self._record

    def close(self) -> None:
        """Nothing is held. `data` must not be used any more."""
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
