"""For every test: Triton's kernels run in its interpreter where there is no GPU, PyTorch leaves other processes their
cores, Hypothesis does not look at the clock, and garbage is collected quickly."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path

# Triton decides when it is imported, and transformers imports it: so this comes first.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
# So does OpenMP. Threads that spin while they wait for each other take the time of whatever else runs here; and where
# tests run in several processes, each has a core of its own.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The environments of engines have no Hypothesis.
if find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Thousands of tests and the modules that they import stay to the end: no collection need look at them again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
