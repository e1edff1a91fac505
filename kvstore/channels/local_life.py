"""What a client on the server's host knows of one life of the server. All of it is void when that ends."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kvstore.channels.extents import Extents
from kvstore.channels.local_hazards import HazardLeases
from kvstore.channels.local_leases import LeasedPlaces
from kvstore.channels.stream import Stream
from kvstore.shared_index import SharedIndex

if TYPE_CHECKING:
    from kvstore.tiers.hbm import Importer


class Life:
    """Extents, leases, staged memory and the shared index of one life of the server.

    `anchor` is a connection that nothing is said on: as long as it is open the session lasts, and with it every
    lease, whatever becomes of the connections that calls are made on.
    """

    def __init__(self, anchor: Stream) -> None:
        self.instance = anchor.instance
        self.extents = Extents()
        self.leases = LeasedPlaces()
        self.staged: set[int] = set()
        self.index: SharedIndex | None = None
        self.slabs: Importer | None = None  # of the server's device memory
        self.hazards: HazardLeases | None = None
        self.index_asked = False
        self.ended = False
        self.lock = threading.Lock()  # of `staged`, `index`, `hazards`, `slabs`; held while the server is told
        self._anchor = anchor

    @property
    def anchor(self) -> int:
        """The descriptor of the connection that the session lasts with."""
        return self._anchor.fileno()

    @property
    def is_over(self) -> bool:
        """Whether the server has ended the session by now, asked or not: it ends that before it gives memory back."""
        return self.ended or self._anchor.ended()

    def end(self) -> None:
        """Nothing of it counts any more. Memory that somebody still looks at stays mapped."""
        self.ended = True
        self.leases.drop_all()
        if self.hazards is not None:
            self.hazards.end()  # before the descriptor that it watches may be another file's
        slabs, self.slabs = self.slabs, None
        if slabs is not None:
            slabs.close()
        self._anchor.close()

    def leave_to_parent(self) -> None:
        """In the child of a fork: what is held is the parent's to release."""
        self.ended = True
        if self.hazards is not None:
            self.hazards.end()
