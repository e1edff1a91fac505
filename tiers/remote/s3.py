"""Objects in an S3 bucket, through obstore.

Requests run in obstore's own threads. Where one request is the whole call, the caller's thread waits for it, through a
store of the library whose requests end in time. Where a call has several, one event loop in a thread of this module
waits for them, and a call that is out of time cancels them; for single requests the way there and back took longer
than a fast server. Memory of the caller is touched by the caller's own thread alone when reading, and let go before
`put` returns when writing.

Beneath the prefix lie the objects under their names, and two folders in capitals, which no name has: `UPLOADS/` for
large objects before they are complete, `PROBE/` for what the start tries out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from kvstore import _native
from kvstore.errors import Closed, Corrupt, DeadlineExceeded, InvalidArgument, KVStoreError, NotFound, Unavailable
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.object_names import check_name
from kvstore.tiers.remote.s3_errors import Failure, explain, failures, refuse
from kvstore.tiers.remote.s3_place import S3Place, Stores
from kvstore.tiers.remote.s3_probe import PROBE, Conditions, find_conditions
from kvstore.tiers.remote.s3_upload import UPLOADS, Upload, let_go, sweep_uploads

if TYPE_CHECKING:
    from obstore import Bytes
    from obstore.store import S3Store

T = TypeVar("T")
MIB = 1 << 20
START_S = 10.0
_CAPITALS = (PROBE, UPLOADS)
_PAGE = 1000


class S3Engine(Engine):
    """A bucket, or what lies under a prefix of it.

    `part_bytes`: longer reads are cut into equal ranges of about this length that are fetched in parallel, at most
    `parallel` at a time over all calls; so are uploads of `multipart_bytes` and more, which are assembled beside
    their place and copied there by the server, because no server takes a multipart upload under a condition from
    this library; one that copies under no condition gets them in one request each. `request_timeout_s` bounds a single
    request where a call has no deadline of its own (listing, and what is left of an upload that was given up). `notes`
    says in words what the server cannot do.

    `ConfigError` where the bucket is missing, elsewhere, or closed to these credentials; `Unavailable` where nobody
    answers within `start_timeout_s`.
    """

    kind: ClassVar[str] = "s3"

    def __init__(
        self,
        place: S3Place,
        *,
        part_bytes: int = 16 * MIB,
        multipart_bytes: int = 64 * MIB,
        parallel: int = 64,
        request_timeout_s: float = 30.0,
        start_timeout_s: float = START_S,
    ) -> None:
        if part_bytes < 5 * MIB or multipart_bytes < part_bytes:
            raise InvalidArgument("part_bytes is 5 MiB at least, and multipart_bytes no less than that")
        if parallel < 1 or request_timeout_s <= 0:
            raise InvalidArgument("parallel and request_timeout_s are positive")
        self.place = place
        self.notes: list[str] = []
        self._store = place.open(request_timeout_s)
        self._stores = Stores(place)
        self._part, self._multipart, self._closed = part_bytes, multipart_bytes, False
        self._conditions = Conditions(put=False, copy=False)
        self._loop = asyncio.new_event_loop()
        self._requests = asyncio.Semaphore(parallel)
        self._parts_at_once = min(8, parallel)
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvstore-s3", daemon=True)
        self._thread.start()
        try:
            self._open(start_timeout_s)
        except BaseException:
            self.close()
            raise

    @property
    def has_conditional_put(self) -> bool:
        """Whether the server refuses to replace an object when asked to."""
        return self._conditions.put

    def put(self, name: str, pieces: Sequence[memoryview], timeout_s: float) -> bool:
        """As `Engine` has it. Where the server knows no conditional put, two writers at the same moment both succeed
        and one object stays, whole (`notes` says so)."""
        check_name(name)
        end = time.monotonic() + timeout_s
        views = [memoryview(piece) for piece in pieces]
        doing = f"putting {name}"
        nbytes = sum(view.nbytes for view in views)
        if nbytes >= self._multipart and self._conditions.copy is self._conditions.put:
            upload = Upload(self._store, name, views, self._part, self._parts_at_once, self._conditions.copy)
            try:
                return self._wait(upload.run(), end, doing, upload.give_up)
            finally:
                upload.give_up()
        try:
            return self._put(name, views, end, doing)
        finally:
            let_go(views)

    def read_into(self, name: str, offset: int, out: memoryview, timeout_s: float) -> None:
        check_name(name)
        doing, end = f"reading {name}", time.monotonic() + timeout_s
        if round(out.nbytes / self._part) > 1:
            self._read_in_parts(name, offset, out, end, doing)
            return
        import obstore

        store = self._now(end)
        found: Bytes | bytes = b""
        try:
            if out.nbytes:
                found = obstore.get_range(store, name, start=offset, length=out.nbytes)
            else:
                obstore.head(store, name)
        except failures() as error:
            failure = Failure.of(error)
            if not failure.is_beyond:
                raise explain(failure, doing, str(self.place)) from None
        self._check_length(name, offset, len(found), out.nbytes)
        if out.nbytes:
            _native.copy(out, found)

    def _read_in_parts(self, name: str, offset: int, out: memoryview, end: float, doing: str) -> None:
        each = -(-out.nbytes // round(out.nbytes / self._part))
        ranges = [(at, min(each, out.nbytes - at)) for at in range(0, out.nbytes, each)]
        parts = [self._submit(self._range(name, offset + at, n)) for at, n in ranges]
        try:
            for (at, n), part in zip(ranges, parts, strict=True):
                found = self._result(part, end, doing)
                self._check_length(name, offset + at, len(found), n)
                _native.copy(out[at : at + n], found)
        finally:
            for part in parts:
                part.cancel()

    def _check_length(self, name: str, offset: int, found: int, wanted: int) -> None:
        if found != wanted:
            raise Corrupt(f"{name} in {self.place} ends {wanted - found} bytes before {offset + wanted}")

    def heads(self, names: Sequence[str], nbytes: int, timeout_s: float) -> Sequence[bytes | None]:
        if nbytes < 1:
            raise InvalidArgument("the head of an object has one byte at least")
        for name in names:
            check_name(name)
        end = time.monotonic() + timeout_s
        return self._wait(self._heads(names, nbytes), end, f"reading the heads of {len(names)} objects")

    def delete(self, names: Sequence[str], timeout_s: float) -> None:
        paths = [check_name(name) for name in names]
        if paths:
            self._wait(self._delete(paths), time.monotonic() + timeout_s, f"deleting {len(paths)} objects")

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        import obstore

        if self._closed:
            raise Closed("the S3 engine is closed")
        # The library lists whole folders only.
        folder = prefix.rpartition("/")[0]
        try:
            for page in obstore.list(self._store, folder or None, chunk_size=_PAGE):
                for meta in page:
                    name = meta["path"]
                    if name.startswith(prefix) and not name.startswith(_CAPITALS):
                        yield name, meta["size"]
        except failures() as error:
            raise explain(Failure.of(error), f"listing {prefix!r}", str(self.place)) from None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        ending = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        with suppress(concurrent.futures.TimeoutError):
            ending.result(5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()

    def _put(self, name: str, views: Sequence[memoryview], end: float, doing: str) -> bool:
        import obstore

        store = self._now(end)
        # A list of memory is sent as one request only under a mode that is not `overwrite`, or when told so.
        whole: Any = views if len(views) > 1 else views[0] if views else b""
        options: dict[str, Any] = {"mode": "create"} if self._conditions.put else {"use_multipart": False}
        try:
            if not self._conditions.put and _is_there(store, name):
                return False
            obstore.put(store, name, whole, **options)
        except failures() as error:
            failure = Failure.of(error)
            if failure.is_taken and (not failure.is_conflict or self._came(name, end)):
                return False
            raise explain(failure, doing, str(self.place)) from None
        return True

    def _came(self, name: str, end: float) -> bool:
        """Whether what another upload of this name was about to put is there by now."""
        with suppress(*failures()):
            return _is_there(self._now(end), name)
        return False

    def _now(self, end: float) -> S3Store:
        if self._closed:
            raise Closed("the S3 engine is closed")
        return self._stores.within(end - time.monotonic())

    # What runs in the loop.

    async def _range(self, name: str, start: int, nbytes: int) -> Bytes | bytes:
        import obstore

        async with self._requests:
            try:
                return await obstore.get_range_async(self._store, name, start=start, length=nbytes)
            except failures() as error:
                if Failure.of(error).is_beyond:
                    return b""
                raise

    async def _heads(self, names: Sequence[str], nbytes: int) -> Sequence[bytes | None]:
        async def head(name: str) -> bytes | None:
            try:
                return bytes(await self._range(name, 0, nbytes))
            except failures() as error:
                if Failure.of(error).is_absent:
                    return None
                raise

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(head(name)) for name in names]
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _delete(self, paths: Sequence[str]) -> None:
        import obstore

        async with self._requests:
            try:
                await obstore.delete_async(self._store, paths)
            except failures() as error:
                if not Failure.of(error).is_absent:
                    raise

    async def _cancel_all(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    # The start.

    def _open(self, timeout_s: float) -> None:
        """Try out what the server can do, and clean up."""
        end = time.monotonic() + timeout_s
        try:
            self._conditions = self._outcome(self._submit(find_conditions(self._store)), end, "opening")
        except DeadlineExceeded:
            raise Unavailable(f"{self.place} did not answer within {timeout_s:g} s") from None
        except failures() as error:
            failure, place = Failure.of(error), str(self.place)
            raise (refuse(failure, place) or explain(failure, "opening", place)) from None
        self.notes += self._conditions.notes(self.place)
        try:
            self._wait(sweep_uploads(self._store), end, "sweeping old uploads")
        except (NotFound, OSError) as error:
            self.notes.append(f"old uploads were not swept: {error}")

    # The caller's side.

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self._closed:
            work.close()
            raise Closed("the S3 engine is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(
        self, work: Coroutine[Any, Any, T], end: float, doing: str, give_up: Callable[[], None] | None = None
    ) -> T:
        return self._result(self._submit(work), end, doing, give_up)

    def _result(
        self, future: concurrent.futures.Future[T], end: float, doing: str, give_up: Callable[[], None] | None = None
    ) -> T:
        """What a piece of work came to; what the library raised, explained."""
        try:
            return self._outcome(future, end, doing, give_up)
        except KVStoreError:
            raise
        except failures() as error:
            raise explain(Failure.of(error), doing, str(self.place)) from None

    def _outcome(
        self, future: concurrent.futures.Future[T], end: float, doing: str, give_up: Callable[[], None] | None = None
    ) -> T:
        """What a piece of work came to, until `end`; after that it is cancelled, or given up in its own way."""
        try:
            return future.result(max(0.0, end - time.monotonic()))
        except concurrent.futures.CancelledError:
            raise Closed("the S3 engine was closed") from None
        except concurrent.futures.TimeoutError:
            (give_up or future.cancel)()
            raise DeadlineExceeded(f"{doing}: {self.place} did not answer in time") from None


def _is_there(store: S3Store, name: str) -> bool:
    import obstore

    try:
        obstore.head(store, name)
    except failures() as error:
        if Failure.of(error).is_absent:
            return False
        raise
    return True
