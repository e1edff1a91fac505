"""For every test: Triton's kernels run in its interpreter where there is no GPU."""

from __future__ import annotations

import os
from pathlib import Path

# Triton decides when it is imported, and transformers imports it: so this comes first.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
