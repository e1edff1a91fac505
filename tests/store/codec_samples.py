"""Codecs for tests of the store: an exact one, a lossy one, one that needs an artefact, and one that goes wrong."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from kvstore.codecs import Artefact, Block, Codec, ModelShape, NotEncodable, base
from kvstore.codecs.frame import Buffer, Frame
from kvstore.errors import Corrupt, InvalidArgument
from kvstore.spec import KVSpec


class Deflate(Codec):
    """Exact."""

    number, name, exact = 901, "t-exact", True
    levels = ("fast", "small")

    def check(self, block: Block) -> None:
        del block

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        del block, artefact
        return zlib.compress(raw, (1, 9)[level])

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        del frame, block, artefact
        try:
            found = zlib.decompress(body)
        except zlib.error as error:
            raise Corrupt(str(error)) from None
        if len(found) != len(out):
            raise Corrupt(f"{len(found)} bytes, not {len(out)}")
        out[:] = found


class HighByte(Codec):
    """Lossy: keeps the high byte of 16-bit elements; joins pairs of layers. Refuses NaN of bfloat16."""

    number, name = 903, "t-lossy"

    def check(self, block: Block) -> None:
        if block.itemsize != 2 or block.opaque:
            raise InvalidArgument(f"t-lossy takes 16-bit floats, not {block.dtype}")

    def groups(self, block: Block, artefact: Artefact | None) -> Sequence[tuple[int, int]]:
        del artefact
        return [(i, min(i + 2, len(block.layers))) for i in range(0, len(block.layers), 2)]

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        del block, level, artefact
        bits = np.frombuffer(raw, np.uint16)
        if ((bits & 0x7F80) == 0x7F80).any():
            raise NotEncodable("NaN or infinity")
        return (bits >> 8).astype(np.uint8).tobytes()

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        del frame, block, artefact
        if 2 * len(body) != len(out):
            raise Corrupt("wrong length")
        np.frombuffer(out, np.uint16)[:] = np.frombuffer(body, np.uint8).astype(np.uint16) << 8


class Learned(HighByte):
    """Lossy, with an artefact that names the byte to add to what is kept."""

    number, name, artefact_kind = 904, "t-learned", "t-learned"

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        assert artefact is not None
        found = np.frombuffer(super().encode_frame(raw, block, level, artefact), np.uint8)
        return (found ^ artefact.arrays["byte"][0]).tobytes()

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        assert artefact is not None
        mended = (np.frombuffer(body, np.uint8) ^ artefact.arrays["byte"][0]).tobytes()
        super().decode_frame(memoryview(mended), frame, block, out, artefact)


class OddError(Exception):
    """Of a library of its own."""


class Wrong(Deflate):
    """Claims to be exact and is not, or fails, as `mood` says."""

    number, name = 905, "t-wrong"
    levels = ("",)
    mood = "wrong"

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        if self.mood == "raises":
            raise OddError("a codec with a bug")
        if self.mood == "not installed":
            raise ModuleNotFoundError("No module named 'odd'")
        if self.mood == "larger":
            return bytes(len(raw) + 100)
        if self.mood == "cut off":
            return bytes(super().encode_frame(raw, block, level, artefact))[:-7]
        data = bytearray(raw)
        data[len(data) // 2] ^= self.mood == "wrong"
        return super().encode_frame(memoryview(data), block, level, artefact)

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        if self.mood == "cannot decode":
            raise OddError("a codec with a bug")
        super().decode_frame(body, frame, block, out, artefact)


def learned_artefact(spec: KVSpec, byte: int = 0x5A, name: str = "", **facts: object) -> Artefact:
    """An artefact for `Learned`."""
    layers = {
        layer: (1, 1, group.latent_dim) if group.latent_dim else (2, group.kv_heads, group.head_dim)
        for group in spec.groups
        for layer in group.layers
    }
    shape = ModelShape(name or spec.model, layers)
    return Artefact.build("t-learned", shape, facts, {"byte": np.array([byte], np.uint8)})


@contextmanager
def registered() -> Iterator[None]:
    """These codecs known."""
    before = dict(base._CODECS)
    for codec in (Deflate(), HighByte(), Learned(), Wrong()):
        base.register(codec)
    try:
        yield
    finally:
        base._CODECS.clear()
        base._CODECS.update(before)
