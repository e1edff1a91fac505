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


@dataclass(frozen=True)
class System:
    """One system in one mode.

    `module` is run as a program by the Python of the environment `env` (ours where that is empty), with `folders`
    to import from; `options` are the driver's own.
    """

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    env: str = ""
    folders: tuple[Path, ...] = (DRIVERS,)

    def python(self, envs: Path) -> Path:
        """The interpreter that runs it."""
        return envs / self.env / "bin" / "python" if self.env else Path(sys.executable)

    @property
    def ours(self) -> bool:
        """Whether it is kvstore."""
        return self.name.startswith("kvstore-")


SYSTEMS: tuple[System, ...] = (
    System(BASELINE, "drivers.memcpy"),
    System("kvstore-embedded", "drivers.ours", {"at": "embedded"}),
    System("kvstore-local", "drivers.ours", {"at": "local"}),
    System("kvstore-remote", "drivers.ours", {"at": "remote"}),
    System("lmcache-embedded", "drivers.lmcache", env="lmcache"),
    System("lmcache-daemon", "drivers.lmcache_daemon", env="lmcache"),
    System("mooncake-embedded", "drivers.mooncake", {"at": "embedded"}, "mooncake"),
    System("mooncake-host", "drivers.mooncake", {"at": "host"}, "mooncake"),
    System("mooncake-tcp", "drivers.mooncake", {"at": "tcp"}, "mooncake"),
    System("redis-unix", "drivers.redis", {"over": "unix"}),
    System("redis-tcp", "drivers.redis", {"over": "tcp"}),
    System("redis-py", "drivers.redis_py", {"over": "unix"}, "redis"),
    System("files-disk", "drivers.files", {"where": "disk"}),
    System("files-tmpfs", "drivers.files", {"where": "tmpfs"}),
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
