"""Runs of the command line: in processes of their own, and in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.cli import main
from kvstore.spec import KVSpec

Run = Callable[..., subprocess.CompletedProcess[str]]
SPEC = KVSpec.dense("tiny", layers=2, kv_heads=2, head_dim=8, dtype="float16", chunk_tokens=16)
TOKENS = list(range(100, 140))  # two whole chunks and a tail of 8


def environment(**more: str) -> dict[str, str]:
    """This process's, without any KVSTORE_ variable."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")} | more


@pytest.fixture
def cli(tmp_path: Path) -> Run:
    """`python -m kvstore …` in a folder of its own."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kvstore", *map(str, arguments)],
            cwd=tmp_path, env=environment(**(env or {})), capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`cli` in this process, without the start of a Python: for what does not depend on being a process."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        words = [str(each) for each in arguments]
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(os, "environ", environment(**(env or {})))
            capsys.readouterr()
            code = main(words)
        told = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, told.out, told.err)

    return run


@pytest.fixture
def prompt(tmp_path: Path) -> dict[str, Any]:
    """A spec, a prompt and its KV as files."""
    (tmp_path / "spec.json").write_text(json.dumps(SPEC.to_dict()))
    (tmp_path / "tokens.json").write_text(json.dumps(TOKENS))
    shape = SPEC.part_shape(SPEC.part(), len(TOKENS))
    kv = np.random.default_rng(7).standard_normal(shape).astype(np.float16)
    np.save(tmp_path / "kv.npy", kv)
    (tmp_path / "data").mkdir()
    files = ("--spec", "spec.json", "--tokens", "tokens.json")
    return {"folder": tmp_path, "kv": kv, "files": files, "store": ("--nvme", "data")}


def only_json(result: subprocess.CompletedProcess[str]) -> Any:
    """The one object on standard output; fails if there is anything else."""
    assert not result.stderr, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)
