"""Device memory beside DRAM: what lies there is told to readers on the device, under a lease, to be used in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kvstore.catalog import Scope
from kvstore.core import Core
from kvstore.errors import NotFound
from kvstore.loader import Loader
from kvstore.places import unpack_item
from kvstore.policy import Rows
from kvstore.promoter import Ask, Promoter
from kvstore.usage import FoundItems

if TYPE_CHECKING:
    from kvstore.tiers.hbm import HbmTier

Hold: TypeAlias = Callable[[Rows], None]


class Devices:
    """The devices of a store, by what they are called in every process of the host (`HbmTier.device_id`)."""

    def __init__(self, core: Core, loader: Loader) -> None:
        self._core = core
        self._numbers = {tier.device_id: n for n, tier in zip(core.on_devices, core.devices, strict=True)}
        self.promoter = Promoter(core, loader)
        if self._numbers:
            self.promoter.start()

    @property
    def ids(self) -> tuple[str, ...]:
        """What the devices are called."""
        return tuple(self._numbers)

    def check_any(self) -> None:
        """Raise `NotFound` where the store has no device."""
        if not self._numbers:
            self._number("asked for")

    def tier(self, device: str) -> HbmTier:
        """The tier of a device. `NotFound` if there is none."""
        return self._core.devices[self._number(device) - self._core.on_devices.start]

    def place(self, scope: Scope, items: bytes, device: str, hold: Hold) -> bytes:
        """Where packed items lie on a device, a packed place each (`kvstore.places`), whose location is in its slabs.

        `hold` is called under the lock to put the chunks of what lies there under a lease; not if nothing does.
        What does not lie there has no place, and is noted: it may come. Raises `NotFound` for another device.
        """
        core, number = self._core, self._number(device)
        with core.lock:
            core.check_open()
            found = FoundItems(
                *core.index.find_items(
                    scope.number, items, scope.packed_parts, scope.packed_headers, True, bytes([number]),
                    core.bad_rows(),
                )
            )  # fmt: skip
            there = found.chunks[found.placements >= 0]
            if len(there):
                core.usage.used_unleased(there, scope.namespace)
                core.counters[f"hits_{core.tiers[number].name}"] += len(there)
                hold(there)
            missed = [unpack_item(items, i) for i in np.flatnonzero(found.placements < 0).tolist()]
            known = [(ref, part) for ref, part in missed if core.find_part(scope, ref.key, part)[1] >= 0]
        for _, part in missed:
            scope.spec.check_part(part)
        self.promoter.ask(Ask(number, scope, ref, part) for ref, part in known)
        return found.places

    def close(self) -> None:
        """Nothing comes to a device any more."""
        self.promoter.close()

    def _number(self, device: str) -> int:
        try:
            return self._numbers[device]
        except KeyError:
            here = f"; it has {', '.join(self._numbers)}" if self._numbers else ""
            raise NotFound(f"this store has no hbm tier on the device {device}{here}: see [hbm] devices") from None
