"""Mooncake Store, in three places: in the caller's process, in another one on the host, and behind TCP.

`mooncake_master` always runs in a process of its own. `options["at"]`:
embedded  the caller's process holds the memory that the store lends, and copies within itself;
host      a `mooncake_client` process holds it, and its "dummy" client in the caller's process shares memory with it;
tcp       a `mooncake_client` process holds it, and the caller's client reads and writes it over TCP.
"""

from __future__ import annotations

import ctypes
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .children import free_port, spawn, wait_for
from .driver import EXISTS, Bytes, Driver, Skip, need
from .loop import main

MiB = 1 << 20
LEASE_MS = 3_600_000
LOCAL_BUFFER = 64 * MiB
FILLED = 0.8  # of the segment; the master evicts from 0.9 on
NOTES = {
    "embedded": "the segment and the caller in one process, registered buffers, put_from and get_into",
    "host": "mooncake_client's segment; its dummy client's shared memory is the caller's; put_from and get_into",
    "tcp": "mooncake_client's segment over TCP loopback, registered buffers, put_from and get_into",
}
MODES = {"embedded": "in process", "host": "shared memory", "tcp": "TCP loopback"}


class Mooncake(Driver):
    """A master, a segment twice as large as what is stored, and a client."""

    does = ("get", "put", "exists")

    def open(self) -> None:
        """Start the processes and set the client up."""
        self._at: str = self.job.options["at"]
        self.mode, self.note = MODES[self._at], NOTES[self._at]
        self._bin = Path(sys.executable).parent
        self._segment = 2 * self.job.stored_bytes
        master = self._start_master()
        try:
            store = import_module("mooncake.store").MooncakeDistributedStore()
        except ImportError as missing:
            if "libibverbs" in str(missing):
                raise Skip(f"{missing} (apt-get install libibverbs1)") from None
            raise
        host = f"127.0.0.1:{free_port()}"
        if self._at == "embedded":
            status = store.setup(host, "P2PHANDSHAKE", self._segment, LOCAL_BUFFER, "tcp", "", master)
        else:
            holder = self._start_holder(master)
            if self._at == "host":
                status = store.setup_dummy(2 * self.job.stored_bytes, LOCAL_BUFFER, holder)
            else:
                status = store.setup(host, "P2PHANDSHAKE", 0, LOCAL_BUFFER, "tcp", "", master)
        need(status == 0, f"the client's setup gave status {status}")
        self.stack.callback(store.close)
        self._store: Any = store

    def _start_master(self) -> str:
        port, metrics = free_port(), free_port()
        command = [str(self._bin / "mooncake_master"), f"-rpc_port={port}", "-rpc_address=127.0.0.1"]
        command += ["-metrics_host=127.0.0.1", f"-metrics_port={metrics}", f"-default_kv_lease_ttl={LEASE_MS}"]
        process = spawn(self.stack, command, env={"GLOG_minloglevel": "1"})
        wait_for(process, ("127.0.0.1", port))
        self.pids.append(process.pid)
        return f"127.0.0.1:{port}"

    def _start_holder(self, master: str) -> str:
        port = free_port()
        command = [str(self._bin / "mooncake_client"), "-host=127.0.0.1", f"-port={port}", "-protocol=tcp"]
        command += [f"-global_segment_size={self._segment // MiB} MB", f"-local_buffer_size={LOCAL_BUFFER // MiB} MB"]
        command += [f"-master_server_address={master}", "-metadata_server=P2PHANDSHAKE"]
        process = spawn(self.stack, command, env={"GLOG_minloglevel": "1"})
        wait_for(process, ("127.0.0.1", port))
        self.pids.append(process.pid)
        return f"127.0.0.1:{port}"

    def memory(self, chunks: int) -> Bytes:
        """Registered with the client; the dummy client registers memory of its own pool alone."""
        if self._at != "host":
            made = super().memory(chunks)
        else:
            size = chunks * self.job.nbytes
            address = self._store.alloc_from_mem_pool(size)
            need(address != 0, f"the dummy client's pool has no {size} bytes")
            made = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
            made = made.reshape(chunks, self.job.nbytes)
            made.fill(1)
        status = self._store.register_buffer(made.ctypes.data, made.nbytes)
        need(status == 0, f"register_buffer gave status {status}")
        return made

    def ready(self) -> None:
        """Touch the segment's pages once: the first touch costs more than a put."""
        filler = self.targets[0]
        for i in range(int(FILLED * self._segment) // self.job.nbytes):
            self.store(f"f{i}", filler)
        need(self._store.remove_all(True) >= 0, "remove_all failed")

    def store(self, key: str, data: Bytes) -> None:
        """`put_from` the caller's registered memory."""
        status = self._store.put_from(key, data.ctypes.data, data.nbytes)
        need(status == 0, f"put_from gave status {status}")

    def load(self, key: str, target: Bytes) -> None:
        """`get_into` the caller's registered memory."""
        read = self._store.get_into(key, target.ctypes.data, target.nbytes)
        need(read == target.nbytes, f"get_into gave {read} for {target.nbytes} bytes")

    def forget(self, key: str) -> None:
        """Remove it, leased or not."""
        status = self._store.remove(key, True)
        need(status == 0, f"remove gave status {status}")

    def prepare_exists(self) -> None:
        """Name the keys."""
        self._names = [f"k{i}" for i in range(EXISTS)]

    def exists(self) -> int:
        """One `batch_is_exist`."""
        return sum(each == 1 for each in self._store.batch_is_exist(self._names))


if __name__ == "__main__":
    main(Mooncake)
