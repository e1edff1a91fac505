"""What an artefact of the transform codec holds, and what of it one frame needs: its plan.

The channels of a frame lie flat in the order layer, plane, head, dim. A **section** is a run of them that shares one
matrix; a frame's sections follow one another without a gap. Each has columns, its live components, padded to a
multiple of 8; the whole is padded to a multiple of 32. Padding is zeros of table 0, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs.artefact import Artefact
from kvstore.codecs.block import Block
from kvstore.codecs.floats import Floats
from kvstore.codecs.transform.rotary import Rotary
from kvstore.errors import Corrupt, InvalidArgument, SpecMismatch

KIND = "transform"
VARIANTS = ("head", "layer", "joint")
SECTION_PAD, COLUMN_PAD = 8, 32
MAX_SHIFT = 8
MAX_DIMENSIONS = 8192


@dataclass(frozen=True, eq=False)
class Section:
    """A run of channels from `start` on: x = scale · (matrix q) + mean.

    `matrix` int8 `[D, live]`, `scale` and `mean` float32 `[D]`, `forward` float32 `[live, D]` gives q before rounding
    from x − mean. `column` is the first of its columns.
    """

    start: int
    column: int
    matrix: npt.NDArray[np.int8]
    scale: Floats
    mean: Floats
    forward: Floats

    @property
    def channels(self) -> slice:
        """Its place among the frame's channels."""
        return slice(self.start, self.start + len(self.mean))

    @property
    def columns(self) -> slice:
        """The place of its live components among the frame's columns."""
        return slice(self.column, self.column + self.matrix.shape[1])


@dataclass(frozen=True, eq=False)
class Plan:
    """How frames of some layers are coded at one level.

    Per column: `tables` and `shift` uint8, and `rounding` float32, what is added to a component's size in steps before
    it is cut off to a whole number (½: to the nearest; less: a dead zone).
    """

    sections: tuple[Section, ...]
    rotary: tuple[Rotary, ...]
    tables: npt.NDArray[np.uint8]
    shift: npt.NDArray[np.uint8]
    bank: npt.NDArray[np.uint16]
    rounding: Floats
    sinks: int

    @property
    def columns(self) -> int:
        """Columns in all, a multiple of 32."""
        return len(self.tables)

    @cached_property
    def bit_planes(self) -> int:
        """Planes of low bits that a body has."""
        return int(self.shift.sum())


def plan_of(artefact: Artefact, block: Block, level: str) -> Plan:
    """The plan for a frame of the block's layers, made once for an artefact.

    Raises `SpecMismatch` for an artefact of another kind, `InvalidArgument` for a level that it lacks and for a block
    that has a part of a section only, `Corrupt` for an artefact whose arrays do not fit one another.
    """
    key = (KIND, block.layers, block.first_head, block.heads, level)
    return artefact.prepared(key, lambda: _make(_Contents(artefact), block, level))


def groups_of(artefact: Artefact, block: Block) -> Sequence[tuple[int, int]]:
    """The layers of each frame of a block, half-open. `InvalidArgument` where a part cuts a joint group in two."""
    contents, found, at = _Contents(artefact), list[tuple[int, int]](), 0
    while at < len(block.layers):
        group = contents.groups[contents.group_of(block.layers[at])]
        end = at + len(group)
        if block.layers[at:end] != group:
            raise InvalidArgument(
                f"this artefact joins the layers {list(group)}; the block has {list(block.layers)}: a pipeline "
                "stage or KV group must hold all of them"
            )
        found.append((at, end))
        at = end
    return found


class _Contents:
    """An artefact's arrays, each checked against the others where it is read."""

    def __init__(self, artefact: Artefact) -> None:
        if artefact.kind != KIND:
            raise SpecMismatch(f"the artefact {artefact.digest.hex()} is for {artefact.kind!r}, not for {KIND!r}")
        self.arrays, self.model, facts = artefact.arrays, artefact.model, artefact.facts
        try:
            self.variant = str(facts["variant"])
            self.levels = [str(name) for name in facts["levels"]]
            self.groups = [tuple(int(layer) for layer in group) for group in facts["groups"]]
            self.sinks = int(facts["sinks"])
            rotary = facts["rotary"]
            self._rotary: dict[str, Any] = {
                "style": str(rotary["style"]), "start": int(rotary["start"]), "scaling": float(rotary["scaling"]),
            }  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"the artefact's facts lack or garble {error}") from None
        if self.variant not in VARIANTS or not 0 <= self.sinks <= 255 or not all(self.groups):
            raise Corrupt(f"no transform: variant {self.variant!r}, {self.sinks} sinks, layers {self.groups}")

    def group_of(self, layer: int) -> int:
        """The number of the group that a layer is in."""
        for number, group in enumerate(self.groups):
            if layer in group:
                return number
        raise SpecMismatch(f"the artefact has no transform of layer {layer}")

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """An array; −1 in `shape` stands for any length."""
        found = self.arrays.get(name)
        if found is None or found.dtype != dtype or len(found.shape) != len(shape):
            raise Corrupt(f"the artefact's array {name!r} is missing or of another kind")
        if any(want not in (-1, have) for want, have in zip(shape, found.shape, strict=True)):
            raise Corrupt(f"the artefact's array {name!r} is {found.shape}; {shape} fits")
        return found

    def bank(self) -> npt.NDArray[np.uint16]:
        """The frequencies `[tables, 256]`; table 0 knows the symbol of zero alone."""
        bank = self.array("bank", np.uint16, (-1, 256))
        if not 1 <= len(bank) <= 256 or (bank.sum(1, dtype=np.int64) != 4096).any() or bank[0, 128] != 4096:
            raise Corrupt("the artefact's frequencies do not sum to 4096, or its table 0 is not free")
        return bank

    def rotary(self, layer: int, dim: int) -> Rotary:
        """How a layer's keys are rotated."""
        found = Rotary(self.array(f"rotary.{layer}", np.float64, (-1,)), **self._rotary)
        if found.start < 0 or (found.pairs and found.start + 2 * found.pairs > dim):
            raise Corrupt(f"layer {layer} rotates {found.pairs} pairs from channel {found.start} on; a head has {dim}")
        return found


