"""Finding: what other hosts have stored in a shared tier is entered into the index when it is looked up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvstore.catalog import Scope
from kvstore.core import Core
from kvstore.decoding import check_known
from kvstore.errors import KVStoreError, NotFound
from kvstore.record import NO_ARTEFACT, RAW, Record
from kvstore.removed import Removed
from kvstore.rows import REF_DTYPE
from kvstore.spec import Part
from kvstore.tiers.base import Name, Tier

MOST = 2048  # names asked for in one look-up


class Finder:
    """Asks the shared tiers for what the index lacks."""

    def __init__(self, core: Core, wait_s: float) -> None:
        """`wait_s` is the longest that a look-up waits for a shared tier."""
        self._core = core
        self._wait_s = wait_s
        self._shared = [number for number, tier in enumerate(core.tiers) if tier.shared]

    def complete(self, scope: Scope, refs: bytes, parts: Sequence[Part], packed: bytes, exact: bool) -> None:
        """Enter what shared tiers have of packed look-up records, as far as the index lacks it."""
        usable = [number for number in self._shared if self._core.is_usable(number)]
        if not usable:
            return
        with self._core.lock:
            _, present, _ = self._core.index.lookup(scope.number, refs, packed, exact, 0)
        missing = np.argwhere(present.T == 0)[:MOST]
        for number in usable:
            if not len(missing):
                return
            missing = self._ask(scope, number, np.frombuffer(refs, REF_DTYPE), parts, missing)

    def _ask(
        self,
        scope: Scope,
        number: int,
        refs: npt.NDArray[np.void],
        parts: Sequence[Part],
        missing: npt.NDArray[np.intp],
    ) -> npt.NDArray[np.intp]:
        """Ask one tier for missing (reference, part) pairs; those that it has not either."""
        tier, namespace, spec = self._core.tiers[number], scope.namespace.digest, scope.spec.digest
        wanted = [Name(namespace, spec, refs[ref]["key"].tobytes(), parts[part]) for ref, part in missing.tolist()]
        found = tier.find(wanted, self._wait_s)
        entered = [
            each is not None and self._enter(scope, number, tier, refs[ref], *each)
            for each, ref in zip(found, missing[:, 0].tolist(), strict=True)
        ]
        left: npt.NDArray[np.intp] = missing[~np.array(entered, bool)]
        return left

    def _enter(self, scope: Scope, number: int, tier: Tier, ref: np.void, record: Record, location: int) -> bool:
        """Enter one record; False if it is not what was asked for, or nobody here can decode it."""
        core, removed, placed = self._core, Removed(), -1
        same = (record.position, record.tokens) == (int(ref["position"]), int(ref["tokens"]))
        if same and record.form != RAW:
            try:
                check_known(record.form, record.artefact, core.coder.artefacts.get, record.key)
            except NotFound:
                same = False
                if record.artefact != NO_ARTEFACT:
                    core.fetcher.want(record.artefact)
        try:
            if same:
                with core.lock:
                    placed = core.publish(scope, record, number, location, removed)
                    core.counters[f"found_{tier.name}"] += placed >= 0
        except KVStoreError:  # no row for it, or one with other figures: it is found again when there is
            same = False
        finally:
            core.settle(removed)
            if placed < 0:
                tier.evict(location, record.total_bytes)
        return same
