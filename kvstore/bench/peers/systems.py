"""The systems that are compared, and where each one's Python is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvstore.errors import InvalidArgument

BASELINE = "memcpy"
DRIVERS = Path(__file__).parent
PROCESS, HOST, NETWORK = "in the caller's process", "outside it, on the same host", "over TCP"
REACHES = (PROCESS, HOST, NETWORK)


@dataclass(frozen=True)
class System:
    """One system in one mode.

    `module` is run as a program by the Python of the environment `env` (ours where that is empty), with `folders`
    to import from; `options` are the driver's own. `reach` says where the chunks are, seen from the caller: only
    systems of one reach do the same job.
    """

    name: str
    module: str
    reach: str = PROCESS
    options: dict[str, Any] = field(default_factory=dict)
    env: str = ""
    folders: tuple[Path, ...] = (DRIVERS,)

    def python(self, envs: Path) -> Path:
        """The interpreter that runs it."""
        return envs / self.env / "bin" / "python" if self.env else Path(sys.executable)


SYSTEMS: tuple[System, ...] = (
    System(BASELINE, "drivers.memcpy"),
    System("kvstore-embedded", "drivers.ours", PROCESS, {"at": "embedded"}),
    System("kvstore-local", "drivers.ours", HOST, {"at": "local"}),
    System("kvstore-remote", "drivers.ours", NETWORK, {"at": "remote"}),
    System("lmcache-embedded", "drivers.lmcache", PROCESS, env="lmcache"),
    System("lmcache-daemon", "drivers.lmcache_daemon", HOST, env="lmcache"),
    System("mooncake-embedded", "drivers.mooncake", PROCESS, {"at": "embedded"}, "mooncake"),
    System("mooncake-host", "drivers.mooncake", HOST, {"at": "host"}, "mooncake"),
    System("mooncake-tcp", "drivers.mooncake", NETWORK, {"at": "tcp"}, "mooncake"),
    System("redis-unix", "drivers.redis", HOST, {"over": "unix"}),
    System("redis-tcp", "drivers.redis", NETWORK, {"over": "tcp"}),
    System("redis-py", "drivers.redis_py", HOST, {"over": "unix"}, "redis"),
    System("files-disk", "drivers.files", HOST, {"where": "disk"}),
    System("files-tmpfs", "drivers.files", HOST, {"where": "tmpfs"}),
)


def choose(names: Sequence[str], systems: Sequence[System] = SYSTEMS) -> list[System]:
    """The systems of these names or families (`redis` is all three), the baseline always first.

    No names means all. Raises `InvalidArgument` with the list for a name that is neither.
    """
    known = {system.name for system in systems}
    families = {name.partition("-")[0] for name in known}
    for name in names:
        if name not in known | families:
            raise InvalidArgument(f"no system {name!r}; there are {', '.join(s.name for s in systems)}")
    chosen = {BASELINE, *names}
    return [s for s in systems if not names or s.name in chosen or s.name.partition("-")[0] in chosen]


def default_envs() -> Path:
    """Where `install` puts the environments: `$KVSTORE_CACHE/peers`, else `~/.cache/kvstore/peers`."""
    cache = os.environ.get("KVSTORE_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "kvstore") / "peers"
