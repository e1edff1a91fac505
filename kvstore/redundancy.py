"""Whether what a placement holds is kept elsewhere too, so that it may go from where it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvstore import _native
from kvstore.catalog import Catalog
from kvstore.tiers.base import Tier


class Redundancy:
    """What other tiers have of a placement. Every method needs the store's lock."""

    def __init__(self, index: _native.Index, catalog: Catalog, tiers: Sequence[Tier], order: bytes) -> None:
        """`order` are the numbers of the tiers that are read from."""
        self._index, self._catalog, self._order = index, catalog, order
        self._persistent = [number for number, tier in enumerate(tiers) if tier.persistent]
        self._peers = next((number for number, tier in enumerate(tiers) if not tier.writable), None)

    def only_here(self, placement: int) -> bool:
        """Whether no other tier has what a placement holds: as good, or as its namespace lets it become."""
        place = self._index.placement(placement)
        others = (tier for tier in self._order if tier != place.tier)
        return not any(self.has(tier, place.part, exact=place.exact) for tier in others)

    def has(self, tier: int, part_row: int, *, exact: bool) -> bool:
        """Whether a tier has a part, of which there is an exact copy elsewhere or not."""
        there = self._index.find_placement(part_row, tier)
        if there < 0 or not exact or self._index.placement(there).exact:
            return there >= 0
        return self._catalog.scopes[self._index.chunk(self._index.part(part_row).chunk).scope].namespace.lossy

    def all_in(self, tier: int, placements: Iterable[int]) -> bool:
        """Whether a tier has what all of these hold; see `has`."""
        places = map(self._index.placement, placements)
        return all(self.has(tier, place.part, exact=place.exact) for place in places)

    def at_peers(self, placements: Iterable[int]) -> bool:
        """Whether another host has what all of these hold, so that they are the first to go."""
        return self._peers is not None and self.all_in(self._peers, placements)

    def is_kept(self, part_row: int, *, exact: bool) -> bool:
        """Whether a tier that survives the process has a part; see `has`."""
        return any(self.has(tier, part_row, exact=exact) for tier in self._persistent)
