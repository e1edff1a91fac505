"""Objects that are too large for one request: multipart uploads, and what must be cleaned up after them.

An upload goes to a name of its own, which nobody looks for, and is copied to its place by the server under the
condition that nothing is there. The library aborts an upload of which a part fails, but not one whose caller just
stops waiting: so that one is told to stop, and does so before its next part.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kvstore.errors import DeadlineExceeded
from kvstore.tiers.remote.s3_errors import Failure, failures

if TYPE_CHECKING:
    from obstore.store import S3Store

UPLOADS = "UPLOADS/"
STALE = timedelta(days=1)
_LET_GO_S = 1.0
_PIECE = 1 << 20


class Upload:
    """One object's way to its place."""

    def __init__(
        self,
        store: S3Store,
        name: str,
        views: Sequence[memoryview],
        part_bytes: int,
        parallel: int,
        has_conditions: bool,
    ) -> None:
        self._store, self._name, self._views = store, name, views
        self._part, self._parallel, self._has_conditions = part_bytes, parallel, has_conditions
        self._beside = f"{UPLOADS}{uuid.uuid4().hex}"
        self._given_up = False

    def give_up(self) -> None:
        """Read the caller's memory no more, stop before the next piece, and put nothing in place. From any thread."""
        self._given_up = True

    async def run(self) -> bool:
        """False if the name is there already."""
        import obstore

        if await self._is_there():
            return False
        pieces: Any = self._pieces()
        try:
            await obstore.put_async(
                self._store, self._beside, pieces, use_multipart=True, chunk_size=self._part,
                max_concurrency=self._parallel,
            )  # fmt: skip
            self._check()
            return await self._move()
        finally:
            with suppress(*failures()):
                await obstore.delete_async(self._store, self._beside)

    def _pieces(self) -> Iterator[bytes]:
        """Copies of the caller's memory: what is on its way is not the caller's any more."""
        for view in self._views:
            for at in range(0, view.nbytes, _PIECE):
                self._check()
                yield bytes(view[at : at + _PIECE])

    def _check(self) -> None:
        if self._given_up:
            raise DeadlineExceeded(f"the upload of {self._name} was given up")

    async def _is_there(self) -> bool:
        import obstore

        try:
            await obstore.head_async(self._store, self._name)
        except failures() as error:
            if Failure.of(error).is_absent:
                return False
            raise
        return True

    async def _move(self) -> bool:
        import obstore

        if not self._has_conditions:
            if await self._is_there():
                return False
            await obstore.copy_async(self._store, self._beside, self._name, overwrite=True)
            return True
        try:
            await obstore.copy_async(self._store, self._beside, self._name, overwrite=False)
        except failures() as error:
            if Failure.of(error).is_taken:
                return False
            raise
        return True


def let_go(views: Sequence[memoryview]) -> None:
    """Return when no request reads this memory any more, or after a second.

    A request that was cancelled is dropped by the library's own threads, soon but not at once; until then the memory
    cannot be released. Should it take longer, what is sent no longer has the checksum that the request was signed
    with, and the server refuses it.
    """
    end = time.monotonic() + _LET_GO_S
    for view in views:
        while True:
            try:
                view.release()
                break
            except BufferError:
                if time.monotonic() > end:
                    return
                time.sleep(0.0005)


async def sweep_uploads(store: S3Store) -> None:
    """Delete what uploads left that nobody finished for a day. (Incomplete parts are the bucket's lifecycle's.)"""
    import obstore

    old, oldest = list[str](), datetime.now(UTC) - STALE
    async for page in obstore.list(store, UPLOADS.rstrip("/")):
        old += [meta["path"] for meta in page if meta["last_modified"] < oldest]
    if old:
        await obstore.delete_async(store, old)
