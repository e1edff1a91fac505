"""The client: arrays in, arrays out, over any backend.

with kvstore.open(config) as client:                 # or kvstore.connect("127.0.0.1:7420")
    chain = client.chain(spec, token_ids)
    for ref in chain.refs:
        client.put(spec, ref, array)                 # NumPy or torch, `spec.part_shape(part, ref.tokens)`
    with client.lookup(spec, chain, lease_s=10) as hit:
        for ref in hit.refs:
            array = client.get(spec, ref)
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from kvstore import arrays
from kvstore.api import (
    Ack,
    Backend,
    ChunkInfo,
    Description,
    Drain,
    Event,
    Fidelity,
    Offer,
    Page,
    PlacementInfo,
    Query,
    Reservation,
    View,
    Want,
)
from kvstore.arguments import ack_of, check_layers, check_ref, keys_of, part_of
from kvstore.cost import Prompt
from kvstore.device_views import DeviceViews
from kvstore.errors import InvalidArgument
from kvstore.hit import Hit
from kvstore.keys import Chain, ChunkRef, Extras, TokenIds, check_key, pack_refs
from kvstore.probing import Probing
from kvstore.spec import KVSpec, Part


class Client:
    """A store, in this process or another. Safe to use from several threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._probing = Probing()

    @property
    def backend(self) -> Backend:
        """What the client talks through."""
        return self._backend

    def use(self, backend: Backend) -> None:
        """Talk through another backend from now on."""
        self._backend = backend

    def buffer(self, shape: int | Sequence[int], dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
        """An array to fill and put, in memory that the server can read where it lies.

        Over the local channel a put of such an array, or of a contiguous piece of it, is not copied on this side.
        Elsewhere it is an ordinary array. `dtype` is NumPy's or a spec's name for it (bfloat16 as uint16).
        """
        make = getattr(self._backend, "buffer", None)
        kind = arrays.numpy_dtype(dtype) if isinstance(dtype, str) else np.dtype(dtype)
        found: np.ndarray[Any, Any] = np.empty(shape, kind) if make is None else make(shape, kind)
        return found

    def describe(self) -> Description:
        """Version, namespace, tiers and limits of what answers."""
        return self._backend.describe()

    def chain(self, spec: KVSpec, tokens: TokenIds, extras: Extras | None = None) -> Chain:
        """The chunks of a prompt. Compute it once per request."""
        return Chain.of(tokens, spec.chunk_tokens, extras)

    def lookup(
        self,
        spec: KVSpec,
        chain: Chain | Sequence[ChunkRef],
        *,
        parts: Sequence[Part] = (),
        fidelity: Fidelity = Fidelity.EXACT,
        lease_s: float = 0.0,
        block_tokens: int = 0,
        prompt: Prompt | None = None,
    ) -> Hit:
        """The longest prefix of `chain` whose `parts` (default: all) are there.

        With `lease_s` the answer is a promise for that long, without it a hint. With `block_tokens` a second
        look-up asks for tails cut at every engine block where the first one ended. With `prompt` the hit ends where
        computing the rest is quicker than loading it, and `Hit.plan` says why.
        """
        refs = chain.refs if isinstance(chain, Chain) else tuple(chain)
        packed = chain.packed if isinstance(chain, Chain) else pack_refs(refs)
        if lease_s < 0:
            raise InvalidArgument(f"a lease lasts more than 0 seconds, not {lease_s}")
        lease = secrets.token_bytes(16) if lease_s > 0 else b""
        query = Query(spec, packed, parts, fidelity, lease, lease_s, prompt=prompt)
        found = self._backend.lookup(query)
        if block_tokens and isinstance(chain, Chain) and found.tokens < len(chain.ids) and not found.left_out:
            tails = chain.tails(found.tokens, block_tokens)
            refs = (*refs[: found.tokens // chain.chunk_tokens], *tails)
            if tails:
                found = self._backend.lookup(replace(query, refs=pack_refs(refs)))
        used = refs[: len(found.used)] if isinstance(found.used, range) else tuple(map(refs.__getitem__, found.used))
        cold = tuple(map(refs.__getitem__, found.cold))
        held = lease if found.leased else b""
        if found.left_out and prompt is not None and not prompt.link_bytes_per_s:
            self._probing.left_out(self._backend, query, refs, found)
        return Hit(spec, found.tokens, used, held, cold, found.plan, found.left_out, self._backend)

    def contains(
        self,
        spec: KVSpec,
        refs: Sequence[ChunkRef],
        *,
        parts: Sequence[Part] = (),
        fidelity: Fidelity = Fidelity.EXACT,
    ) -> list[bool]:
        """Whether each chunk is there with all `parts`, whatever stands before it. A hint, not a promise."""
        return list(self._backend.lookup(Query(spec, pack_refs(refs), parts, fidelity)).present)

    def put(
        self,
        spec: KVSpec,
        ref: ChunkRef,
        array: Any,
        *,
        part: Part | None = None,
        first_valid: int = 0,
        ack: Ack | str = Ack.STORED,
    ) -> bool:
        """Store one part of a chunk; False if it was there already.

        `array` has the shape `spec.part_shape(part, ref.tokens)`; `part` may be left out where the spec has one.
        `first_valid` is for sliding-window groups whose first tokens are gone. Raises `SpecMismatch`, `TooLarge`,
        `Shed` (try later) and `StorageError`.
        """
        chosen = part_of(spec, part)
        check_ref(spec, ref)
        if first_valid and not (spec.groups[chosen.group].window and 0 <= first_valid < ref.tokens):
            raise InvalidArgument(
                f"first_valid={first_valid} is for sliding-window groups and must be below {ref.tokens} tokens"
            )
        data = arrays.part_memory(array, spec, chosen, ref.tokens)
        return self._backend.put(spec, Offer(ref, chosen, data, first_valid), ack=ack_of(ack))

    def get(
        self,
        spec: KVSpec,
        ref: ChunkRef,
        *,
        part: Part | None = None,
        out: Any = None,
        layers: tuple[int, int] | None = None,
        fidelity: Fidelity = Fidelity.EXACT,
        verify: bool = False,
    ) -> Any:
        """Read one part of a chunk into `out` (a NumPy array or torch tensor; a new array if left out).

        `layers` chooses layer groups inside the part, half-open. Raises `NotFound` on a miss, `Corrupt` where the
        bytes no longer match (the copy is quarantined: the next get is a miss).
        """
        chosen = part_of(spec, part)
        target = out
        if layers is not None:
            check_layers(spec, chosen, ref, layers)
        if target is None:
            target = arrays.empty(spec, chosen, ref.tokens, None if layers is None else layers[1] - layers[0])
        want = self.want(spec, ref, target, part=chosen, layers=layers)
        (outcome,) = self._backend.get(spec, [want], fidelity=fidelity, verify=verify)
        self._probing.read()
        if outcome is not None:
            raise outcome
        return target

    def want(
        self,
        spec: KVSpec,
        ref: ChunkRef,
        out: Any,
        *,
        part: Part | None = None,
        layers: tuple[int, int] | None = None,
    ) -> Want:
        """One entry for `get_many`; checks that `out` fits."""
        chosen = part_of(spec, part)
        check_ref(spec, ref)
        if layers is None:
            return Want(ref, chosen, arrays.part_memory(out, spec, chosen, ref.tokens, writable=True))
        ranges = check_layers(spec, chosen, ref, layers)
        nbytes = sum(length for _, length in ranges[layers[0] : layers[1]])
        return Want(ref, chosen, arrays.layer_memory(out, nbytes), layers)

    def get_many(
        self,
        spec: KVSpec,
        wants: Sequence[Want],
        *,
        fidelity: Fidelity = Fidelity.EXACT,
        verify: bool = False,
    ) -> Sequence[Exception | None]:
        """Read many parts in one call, several in flight; one outcome each, in order."""
        outcomes = self._backend.get(spec, wants, fidelity=fidelity, verify=verify)
        if wants:
            self._probing.read()
        return outcomes

    def get_each(
        self,
        spec: KVSpec,
        wants: Sequence[Want],
        *,
        fidelity: Fidelity = Fidelity.EXACT,
        verify: bool = False,
    ) -> Iterator[tuple[int, Exception | None]]:
        """`get_many`, for using each destination as soon as it is filled: (index in `wants`, None or what is wrong).

        For a pipeline by layer give a want with `layers` for each layer group. Every index comes once: in order,
        but those that have to be waited for after the others. The time that the caller takes between two does not
        count towards the time limit. Leaving off early (`close`, or the end of the loop) ends the reading.
        """
        return self._backend.get_each(spec, wants, fidelity=fidelity, verify=verify)

    def view(
        self,
        spec: KVSpec,
        ref: ChunkRef,
        *,
        part: Part | None = None,
        fidelity: Fidelity = Fidelity.EXACT,
        encoded: bool = False,
    ) -> View:
        """A part without a copy: read-only memory of the store, held until the view is closed.

        One that is stored encoded is decoded into memory of its own; with `encoded` it comes as it is stored.
        """
        return self._backend.view(spec, ref, part_of(spec, part), fidelity=fidelity, encoded=encoded)

    def device_views(
        self,
        spec: KVSpec,
        refs: Sequence[ChunkRef],
        *,
        part: Part | None = None,
        device: Any = None,
        lease_s: float = 0.0,
    ) -> DeviceViews:
        """A part of chunks in a GPU's memory, where the store keeps them, without a copy: uint8 tensors, until closed.

        `device` is torch's or its name (None: the current GPU, else `cpu`). Chunks that do not lie there are None, and
        come with use. Raises `NotFound` where the store has nothing on this device (`[hbm] devices`), `Unavailable`
        where its memory cannot be opened here, `InvalidArgument` over a network.
        """
        if not refs:
            raise InvalidArgument("no chunks were named")
        if lease_s < 0:
            raise InvalidArgument(f"a lease lasts more than 0 seconds, not {lease_s}")
        return self._backend.device_views(spec, refs, part_of(spec, part), device=device, lease_s=lease_s)

    def reserve(self, spec: KVSpec, ref: ChunkRef, *, part: Part | None = None, first_valid: int = 0) -> Reservation:
        """Memory of the store to fill in place; `commit` publishes it."""
        check_ref(spec, ref)
        return self._backend.reserve(spec, ref, part_of(spec, part), first_valid=first_valid)

    def delete(self, spec: KVSpec, keys: Sequence[bytes]) -> int:
        """Forget chunks; how many there were."""
        return self._backend.delete(spec, [check_key(key) for key in keys])

    def pin(self, spec: KVSpec, keys: Sequence[bytes], seconds: float) -> int:
        """Keep chunks from eviction for some seconds; how many there were."""
        if not seconds > 0:
            raise InvalidArgument(f"a pin lasts more than 0 seconds, not {seconds}; use unpin to end it")
        return self._backend.pin(spec, [check_key(key) for key in keys], seconds)

    def unpin(self, spec: KVSpec, keys: Sequence[bytes]) -> int:
        """End pins; how many chunks there were."""
        return self._backend.pin(spec, [check_key(key) for key in keys], 0.0)

    def ended(self, spec: KVSpec, chain: Chain | Sequence[ChunkRef]) -> int:
        """Say that nobody will go on with this prompt: under the policy `value` it is the first to go.

        `chain` is all of it, as for a look-up, with the answer if that was stored. What others share of it stays
        while they use it; whatever is used again is kept as before. How many of its chunks there were.
        """
        return self._backend.hint(spec, keys_of(chain), 0.0)

    def awaited(self, spec: KVSpec, chain: Chain | Sequence[ChunkRef], seconds: float) -> int:
        """Say that this prompt comes back in about so long, when a tool has run: until then it is the last to go.

        If it is not back by then it counts as ended. Advice alone, where `pin` is a promise; see `ended`.
        """
        if not seconds > 0:
            raise InvalidArgument(f"a prompt is awaited for more than 0 seconds, not {seconds}; or has it ended?")
        return self._backend.hint(spec, keys_of(chain), seconds)

    def prefetch(self, spec: KVSpec, keys: Sequence[bytes], *, fidelity: Fidelity = Fidelity.EXACT) -> int:
        """Bring chunks into DRAM in the background, as exact as `fidelity` asks; how many were found."""
        return self._backend.prefetch(spec, [check_key(key) for key in keys], fidelity=fidelity)

    def page(self, cursor: int = 0, limit: int = 1000) -> Page:
        """Up to `limit` stored chunks, and the cursor that goes on after them."""
        return self._backend.chunks(cursor, limit)

    def list(self) -> Iterator[ChunkInfo]:
        """Every stored chunk of the namespace."""
        cursor = 0
        while True:
            page = self._backend.chunks(cursor)
            yield from page.chunks
            cursor = page.cursor
            if not cursor:
                return

    def stats(self) -> dict[str, Any]:
        """Counters and gauges as plain data."""
        return self._backend.stats()

    def drain(self, tier: str, path: str = "") -> Drain:
        """Empty a tier, or the drive at `path` of one, so that it can be pulled; how far that is. `stats` tells more.

        Nothing is written there any more; what only it holds is moved, in the background. Idempotent. `InvalidArgument`
        for what cannot be drained.
        """
        return self._backend.drain(tier, path)

    def resume(self, tier: str, path: str = "") -> Drain:
        """Take a tier or a drive back into use. Idempotent. `StorageError` where a drive is not there any more."""
        return self._backend.resume(tier, path)

    def watch(self, *, lookups: bool = False) -> Iterator[Event]:
        """Events from now on: stored, moved, evicted, quarantined; of the kind `tier`, what happened to one.

        With `lookups` the look-ups of the namespace alone, each with the references asked for. While anybody watches
        them, clients on the server's host ask it too, instead of reading the shared index.
        """
        return self._backend.watch(lookups=lookups)

    def verify(self) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """Read everything back against its checksums."""
        return self._backend.verify()

    def close(self) -> None:
        """End the connection, and its leases; an embedded store is closed in order."""
        self._backend.close()
        self._probing.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
