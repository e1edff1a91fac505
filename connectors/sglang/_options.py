"""What stands in HiCache's extra configuration beside SGLang's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore.connectors.access import StoreOptions

WHERE = "hicache-storage-backend-extra-config"
_SGLANGS = frozenset({"backend_name", "module_path", "class_name", "interface_v1"})


@dataclass(frozen=True)
class Options(StoreOptions):
    """`StoreOptions`, and: `revision` names the weights in addition; `hold_s` is how long the pages of a hit are kept
    from eviction, for SGLang to load them."""

    revision: str = ""
    hold_s: float = 10.0

    @classmethod
    def given(cls, extra: Mapping[str, Any] | None) -> Options:
        """Check everything that is not SGLang's own."""
        return cls.of({key: value for key, value in (extra or {}).items() if key not in _SGLANGS}, WHERE)
