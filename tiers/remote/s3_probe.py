"""What a server can do, found out when an engine opens."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvstore.tiers.remote.s3_errors import Failure, failures

if TYPE_CHECKING:
    from obstore.store import S3Store

PROBE = "PROBE/"
_UNABLE = frozenset({400, 405, 411, 501})  # what servers answer to a request that they do not know


@dataclass(frozen=True)
class Conditions:
    """Whether a server refuses to replace an object: by a put, and at the end of a copy."""

    put: bool
    copy: bool

    def notes(self, place: object) -> list[str]:
        """What follows for its users, in words."""
        if not self.put:
            return [
                f"{place} knows no conditional put (If-None-Match: *): whether an object is there is asked before "
                "it is written, and of two writers at the same moment the later one's object stays"
            ]
        if not self.copy:
            return [f"{place} knows no conditional copy: records of any length are put in one request, not in parts"]
        return []


async def find_conditions(store: S3Store) -> Conditions:
    """Write an object, then try to replace it. Raises what `failures` names where even the first is refused."""
    import obstore

    name = f"{PROBE}{uuid.uuid4().hex}"
    await obstore.put_async(store, name, b"1", use_multipart=False)
    put = await _refused(obstore.put_async(store, name, b"2", mode="create"))
    copy = put and await _refused(obstore.copy_async(store, name, name, overwrite=False))
    await obstore.delete_async(store, name)
    return Conditions(put, copy)


async def _refused(replacing: Awaitable[object]) -> bool:
    """Whether the object that is there was the reason."""
    try:
        await replacing
    except failures() as error:
        failure = Failure.of(error)
        if not failure.is_taken and failure.status not in _UNABLE:
            raise
        return failure.is_taken
    return False
