"""The calls of the local channel: where the bytes lie, and descriptors to map them by."""

from __future__ import annotations

from collections.abc import Mapping

from kvstore.server.streams import Handler


def handlers() -> Mapping[int, Handler]:
    """By the number of the method."""
    return {}
