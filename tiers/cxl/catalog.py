"""What the digests in records mean: names and specs, one after the other in a piece of device 0.

Each entry is 16 bytes (xxh3-64 of its body, or zeros after the last; length of the body u32; zeros) and a JSON body,
padded to 8 bytes. The checksum is written last: an entry of which a part was written is the end of the catalog.
"""

from __future__ import annotations

import json
import struct
import threading
from typing import Any

from kvstore import _native
from kvstore.errors import KVStoreError, StorageError
from kvstore.namespace import namespace_digest
from kvstore.spec import KVSpec
from kvstore.tiers.cxl.regions import Region
from kvstore.tiers.cxl.superblock import CATALOG_AT, CATALOG_BYTES

_HEAD = struct.Struct("<QI4x")
_CHECKSUM = struct.Struct("<Q")


class Catalog:
    """Names and specs by digest; reads what is there when it is made. `notes` say what could not be read."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._lock = threading.Lock()
        self.names: dict[bytes, str] = {}
        self.specs: dict[bytes, KVSpec] = {}
        self.notes: list[str] = []
        self._end = 0
        memory = region.view(CATALOG_AT, CATALOG_BYTES)
        while (body := self._entry(memory)) is not None:
            self._take(body)
            self._end += _HEAD.size + _padded(len(body))

    def describe(self, namespace: str, spec: KVSpec) -> None:
        """Add what is not there yet, durably. `StorageError` if the catalog is full."""
        digest = namespace_digest(namespace)
        if digest in self.names and spec.digest in self.specs:
            return
        with self._lock:
            if digest not in self.names:
                self._append({"namespace": namespace})
                self.names[digest] = namespace
            if spec.digest not in self.specs:
                self._append({"spec": spec.to_dict()})
                self.specs[spec.digest] = spec

    def _entry(self, memory: memoryview) -> bytes | None:
        if self._end + _HEAD.size > len(memory):
            return None
        checksum, length = _HEAD.unpack_from(memory, self._end)
        start = self._end + _HEAD.size
        if not checksum or length > len(memory) - start:
            return None
        body = bytes(memory[start : start + length])
        return body if _checksum(body) == checksum else None

    def _take(self, body: bytes) -> None:
        try:
            data = json.loads(body)
            if "namespace" in data:
                self.names[namespace_digest(data["namespace"])] = data["namespace"]
            else:
                spec = KVSpec.from_dict(data["spec"])
                self.specs[spec.digest] = spec
        except (ValueError, KeyError, TypeError, KVStoreError) as error:
            self.notes.append(f"an entry of the catalog of {self._region.name} cannot be read ({error})")

    def _append(self, content: dict[str, Any]) -> None:
        body = json.dumps(content, separators=(",", ":")).encode()
        nbytes = _HEAD.size + _padded(len(body))
        if self._end + nbytes > CATALOG_BYTES:
            raise StorageError(f"the catalog of {self._region.name} is full: {len(self.specs)} specs; wipe the tier")
        at = CATALOG_AT + self._end
        entry = self._region.view(at, nbytes)
        entry[:] = bytes(nbytes)
        entry[_HEAD.size : _HEAD.size + len(body)] = body
        _HEAD.pack_into(entry, 0, 0, len(body))
        self._region.flush(at, nbytes)
        _CHECKSUM.pack_into(entry, 0, _checksum(body))
        self._region.flush(at, nbytes)
        self._end += nbytes


def _checksum(body: bytes) -> int:
    return _native.xxh3_64(body) or 1


def _padded(nbytes: int) -> int:
    return -(-nbytes // 8) * 8
