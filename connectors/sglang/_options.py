"""What stands in HiCache's extra configuration beside SGLang's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvstore.connectors.access import StoreOptions

WHERE = "hicache-storage-backend-extra-config"
_SGLANGS = frozenset({"backend_name", "module_path", "class_name", "interface_v1"})


def options_of(extra: Mapping[str, Any] | None) -> StoreOptions:
    """Everything that is not SGLang's own, checked."""
    return StoreOptions.of({key: value for key, value in (extra or {}).items() if key not in _SGLANGS}, WHERE)
