"""For every test: Triton's kernels run in its interpreter where there is no GPU, and garbage is collected quickly."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# Triton decides when it is imported, and transformers imports it: so this comes first.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_finish() -> None:
    """Thousands of tests and the modules that they import stay to the end: no collection need look at them again."""
    gc.collect()
    gc.freeze()
