"""LMCache's server in another process, its memory pool shared with the client (`engine_driven` over `--shm-name`)."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from .children import free_port, spawn, wait_for
from .driver import EXISTS, Bytes, Driver, need
from .lmcache import HEAD_DIM, LAYERS, QUIET, TOKENS, choose_threads, number
from .loop import main

GiB = 1 << 30
TIMEOUT_S = 30.0
MODEL = "bench"
INSTANCE = 1000
MADV_POPULATE_WRITE = 23


class LMCacheDaemon(Driver):
    """One chunk is one prompt of 256 tokens, copied whole between the caller's memory and the shared pool.

    An engine with paged blocks would gather and scatter them; one contiguous copy is the fastest that there is.
    LMCache removes no single chunk, so its pool holds all that is ever put.
    """

    mode = "shared memory"
    does = ("get", "get-leased", "put", "exists")

    def open(self) -> None:
        """Start the server, register a model with it, map its pool."""
        os.environ.update(QUIET)
        self._torch = import_module("torch")
        self._requests = count()
        self._versions: dict[str, int] = {}
        self._open_request = ""
        port, http = free_port(), free_port()
        everything = (self.job.count + self.job.puts + EXISTS + 8) * self.job.nbytes
        command = [str(Path(sys.executable).parent / "lmcache"), "server", "--transport", "zmq"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--http-host", "127.0.0.1", "--http-port", str(http)]
        command += ["--l1-size-gb", f"{1.3 * everything / GiB:.3f}", "--no-l1-use-lazy", "--eviction-policy", "LRU"]
        command += ["--eviction-trigger-watermark", "0.95", "--l1-read-ttl-seconds", "3600"]
        command += ["--supported-transfer-mode", "engine_driven", "--shm-name", self.job.tag]
        command += ["--disable-observability", "--chunk-size", str(TOKENS)]
        process = spawn(self.stack, command)
        self.pids = [process.pid]
        wait_for(process, ("127.0.0.1", port))
        self._connect(f"tcp://127.0.0.1:{port}")

    def ready(self) -> None:
        """Decide how torch copies."""
        how = choose_threads(self._torch, self)
        self.note = f"--shm-name, engine_driven over zmq; pool's pages touched before; {how}"

    def _connect(self, url: str) -> None:
        torch = self._torch
        heads = self.job.nbytes // (LAYERS * 2 * TOKENS * HEAD_DIM * 2)
        self._shape = torch.Size([2, LAYERS, TOKENS, heads * HEAD_DIM])
        factory = import_module("lmcache.v1.multiprocess.transport.factory").RequestClientFactory
        self._client: Any = factory.create(url, context=import_module("zmq").Context())
        transfer = import_module("lmcache.v1.multiprocess.transfer_context").EngineDrivenTransferContext
        worker = transfer(INSTANCE, self._client)
        # Registering needs the shape of an engine's paged cache; one page is enough, nothing is ever copied there.
        page = {f"layer.{i}": torch.zeros((2, 1, TOKENS, heads, HEAD_DIM), dtype=torch.bfloat16) for i in range(LAYERS)}
        worker.register(page, MODEL, 1, 1, TIMEOUT_S, layout_hints={"kv_layout": "NHD"})
        self._context = worker.engine_driven_context
        need(type(self._context).__name__ == "EngineDrivenContextShm", "LMCache fell back to pickling the payload")
        self._key_type = import_module("lmcache.v1.multiprocess.custom_types").IPCCacheServerKey
        self.stack.callback(worker.close)
        _touch(self._context._shm_buffer)

    def store(self, key: str, data: Bytes) -> None:
        """PREPARE_STORE, copy into the slot, COMMIT_STORE."""
        self._versions[key] = self._versions.get(key, -1) + 1
        self._store_prompt(self._prompt(key), [data])

    def load(self, key: str, target: Bytes) -> None:
        """LOOKUP to the end of its prefetch, then `load_leased`."""
        self.lease(key)
        self.load_leased(key, target)

    def lease(self, key: str) -> None:
        """LOOKUP locks what it finds until it is retrieved."""
        found = self._look(self._prompt(key))
        need(found == 1, f"LMCache found {found} chunks of {key}")

    def load_leased(self, key: str, target: Bytes) -> None:
        """PREPARE_RETRIEVE, copy out of the slot, COMMIT_RETRIEVE."""
        asked = self._key(self._prompt(key), self._open_request)
        slots = self._context.prepare_retrieve(asked, INSTANCE)
        need(bool(slots), f"LMCache did not retrieve {key}")
        self._tensor(target).copy_(slots[0].view(self._shape))
        need(self._context.commit_retrieve(asked, INSTANCE), "COMMIT_RETRIEVE failed")

    def settle(self) -> None:
        """End the request."""
        self._client.end_session(self._open_request).result(timeout=TIMEOUT_S)

    def forget(self, key: str) -> None:
        """LMCache has no call for it: the next store of `key` goes under a prompt of its own."""

    def prepare_exists(self) -> None:
        """Store one prompt of `EXISTS` chunks."""
        self._long = tuple(range(1 << 22, (1 << 22) + EXISTS * TOKENS))
        self._store_prompt(self._long, [self.targets[i] for i in range(EXISTS)])
        self.settle()

    def exists(self) -> int:
        """One LOOKUP of that prompt, to the end of its prefetch."""
        return self._look(self._long)

    def _store_prompt(self, tokens: tuple[int, ...], chunks: list[Bytes]) -> None:
        asked = self._key(tokens, self._request())
        prepared = self._context.prepare_store(asked, INSTANCE)
        need(prepared is not None and len(prepared[0]) == len(chunks), "LMCache offered no memory for a chunk")
        for slot, index in zip(*prepared, strict=True):
            slot.view(self._shape).copy_(self._tensor(chunks[index]))
        need(self._context.commit_store(asked, INSTANCE, []), "COMMIT_STORE failed")

    def _look(self, tokens: tuple[int, ...]) -> int:
        asked = self._key(tokens, self._request())
        self._client.lookup(asked.no_worker_id_version(), 1).result(timeout=TIMEOUT_S)
        found = None
        while found is None:
            found = self._client.query_prefetch_status(self._open_request).result(timeout=TIMEOUT_S)
        return int(found)

    def _request(self) -> str:
        self._open_request = f"request-{next(self._requests)}"
        return self._open_request

    def _prompt(self, key: str) -> tuple[int, ...]:
        return (number(key), self._versions[key], *range(TOKENS - 2))

    def _key(self, tokens: tuple[int, ...], request: str) -> Any:
        return self._key_type(
            model_name=MODEL, world_size=1, num_kv_readers=1, worker_id=0, token_ids=tokens, start=0, end=len(tokens),
            request_id=request,
        )  # fmt: skip

    def _tensor(self, data: Bytes) -> Any:
        return self._torch.from_numpy(data).view(self._torch.bfloat16).view(self._shape)


def _touch(pool: memoryview) -> None:
    """Bring in every page of the pool: the first touch of a page costs more than copying to it."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(pool))
    libc = ctypes.CDLL(None, use_errno=True)
    status = libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(pool.nbytes), MADV_POPULATE_WRITE)
    need(status == 0, f"the pool's pages could not be touched: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(LMCacheDaemon)
