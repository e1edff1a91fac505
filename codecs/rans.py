"""The entropy coder: rANS in 32 lanes with static 12-bit tables (Duda, arXiv:1311.2540; Giesen, arXiv:1402.3392).

Symbols are uint8 `[tokens, columns]`, and every column names one of a bank's tables, so that no table travels with a
chunk. Columns are coded in blocks of 32: for each block, for each token, lane `l` codes column `32 * block + l`; lanes
past the last column rest. A state lies in [2^15, 2^31). The decoder's step: `slot = x & 4095`; the symbol is the one
that holds the slot; `x = f * (x >> 12) + slot - start`; if `x < 2^15`, `x = x << 16 | word`, words going to the lanes
that need one in the order of lanes. The encoder does the inverse of it all from the last symbol to the first.

A stream: 32 states of the decoder before the first symbol (u32), then the words (u16), little-endian. After the last
symbol every state is 2^15 and every word is used; a stream for which that is not so is `Corrupt`.

`encode` and `decode` are the reference, in NumPy. `Bank` does the same in C++, and fuses what comes next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.codecs.frame import Buffer
from kvstore.errors import Corrupt, InvalidArgument

LANES = 32
SYMBOLS = 256
TOTAL = 4096  # the sum of a table's frequencies
LOW = 1 << 15  # the least state
STATE_BYTES = 4 * LANES
MAX_TABLES = 256

_OUT = {"bfloat16": np.uint16, "float16": np.float16, "float32": np.float32}


def quantize_freqs(counts: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Frequencies uint16 `[256]` summing to 4096 that code `counts` `[256]` in the fewest bits.

    A symbol with a count above 0 gets at least 1, one without gets 0. The cost is convex in each frequency, so moving
    single units while that saves bits ends at the optimum. `InvalidArgument` for counts that are negative, not finite
    or all 0.
    """
    weights = np.asarray(counts, np.float64)
    if weights.shape != (SYMBOLS,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise InvalidArgument(f"counts are {SYMBOLS} numbers of 0 or more, some above 0; got {weights.shape}")
    used = np.flatnonzero(weights)
    weight = weights[used] / weights.max()
    freq = np.maximum(np.floor(weight * (TOTAL / weight.sum())), 1.0)
    while True:
        missing = TOTAL - int(freq.sum())
        gains = weight * np.log2((freq + 1) / freq)
        losses = np.full(len(freq), np.inf)
        losses[freq > 1] = weight[freq > 1] * np.log2(freq[freq > 1] / (freq[freq > 1] - 1))
        up, down = int(gains.argmax()), int(losses.argmin())
        if missing > 0:
            freq[up] += 1
        elif missing < 0:
            freq[down] -= 1
        elif up != down and gains[up] > losses[down] * (1 + 1e-12):
            freq[up] += 1
            freq[down] -= 1
        else:
            break
    made = np.zeros(SYMBOLS, np.uint16)
    made[used] = freq.astype(np.uint16)
    return made


def encode(symbols: npt.NDArray[np.uint8], tables: npt.NDArray[np.uint8], freqs: npt.NDArray[np.uint16]) -> bytes:
    """The stream of `symbols` `[tokens, columns]` with the tables `freqs` `[n, 256]`, `tables` `[columns]` of them.

    `InvalidArgument` for a symbol without a frequency in its column's table, and for what does not fit together.
    """
    wide, symbols = _checked_freqs(freqs), _checked_symbols(symbols)
    tables = _checked_tables(tables, symbols.shape[1], len(wide))
    if (wide[tables, symbols] == 0).any():
        raise InvalidArgument("a symbol has no frequency in its column's table")
    starts = np.cumsum(wide, axis=1) - wide
    states = np.full(LANES, LOW, np.uint64)
    words: list[npt.NDArray[np.uint64]] = []
    for first in reversed(range(0, len(tables), LANES)):
        chosen = tables[first : first + LANES]
        lanes = slice(0, len(chosen))
        for row in symbols[::-1, first : first + LANES]:
            freq, start, x = wide[chosen, row], starts[chosen, row], states[lanes]
            gives = x >= freq << 19
            words.append(x[gives] & 0xFFFF)
            x = np.where(gives, x >> 16, x)
            states[lanes] = (x // freq << 12) + x % freq + start
    return states.astype("<u4").tobytes() + np.concatenate(words[::-1]).astype("<u2").tobytes()


def decode(
    data: Buffer, tables: npt.NDArray[np.uint8], freqs: npt.NDArray[np.uint16], shape: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """The symbols uint8 `shape` (tokens, columns) of a stream; `Corrupt` if no encoder makes it."""
    wide = _checked_freqs(freqs)
    symbols = _checked_symbols(np.zeros(shape, np.uint8))
    tables = _checked_tables(tables, shape[1], len(wide))
    states, words = _opened(data)
    ends = np.cumsum(wide, axis=1)
    of_slot = np.stack([np.searchsorted(end, np.arange(TOTAL), side="right") for end in ends])
    used = 0
    for first in range(0, len(tables), LANES):
        chosen = tables[first : first + LANES]
        lanes = slice(0, len(chosen))
        for row in symbols[:, first : first + LANES]:
            slots = states[lanes] & (TOTAL - 1)
            row[:] = of_slot[chosen, slots]
            freq = wide[chosen, row]
            x = freq * (states[lanes] >> 12) + slots - (ends[chosen, row] - freq)
            takes = np.flatnonzero(x < LOW)
            if used + len(takes) > len(words):
                raise Corrupt(f"the stream's {len(words)} words are too few for {shape[0]} × {shape[1]} symbols")
            x[takes] = x[takes] << 16 | words[used : used + len(takes)]
            used += len(takes)
            states[lanes] = x
    if used != len(words) or (states != LOW).any():
        raise Corrupt(f"the stream ends with {len(words) - used} words left, or in a wrong state")
    return symbols


class Bank:
    """Tables `freqs` uint16 `[n, 256]`, 1 to 256 of them, prepared for the native coder. Immutable, for any thread.

    `InvalidArgument` unless each sums to 4096. A prepared table takes 20 KiB.
    """

    def __init__(self, freqs: npt.NDArray[np.uint16]) -> None:
        freqs = np.ascontiguousarray(freqs)
        _checked_freqs(freqs)
        self.freqs = freqs
        self._native = _native.RansBank(freqs)

    def encode(self, symbols: npt.NDArray[np.uint8], tables: npt.NDArray[np.uint8]) -> bytes:
        """As the module's `encode`."""
        symbols = np.ascontiguousarray(_checked_symbols(symbols))
        tables = _checked_tables(tables, symbols.shape[1], len(self.freqs))
        try:
            return self._native.encode(symbols, tables)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None

    def decode(self, data: Buffer, tables: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        """As the module's `decode`, into `out` (C-contiguous). What `out` holds after an error says nothing."""
        _checked_symbols(out)
        tables = self._for(out, tables)
        _sound(self._native.decode(data, tables, out), out)

    def decode_levels(self, data: Buffer, tables: npt.NDArray[np.uint8], out: npt.NDArray[np.int16]) -> None:
        """`symbol - 128` into `out` int16 `[tokens, columns]`."""
        if out.dtype != np.int16 or out.ndim != 2:
            raise InvalidArgument(f"levels are int16 [tokens, columns], not {out.dtype} {out.shape}")
        tables = self._for(out, tables)
        _sound(self._native.decode_levels(data, tables, out), out)

    def dequantize(
        self,
        data: Buffer,
        tables: npt.NDArray[np.uint8],
        scale: npt.NDArray[np.float32],
        mean: npt.NDArray[np.float32],
        out: npt.NDArray[Any],
        dtype: str,
    ) -> None:
        """`scale * (symbol - 128) + mean` (each float32 `[columns]`, finite) into `out` `[tokens, columns]` of `dtype`.

        Product and sum are rounded to float32 each, then to `dtype`, to nearest even: `bfloat16` (`out` uint16, the
        bits), `float16` or `float32`. The same bits on every machine.
        """
        if out.dtype != _OUT.get(dtype) or out.ndim != 2:
            raise InvalidArgument(f"{dtype} values cannot be decoded into {out.dtype} {out.shape}")
        tables = self._for(out, tables)
        for each in (scale, mean):
            if each.dtype != np.float32 or each.shape != tables.shape:
                raise InvalidArgument(f"scale and mean are float32 [{len(tables)}], not {each.dtype} {each.shape}")
            if not np.isfinite(each).all():
                raise InvalidArgument("scale and mean must be finite")
        scale, mean = np.ascontiguousarray(scale), np.ascontiguousarray(mean)
        _sound(self._native.dequantize(data, tables, scale, mean, out, dtype), out)

    def _for(self, out: npt.NDArray[Any], tables: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if not out.size or not out.flags.c_contiguous or not out.flags.writeable:
            raise InvalidArgument(f"the destination {out.shape} must be C-contiguous, writable and not empty")
        return _checked_tables(tables, out.shape[1], len(self.freqs))


def _sound(decoded: bool, out: npt.NDArray[Any]) -> None:
    if not decoded:
        raise Corrupt(f"no encoder makes this stream of {out.shape[0]} × {out.shape[1]} symbols")


def _opened(data: Buffer) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The states and words of a stream."""
    raw = memoryview(data).cast("B")
    if len(raw) < STATE_BYTES or len(raw) % 2:
        raise Corrupt(f"a stream has {STATE_BYTES} bytes and whole words, not {len(raw)}")
    states = np.frombuffer(raw[:STATE_BYTES], "<u4").astype(np.uint64)
    if (states < LOW).any() or (states >> 31).any():
        raise Corrupt("a state of the stream is outside [2^15, 2^31)")
    return states, np.frombuffer(raw[STATE_BYTES:], "<u2").astype(np.uint64)


def _checked_freqs(freqs: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint64]:
    if freqs.dtype != np.uint16 or freqs.ndim != 2 or freqs.shape[1] != SYMBOLS or not 0 < len(freqs) <= MAX_TABLES:
        raise InvalidArgument(f"a bank is uint16 [1 to {MAX_TABLES}, {SYMBOLS}], not {freqs.dtype} {freqs.shape}")
    wide = freqs.astype(np.uint64)
    for number, total in enumerate(wide.sum(axis=1).tolist()):
        if total != TOTAL:
            raise InvalidArgument(f"the frequencies of table {number} sum to {total}, not {TOTAL}")
    return wide


def _checked_symbols(symbols: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if symbols.dtype != np.uint8 or symbols.ndim != 2 or not symbols.size:
        raise InvalidArgument(f"symbols are uint8 [tokens, columns], at least one, not {symbols.dtype} {symbols.shape}")
    return symbols


def _checked_tables(tables: npt.NDArray[np.uint8], columns: int, count: int) -> npt.NDArray[np.uint8]:
    if tables.dtype != np.uint8 or tables.shape != (columns,):
        raise InvalidArgument(f"tables are uint8 [{columns}], one per column, not {tables.dtype} {tables.shape}")
    if tables.max() >= count:
        raise InvalidArgument(f"a column's table is {tables.max()}; the bank has {count}")
    return np.ascontiguousarray(tables)
