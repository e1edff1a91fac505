"""From a fitted transform and a step to a level of an artefact: live components, shifts, tables, dead zones.

Quantization weighs rate against distortion. At a step of 1, where components are coded finely, a bit less costs
2 ln 2 / 12 more squared error; the same price decides everywhere: a value goes to the whole number nearer to zero while
that is cheaper in sum (the table's **dead zone**), and trailing components that cost more than they mend are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs.artefact import Artefact
from kvstore.codecs.block import Block
from kvstore.codecs.floats import Floats
from kvstore.codecs.transform import reference
from kvstore.codecs.transform.body import sinks_of
from kvstore.codecs.transform.plan import MAX_SHIFT, Plan, plan_of
from kvstore.codecs.transform.tables import bank_of, bits_of
from kvstore.spec import CANONICAL_AXES

PRICE = 2 * np.log(2) / 12  # squared error, in steps, that a bit is worth
TABLES = 32
_COARSEST = 16.0  # the largest standard deviation of what is coded, in symbols
_ROUNDS = 3
_FRAME_BITS, _STREAM_BITS = 8 * (64 + 20), 8 * (64 + 4)


@dataclass(frozen=True, eq=False)
class Group:
    """What was learnt of one group of layers: arrays by section, and the components of a sample of tokens."""

    layers: tuple[int, ...]
    matrix: npt.NDArray[np.int8]  # [section, D, D]
    row: Floats  # [section, D]
    mean: Floats  # [section, D]
    sensitivity: npt.NDArray[np.float64]  # [section], 1 where it is in the weights
    components: Floats  # [section, token, D], of the sample
    weight: npt.NDArray[np.float16] | None = None  # [head, dim, dim], where columns are left out


@dataclass(eq=False)
class _Columns:
    """The columns of all sections of a group at one level: components in steps, `[section, token, column]`."""

    step: Floats  # [section]
    values: Floats
    shift: npt.NDArray[np.uint8]  # [section, column]
    table: npt.NDArray[np.uint8]
    live: npt.NDArray[np.uint16]  # [section]

    def distances(self, dead: Floats) -> npt.NDArray[np.int32]:
        """Whole numbers without their sign, quantized with the dead zone of each column `[section, column]`."""
        size = np.abs(self.values) + (np.float32(0.5) - dead)[:, None]
        whole: npt.NDArray[np.int32] = size.astype(np.int32)
        return whole


def arrays_of(groups: Sequence[Group], steps: Sequence[float]) -> dict[str, npt.NDArray[Any]]:
    """The artefact's arrays but for the rotary frequencies."""
    made = [[_columns(group, step) for group in groups] for step in steps]
    every = [columns for level in made for columns in level]
    bank, dead = _train(every)
    arrays: dict[str, npt.NDArray[Any]] = {"bank": bank, "dead": dead}
    for number, group in enumerate(groups):
        levels = [level[number] for level in made]
        size = group.matrix.shape[2]
        width = max(1, *(int(columns.live.max()) for columns in levels)) if group.weight is not None else size
        arrays |= {
            f"{number}.matrix": group.matrix[:, :, :width],
            f"{number}.row": group.row,
            f"{number}.mean": group.mean,
            f"{number}.step": np.stack([columns.step for columns in levels]),
            f"{number}.live": np.stack([columns.live for columns in levels]),
            f"{number}.table": np.stack([columns.table[:, :width] for columns in levels]),
            f"{number}.shift": np.stack([columns.shift[:, :width] for columns in levels]),
        }
        if width < size and group.weight is not None:
            arrays[f"{number}.weight"] = group.weight
    return arrays


def _columns(group: Group, step: float) -> _Columns:
    each = (step / np.sqrt(group.sensitivity)).astype(np.float32)
    values = group.components / each[:, None, None]
    deviation = values.std(1) / _COARSEST
    shift = np.clip(np.ceil(np.log2(np.maximum(deviation, 1e-9))), 0, MAX_SHIFT).astype(np.uint8)
    sections, size = shift.shape
    return _Columns(each, values, shift, np.zeros_like(shift), np.full(sections, size, np.uint16))


