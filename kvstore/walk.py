"""How far a look-up reaches: the largest token at which every KV group is satisfied.

Full attention needs every chunk before that token, a sliding window only those that it still reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.catalog import Scope
from kvstore.spec import KVGroup, Part

Flags = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Reach:
    """`tokens` reached, and the indexes of the refs that lead there: a range where these are the first ones."""

    tokens: int
    used: range | npt.NDArray[np.uint32]

    def take(self, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What a column says of the refs used."""
        return column[: len(self.used)] if isinstance(self.used, range) else column[self.used]

    def indexes(self) -> Sequence[int]:
        """`used` as plain numbers."""
        return self.used if isinstance(self.used, range) else self.used.tolist()


def reach_of(
    scope: Scope, refs: npt.NDArray[Any], parts: Sequence[Part], present: Flags, whole: Flags, first_valid: Any
) -> Reach:
    """How far `refs` reach: `present[part, ref]` and `first_valid` as the index tells them, `whole` of all `parts`."""
    if not scope.windowed:
        return walk(refs, whole)
    asked = sorted({part.group for part in parts})
    groups, full = [], np.ones(len(refs), np.uint8)
    for number in asked:
        mine = [i for i, part in enumerate(parts) if part.group == number]
        flags, valid = all_parts(present[mine]), np.asarray(first_valid[mine].max(axis=0))
        if scope.spec.groups[number].window:
            groups.append((scope.spec.groups[number], flags, valid))
        else:
            full &= flags
    return within_windows(walk(refs, full), refs, groups, all_used=len(groups) < len(asked))


def all_parts(present: Flags) -> Flags:
    """Per ref: whether every part is there."""
    if len(present) == 1:
        return np.asarray(present[0])
    return np.asarray(present.all(axis=0)).view(np.uint8)


def walk(refs: npt.NDArray[Any], full: Flags) -> Reach:
    """Follow `refs` (`REF_DTYPE`, rising positions) as far as `full[i]` says that chunk i is there.

    Of several refs at one position the longest that is there is taken.
    """
    if not len(refs):
        return Reach(0, range(0))
    starts = refs["position"]
    ends = starts + refs["tokens"]
    if (starts[1:] == ends[:-1]).tobytes().find(0) < 0:
        missing = full.tobytes().find(0)
        count = len(refs) if missing < 0 else missing
        return Reach(int(ends[count - 1]) if count else int(starts[0]), range(count))
    return _walk_alternatives(starts.tolist(), ends.tolist(), full.tolist())


def _walk_alternatives(starts: list[int], ends: list[int], full: list[int]) -> Reach:
    used: list[int] = []
    at, best = starts[0], -1
    for i, start in enumerate([*starts, -1]):
        if best >= 0 and start != at:
            used.append(best)
            at, best = ends[best], -1
        if start == at and full[i] and (best < 0 or ends[i] > ends[best]):
            best = i
    return Reach(at, np.array(used, np.uint32))


def within_windows(
    reach: Reach,
    refs: npt.NDArray[Any],
    groups: Sequence[tuple[KVGroup, Flags, npt.NDArray[np.uint32]]],
    *,
    all_used: bool,
) -> Reach:
    """Shorten a reach to the last chunk end at which every sliding-window group has all that its window needs.

    `groups` gives each sliding-window group asked for with, per ref, whether its parts are there and from which
    token inside the chunk they are valid. `all_used` says that a full-attention group was asked for too: only then
    are chunks before every window of use.
    """
    used = np.asarray(reach.used, np.uint32)
    starts = refs["position"][used].astype(np.int64)
    ends = starts + refs["tokens"][used]
    satisfied = np.ones(len(used), bool)
    for group, present, first_valid in groups:
        here, missing_head = present[used].astype(bool), first_valid[used].astype(np.int64)
        # The token from which on all is there is set anew by a chunk that is not, or that lacks its first tokens.
        anew = ~here | (missing_head > 0)
        anew[:1] = True
        since = np.maximum.accumulate(np.where(anew, np.arange(len(used)), 0))
        covered_from = np.where(here, starts + missing_head, ends)[since]
        satisfied &= here & (covered_from <= np.maximum(0, ends - group.window + 1))
    hits = np.flatnonzero(satisfied)
    count = int(hits[-1]) + 1 if len(hits) else 0
    first = int(refs["position"][0]) if len(refs) else 0
    tokens = int(ends[count - 1]) if count else first
    kept = used[:count]
    if not all_used and count:
        kept = kept[ends[:count] > min(group.first_needed(tokens) for group, _, _ in groups)]
    return Reach(tokens, kept)
