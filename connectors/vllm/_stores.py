"""Where a connector's client comes from: a server, or a store of the engine's own.

vLLM runs scheduler and workers in processes of their own (on CPUs always), so an engine's own store lives in the
scheduler's process and the workers reach it over the local channel, on a socket that only this user can open.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import kvstore
from kvstore.client import Client
from kvstore.connectors.vllm._options import Options


class Place:
    """One side's way to the store. `close` also ends a store that this side has opened."""

    def __init__(self, options: Options, engine: str, *, owner: bool) -> None:
        """`engine` is vLLM's engine id, the same in all its processes; the `owner` opens an embedded store."""
        self._server: Any = None
        self._folder: Path | None = None
        if options.server:
            self.client = options.connect(options.server)
        elif owner:
            self.client = self._open(options, engine)
        else:
            self.client = options.connect(f"local:{_folder(options, engine) / 'local'}")

    def close(self) -> None:
        """Let the store go."""
        if self._server is not None:
            self._server.stop(0.0)
        self.client.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, options: Options, engine: str) -> Client:
        from kvstore.server import serve
        from kvstore.store import Store

        self._folder = folder = _folder(options, engine)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        listen = kvstore.ServerConfig(listen=f"unix:{folder / 'grpc'}", local=str(folder / "local"), bulk="off")
        config = replace(_config(options), server=listen)
        store = Store(config)
        try:
            self._server = serve(store, config)
            return Client(store.own_session(options.namespace))
        except BaseException:
            store.close()
            raise


def _config(options: Options) -> kvstore.Config:
    if options.config:
        from kvstore.settings import load

        return load(options.config)
    return options.in_memory()


def _folder(options: Options, engine: str) -> Path:
    """The sockets' folder, which every process of an engine finds by itself."""
    name = hashlib.sha256(f"{engine}\0{options.config}\0{options.namespace}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"kvstore-{os.getuid()}-{name}"
