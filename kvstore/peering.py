"""What `[peers]` may say."""

from __future__ import annotations

import re

from kvstore.channels.peer import split_address
from kvstore.config import PeersConfig
from kvstore.errors import ConfigError

_GROUP = re.compile(r"[a-z0-9._-]{1,64}\Z")


def check_peers(config: PeersConfig) -> None:
    """Raise `ConfigError` for a table that cannot work."""
    if not config.token:
        raise ConfigError("[peers] needs what servers show each other: set its token, or token_file to a file with it")
    if config.advertise is not None:
        if not config.directory:
            raise ConfigError("peers.advertise is told to others in a directory: set peers.directory")
        try:
            split_address(config.advertise)
        except ValueError as error:
            raise ConfigError(f"peers.advertise: {error}") from None
    if not _GROUP.match(config.group):
        raise ConfigError(f"peers.group = {config.group!r} is not 1 to 64 of a-z, 0-9, '.', '_' and '-'")
    if (config.cert is None) != (config.key is None):
        raise ConfigError("peers.cert and peers.key belong together; only one of them is set")


def address_for_peers(config: PeersConfig, bulk: str, *, tls: bool) -> str:
    """Where others reach this host, as they are told: `bulk` is where its bulk channel listens (empty: nowhere)."""
    where = config.advertise or bulk
    if not where:
        raise ConfigError("[peers] has others read from this host's bulk channel, and server.bulk is off")
    host, _ = split_address(where)
    if host in ("0.0.0.0", "::"):
        raise ConfigError(f"others do not reach this host at {where}: set peers.advertise to HOST:PORT as they see it")
    return f"{'bulks' if tls else 'bulk'}://{where}"
