"""The benchmark of a server's device memory, in miniature on the CPU twin: shape and content, never timing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kvstore.bench import tier_hbm_server
from kvstore.device_views import DeviceViews
from kvstore.errors import Corrupt

from .conftest import assert_rows

ROOT = Path(__file__).parents[2]


def test_it_prints_one_object_with_every_case() -> None:
    command = [sys.executable, "-m", "kvstore.bench.tier_hbm_server", "--device", "cpu", "--chunks", "9"]
    ended = subprocess.run(
        [*command, "--rounds", "2"], capture_output=True, text=True, timeout=100, check=False, cwd=ROOT,
        env=dict(os.environ),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert [row["case"] for row in told["rows"]] == ["load", "in-place", "places-1", "places-all"]
    assert_rows(told["rows"])
    assert (told["device"], told["chunks"], told["hbm"]["written"], told["hbm"]["errors"]) == ("cpu", 9, 9, 0)


def test_it_says_when_a_hit_holds_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = DeviceViews.tensors.fget

    def turned(self: DeviceViews) -> tuple[object, ...]:
        return real(self)[::-1]  # type: ignore[misc]

    monkeypatch.setattr(DeviceViews, "tensors", property(turned))
    with pytest.raises(Corrupt, match="the server's memory on the device"):
        tier_hbm_server.run(device="cpu", chunks=4, rounds=1)


def test_it_ends_by_itself() -> None:
    command = [sys.executable, "-m", "kvstore.bench.tier_hbm_server", "--device", "cpu", "--limit-s", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    assert ended.returncode == 1
    assert "took longer than 1 s" in json.loads(ended.stdout)["failed"]
