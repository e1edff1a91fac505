"""The store inside this process."""

from __future__ import annotations

import os
from typing import Any

from kvstore.client import Client
from kvstore.config import Config
from kvstore.errors import InvalidArgument
from kvstore.store import Store


def open_embedded(config: Any, *, namespace: str) -> Client:
    """See `kvstore.open`."""
    if isinstance(config, str | os.PathLike):
        from kvstore.settings import load

        config = load(config)
    if config is None:
        config = Config()
    if not isinstance(config, Config):
        raise InvalidArgument(f"expected a Config, the path of a kvstore.toml or None, not {type(config).__name__}")
    store = Store(config)
    try:
        return Client(store.own_session(namespace))
    except BaseException:
        store.close()
        raise
