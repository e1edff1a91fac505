"""Parts in device memory of a server on this host: opened once, slab by slab, and used where they lie."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore.channels.lines import Lines
from kvstore.channels.local_life import Life
from kvstore.channels.stream import Stream
from kvstore.device_views import DeviceViews
from kvstore.errors import InvalidArgument, NotFound, SpecMismatch
from kvstore.places import EXTENT_SHIFT, NOWHERE, Place, unpack_places
from kvstore.record import RAW
from kvstore.spec import KVSpec
from kvstore.v1 import kvstore_pb2 as pb

if TYPE_CHECKING:
    from kvstore.tiers.hbm import Importer

_OFFSET = (1 << EXTENT_SHIFT) - 1
_MARGIN_S = 0.002  # by how much the server's milliseconds may be short of ours


class _Slab(NamedTuple):
    """What the server says of a slab; `descriptor` is -1 for device memory."""

    told: Any
    descriptor: int

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class _Answer:
    """The answer to a DevicePlaces, with the descriptors that came along."""

    def __init__(self, life: Life, line: Stream, message: bytes) -> None:
        told = pb.DevicePlacesResponse.FromString(message)
        self.life, self.places = life, list(unpack_places(told.places))
        self.slabs: dict[int, _Slab] = {}
        for each in told.slabs:
            self.slabs[each.number] = _Slab(each, line.take_descriptor() if each.descriptor else -1)

    def close(self) -> None:
        for each in self.slabs.values():
            each.close()


class LocalDevices:
    """The calls for one client of the local channel. Importing torch is left to the first of them."""

    def __init__(self, lines: Lines, life_of: Callable[[Stream], Life]) -> None:
        self._lines, self._life_of = lines, life_of

    def views(
        self, spec: KVSpec, items: bytes, device: Any, lease: bytes, lease_s: float, release: Callable[[], None]
    ) -> DeviceViews:
        """Packed items where they lie on a device, under a lease (without a time limit if `lease_s` is 0).

        `release` gives the lease back. Raises `NotFound` where the server has nothing on this device, `Unavailable`
        where its memory cannot be opened here.
        """
        named, importer_of = _device_tools()
        request = pb.DevicePlacesRequest(
            spec=spec.digest, items=items, device=named(device), lease=lease, lease_ms=math.ceil(lease_s * 1000)
        ).SerializeToString()
        sent = time.monotonic()

        def attempt(line: Stream) -> _Answer:
            life = self._life_of(line)
            return _Answer(life, line, self._lines.exchange(line, pb.METHOD_DEVICE_PLACES, request))

        try:
            with closing(self._lines.run(attempt)) as answer:
                if not answer.slabs:  # nothing lies there, and nothing was leased
                    return DeviceViews([None] * len(answer.places), _nothing, lambda: False)
                tensors = _opened(importer_of(answer.life), answer)
        except NotFound:
            raise
        except BaseException:  # it may be held all the same
            release()
            raise
        life, deadline = answer.life, sent + lease_s - _MARGIN_S if lease_s else math.inf
        return DeviceViews(tensors, lambda: None if life.ended else release(), lambda: life.is_over, deadline)


def _opened(importer: Importer, answer: _Answer) -> list[Any]:
    slabs = {
        number: importer.open_slab(slab.told.identity, slab.told.bytes, slab.told.opening, slab.descriptor)
        for number, slab in answer.slabs.items()
    }
    return [None if place[0] == NOWHERE else _cut(slabs, place) for place in answer.places]


def _cut(slabs: dict[int, Any], place: Place) -> Any:
    location, stored, form, _ = place
    slab, at = slabs.get(location >> EXTENT_SHIFT), location & _OFFSET
    if slab is None or form != RAW or at + stored > slab.nbytes:
        raise SpecMismatch(f"the server named a place on a device that it has not given: {location:#x}")
    return slab[at : at + stored]


def _device_tools() -> tuple[Callable[[Any], str], Callable[[Life], Importer]]:
    try:
        from kvstore.tiers.hbm.ipc import Importer, named_device
    except ImportError as error:
        raise InvalidArgument(f"device memory is given as tensors of torch, which is not here: {error}") from None

    def importer_of(life: Life) -> Importer:
        with life.lock:
            if life.slabs is None:
                life.slabs = Importer()
            return life.slabs

    return named_device, importer_of


def _nothing() -> None:
    """Nothing is held."""
