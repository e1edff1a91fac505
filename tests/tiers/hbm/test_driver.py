"""The driver's calls, with a stand-in for the driver (a GPU has the real one in every other test of this folder)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kvstore.errors import ConfigError  # noqa: E402 - needs torch
from kvstore.tiers.hbm.driver import Context  # noqa: E402 - needs torch

HERE = Path(__file__).parent
HAVE = torch.cuda.is_available()


@pytest.mark.skipif(HAVE, reason="the real driver is here")
def test_every_call(tmp_path: Path) -> None:
    library, source = tmp_path / "libcuda.so.1", HERE / "stand_in_driver.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, str(HERE / "drive.py")], env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(HAVE, reason="the driver is here")
def test_no_driver_is_said_at_the_start() -> None:
    with pytest.raises(ConfigError, match="driver"):
        Context(0)
