"""What was taken out of the index, to be given back to its tiers once the store's lock is no longer held."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.errors import KVStoreError
from kvstore.tiers.base import Tier

ERASED = ("deleted", "quarantined")  # from shared tiers too, whoever wrote it
REPLACED = "replaced"


@dataclass
class Removed:
    """Bytes to give back to a tier once the lock is no longer held."""

    places: list[tuple[Tier, int, int]] = field(default_factory=list)
    evicted: list[tuple[Tier, int, int]] = field(default_factory=list)  # what others wrote stays for them
    forgotten: list[tuple[Tier, int, int]] = field(default_factory=list)  # what lies there has another location

    def __bool__(self) -> bool:
        return bool(self.places or self.evicted or self.forgotten)

    def list_for(self, tier: Tier, kind: str) -> list[tuple[Tier, int, int]]:
        """Where that goes which is taken out of a tier for a reason.

        What was replaced in a shared tier has the same name there as what took its place.
        """
        if not tier.shared or kind in ERASED:
            return self.places
        return self.forgotten if kind == REPLACED else self.evicted

    def bytes_in(self, tier: Tier) -> int:
        """How many bytes of this host's are to be given back to one tier."""
        places = [*self.places, *self.evicted, *self.forgotten]
        return sum(nbytes for each, location, nbytes in places if each is tier and each.owns(location))

    def settle(self) -> list[KVStoreError]:
        """Tell the tiers, all of them even where one fails; what failed."""
        failures = []
        while self:
            tier, location, nbytes = (kept := self.forgotten or self.evicted or self.places).pop()
            let_go = tier.forget if kept is self.forgotten else tier.evict if kept is self.evicted else tier.delete
            try:
                let_go(location, nbytes)
            except KVStoreError as error:
                failures.append(error)
        return failures
