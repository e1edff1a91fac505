"""The two formats of request traces, as JSON lines, gzipped or not.

`hash_ids` (Mooncake's, FAST'25): `timestamp` in milliseconds, `input_length` and `output_length` in tokens, and a list
of numbers, each standing for a block of equal length and all before it; the last may be a partial one. What
`kvstore sim --record` has taken says the length as `block_tokens`. `segments` (RAGPulse's): `timestamp` in seconds, and
`[id, tokens, kind]` in the order of the prompt; an id stands for a text, wherever it is.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.errors import InvalidArgument

UNITS = tuple(1 << n for n in range(4, 14))  # tokens of a block, where the format does not say
MOST_TOKENS, MOST_IDS = 1 << 31, 1 << 63


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the numbers of its blocks and how many tokens each has, in prompt order."""

    at_ms: int
    input_tokens: int
    ids: Sequence[int]
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A trace as it was read. `linked`: an id stands for all before it too. `block` tokens; 0 where they differ."""

    name: str
    linked: bool
    block: int
    requests: Sequence[Request]


def parse(path: Path, *, block: int = 0, most: int = 0, timed: bool = True) -> Parsed:
    """Read a file, or its first `most` requests, in the order of their time. `block` of 0: found out.

    Without `timed` there need be no times, and requests stay as they are, one a second.

    Raises `InvalidArgument` that names file and line for what cannot be read or is neither format.
    """
    lines = list(_lines(path, most))
    if not timed:
        lines = [(number, {**line, "timestamp": number * 1000}) for number, line in lines]
    if not lines:
        raise InvalidArgument(f"{path} holds no requests")
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    first = lines[0][1]
    if "hash_ids" in first:
        block = block or (
            max(1, _count(path, 1, first, "block_tokens")) if "block_tokens" in first else _unit(path, lines)
        )
        return Parsed(name, True, block, _in_order(_hashed(path, number, line, block) for number, line in lines))
    if "segments" in first:
        if block:
            raise InvalidArgument(f"{path} is a trace of segments, each with a length of its own: leave --block away")
        return Parsed(name, False, 0, _in_order(_segments(path, lines)))
    raise InvalidArgument(f"{path} is no trace: line 1 has neither hash_ids nor segments")


def _lines(path: Path, most: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                read = json.loads(line)
                if not isinstance(read, dict):
                    raise InvalidArgument(f"{path}:{number}: no JSON object, so this is no trace")
                yield number, read
                if number == most:
                    return
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{path}:{number}: no JSON: {error}") from None


def _in_order(requests: Iterator[Request]) -> list[Request]:
    return sorted(requests, key=lambda request: request.at_ms)


def _hashed(path: Path, number: int, line: Mapping[str, Any], block: int) -> Request:
    length, ids = _count(path, number, line, "input_length"), _ids(path, number, line)
    if len(ids) > -(-length // block):
        raise InvalidArgument(
            f"{path}:{number}: {len(ids)} hash_ids are too many for {length} tokens in blocks of {block}; say the "
            "right block length with --block"
        )
    tokens = [block] * len(ids)
    if len(ids) * block > length:
        tokens[-1] = length - (len(ids) - 1) * block
    return Request(int(_number(path, number, line, "timestamp")), length, ids, tokens)


def _segments(path: Path, lines: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[Request]:
    lengths: dict[int, int] = {}
    for number, line in lines:
        ids, tokens = [], []
        for segment in _list(path, number, line, "segments"):
            if not (isinstance(segment, list) and len(segment) >= 2 and _id(segment[0]) and _whole(segment[1])):
                raise InvalidArgument(f"{path}:{number}: a segment is [id, tokens, kind], not {json.dumps(segment)}")
            ids.append(segment[0])
            tokens.append(segment[1])
            if segment[1] < 1 or lengths.setdefault(segment[0], segment[1]) != segment[1]:
                raise InvalidArgument(
                    f"{path}:{number}: segment {segment[0]} has {segment[1]} tokens here, and "
                    f"{lengths.get(segment[0], 'more')} elsewhere: a segment has one length, of 1 or more"
                )
        whole = max(sum(tokens), int(line.get("input_length", 0)) if _whole(line.get("input_length", 0)) else 0)
        if whole >= MOST_TOKENS:
            raise InvalidArgument(f"{path}:{number}: a prompt of {whole} tokens is too long")
        yield Request(round(_number(path, number, line, "timestamp") * 1000), whole, ids, tokens)


def _unit(path: Path, lines: Sequence[tuple[int, Mapping[str, Any]]]) -> int:
    """The tokens of a block: those that explain the number of ids of every line, whole blocks only or a partial one."""
    pairs = {(_count(path, number, line, "input_length"), len(_ids(path, number, line))) for number, line in lines}
    for unit in UNITS:
        if all(ids in (length // unit, -(-length // unit)) for length, ids in pairs):
            return unit
    raise InvalidArgument(
        f"{path}: no block length of {UNITS[0]} to {UNITS[-1]} tokens fits the numbers of hash_ids; say it with --block"
    )


def _ids(path: Path, number: int, line: Mapping[str, Any]) -> list[int]:
    ids = _list(path, number, line, "hash_ids")
    if not all(map(_id, ids)):
        raise InvalidArgument(f"{path}:{number}: hash_ids are whole numbers of 63 bits, not {json.dumps(ids)[:80]}")
    return ids


def _list(path: Path, number: int, line: Mapping[str, Any], name: str) -> list[Any]:
    value = line.get(name)
    if not isinstance(value, list):
        raise InvalidArgument(f"{path}:{number}: {name} is a list, not {json.dumps(value)[:80]}")
    return value


def _count(path: Path, number: int, line: Mapping[str, Any], name: str) -> int:
    value = line.get(name)
    if type(value) is not int or not 0 <= value < MOST_TOKENS:
        raise InvalidArgument(f"{path}:{number}: {name} is a number of tokens, not {json.dumps(value)[:80]}")
    return value


def _number(path: Path, number: int, line: Mapping[str, Any], name: str) -> float:
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise InvalidArgument(f"{path}:{number}: {name} is a time, not {json.dumps(value)[:80]}")
    return value


def _id(value: object) -> bool:
    return type(value) is int and abs(value) < MOST_IDS


def _whole(value: object) -> bool:
    return type(value) is int
