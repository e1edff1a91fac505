"""The native part of the CXL tier alone, without Python, under a sanitizer that sees races."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "codecs" / "native"
CORE = ("striped_memory", "striped_restore", "record_slots", "persist", "copy_pool", "copy", "xxh3", "xxh3_short")


@pytest.mark.slow
def test_threads_do_not_race(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ and its thread sanitizer")
    sources = [NATIVE / f"{name}.cpp" for name in CORE] + sorted(NATIVE.glob("xxh3_*.cpp"))
    command = [
        compiler, "-std=c++20", "-O1", "-g", "-fsanitize=thread", "-Wno-tsan", f"-I{NATIVE}",
        str(Path(__file__).with_name("stress_striped.cpp")), *map(str, dict.fromkeys(sources)),
        "-lpthread", "-o", str(tmp_path / "stress"),
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    if "-ltsan" in built.stderr:
        pytest.skip("this compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "stress"], capture_output=True, text=True, timeout=280, check=False)
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stderr[-4000:]
