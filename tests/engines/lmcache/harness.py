"""LMCache's objects and its plugin loading, and daemons of its own with this store under them."""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import add_l2_adapters_args, parse_args_to_l2_adapters_config
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

SHAPE = (2, 4, 16, 64)
WAIT_S = 30.0


def plugin(address: str = "", **params: Any) -> str:
    """What a user pastes behind `--l2-adapter`."""
    return json.dumps(
        {
            "type": "plugin",
            "module_path": "kvstore.connectors.lmcache",
            "class_name": "KVStoreL2Adapter",
            "adapter_params": {**({"server": address} if address else {}), **params},
        }
    )


def adapter(address: str = "", **params: Any) -> Any:
    """An adapter as LMCache makes it from its command line."""
    parser = add_l2_adapters_args(argparse.ArgumentParser())
    configs = parse_args_to_l2_adapters_config(parser.parse_args(["--l2-adapter", plugin(address, **params)]))
    return create_l2_adapter(configs.adapters[0])


def key(number: int, **more: Any) -> ObjectKey:
    """The key of an object."""
    return ObjectKey(**{"chunk_hash": number.to_bytes(32, "big"), "model_name": "org/m", "kv_rank": 1, **more})


def memory(seed: int | None = None, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.bfloat16) -> Any:
    """An object with bytes without a pattern (zeros without a seed), in an allocation that is a little larger."""
    size = torch.Size(shape)
    nbytes = size.numel() * dtype.itemsize
    raw = torch.zeros(nbytes + 512, dtype=torch.uint8)
    if seed is not None:
        raw.random_(0, 256, generator=torch.Generator().manual_seed(seed))
    meta = MemoryObjMetadata(
        shape=size, dtype=dtype, address=0, phy_size=raw.numel(), ref_count=1, fmt=MemoryFormat.KV_2LTD,
        shapes=[size], dtypes=[dtype],
    )  # fmt: skip
    return TensorMemoryObj(raw, meta, None)


def layouts(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.bfloat16) -> dict[int, MemoryLayoutDesc]:
    """What LMCache says of the objects of group 0."""
    return {0: MemoryLayoutDesc([torch.Size(shape)], [dtype])}


def store(made: Any, keys: list[Any], objects: list[Any]) -> Any:
    """A store task, waited for by its event descriptor as the controllers do."""
    number = made.submit_store_task(keys, objects)
    return _wait(made.get_store_event_fd(), lambda: made.pop_completed_store_tasks().get(number))


def look(made: Any, keys: list[Any], descs: dict[int, Any] | None = None) -> list[bool]:
    """A look-up task, waited for."""
    number = made.submit_lookup_and_lock_task(keys, layouts() if descs is None else descs)
    found = _wait(made.get_lookup_and_lock_event_fd(), lambda: made.query_lookup_and_lock_result(number))
    assert made.query_lookup_and_lock_result(number) is None
    return [found.test(n) for n in range(len(keys))]


def load(made: Any, keys: list[Any], objects: list[Any]) -> list[bool]:
    """A load task, waited for."""
    number = made.submit_load_task(keys, objects)
    loaded = _wait(made.get_load_event_fd(), lambda: made.query_load_result(number))
    assert made.query_load_result(number) is None
    return [loaded.test(n) for n in range(len(keys))]


def _wait(descriptor: int, take: Any) -> Any:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(WAIT_S * 1000), "no signal"
    os.read(descriptor, 8)
    result = take()
    assert result is not None, "a signal without a result"
    return result


class Daemon:
    """`lmcache server` with this store as its second level, and a client that moves whole chunks of 256 tokens."""

    TOKENS, LAYERS, WIDTH = 256, 4, 128

    def __init__(self, folder: Path, address: str, name: str) -> None:
        self._log = (folder / f"{name}.log").open("wb")
        port, http = _free_port(), _free_port()
        command = [
            str(Path(sys.executable).parent / "python"),
            "-m",
            "lmcache.cli.main",
            "server",
            "--transport",
            "zmq",
        ]
        command += ["--host", "127.0.0.1", "--port", str(port), "--http-host", "127.0.0.1", "--http-port", str(http)]
        command += ["--l1-size-gb", "0.25", "--no-l1-use-lazy", "--eviction-policy", "LRU", "--shm-name", f"kvs-{name}"]
        command += ["--supported-transfer-mode", "engine_driven", "--disable-observability", "--chunk-size", "256"]
        command += ["--l2-adapter", plugin(address)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        try:
            _until_open(self._process, port, folder / f"{name}.log")
            self._connect(f"tcp://127.0.0.1:{port}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        if getattr(self, "_worker", None) is not None:
            self._worker.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._log.close()

    def store(self, tokens: tuple[int, ...], chunks: list[torch.Tensor]) -> None:
        """Store the chunks of a prompt."""
        asked = self._key(tokens, f"store {tokens[0]}")
        slots, indexes = self._context.prepare_store(asked, 1000)
        for slot, index in zip(slots, indexes, strict=True):
            slot.view(torch.int16).view(-1).copy_(chunks[index])
        assert self._context.commit_store(asked, 1000, [])

    def load(self, tokens: tuple[int, ...], request: str) -> list[torch.Tensor]:
        """The chunks of a prompt that are found, from whichever level."""
        asked = self._key(tokens, request)
        self._client.lookup(asked.no_worker_id_version(), 1).result(timeout=WAIT_S)
        found = None
        while found is None:
            found = self._client.query_prefetch_status(request).result(timeout=WAIT_S)
        if not found:
            return []
        asked = self._key(tokens[: int(found) * self.TOKENS], request)
        slots = self._context.prepare_retrieve(asked, 1000)
        copies = [slot.view(torch.int16).view(-1).clone() for slot in slots]
        assert self._context.commit_retrieve(asked, 1000)
        self._client.end_session(request).result(timeout=WAIT_S)
        return copies

    def _connect(self, url: str) -> None:
        factory = import_module("lmcache.v1.multiprocess.transport.factory").RequestClientFactory
        self._client: Any = factory.create(url, context=import_module("zmq").Context())
        transfer = import_module("lmcache.v1.multiprocess.transfer_context").EngineDrivenTransferContext
        self._worker = transfer(1000, self._client)
        page = {
            f"layer.{n}": torch.zeros((2, 1, self.TOKENS, 1, self.WIDTH), dtype=torch.bfloat16)
            for n in range(self.LAYERS)
        }
        self._worker.register(page, "org/m", 1, 1, WAIT_S, layout_hints={"kv_layout": "NHD"})
        self._context = self._worker.engine_driven_context
        self._key_type = import_module("lmcache.v1.multiprocess.custom_types").IPCCacheServerKey

    def _key(self, tokens: tuple[int, ...], request: str) -> Any:
        return self._key_type(
            model_name="org/m", world_size=1, num_kv_readers=1, worker_id=0, token_ids=tokens, start=0,
            end=len(tokens), request_id=request,
        )  # fmt: skip


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _until_open(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(log.read_text(errors="replace")[-3000:])
