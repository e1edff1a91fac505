"""Names of records in a place that hosts share: the same on every host, spread over the place's partitions.

An object's name is `SS/NAMESPACE/SPEC/KEY-PART` in hexadecimal, where SS is the key's first byte: keys are digests,
so stores that split their load by the beginnings of names get 256 even shares. What digests mean lies under `meta/`.
"""

from __future__ import annotations

import re

from kvstore.spec import Part
from kvstore.tiers.base import Name

PACKED_BYTES = 72
META = "meta/"
_OBJECT = re.compile(r"([0-9a-f]{2})/([0-9a-f]{32})/([0-9a-f]{32})/([0-9a-f]{64})-([0-9a-f]{16})\Z")


def pack(name: Name) -> bytes:
    """72 bytes: namespace, spec, key, part."""
    return name.namespace + name.spec + name.key + name.part.pack()


def unpack(packed: bytes) -> Name:
    """The inverse of `pack`."""
    return Name(packed[:16], packed[16:32], packed[32:64], Part.unpack(packed[64:]))


def object_name(packed: bytes) -> str:
    """What the object of a packed name is called in the place."""
    digits = packed.hex()
    return f"{digits[64:66]}/{digits[:32]}/{digits[32:64]}/{digits[64:128]}-{digits[128:]}"


def parse(name: str) -> bytes | None:
    """The packed name of an object; None for an object that is no record."""
    found = _OBJECT.match(name)
    if found is None or found[1] != found[4][:2]:
        return None
    return bytes.fromhex("".join(found.groups()[1:]))
