"""Where the prompts of `bench worth` lie, and what happens to the way there: each scene is a store of its own, twice.

One of the two is asked what is worth loading; from its twin everything is loaded, so that it is known what each answer
was worth. Neither learns from the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import kvstore
from kvstore.bench.processes import server
from kvstore.bench.slow_link import SlowLink
from kvstore.client import Client
from kvstore.config import Config, DramConfig, NvmeConfig, RemoteConfig
from kvstore.core import DRAM
from kvstore.removed import Removed
from kvstore.store import Store

MiB = 1 << 20
LINK, SLOW = 200e6, 50e6  # bytes a second
_TOKEN = "bench-worth"


class Phase(NamedTuple):
    """A share of a scene's rounds; `link` is the speed of its links from then on. Only `steady` ones have to meet bars.

    `warm` rounds, a share of all too, go before and do not count. In a `busy` phase another reader loads at the same
    time in every second round.
    """

    name: str
    share: float = 1.0
    warm: float = 0.25
    link: float = 0.0
    steady: bool = True
    busy: bool = False


class Side:
    """A client, and how what it has in DRAM is brought to where the scene wants it.

    `store` is what is behind the client, where DRAM is not what is measured.
    """

    def __init__(self, client: Client, *, store: Store | None = None, link: SlowLink | None = None) -> None:
        self.client, self.link, self._store = client, link, store

    @property
    def stored(self) -> bool:
        """Whether prompts lie below DRAM."""
        return self._store is not None

    def forget(self) -> None:
        """Take out of DRAM what lies elsewhere too."""
        if self._store is None:
            return
        core, removed = self._store._core, Removed()
        with core.lock:
            for row in core.index.chunks(0, 1 << 30)[0].tolist():
                core.drop_from(row, DRAM, removed)
        core.settle(removed)


@dataclass(frozen=True)
class Scene:
    """`open` makes one side in a folder of its own; what it opens is closed with the stack."""

    open: Callable[[ExitStack, Path], Side]
    phases: Sequence[Phase]


def _embedded(stack: ExitStack, config: Config, link: SlowLink | None = None) -> Side:
    store = stack.enter_context(closing(Store(config)))
    return Side(Client(store.session("default")), store=store if config.below else None, link=link)


def _memory(stack: ExitStack, folder: Path) -> Side:
    del folder
    return _embedded(stack, Config(dram=DramConfig(1024 * MiB, 1024 * MiB)))


def _disk(stack: ExitStack, folder: Path) -> Side:
    nvme = NvmeConfig(folder, capacity=2048 * MiB, segment=64 * MiB, reserve=0)
    return _embedded(stack, Config(dram=DramConfig(128 * MiB, 128 * MiB), nvme=nvme))


def _remote(stack: ExitStack, folder: Path) -> Side:
    """A store whose remote tier is another kvstore, behind a link."""
    del folder
    flags = ("--dram-extent", str(512 * MiB), "--peers-token", _TOKEN)  # an extent each for objects and for chunks
    running = stack.enter_context(server(1024 * MiB, *flags))
    with closing(running.connect("bulk")) as client:
        while client.stats()["tiers"]["dram"]["to_populate_bytes"]:  # or one namespace's extent is given to the other
            time.sleep(0.01)
    link = stack.enter_context(closing(SlowLink(str(running.ready["bulk"]), 1e12)))
    remote = RemoteConfig(f"kvstore://{link.address}", capacity=2048 * MiB, password=_TOKEN, deadline_s=60.0)
    return _embedded(stack, Config(dram=DramConfig(128 * MiB, 128 * MiB), remote=remote), link)


def _server(stack: ExitStack, folder: Path) -> Side:
    """A store in another process, all in its DRAM, behind a link."""
    del folder
    running = stack.enter_context(server(1024 * MiB))
    link = stack.enter_context(closing(SlowLink(str(running.ready["bulk"]), 1e12)))
    client = stack.enter_context(closing(kvstore.connect(f"bulk://{link.address}", timeout=60.0)))
    return Side(client, link=link)


def _changing(name: str) -> Sequence[Phase]:
    return (
        Phase(name, link=LINK),
        Phase(f"{name}: slows", 0.2, 0.0, SLOW, steady=False),
        Phase(f"{name}: slow", 0.5, 0.0, SLOW),
        Phase(f"{name}: recovers", 0.4, 0.0, LINK, steady=False),
    )


SCENES = (
    Scene(_memory, (Phase("dram", warm=1.0),)),
    Scene(
        _disk, (Phase("nvme: new", 0.25, 0.0, steady=False), Phase("nvme", warm=0.5), Phase("nvme: busy", busy=True))
    ),
    Scene(_remote, _changing("remote")),
    Scene(_server, _changing("server")),
)
