"""Look-ups, loads and saves of pages. What fails is a miss, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kvstore.client import Client
from kvstore.connectors.access import Breaker, hold
from kvstore.connectors.sglang._identity import page_ref
from kvstore.connectors.sglang._pages import Page, as_bytes
from kvstore.errors import Corrupt, InvalidArgument, NotFound, Shed, SpecMismatch
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec, Part

WINDOW_BYTES = 4 << 20  # what goes through memory of our own at a time, where the store's cannot be looked at


class Transfers:
    """One rank's pages in the store. Any thread may call.

    `pages` of the calls are arrays of a part's shape, in any strides. The lists returned say for each page whether it
    went well; after the first that did not nothing more is tried, since a prefix ends there.
    """

    def __init__(self, client: Client, spec: KVSpec, part: Part, hold_s: float, breaker: Breaker) -> None:
        self._client, self._spec, self._part = client, spec, part
        self._hold_s, self._breaker = hold_s, breaker
        self._nbytes = spec.part_bytes(part, spec.chunk_tokens)

    def leading(self, hashes: Sequence[str]) -> int:
        """How many pages are there from the first on. They are brought into DRAM, and not evicted for `hold_s`."""
        return self._breaker.run(lambda: self._leading(hashes), 0)

    def load(self, hashes: Sequence[str], pages: Sequence[Page]) -> list[bool]:
        """From the store into the pages."""
        loaded = [False] * len(hashes)

        def load() -> None:
            for n in self._load(self._refs(hashes), pages):
                loaded[n] = True

        self._breaker.run(load, None)
        return loaded

    def save(self, hashes: Sequence[str], pages: Sequence[Page]) -> list[bool]:
        """From the pages into the store, which may have some already."""
        saved = [False] * len(hashes)
        self._breaker.run(lambda: self._save(self._refs(hashes), pages, saved), None)
        return saved

    def clear(self) -> None:
        """Forget every page of this spec."""

        def forget() -> None:
            keys = [each.key for each in self._client.list() if each.spec == self._spec.digest]
            self._client.delete(self._spec, keys)

        self._breaker.run(forget, None)

    def _refs(self, hashes: Sequence[str]) -> list[ChunkRef]:
        return [page_ref(each, self._spec.chunk_tokens) for each in hashes]

    def _leading(self, hashes: Sequence[str]) -> int:
        refs = self._refs(hashes)
        there = self._client.contains(self._spec, refs, parts=[self._part])
        keys = [ref.key for ref in refs[: there.index(False) if False in there else len(there)]]
        return len(keys) if hold(self._client, self._spec, keys, self._hold_s) else 0

    def _load(self, refs: Sequence[ChunkRef], pages: Sequence[Page]) -> Iterator[int]:
        """Yields the number of each page that has come."""
        if all(page.flags.c_contiguous for page in pages):
            yield from self._read(refs, as_bytes(pages))
            return
        for n, (ref, page) in enumerate(zip(refs, pages, strict=True)):
            try:
                self._copy_view(ref, page)
            except SpecMismatch:
                return
            except (InvalidArgument, Shed):  # this way in has no views, or DRAM has no room to load it into
                yield from (n + each for each in self._through_memory(refs[n:], pages[n:]))
                return
            yield n

    def _copy_view(self, ref: ChunkRef, page: Page) -> None:
        """From where the store keeps it, in one copy."""
        with self._client.view(self._spec, ref, part=self._part) as view:
            source = np.frombuffer(view.data, page.dtype)
            if source.size != page.size:
                raise SpecMismatch(f"chunk {ref.key.hex()} has {source.nbytes} bytes, a page has {page.nbytes}")
            np.copyto(page, source.reshape(page.shape))
            del source  # the view is held for as long as an array stands on it

    def _through_memory(self, refs: Sequence[ChunkRef], pages: Sequence[Page]) -> Iterator[int]:
        """In two copies, the second out of memory that is still in the processor's cache."""
        count = max(1, WINDOW_BYTES // self._nbytes)
        window = np.empty((count, *pages[0].shape), pages[0].dtype)
        for start in range(0, len(refs), count):
            outs = as_bytes(list(window[: len(refs) - start]))
            for n in self._read(refs[start : start + count], outs):
                np.copyto(pages[start + n], window[n])
                yield start + n

    def _read(self, refs: Sequence[ChunkRef], outs: Sequence[Page]) -> Iterator[int]:
        """Into contiguous memory."""
        wants = [self._client.want(self._spec, ref, out, part=self._part) for ref, out in zip(refs, outs, strict=True)]
        for n, outcome in self._client.get_each(self._spec, wants):
            if outcome is None:
                yield n
            elif not isinstance(outcome, NotFound | Corrupt):
                raise outcome

    def _save(self, refs: Sequence[ChunkRef], pages: Sequence[Page], saved: list[bool]) -> None:
        there = self._client.contains(self._spec, refs, parts=[self._part])
        buffer = self._client.buffer(self._nbytes)
        for n, (ref, page) in enumerate(zip(refs, pages, strict=True)):
            if not there[n]:
                np.copyto(buffer.view(page.dtype).reshape(page.shape), page)
                self._client.put(self._spec, ref, buffer, part=self._part)
            saved[n] = True
