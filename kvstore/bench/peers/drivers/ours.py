"""kvstore, in the caller's process or in a server of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import kvstore
from kvstore.bench.corpus import ref_of, spec_of
from kvstore.client import Client
from kvstore.config import Config, DramConfig
from kvstore.hit import Hit
from kvstore.keys import ChunkRef

from .children import spawn
from .driver import EXISTS, Bytes, Driver, need
from .loop import main

MiB = 1 << 20
LEASE_S = 60.0
PUT_WAIT_S = 60.0  # the first put waits until its extent is populated
TIMEOUT_S = 60.0


class Ours(Driver):
    """`options["at"]`: embedded, local (`kvstore serve` on this host), remote (the same, told to use TCP)."""

    does = ("get", "get-leased", "put", "exists")

    def open(self) -> None:
        """Open the store, or start a server and connect."""
        self._spec = spec_of(self.job.nbytes)
        self._hit: Hit | None = None
        room = (self.job.count + self.job.ring + 8) * (self.job.nbytes + 8192)
        self._client = self._connect(room)
        self.stack.callback(self._client.close)

    def _connect(self, room: int) -> Client:
        if self.job.options["at"] == "embedded":
            self.mode, self.note = "in process", "kvstore.open; put hashes every byte, get does not check it again"
            dram = DramConfig(capacity=room, extent=room)
            return kvstore.open(Config(dram=dram, lease_limit_s=LEASE_S, put_wait_s=PUT_WAIT_S))
        ready = self._start(room)
        remote = self.job.options["at"] == "remote"
        client = kvstore.connect(f"bulk://{ready['bulk']}" if remote else str(ready["address"]), timeout=TIMEOUT_S)
        self.mode = client.describe().extra["channel"]
        self.note = f"kvstore serve in another process, kvstore.connect; over the {self.mode} channel"
        return client

    def _start(self, room: int) -> dict[str, object]:
        command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", "127.0.0.1:0"]
        command += ["--dram", str(room), "--dram-extent", str(room), "--store-put-wait-s", str(PUT_WAIT_S)]
        process = spawn(self.stack, command, stdout=subprocess.PIPE)
        self.pids = [process.pid]
        assert process.stdout is not None
        line = process.stdout.readline()
        need(bool(line), "kvstore serve ended before it was ready")
        ready: dict[str, object] = json.loads(line)
        return ready

    def store(self, key: str, data: Bytes) -> None:
        """From the caller's array to the acknowledgement."""
        need(self._client.put(self._spec, _ref(key), data), f"{key} was there already")

    def load(self, key: str, target: Bytes) -> None:
        """By key, nothing asked before."""
        self._client.get(self._spec, _ref(key), out=target)

    def lease(self, key: str) -> None:
        """A look-up that promises the chunk."""
        self._hit = self._client.lookup(self._spec, [_ref(key)], lease_s=LEASE_S)
        need(self._hit.tokens == self._spec.chunk_tokens, f"the look-up did not find {key}")

    def load_leased(self, key: str, target: Bytes) -> None:
        """The same call; the promise spares the server the search."""
        self.load(key, target)

    def settle(self) -> None:
        """End the lease."""
        if self._hit is not None:
            self._hit.release()
            self._hit = None

    def forget(self, key: str) -> None:
        """Delete."""
        need(self._client.delete(self._spec, [_ref(key).key]) == 1, f"{key} was not there")

    def prepare_exists(self) -> None:
        """Make the keys."""
        self._names = [_ref(f"k{i}") for i in range(EXISTS)]

    def exists(self) -> int:
        """One `contains`."""
        return sum(self._client.contains(self._spec, self._names))


def _ref(key: str) -> ChunkRef:
    seed = int(key[1:]) + (1 << 20 if key[0] == "p" else 0)
    return ref_of(seed)


if __name__ == "__main__":
    main(Ours)