def _make(contents: _Contents, block: Block, level: str) -> Plan:
    if level not in contents.levels:
        raise InvalidArgument(f"this artefact has no level {level!r}: it has {', '.join(contents.levels)}")
    at, number = contents.levels.index(level), contents.group_of(block.layers[0])
    if contents.groups[number] != block.layers:
        raise InvalidArgument(
            f"a frame of this artefact holds the layers {contents.groups[number]}, not {block.layers}"
        )
    planes, heads, dim = contents.model.layers[block.layers[0]]
    if contents.variant != "head" and block.heads != heads:
        raise InvalidArgument(
            f"a transform per {contents.variant} needs all {heads} KV heads; the block has {block.heads} of them (a "
            "tensor-parallel rank's): use a transform per head"
        )
    joined = len(block.layers) if contents.variant == "joint" else 1
    shape = {"head": (planes * heads, dim), "layer": (planes, heads * dim), "joint": (1, joined * planes * heads * dim)}
    count, dimensions = shape[contents.variant]
    tensors = _Tensors(contents, number, at, count, dimensions)
    wanted = list(range(count))
    if contents.variant == "head":
        ours = range(block.first_head, block.first_head + block.heads)
        wanted = [plane * heads + head for plane in range(planes) for head in ours]
    sections, tables, shifts, column = list[Section](), list[Any](), list[Any](), 0
    for place, index in enumerate(wanted):
        section, table, shift = tensors.section(index, place * dimensions, column)
        sections.append(section)
        pad = -len(table) % SECTION_PAD
        tables.append(np.pad(table, (0, pad)))
        shifts.append(np.pad(shift, (0, pad)))
        column += len(table) + pad
    pad = -column % COLUMN_PAD
    bank = contents.bank()
    table, shift = (np.concatenate([*each, np.zeros(pad, np.uint8)]) for each in (tables, shifts))
    dead = contents.array("dead", np.float32, (len(bank),))[table]
    rounding = np.float32(0.5) - dead / (np.float32(1) * (1 << shift.astype(np.int32)))
    rotary = tuple(contents.rotary(layer, dim) for layer in block.layers)
    return Plan(tuple(sections), rotary, table, shift, bank, rounding.astype(np.float32), contents.sinks)


class _Tensors:
    """The arrays of one group of layers, at one level."""

    def __init__(self, contents: _Contents, group: int, level: int, sections: int, dimensions: int) -> None:
        levels, name = len(contents.levels), f"{group}."
        self.matrix = contents.array(name + "matrix", np.int8, (sections, dimensions, -1))
        width = self.matrix.shape[2]
        self.row = contents.array(name + "row", np.float32, (sections, dimensions))
        self.mean = contents.array(name + "mean", np.float32, (sections, dimensions))
        self.step = contents.array(name + "step", np.float32, (levels, sections))[level]
        self.live = contents.array(name + "live", np.uint16, (levels, sections))[level]
        self.table = contents.array(name + "table", np.uint8, (levels, sections, width))[level]
        self.shift = contents.array(name + "shift", np.uint8, (levels, sections, width))[level]
        self.weight = None
        if width < dimensions:
            heads = contents.array(name + "weight", np.float16, (-1, -1, -1))
            if heads.shape != (dimensions // heads.shape[2], heads.shape[2], heads.shape[2]):
                raise Corrupt(f"the artefact's weights {heads.shape} do not cover {dimensions} channels")
            self.weight = heads.astype(np.float64)
        if (
            not 0 < width <= dimensions <= MAX_DIMENSIONS
            or self.live.max() > width
            or self.table.max() >= len(contents.bank())
            or self.shift.max() > MAX_SHIFT
            or not all(np.isfinite(each).all() for each in (self.row, self.mean, self.step))
            or not (self.step > 0).all()
        ):
            raise Corrupt(f"group {group} of the artefact holds numbers out of range")

    def section(
        self, index: int, start: int, column: int
    ) -> tuple[Section, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """One section, and its columns' tables and shifts."""
        live, step = int(self.live[index]), self.step[index]
        matrix = np.ascontiguousarray(self.matrix[index, :, :live])
        forward = self._forward(index, live) / step
        made = Section(
            start, column, matrix, self.row[index] * step, self.mean[index], np.ascontiguousarray(forward, np.float32)
        )
        return made, self.table[index, :live], self.shift[index, :live]

    def _forward(self, index: int, live: int) -> npt.NDArray[np.float64]:
        """What gives components from channels: the inverse, or the weighted least squares where columns are missing."""
        basis = self.row[index].astype(np.float64)[:, None] * self.matrix[index]
        try:
            if self.weight is None:
                return np.linalg.inv(basis)[:live]
            basis = basis[:, :live]
            by_head = basis.reshape(len(self.weight), -1, live)
            weighted = np.einsum("hij,hjc->hic", self.weight, by_head).reshape(basis.shape)
            return np.linalg.solve(basis.T @ weighted, weighted.T)
        except np.linalg.LinAlgError:
            raise Corrupt(f"matrix {index} of the artefact is singular") from None
