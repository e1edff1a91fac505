"""The container: frames that are decoded alone, and what is no frame."""

from __future__ import annotations

import pytest

from kvstore.codecs import Block
from kvstore.codecs.frame import Frame, frames, read_frame
from kvstore.errors import Corrupt, InvalidArgument, SpecMismatch
from kvstore.spec import KVSpec

SPEC = KVSpec.dense("m", layers=3, kv_heads=2, head_dim=4, chunk_tokens=8)


def block() -> Block:
    return Block.of(SPEC, SPEC.part(), 8, 16)


def frame_bytes(first: int, body: bytes = b"body") -> bytes:
    return Frame.of(7, 2, block().cut(first, first + 1), len(body)).pack(body) + body


def test_a_header_reads_back_and_names_its_layers() -> None:
    frame, body = read_frame(memoryview(frame_bytes(1)))
    assert (frame.codec, frame.level, frame.first, frame.layers, frame.tokens, frame.position) == (7, 2, 1, 1, 8, 16)
    assert bytes(body) == b"body"
    frame.check(block().cut(1, 2))
    with pytest.raises(SpecMismatch):
        frame.check(block().cut(2, 3))


def test_golden_header() -> None:
    assert frame_bytes(1)[:40].hex() == (
        "4b5643310100070002000202010001000800000010000000020004000000000004000000" + "00000000"
    )


def test_frames_follow_one_another() -> None:
    found = list(frames(memoryview(frame_bytes(0) + frame_bytes(1, b"") + frame_bytes(2))))
    assert [frame.first for frame, _ in found] == [0, 1, 2]


@pytest.mark.parametrize("at", range(68))
def test_every_flipped_byte_is_seen(at: int) -> None:
    data = bytearray(frame_bytes(0))
    data[at] ^= 0x10
    with pytest.raises(Corrupt):
        read_frame(memoryview(data))


@pytest.mark.parametrize("length", range(68))
def test_every_cut_is_seen(length: int) -> None:
    with pytest.raises(Corrupt):
        read_frame(memoryview(frame_bytes(0))[:length])


def test_strides_are_those_of_the_layout() -> None:
    spec = KVSpec.dense(
        "m", layers=2, kv_heads=2, head_dim=4, chunk_tokens=8, layout=("layer", "kv", "head", "dim", "token")
    )
    found = Block.of(spec, spec.part(), 8)
    assert found.strides() == (128, 64, 1, 32, 8)
    array = found.canonical(bytes(found.nbytes))
    assert array.shape == (2, 2, 8, 2, 4)
    assert tuple(step // 2 for step in array.strides) == found.strides()


def test_layers_outside_a_block_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        block().cut(1, 4)
