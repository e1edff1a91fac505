"""Look-ups of one session: the longest prefix that is there and worth loading, leased and told where it lies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvstore.api import Fidelity, Found, Query
from kvstore.catalog import Namespace, Scope
from kvstore.core import DRAM, Core
from kvstore.errors import InvalidArgument
from kvstore.finder import Finder
from kvstore.keys import REF_BYTES
from kvstore.loader import Loader
from kvstore.places import elsewhere
from kvstore.policy import Rows
from kvstore.rows import REF_DTYPE
from kvstore.walk import all_parts, reach_of
from kvstore.worth import Asked, Choice, Worth

PROBES = 0  # the session, which is nobody's, whose forecasts are of probes


class Lookups:
    """Answers the look-ups of the session with this number.

    `finder` asks the shared tiers, where there are any; `loader` loads what is to be measured. `lease_end` says when a
    lease that is taken now ends, and `take_lease` puts chunks under one, in the store's lock.
    """

    def __init__(
        self,
        core: Core,
        finder: Finder | None,
        loader: Loader,
        namespace: Namespace,
        number: int,
        lease_end: Callable[[float], int],
        take_lease: Callable[[bytes, int, Rows], None],
    ) -> None:
        self._core, self._finder, self._loader = core, finder, loader
        self._namespace, self._number = namespace, number
        self._lease_end, self._take_lease = lease_end, take_lease
        self._worth = Worth(core)

    def find(self, scope: Scope, query: Query) -> Found:
        """What of a query is there; see `kvstore.api.Backend.lookup`."""
        core = self._core
        if len(query.refs) % REF_BYTES:
            raise InvalidArgument(f"look-up records have {REF_BYTES} bytes each; {len(query.refs)} is no multiple")
        parts, packed = scope.parts, scope.packed_parts
        if query.parts:
            for part in query.parts:
                scope.spec.check_part(part)
            parts, packed = tuple(query.parts), b"".join(part.pack() for part in query.parts)
        until = self._lease_end(query.lease_s) if query.lease else 0
        refs = np.frombuffer(query.refs, REF_DTYPE)
        exact = query.fidelity is Fidelity.EXACT
        if query.places and not query.lease:
            raise InvalidArgument("places are told under a lease only: what is not held may move")
        speeds = None if query.prompt is None else self._worth.speeds()
        places, choice, probed = b"", None, list[bytes]()
        core.events.looked_up(self._namespace.name, query.spec.digest, query.refs)
        if self._finder is not None:
            self._finder.complete(scope, query.refs, parts, packed, exact)
        with core.lock:
            rows, present, first_valid = core.index.lookup(scope.number, query.refs, packed, exact, 0)
            if core.doomed or core.bad:
                present &= ~np.isin(rows, list(core.doomed | core.bad_chunks()))
            whole = all_parts(present)
            reach = far = reach_of(scope, refs, parts, present, whole, first_valid)
            if speeds is not None and query.prompt is not None:
                asked = Asked(
                    scope, refs, rows, parts, packed, scope.headers_of(parts), present, whole, first_valid, exact,
                    query.prompt,
                )  # fmt: skip
                choice = self._worth.choose(asked, far, speeds, leased=bool(query.lease))
                reach = choice.reach
                core.prefills.tell(self._number, scope, query.prompt.prefill)
            if query.lease:
                used = reach.take(rows)
                self._take_lease(query.lease, until, used)
                core.usage.asked(scope, query.refs, rows)
                probed = self._expect(query.lease, choice)
                if len(far.used):  # what is asked for and computed all the same is in use, too
                    core.usage.used(far.take(rows), self._namespace)
                if query.places or len(core.tiers) > 1:
                    places = core.index.places(used, packed, scope.headers_of(parts), exact, DRAM, core.bad_rows())
            if len(reach.used):
                core.counters["hit_tokens"] += reach.tokens if choice is None else choice.plan.tokens
        self._loader.probe(scope, probed, query.fidelity)
        used_refs = reach.indexes()
        # Without a tier beside DRAM nothing is asked for places, and nothing is cold.
        cold = tuple(used_refs[i] for i in elsewhere(places, reach.take(present.T).T)) if places else ()
        told = places if query.places else b""
        plan, left_out = None if choice is None else choice.plan, far.tokens - reach.tokens
        flags = whole.view(np.bool_).tolist()
        return Found(reach.tokens, used_refs, flags, bool(query.lease), told, cold, plan, left_out)

    def _expect(self, lease: bytes, choice: Choice | None) -> list[bytes]:
        """Note what a plan leads to expect; the keys of what is to be loaded beside, to be measured. Needs the lock."""
        if choice is not None and choice.forecast is not None:
            self._core.forecasts.expect((self._number, lease), choice.forecast)
        if choice is None or choice.probe is None:
            return []
        self._core.forecasts.expect((PROBES, lease), choice.probe)
        return [self._core.index.chunk(row).key for row in choice.probe.cold]
