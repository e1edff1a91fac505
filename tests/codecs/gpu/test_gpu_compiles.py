"""Every kernel compiles for GPUs that are not here, without fused or approximate float arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("capability", [80, 90])
def test_machine_code(capability: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.codecs.gpu.compile_kernels", str(capability)],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    for name, kernels in report.items():
        for kernel in kernels:
            assert kernel["cubin_bytes"] > 1000, name
            assert kernel["fused"] == kernel["inexact"] == kernel["loose"] == 0, (name, kernel)
            assert kernel["shared_bytes"] <= 99 << 10, name
