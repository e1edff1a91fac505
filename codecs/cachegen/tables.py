"""What the codec reads from its artefact, checked, and cut to the layer and heads of a block.

Columns are a layer's channels in the order plane, head, dim; the artefact has those of all layers of the model, one
layer after the other. Its arrays:

    bank          uint16 [n, 256]               frequencies of the entropy coder's tables
    tables        uint8  [levels, 2, columns]   the table of each column: of anchors, of differences
    mean          float32 [columns]             what anchors are counted from
    anchor_step   float32 [columns]             their bin: 8 bits over the channel's range
    anchor_floor  float32 [levels, planes]      no anchor's bin is less, at a level: planes of all layers in order
    step          float32 [levels, planes]      the bin of differences

and among its facts `group`, the tokens of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.codecs.artefact import Artefact
from kvstore.codecs.block import Block
from kvstore.codecs.floats import Floats
from kvstore.codecs.rans import SYMBOLS, TOTAL
from kvstore.errors import Corrupt, SpecMismatch

LEVELS = ("finest", "fine", "medium", "coarse")
MAX_GROUP = 4096
ZERO = 128  # the symbol of a difference of 0; symbol 0 stands for a value that is written out
LARGEST = 127
_LEAST_STEP, _MOST = np.float32(2.0**-60), np.float32(2.0**100)


@dataclass(frozen=True, slots=True)
class Side:
    """How anchors, or differences, are coded: per column its bin, 1/bin, table, and the range of codes it has."""

    step: Floats
    inverse: Floats
    tables: npt.NDArray[np.uint8]
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class LayerTables:
    """One layer's columns at one level. `freqs` is the bank, `bank` the same prepared.

    `floats` `[9, columns]` and `tables` `[2, columns]` are all the rest for native code: the mean, then step, inverse,
    low and high of anchors, then those of differences.
    """

    group: int
    freqs: npt.NDArray[np.uint16]
    mean: Floats
    anchors: Side
    deltas: Side
    bank: _native.CacheGenBank
    floats: Floats
    tables: npt.NDArray[np.uint8]


def layer_tables(artefact: Artefact, block: Block, level: int) -> LayerTables:
    """The tables for a block of one layer.

    Raises `SpecMismatch` for an artefact of another codec and `Corrupt` for one that `profile` does not make.
    """
    if artefact.kind != "cachegen":
        raise SpecMismatch(f"the artefact {artefact.digest.hex()} is for {artefact.kind}, not for cachegen")
    model = artefact.prepared("cachegen", lambda: _Model(artefact))
    key = ("cachegen", block.layers[0], block.first_head, block.heads, level)
    return artefact.prepared(key, lambda: model.cut(block, level))


def spans(shapes: dict[int, tuple[int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Each layer's number with its first plane, its first column and its columns, layers in order."""
    plane = column = 0
    for layer in sorted(shapes):
        yield layer, plane, column, prod(shapes[layer])
        plane += shapes[layer][0]
        column += prod(shapes[layer])


class _Model:
    """The whole artefact's arrays, checked."""

    def __init__(self, artefact: Artefact) -> None:
        self.shapes = dict(artefact.model.layers)
        self.places = {layer: (plane, column) for layer, plane, column, _ in spans(self.shapes)}
        columns = sum(prod(shape) for shape in self.shapes.values())
        planes = sum(shape[0] for shape in self.shapes.values())
        levels = len(LEVELS)

        def array(name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> npt.NDArray[Any]:
            found = artefact.arrays.get(name)
            if found is None or found.dtype != dtype or found.shape != shape:
                raise Corrupt(f"the artefact's {name} is not {np.dtype(dtype)} {shape}")
            return found

        freqs = artefact.arrays.get("bank", np.zeros(0))
        self.freqs = array("bank", np.uint16, (min(max(len(freqs), 1), 256), SYMBOLS))
        self.tables = array("tables", np.uint8, (levels, 2, columns))
        self.mean = _bounded("mean", array("mean", np.float32, (columns,)), -_MOST)
        self.anchor_step = _bounded("anchor_step", array("anchor_step", np.float32, (columns,)), _LEAST_STEP)
        self.anchor_floor = _bounded("anchor_floor", array("anchor_floor", np.float32, (levels, planes)), _LEAST_STEP)
        self.step = _bounded("step", array("step", np.float32, (levels, planes)), _LEAST_STEP)
        group = artefact.facts.get("group")
        if not isinstance(group, int) or not 1 <= group <= MAX_GROUP:
            raise Corrupt(f"the artefact has groups of {group!r} tokens, not 1 to {MAX_GROUP}")
        self.group = group
        if (self.freqs.sum(axis=1, dtype=np.int64) != TOTAL).any() or not self.freqs[:, 0].all():
            raise Corrupt(f"a table of the artefact does not sum to {TOTAL}, or lacks symbol 0")
        if self.tables.max(initial=0) >= len(self.freqs):
            raise Corrupt(f"a column's table is {self.tables.max()}; the artefact has {len(self.freqs)}")
        self.low, self.high = _runs(self.freqs)
        self.bank = _native.CacheGenBank(self.freqs)

    def cut(self, block: Block, level: int) -> LayerTables:
        """The columns of a block of one layer: all planes, the heads that it has."""
        layer = block.layers[0]
        planes, heads, dim = shape = self.shapes[layer]
        first_plane, first_column = self.places[layer]
        kept = slice(block.first_head, block.first_head + block.heads)
        columns = slice(first_column, first_column + prod(shape))

        def of(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.ascontiguousarray(values[columns].reshape(planes, heads, dim)[:, kept].reshape(-1))

        def per_plane(values: Floats) -> Floats:
            return np.repeat(values[level, first_plane : first_plane + planes], block.heads * dim)

        anchor_step = np.maximum(of(self.anchor_step), per_plane(self.anchor_floor))
        mean, tables = of(self.mean), self.tables[level]
        sides = self._side(anchor_step, of(tables[0])), self._side(per_plane(self.step), of(tables[1]))
        rows = [mean, *(row for side in sides for row in (side.step, side.inverse, side.low, side.high))]
        both = np.stack([side.tables for side in sides])
        return LayerTables(self.group, self.freqs, mean, *sides, self.bank, np.stack(rows), both)

    def _side(self, step: Floats, tables: npt.NDArray[np.uint8]) -> Side:
        return Side(step, np.float32(1) / step, tables, self.low[tables], self.high[tables])


def _bounded(name: str, values: Floats, least: np.float32) -> Floats:
    if not ((values >= least) & (values <= _MOST)).all():  # NaN is not
        raise Corrupt(f"the artefact's {name} goes outside {least} to {_MOST}")
    return values


def _runs(freqs: npt.NDArray[np.uint16]) -> tuple[Floats, Floats]:
    """The codes (symbol − 128) that each table has without a gap around its likeliest one."""
    low, high = np.zeros(len(freqs), np.float32), np.zeros(len(freqs), np.float32)
    for number, table in enumerate(freqs):
        top = 1 + int(table[1:].argmax())
        absent = np.flatnonzero(np.concatenate([[0], table[1:], [0]]) == 0)
        after = int(np.searchsorted(absent, top))
        low[number], high[number] = absent[after - 1] + 1 - ZERO, absent[after] - 1 - ZERO
        if table[top] == 0:  # symbol 0 alone: every value is written out
            low[number], high[number] = 1, -1
    return low, high
