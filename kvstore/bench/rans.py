"""The entropy coder alone against a plain copy of the bfloat16 bytes that it stands for, on one thread.

Symbols are those of real KV: per layer and plane one step for all channels, about three bits a symbol, each channel
with one of 32 tables. A slot is a layer of a chunk of 256 tokens, a stream for each plane: so little that a run is
seldom interrupted, and the median is that of the code and not of what else the machine does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.bench.measure import Bar, Case, Row, expect, measure
from kvstore.codecs import rans
from kvstore.errors import InvalidArgument

MiB = 1 << 20
WORKING_SET = 256 * MiB
CHUNK_TOKENS = 256
TABLES = 32
BITS = 3.0  # of a symbol, aimed at: log2 of a normal channel's deviation in steps, and 2.05
BARS: Mapping[str, Mapping[str, Bar]] = {
    "encode": dict.fromkeys(("portable", "avx2", "avx512"), Bar(ratio=1 / 30)),
    "decode+dequantize": {"avx2": Bar(ratio=1 / 16), "avx512": Bar(ratio=1 / 12)},
}

Bits = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Symbols:
    """Quantized KV: `symbols` uint8 `[piece, plane, token, column]`, and `[layer, plane, column]` of the rest.

    A piece is a layer of a chunk; the layers of a chunk follow one another.
    """

    symbols: npt.NDArray[np.uint8]
    tables: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]
    freqs: npt.NDArray[np.uint16]

    def values(self, piece: int) -> Bits:
        """What decoding a piece must give: bfloat16 bits `[plane, token, column]`, computed here."""
        levels, layer = self.symbols[piece].astype(np.float32) - np.float32(128), piece % len(self.tables)
        bits = (self.scale[layer][:, None] * levels + self.mean[layer][:, None]).view(np.uint32)
        rounded: Bits = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return rounded


def run(kv: npt.NDArray[np.float32], *, rounds: int = 800, working_set: int = WORKING_SET) -> list[Row]:
    """The rows `rans`, modes `encode` and `decode+dequantize`, behind the `memcpy` that they are measured against.

    `kv` is `[layer, plane, token, head, dim]`, at least 256 tokens. `encode_ratio` and `decode_ratio` are the times of
    the copy's time; lower is better.
    """
    bench = _Bench(quantized(kv), working_set)
    rows = measure(bench.cases(), rounds=rounds, slots=bench.slots)
    level = _native.simd_level()
    for row in rows[1:]:
        row["case"] = "rans"
        row["encode_ratio" if row["mode"] == "encode" else "decode_ratio"] = 1 / row["ratio"]
        bar = BARS[row["mode"]].get(level)
        if bar is not None:
            bar.judge(row)
    return rows


def quantized(kv: npt.NDArray[np.float32]) -> Symbols:
    """Symbols of about `BITS` bits, and the tables that code them: channels of like spread share one."""
    layers, planes, tokens, heads, dim = kv.shape
    chunks = tokens // CHUNK_TOKENS
    if not chunks:
        raise InvalidArgument(f"the KV has {tokens} tokens; a chunk has {CHUNK_TOKENS}")
    streams, columns = layers * planes, heads * dim  # a stream of all chunks at first
    flat = kv[:, :, : chunks * CHUNK_TOKENS].reshape(streams, -1, columns)
    mean, spread = flat.mean(axis=1), flat.std(axis=1) + np.float32(1e-9)
    step = np.exp(np.log(spread).mean(axis=1, keepdims=True)) / np.float32(2 ** (BITS - 2.05))
    symbols = np.empty(flat.shape, np.uint8)
    for stream in range(streams):
        levels = np.rint((flat[stream] - mean[stream]) / step[stream])
        symbols[stream] = np.clip(levels + 128, 0, 255).astype(np.uint8)
    relative = spread / step
    edges = np.quantile(relative, np.linspace(0, 1, TABLES + 1)[1:-1])
    tables = np.searchsorted(edges, relative).astype(np.uint8)
    counts = np.full((TABLES, rans.SYMBOLS), 1e-3)
    for stream, column in np.ndindex(tables.shape):
        counts[tables[stream, column]] += np.bincount(symbols[stream, :, column], minlength=rans.SYMBOLS)
    by_chunk = symbols.reshape(layers, planes, chunks, CHUNK_TOKENS, columns).transpose(2, 0, 1, 3, 4)
    per_layer = (layers, planes, columns)
    return Symbols(
        by_chunk.reshape(chunks * layers, planes, CHUNK_TOKENS, columns),
        tables.reshape(per_layer),
        np.ascontiguousarray(np.broadcast_to(step, tables.shape), np.float32).reshape(per_layer),
        mean.astype(np.float32).reshape(per_layer),
        np.stack([rans.quantize_freqs(each) for each in counts]),
    )


class _Bench:
    """The cases over slots that repeat the pieces in memory of their own until the working set is reached."""

    def __init__(self, data: Symbols, working_set: int) -> None:
        self._data, self._bank = data, rans.Bank(data.freqs)
        pieces, self._nbytes = len(data.symbols), 2 * data.symbols[0].size
        self.slots = max(2, -(-working_set // self._nbytes))
        chosen = [slot % pieces for slot in range(self.slots)]
        self._layers = [piece % len(data.tables) for piece in chosen]
        self._symbols = data.symbols[chosen]
        self._raw = np.stack([data.values(piece) for piece in range(min(pieces, self.slots))])[chosen]
        self._out: Bits = np.ones(self._raw.shape, np.uint16)
        self._streams = [self._encoded(slot) for slot in range(self.slots)]
        self._made: Sequence[bytes] = ()

    def cases(self) -> list[Case]:
        """The copy first."""
        bits = sum(len(stream) for each in self._streams for stream in each) * 8 / self._symbols.size
        facts: dict[str, Any] = {"bits": bits, "simd": _native.simd_level()}
        held = f"{self.slots * self._nbytes >> 20} MiB of raw bytes in DRAM, in rotation; one thread"
        return [
            Case("memcpy", self._copy, self._nbytes, note=f"baseline: {held}", check=self._arrived),
            Case("rans encode", self._encode, self._nbytes, "memcpy", "encode", f"{held}; symbols of real KV",
                 check=self._as_before, facts=facts),
            Case("rans decode", self._decode, self._nbytes, "memcpy", "decode+dequantize", f"{held}; to bfloat16",
                 check=self._arrived, facts=facts),
        ]  # fmt: skip

    def _encoded(self, slot: int) -> Sequence[bytes]:
        encode, tables = self._bank.encode, self._data.tables[self._layers[slot]]
        return [encode(*each) for each in zip(self._symbols[slot], tables, strict=True)]

    def _copy(self, slot: int) -> None:
        np.copyto(self._out[slot], self._raw[slot])

    def _encode(self, slot: int) -> None:
        self._made = self._encoded(slot)

    def _decode(self, slot: int) -> None:
        data, layer, out = self._data, self._layers[slot], self._out[slot]
        for plane, stream in enumerate(self._streams[slot]):
            at = layer, plane
            self._bank.dequantize(stream, data.tables[at], data.scale[at], data.mean[at], out[plane], "bfloat16")

    def _arrived(self, slot: int) -> None:
        expect(np.array_equal(self._out[slot], self._raw[slot]), "rans", slot)
        self._out[slot].fill(0)

    def _as_before(self, slot: int) -> None:
        """The first stream decodes with the reference; all are what the decoder's case decodes."""
        tables, wanted = self._data.tables[self._layers[slot], 0], self._symbols[slot, 0]
        symbols = rans.decode(self._made[0], tables, self._data.freqs, wanted.shape)
        same = np.array_equal(symbols, wanted) and self._made == self._streams[slot]
        expect(same, "rans", slot)
