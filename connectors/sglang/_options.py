"""What stands in HiCache's extra configuration beside SGLang's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvstore.connectors.access import HoldOptions

WHERE = "hicache-storage-backend-extra-config"
_SGLANGS = frozenset({"backend_name", "module_path", "class_name", "interface_v1"})


def options_of(extra: Mapping[str, Any] | None) -> HoldOptions:
    """Everything that is not SGLang's own, checked."""
    return HoldOptions.of({key: value for key, value in (extra or {}).items() if key not in _SGLANGS}, WHERE)
