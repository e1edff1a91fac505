"""In miniature, into memory of the CPU: every byte is compared, the rows say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kvstore.bench import nvme_direct


def test_rows(tmp_path: Path) -> None:
    rows = nvme_direct.run(tmp_path, "cpu", sizes=(1 << 18,), rounds=2, records=3)
    assert [row["case"] for row in rows] == ["plain-first", "plain-all"]
    assert all(row["mode"].startswith("off") for row in rows)
    assert all(row["rounds"] == 2 and row["p50_s"] > 0 for row in rows)
    assert not any(tmp_path.iterdir())


def test_other_bytes_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(reader: object, reads: object, device: str) -> tuple[float, float]:
        return 1.0, 1.0

    monkeypatch.setattr(nvme_direct, "_read", nothing)
    with pytest.raises(AssertionError, match="other bytes arrived"):
        nvme_direct.run(tmp_path, "cpu", sizes=(1 << 18,), rounds=1, records=1)


def test_from_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvme_direct.main([]) == 2
    assert "nvme_direct FOLDER" in capsys.readouterr().err
    monkeypatch.setattr(nvme_direct, "run", lambda path, device="cuda": [])
    assert nvme_direct.main([str(tmp_path), "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["bench"] == "nvme-direct"
