"""Locations: 63 bits that name a segment, one of its lives, and a block inside it.

    bits 44–62   life: the low 19 bits of the segment's generation
    bits 24–43   segment number; its upper 4 bits name the drive
    bits  0–23   4 KiB block inside the segment

The life makes a location that outlived its segment recognisable: reading or deleting it is a miss, never another
record. A generation has 64 bits: a counter in the low 20, and 44 random ones above it, so that nobody who
chooses payload can forge a header that a scan would take for one of this life.
"""

from __future__ import annotations

import secrets

from kvstore.record import BLOCK

BLOCK_BITS, SEGMENT_BITS, DRIVE_BITS, LIFE_BITS, COUNTER_BITS = 24, 20, 4, 19, 20
MAX_SEGMENTS = 1 << SEGMENT_BITS
MAX_DRIVES = 1 << DRIVE_BITS
SEGMENTS_PER_DRIVE = MAX_SEGMENTS // MAX_DRIVES
MAX_SEGMENT_BYTES = BLOCK << BLOCK_BITS
_BLOCK_MASK = (1 << BLOCK_BITS) - 1
_SEGMENT_MASK = MAX_SEGMENTS - 1
_LIFE_MASK = (1 << LIFE_BITS) - 1


def life_key(segment: int, generation: int) -> int:
    """A location without its block: names one life of one segment."""
    return (generation & _LIFE_MASK) << SEGMENT_BITS | segment


def locate(key: int, offset: int) -> int:
    """The location of the byte `offset` (a multiple of 4096) in the life `key`."""
    return key << BLOCK_BITS | offset // BLOCK


def key_of(location: int) -> int:
    """The life that a location lies in."""
    return location >> BLOCK_BITS


def segment_of(key: int) -> int:
    """The segment number of a life."""
    return key & _SEGMENT_MASK


def drive_of(location: int) -> int:
    """The number of the drive that a location lies on."""
    return segment_of(key_of(location)) // SEGMENTS_PER_DRIVE


def offset_of(location: int) -> int:
    """The byte in its segment where a location lies."""
    return (location & _BLOCK_MASK) * BLOCK


def next_generation(generation: int) -> int:
    """The generation of a segment's next life."""
    counter = (generation + 1) & ((1 << COUNTER_BITS) - 1)
    return secrets.randbits(64 - COUNTER_BITS) << COUNTER_BITS | counter
