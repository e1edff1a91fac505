"""What is stored, and what happens to it, as messages: placements, chunks, events, drains, what was verified."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from kvstore.api import ChunkInfo, Drain, Event, PlacementInfo
from kvstore.spec import Part
from kvstore.v1 import kvstore_pb2 as pb


def placement_to_message(info: PlacementInfo) -> Any:
    """A `Placement` message."""
    return pb.Placement(
        part=info.part.pack(),
        tier=info.tier,
        form=info.form,
        level=info.level,
        exact=info.exact,
        logical=info.logical,
        stored=info.stored,
    )


def placement_from_message(message: Any) -> PlacementInfo:
    """The inverse of `placement_to_message`."""
    part = Part.unpack(message.part)
    return PlacementInfo(
        part, message.tier, message.form, message.level, message.exact, message.logical, message.stored
    )


def chunk_to_message(info: ChunkInfo) -> Any:
    """A `Chunk` message."""
    return pb.Chunk(
        key=info.key,
        parent=info.parent,
        spec=info.spec,
        position=info.position,
        tokens=info.tokens,
        hits=info.hits,
        leases=info.leases,
        pinned_until_ms=info.pinned_until_ms,
        last_use_ms=info.last_use_ms,
        placements=[placement_to_message(each) for each in info.placements],
    )


def chunk_from_message(message: Any) -> ChunkInfo:
    """The inverse of `chunk_to_message`."""
    return ChunkInfo(
        message.key,
        message.parent,
        message.spec,
        message.position,
        message.tokens,
        message.hits,
        message.leases,
        message.pinned_until_ms,
        message.last_use_ms,
        tuple(placement_from_message(each) for each in message.placements),
    )


def event_to_message(event: Event) -> Any:
    """An `Event` message."""
    return pb.Event(
        kind=event.kind,
        key=event.key,
        spec=event.spec,
        part=event.part.pack(),
        tier=event.tier,
        at_ms=event.at_ms,
        note=event.note,
        refs=event.refs,
    )


def event_from_message(message: Any) -> Event:
    """The inverse of `event_to_message`."""
    part = Part.unpack(message.part)
    return Event(message.kind, message.key, message.spec, part, message.tier, message.at_ms, message.note, message.refs)


def drain_to_message(drain: Drain) -> Any:
    """A `DrainResponse` message."""
    return pb.DrainResponse(**asdict(drain))


def drain_from_message(message: Any) -> Drain:
    """The inverse of `drain_to_message`."""
    return Drain(**{each.name: getattr(message, each.name) for each in fields(Drain)})


def verified_to_message(chunk: ChunkInfo, placement: PlacementInfo, problem: str) -> Any:
    """A `VerifyResponse` message."""
    return pb.VerifyResponse(chunk=chunk_to_message(chunk), placement=placement_to_message(placement), problem=problem)


def verified_from_bytes(data: bytes) -> tuple[ChunkInfo, PlacementInfo, str]:
    """The inverse of `verified_to_message`, from the encoded message."""
    found = pb.VerifyResponse.FromString(data)
    return chunk_from_message(found.chunk), placement_from_message(found.placement), found.problem
