"""The store: one index over all its tiers, for every namespace of this process.

`Store(config)` opens it (and recovers what its folder holds), `session(namespace)` gives a backend for a client.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from kvstore import __version__
from kvstore.api import ChunkInfo, Description, Drain, Page, PlacementInfo
from kvstore.artefacts import Artefacts
from kvstore.catalog import Namespace, Scope
from kvstore.codecs import form_name
from kvstore.coder import Coder
from kvstore.config import Config, PeersConfig, RemoteConfig
from kvstore.copies import Copies
from kvstore.core import ROWS_AT_ONCE, Core
from kvstore.descent import Descent
from kvstore.devices import Devices
from kvstore.drains import Drains
from kvstore.errors import KVStoreError
from kvstore.finder import Finder
from kvstore.forms import artefact_files, check_forms
from kvstore.host_pins import HostPins
from kvstore.loader import Loader
from kvstore.mover import Mover
from kvstore.objects import NAMESPACE as OBJECTS
from kvstore.objects import Objects, check_namespaces
from kvstore.opening import open_tiers
from kvstore.peering import address_for_peers
from kvstore.policy import check_policies
from kvstore.reader import Reader
from kvstore.reclaim import Reclaimer
from kvstore.record import BLOCK
from kvstore.records import Records
from kvstore.recovery import index_recovered
from kvstore.removed import Removed
from kvstore.scrubber import Scrubber
from kvstore.session import OwnedSession, Session
from kvstore.sharing import sharing_of
from kvstore.spec import KVSpec, Part
from kvstore.sweep import sweep, sweep_quietly
from kvstore.through import Through
from kvstore.tiers.base import Tier
from kvstore.writer import Writer

DELETE_PATIENCE_S = 0.25
THROUGH_PATIENCE_S = 10.0
LOADERS = 4  # threads that load and move, where no NVMe tier says how many
ARTEFACTS = "artefacts"  # the folder beside the segments
AnySession = TypeVar("AnySession", bound=Session)


class Store:
    """Everything behind the interface. Close it: with a persistent tier that writes a snapshot, so that the
    next opening is quick, and flushes what no such tier holds (`Config.flush_on_close`).
    """

    def __init__(self, config: Config, more: Sequence[Tier] = ()) -> None:
        """Open the store. `more` are opened tiers of one's own, slower than those of `config`; they are closed with it.

        Raises `ConfigError`, `StorageError`.
        """
        check_forms(config)
        check_namespaces(config)
        check_policies(config)
        folder = None if config.nvme is None else config.nvme.path / ARTEFACTS
        coder = Coder(config, Artefacts(folder, artefact_files(config)))
        dram, below, devices = open_tiers(config)
        threads = config.nvme.io_threads if config.nvme else LOADERS
        self._core = core = Core(config, dram, [*below, *more], coder, devices)
        self._reclaimer = Reclaimer(core)
        self._copies = Copies(core)
        descent = Descent(core, self._copies, self._reclaimer)
        self._writer = Writer(core, descent)
        self._loader = Loader(core, self._copies, self._writer, threads)
        self._reader = Reader(core, self._loader)
        self._mover = Mover(core, descent, threads)
        self._writer.wake_mover = self._mover.wake
        shared = [number for number, tier in enumerate(core.tiers) if tier.shared]
        wait_s = config.remote.lookup_wait_s if config.remote else RemoteConfig.lookup_wait_s
        peers_wait_s = config.peers.lookup_wait_s if config.peers else PeersConfig.lookup_wait_s
        self.finder = Finder(core, wait_s, peers_wait_s) if shared else None
        written = [number for number in shared if core.tiers[number].writable]
        self._through = [Through(core, descent, number, threads) for number in written]
        self.records = Records(core, self._loader)
        self._sharing = sharing_of(core)
        self.drains = Drains(core, descent, self._reclaimer)
        self._sessions = itertools.count(1)
        self._closing = threading.Lock()
        self._recover()
        self._mover.start()
        self.devices = Devices(core, self._loader)
        self._pins = HostPins(dram, devices[0], partial(core.events.announce, tier=dram.name)) if devices else None
        for through in self._through:
            through.start()
        if self._sharing is not None:
            self._sharing.start()
        self._scrubber = Scrubber(self, config.verify_bytes_per_s) if config.verify_bytes_per_s else None
        if self._scrubber is not None:
            self._scrubber.start()
        if coder.artefacts.stale():
            self._loader.submit(sweep_quietly, core, self._copies)

    @property
    def core(self) -> Core:
        """The state that its parts share."""
        return self._core

    @property
    def notes(self) -> Sequence[str]:
        """What was mended at the start, and what has happened to tiers since, in words."""
        return self._core.events.notes

    def session(self, namespace: str = "default") -> Session:
        """A way in for one client. `UnknownNamespace` unless the namespace is configured."""
        return self._session(namespace, Session)

    def objects(self) -> Objects:
        """What other hosts keep here by name; of a store that takes peers."""
        return Objects(self._core, self._session(OBJECTS, Session))

    def own_session(self, namespace: str = "default") -> OwnedSession:
        """A session whose end is the store's end too."""
        return self._session(namespace, OwnedSession)

    def scope(self, namespace: Namespace, spec: KVSpec) -> Scope:
        """The scope of a spec in a namespace."""
        core = self._core
        with core.lock:
            scope = core.catalog.scope(namespace, spec)
            core.shared.attach(scope)
            return scope

    def describe(self, namespace: Namespace) -> Description:
        """Who answers, and its limits."""
        core = self._core
        extra = {"simd": _simd()}
        if self.devices.ids:
            extra["hbm"] = ",".join(self.devices.ids)
        largest = core.dram.max_record - BLOCK
        chunks = max(len(core.usage.policy(tier, namespace)) for tier in core.order)
        names = tuple(core.tiers[number].name for number in core.order)
        return Description(__version__, namespace.name, names, largest, chunks, extra)

    def chunks(self, namespace: Namespace, cursor: int, limit: int) -> Page:
        """Some chunks of a namespace, from a cursor on."""
        core, found = self._core, list[ChunkInfo]()
        while cursor >= 0 and len(found) < limit:
            with core.lock:  # for a few rows at a time: others wait for it
                rows, cursor = core.index.chunks(cursor, min(ROWS_AT_ONCE, limit - len(found)))
                found.extend(self._info(row) for row in rows.tolist() if self._is_listed(row, namespace))
        return Page(tuple(found), max(cursor, 0))

    def verify(self, namespace: Namespace) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """Read every copy of every chunk back; bad ones are quarantined as they are found."""
        core, cursor = self._core, 0
        while True:
            page = self.chunks(namespace, cursor, 256)
            for info in page.chunks:
                for place in info.placements:
                    problem = self.check_copy(namespace, info, place)
                    if problem is not None:
                        yield info, place, problem
            cursor = page.cursor
            if not cursor:
                return
            core.check_open()

    def sweep_artefacts(self) -> int:
        """Remove the artefacts that are neither configured nor named by any record; how many."""
        return sweep(self._core, self._copies)

    def stats(self, namespace: Namespace) -> dict[str, Any]:
        """Counters since the start and gauges of now."""
        core = self._core
        with core.lock:
            chunks, parts, placements = core.index.counts()
            counters = core.usage.counted()
            gauges = {
                "leases": len(core.leases),
                "hazards": sum(len(board.locations()) for board in core.hazards.boards(namespace.digest)),
                "marks_lost": sum(board.lost for board in core.hazards.boards(namespace.digest)),
                "waiting_bytes": core.dram.waiting,
                "index_bytes": core.index.resident_bytes(),
                "loads": core.loads,
                "prefills": len(core.prefills),
                "through": sum(each.waiting for each in self._through),
                "promotions": self.devices.promoter.waiting,
            }
            if self._sharing is not None:
                gauges["unpublished"] = self._sharing.waiting
        tiers = {
            core.tiers[number].name: {
                **tier_stats(core.tiers[number], counters, self.drains.of(number)),
                **core.admissions.stats(number),
                "waiting_bytes": core.backlog[number],
                "load_factor": round(core.forecasts.factor(number), 3),
                "load_margin": round(core.forecasts.margin(number), 3),
                "load_spread": round(core.forecasts.spread(number), 3),
            }
            for number in core.order
        }
        return {
            "version": __version__,
            "namespace": {"name": namespace.name, "used": namespace.used, "quota": namespace.quota},
            "index": {"chunks": chunks, "parts": parts, "placements": placements},
            "gauges": gauges,
            "counters": counters,
            "tiers": tiers,
            "codecs": core.coder.stats(),
            "artefacts": core.coder.artefacts.stats(),
            "notes": list(self.notes),
        }

    def delete(self, scope: Scope, keys: Sequence[bytes]) -> int:
        """Forget chunks; how many there were.

        One that is being read or moved just now is waited for, a little; one that is leased goes with its lease.
        """
        core, removed = self._core, Removed()
        deadline = time.monotonic() + DELETE_PATIENCE_S
        with core.lock:
            rows = [(key, core.index.find(scope.number, key)) for key in keys]
            left = there = [key for key, row in rows if row >= 0 and row not in core.doomed]
            while left:
                left = [key for key in left if self._is_kept_by_readers(scope, key, removed)]
                if left and not core.room.wait(deadline - time.monotonic()):
                    break
        for failure in removed.settle():
            raise failure
        return len(there)

    def close(self) -> None:
        """Stop in order. A second call does nothing."""
        core = self._core
        with self._closing:
            if core.closed:
                return
            with core.lock:  # from now on nothing is taken in that would miss the flush
                core.close()
            core.shared.close()
            if self._scrubber is not None:
                self._scrubber.close()
            self.devices.close()
            core.fetcher.close()
            self._loader.close()
            self.drains.close()
            if self._sharing is not None:
                self._sharing.close()
            for through in self._through:
                through.close(THROUGH_PATIENCE_S)
            self._mover.close(flush=core.config.flush_on_close)
            core.loans.sweep()
            core.events.close()
            if self._pins is not None:
                self._pins.close()
            try:
                for tier in core.below:
                    tier.checkpoint()
                core.admissions.settle()
                core.admissions.put_aside()
            finally:
                for tier in reversed(core.tiers):
                    tier.close()

    def advertise(self, bulk: str, *, tls: bool) -> None:
        """Tell other hosts of this one, whose bulk channel listens there; does nothing without a directory of peers.

        `ConfigError` where others cannot reach it.
        """
        config = self._core.config.peers
        if self._sharing is not None and config is not None:
            self._sharing.advertise(address_for_peers(config, bulk, tls=tls))

    def _lost(self, tier: int, note: str, is_lost: Callable[[int], bool]) -> None:
        """A part of a tier has failed: what lay there is a miss from now on, before anybody asks for it."""
        core, cursor, removed = self._core, 0, Removed()
        core.events.announce(note, core.tiers[tier].name)
        while cursor >= 0:
            with core.lock:
                rows, cursor = core.index.chunks(cursor, ROWS_AT_ONCE)
                for row in rows.tolist():
                    scope = core.catalog.scopes[core.index.chunk(row).scope]
                    for placement in list(core.placements(row, tier)):
                        if is_lost(core.index.placement(placement).loc):
                            core.condemn(scope, placement, removed)
        core.settle(removed)

    def _is_kept_by_readers(self, scope: Scope, key: bytes, removed: Removed) -> bool:
        """Drop a chunk; whether nothing but readers is in the way, who are soon done. Needs the lock."""
        core = self._core
        chunk = core.index.find(scope.number, key)
        return chunk >= 0 and not core.drop_chunk(chunk, removed, "deleted") and not core.index.chunk(chunk).leases

    def _session(self, namespace: str, kind: type[AnySession]) -> AnySession:
        self._core.check_open()
        with self._core.lock:
            found = self._core.catalog.namespace(namespace)
        return kind(self, self._core, self._reader, self._loader, self._writer, found, next(self._sessions))

    def check_copy(self, namespace: Namespace, info: ChunkInfo, place: PlacementInfo) -> str | None:
        """Verify one copy: what is wrong with it, or nothing; None if it went away before it was looked at."""
        core = self._core
        tier = [each.name for each in core.tiers].index(place.tier)
        if not core.tiers[tier].writable:  # another host's, who sees to it
            return None
        with core.lock:
            scope = core.catalog.find(namespace.digest, info.spec)
            if scope is None:
                return None
            _, row = core.find_part(scope, info.key, place.part)
            placement = -1 if row < 0 else core.index.find_placement(row, tier)
            if placement < 0:
                return None
            copy = core.hold(placement, scope, place.part)
        try:
            return self._copies.check(scope, info.key, place.part, copy)
        finally:
            self._copies.finish(scope, info.key, place.part, copy)

    def _recover(self) -> None:
        """Enter the namespaces, and what tiers hold from before. On failure the tiers are closed."""
        core, config = self._core, self._core.config
        for each in config.namespaces:
            core.catalog.add_namespace(
                Namespace(each.name, each.quota, each.ttl_s, each.codec, each.lossy, each.policy)
            )
        if config.peers is not None:
            core.catalog.add_namespace(Namespace(OBJECTS))
        try:
            for number in range(1, len(core.tiers)):
                core.events.notes = [*core.events.notes, *index_recovered(core, number)]
                core.tiers[number].watch_losses(partial(self._lost, number))
                core.tiers[number].tend(self._reclaimer)
            core.events.notes = [*core.events.notes, *core.admissions.recall()]
            self.drains.recall()
        except KVStoreError:
            for tier in reversed(core.tiers):
                tier.close()
            raise

    def _is_listed(self, row: int, namespace: Namespace) -> bool:
        """Whether a chunk is a namespace's, and not deleted under somebody's lease. Needs the lock."""
        return (
            row not in self._core.doomed
            and self._core.catalog.scopes[self._core.index.chunk(row).scope].namespace is namespace
        )

    def _info(self, row: int) -> ChunkInfo:
        core, index = self._core, self._core.index
        chunk = index.chunk(row)
        places = []
        for placement in core.placements(row):
            place = index.placement(placement)
            part = index.part(place.part)
            which = Part(part.group, part.rank, (part.layer_start, part.layer_end))
            name, form = core.tiers[place.tier].name, form_name(place.codec)
            places.append(PlacementInfo(which, name, form, place.level, place.exact, part.logical, place.stored))
        spec = core.catalog.scopes[chunk.scope].spec.digest
        return ChunkInfo(
            chunk.key, chunk.parent, spec, chunk.position, chunk.tokens, chunk.hits, chunk.leases,
            chunk.pin_until, chunk.last_use, tuple(places),
        )  # fmt: skip


def tier_stats(tier: Tier, counters: Mapping[str, int], drains: Sequence[Drain] = ()) -> dict[str, Any]:
    """What a tier is like now; `hits` are parts read from it, `written` parts that came from another tier."""
    speed = tier.speed
    return {
        "kind": tier.kind,
        "state": next((each.state for each in drains if not each.path), tier.state),
        "capacity": tier.capacity,
        "used": tier.used,
        "read_bytes_per_s": speed.read_bytes_per_s,
        "write_bytes_per_s": speed.write_bytes_per_s,
        "latency_s": speed.latency_s,
        "hits": counters.get(f"hits_{tier.name}", 0) + counters.get(f"loaded_{tier.name}", 0),
        "written": counters.get(f"demoted_{tier.name}", 0) + counters.get(f"promoted_{tier.name}", 0),
        "evicted": counters.get(f"evicted_{tier.name}", 0),
        "errors": counters.get(f"errors_{tier.name}", 0),
        **tier.stats(),
        **({"drains": {each.path or tier.name: asdict(each) for each in drains}} if drains else {}),
    }


def _simd() -> str:
    from kvstore import _native

    return _native.simd_level()
