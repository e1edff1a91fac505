"""One warning where a hundred would say the same."""

from __future__ import annotations

import logging
import threading
import time

# vLLM configures the loggers below its own name.
logger = logging.getLogger("vllm.kvstore")


class Warn:
    """Logs a warning at most once in `every_s` seconds; says how many were kept back in between."""

    def __init__(self, what: str, every_s: float) -> None:
        self._what, self._every_s = what, max(every_s, 1.0)
        self._next, self._kept = 0.0, 0
        self._lock = threading.Lock()

    def __call__(self, message: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                self._kept += 1
                return
            kept, self._kept, self._next = self._kept, 0, now + self._every_s
        more = f" ({kept} more like this)" if kept else ""
        logger.warning("kvstore %s: %s%s", self._what, message, more)
