"""`kvstore serve`: a store behind gRPC until a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from kvstore.cli.output import print_json
from kvstore.cli.settings import configuration
from kvstore.config import Config
from kvstore.errors import ConfigError, Unavailable
from kvstore.process import forbid_inspection
from kvstore.settings import size_text

if TYPE_CHECKING:
    from kvstore.server import Server

GRACE_S = 5.0


def serve(args: Namespace) -> int:
    """Print one line when ready; stop in order on SIGTERM or SIGINT, at once on the second."""
    config = configuration(args)
    _check_memory(config.dram.capacity)
    forbid_inspection()  # before there is a tenant's memory to inspect
    from kvstore.server import serve as start
    from kvstore.store import Store

    # A busy Python thread holds the others off for a whole switch interval: 5 ms of a look-up's p99 by default.
    sys.setswitchinterval(1e-4)
    stop = _stop_on_signals()
    store = Store(config)
    try:
        server = start(store, config)
        try:
            _ready(args, server, config)
            logged = 0
            while not stop.wait(1.0):
                logged = _log(store.notes, logged)
                if server.wait(0):
                    raise Unavailable(f"the server on {server.address} ended by itself")
        finally:
            server.stop(GRACE_S)
    finally:
        store.close()
    return 0


def _check_memory(nbytes: int) -> None:
    """Raise `ConfigError` for more DRAM than this host has: extents come with use, and so would the kernel's kill."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes > there:
        raise ConfigError(
            f"dram.capacity = {size_text(nbytes)} is more than the {there / (1 << 30):.1f}GiB of memory of this host"
        )


def _log(notes: Sequence[str], logged: int) -> int:
    """Print on standard error what has been noted of tiers since so many notes; how many there are now."""
    for note in notes[logged:]:
        print(f"kvstore: {note}", file=sys.stderr, flush=True)
    return len(notes)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()

    def asked(number: int, frame: FrameType | None) -> None:
        del number, frame
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, asked)
    return stop


def _ready(args: Namespace, server: Server, config: Config) -> None:
    tiers = {"dram": size_text(config.dram.capacity)}
    if config.hbm is not None:
        tiers["hbm"] = f"{size_text(config.hbm.capacity)} on {', '.join(config.hbm.devices)}"
    if config.nvme is not None:
        tiers["nvme"] = f"{size_text(config.nvme.capacity)} in {config.nvme.path}"
    if args.json:
        where = {"address": server.address, "local": server.local, "bulk": server.bulk}
        print_json({**where, "pid": os.getpid(), "tiers": tiers})
    else:
        held = ", ".join(f"{name} {text}" for name, text in tiers.items())
        print(f"kvstore: ready on {server.address} ({held})")
    sys.stdout.flush()
