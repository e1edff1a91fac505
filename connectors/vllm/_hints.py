"""What a user of the engine says in `kv_transfer_params` about the prompt's future; see docs/vllm.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvstore.api import MAX_AWAITED_S
from kvstore.errors import InvalidArgument
from kvstore.nearest import nearest

PREFIX = "kvstore."
ENDED, AWAITED = PREFIX + "ended", PREFIX + "awaited_s"


def awaited_s(request: Any) -> float | None:
    """In how many seconds the prompt comes back: 0 if never, None if nothing was said.

    Raises `InvalidArgument` for what cannot be. Keys that do not begin with `kvstore.` are other connectors'.
    """
    given = request.kv_transfer_params or {}
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"kv_transfer_params is a mapping, not {given!r}")
    ours = {name: value for name, value in given.items() if isinstance(name, str) and name.startswith(PREFIX)}
    for name in ours:
        if name not in (ENDED, AWAITED):
            raise InvalidArgument(f"kv_transfer_params: unknown key {name!r}{nearest(name, (ENDED, AWAITED))}")
    ended, seconds = ours.get(ENDED, False), ours.get(AWAITED)
    if not isinstance(ended, bool):
        raise InvalidArgument(f"kv_transfer_params: {ENDED} is true or false, not {ended!r}")
    if seconds is None:
        return 0.0 if ended else None
    if ended:
        raise InvalidArgument(f"kv_transfer_params: a prompt that has ended is not awaited: give {ENDED} or {AWAITED}")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_AWAITED_S:
        raise InvalidArgument(
            f"kv_transfer_params: {AWAITED} is a number of seconds above 0, up to {MAX_AWAITED_S}, not {seconds!r}"
        )
    return float(seconds)
