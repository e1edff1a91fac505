"""Parts that the store keeps in the memory of the worker's GPU: scattered from where they lie, as far as they do.

What does not lie there, or cannot be opened, is loaded as ever. Asking for it brings it there for the next time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kvstore.client import Client
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._plan import LoadJob
from kvstore.connectors.vllm._warn import Warn
from kvstore.device_views import DeviceViews
from kvstore.errors import InvalidArgument, KVStoreError, NotFound
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec, Part

PAUSE_S = 60.0  # after an answer that there is nothing on this device, or that it cannot be opened


class InPlaceParts:
    """What lies there of one load, under a lease, until `close`."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[bytes, int], tuple[Any, DeviceViews]] = {}
        self._views: list[DeviceViews] = []

    def add(self, group: int, refs: Sequence[ChunkRef], views: DeviceViews) -> None:
        """Enter a KV group's parts."""
        self._views.append(views)
        for ref, tensor in zip(refs, views.tensors, strict=True):
            if tensor is not None:
                self._tensors[ref.key, group] = tensor, views

    def find(self, ref: ChunkRef, group: int) -> Any | None:
        """A part's bytes as a tensor, or None."""
        return self._tensors.get((ref.key, group), (None, None))[0]

    def is_over(self, ref: ChunkRef, group: int) -> bool:
        """Whether what was read of a part may be another chunk's."""
        return self._tensors[ref.key, group][1].over

    def close(self) -> None:
        """Give the leases back. Nothing reads the tensors any more. Raises what the store answers with."""
        self._tensors.clear()
        while self._views:
            self._views.pop().close()


class InPlace:
    """Asks the store for what lies on one device. Any thread may."""

    def __init__(self, client: Client, spec: KVSpec, rank: int, device: Any, counts: Counts) -> None:
        self._client, self._spec, self._rank, self._device = client, spec, rank, device
        self._counts = counts
        self._paused_until = 0.0
        self._warn = Warn("device memory", PAUSE_S)

    def open(self, job: LoadJob) -> InPlaceParts:
        """What lies there of a load. Nothing, and counted, where that cannot be told or opened."""
        found = InPlaceParts()
        if time.monotonic() < self._paused_until:
            return found
        try:
            for number, group in enumerate(self._spec.groups):
                first = max(job.start, group.first_needed(job.end))
                refs = [ref for ref in job.refs if ref.end > first]
                if refs:
                    views = self._client.device_views(
                        self._spec, refs, part=self._part(number), device=self._device
                    )  # fmt: skip
                    found.add(number, refs, views)
        except (NotFound, InvalidArgument):  # the store has no memory on this device, or is on another host
            self._paused_until = time.monotonic() + PAUSE_S
        except (KVStoreError, RuntimeError) as error:  # torch raises the latter
            self.failed(error)
        return found

    def failed(self, error: Exception) -> None:
        """Something of it could not be used; what it was for is loaded as ever, and nothing is asked for a while."""
        self._paused_until = time.monotonic() + PAUSE_S
        self._counts.add(in_place_failed=1)
        self._warn(f"the store's memory on {self._device} is not used: {type(error).__name__}: {error}")

    def close(self, parts: InPlaceParts) -> None:
        """Give the leases of a load back."""
        try:
            parts.close()
        except KVStoreError as error:
            self.failed(error)

    def _part(self, group: int) -> Part:
        return self._spec.part(group, 0 if self._spec.groups[group].latent_dim else self._rank)
