"""How fast the engines compute, as they say in their look-ups: what a chunk is worth to them hangs on it."""

from __future__ import annotations

from collections.abc import Iterable

from kvstore.catalog import Namespace, Scope
from kvstore.cost import Prefill

COMPARED_TOKENS = 4096  # the prompt by whose time engines are compared
MOST = 4096


class Prefills:
    """What live engines have told, by session and spec. Needs the store's lock.

    Of several engines of one spec the fastest counts. Without any the rate of the configuration does, if there is one.
    """

    def __init__(self, tokens_per_s: float) -> None:
        """`tokens_per_s` is what is configured; 0: nothing."""
        self._configured = Prefill.of_rate(tokens_per_s) if tokens_per_s > 0 else None
        self._told: dict[tuple[int, int], Prefill] = {}

    def __len__(self) -> int:
        return len(self._told)

    def tell(self, session: int, scope: Scope, prefill: Prefill) -> None:
        """What an engine says of itself."""
        if (session, scope.number) in self._told or len(self._told) < MOST:
            self._told[session, scope.number] = prefill

    def forget(self, session: int) -> None:
        """A session is over, and its engine with it."""
        for key in [each for each in self._told if each[0] == session]:
            del self._told[key]

    def of(self, scope: Scope) -> Prefill | None:
        """What the fastest engine of a spec takes to compute; None if nobody has said."""
        return self._fastest(prefill for (_, number), prefill in self._told.items() if number == scope.number)

    def of_namespace(self, namespace: Namespace, scopes: list[Scope]) -> Prefill | None:
        """The same over all specs of a namespace."""
        told = self._told.items()
        return self._fastest(prefill for (_, number), prefill in told if scopes[number].namespace is namespace)

    def _fastest(self, told: Iterable[Prefill]) -> Prefill | None:
        return min(told, key=lambda each: float(each.seconds(0, COMPARED_TOKENS)), default=self._configured)