def _train(every: Sequence[_Columns]) -> tuple[npt.NDArray[np.uint16], Floats]:
    """Tables and dead zones by turns: each follows from the other."""
    dead = np.zeros(TABLES, np.float32)
    for _ in range(_ROUNDS):
        counts = np.concatenate([_counts(columns, dead) for columns in every])
        bank, table = bank_of(counts, TABLES)
        dead, at = _dead_zones(bank), 0
        for columns in every:
            columns.table = table[at : at + columns.shift.size].reshape(columns.shift.shape)
            at += columns.shift.size
    for columns in every:
        columns.live = _live(columns, bank, dead)
    return bank, dead


def _counts(columns: _Columns, dead: Floats) -> npt.NDArray[np.float64]:
    """How often each column's symbols lie 0 to 127 from zero, `[section · column, 128]`."""
    distance = columns.distances(dead[columns.table] / (1 << columns.shift.astype(np.int32))) >> columns.shift[:, None]
    width = columns.shift.size
    sections, _, size = distance.shape
    column = np.arange(width).reshape(sections, 1, size)
    slot = np.minimum(distance, 128) + 129 * column
    found = np.bincount(slot.ravel(), minlength=129 * width).reshape(width, 129)
    return found[:, :128].astype(np.float64)


def _dead_zones(bank: npt.NDArray[np.uint16]) -> Floats:
    """How far each table moves the border between two whole numbers away from zero, in steps: PRICE / 2 per bit."""
    bits, share = bits_of(bank)[:, 128:].astype(np.float64), bank[:, 128:].astype(np.float64)
    slope = np.minimum(np.diff(bits, axis=1), 8)
    weight = share[:, 1:] + 1e-9
    mean = (slope * weight).sum(1) / weight.sum(1)
    dead: Floats = np.clip(PRICE / 2 * mean, 0, 0.45).astype(np.float32)
    return dead


def _live(columns: _Columns, bank: npt.NDArray[np.uint16], dead: Floats) -> npt.NDArray[np.uint16]:
    """Per section, how many leading components mend more than they cost."""
    distance = columns.distances(dead[columns.table] / (1 << columns.shift.astype(np.int32)))
    size = np.abs(columns.values)
    mended = (size * size - np.square(size - distance)).mean(1)
    bits = bits_of(bank)[:, 128:]
    coded = np.minimum(distance >> columns.shift[:, None], 127)
    cost = bits[columns.table[:, None], coded].mean(1) + columns.shift
    worth = mended > PRICE * cost
    return np.where(worth.any(1), worth.shape[1] - worth[:, ::-1].argmax(1), 0).astype(np.uint16)


def simulate(artefact: Artefact, level: str, values: Floats, position: int) -> tuple[Floats, float]:
    """The reconstruction of `[layer, plane, token, head, dim]`, all layers of the model, and its bits."""
    _, planes, tokens, heads, dim = values.shape
    places = {layer: place for place, layer in enumerate(sorted(artefact.model.layers))}
    made, total = np.empty_like(values), 0.0
    for group in artefact.facts["groups"]:
        part = Block("float32", tuple(group), planes, tokens, heads, dim, CANONICAL_AXES, position)
        plan = plan_of(artefact, part, level)
        sinks = sinks_of(position, tokens, plan.sinks)
        at = [places[layer] for layer in group]
        made[at, :, :sinks] = values[at, :, :sinks]
        total += sinks * len(group) * planes * heads * dim * 16
        bits = np.ascontiguousarray(values[at, :, sinks:]).view(np.uint32)
        q = reference.quantize(reference.forward(reference.channels(bits, part, plan, sinks), plan), plan)
        made[at, :, sinks:] = reference.turned(reference.inverse(q, plan), part, plan, sinks)
        total += _coded_bits(q, plan)
    return made, total


def _coded_bits(q: npt.NDArray[np.int32], plan: Plan) -> float:
    symbols = np.clip((q >> plan.shift) + 128, 0, 255)
    chunks = -(-len(q) // 256)
    streams = -(-plan.columns // 512)
    coded = float(bits_of(plan.bank)[plan.tables[None, :], symbols].sum(dtype=np.float64))
    return coded + len(q) * plan.bit_planes + chunks * (_FRAME_BITS + streams * _STREAM_BITS)
