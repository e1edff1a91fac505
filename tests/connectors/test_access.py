"""Options that connectors share, and the breaker that keeps a store's failures from engines."""

from __future__ import annotations

import logging

import pytest

import kvstore
from kvstore.connectors.access import Breaker, HoldOptions, hold
from kvstore.connectors.weights import weights_digest
from kvstore.errors import ConfigError, Corrupt, NotFound, Shed, Unavailable


@pytest.mark.parametrize(
    "given",
    [
        {"sever": "x"},
        {"timeout_s": "1"},
        {"timeout_s": 0},
        {"retry_s": -1},
        {"hold_s": 0.0},
        {"dram_mib": True},
        {"server": "a", "config": "b"},
    ],
)
def test_options_that_are_wrong_are_told(given):
    with pytest.raises(ConfigError, match="in here"):
        HoldOptions.of(given, "in here")


def test_without_a_server_the_store_is_in_this_process():
    options = HoldOptions.of({"dram_mib": 64, "namespace": "tenant", "timeout_s": 1}, "here")
    with options.open() as client:
        assert client.describe().namespace == "tenant"
        assert client.describe().tiers == ("dram",)


def test_one_warning_and_then_it_is_left_alone(caplog):
    breaker, calls = Breaker(logging.getLogger("kvstore.test"), 60.0), []

    def gone():
        calls.append(1)
        raise Unavailable("nobody listens")

    assert [breaker.run(gone, "miss") for _ in range(3)] == ["miss"] * 3
    assert (len(calls), breaker.failures, breaker.down) == (1, 1, True)
    assert breaker.run(lambda: "found", "miss") == "miss"
    assert len(caplog.records) == 1
    assert "nobody listens" in caplog.text


@pytest.mark.parametrize("error", [NotFound("x"), Corrupt("x"), Shed("x")])
def test_what_concerns_one_chunk_does_not_stop_the_rest(error):
    def fail():
        raise error

    breaker = Breaker(logging.getLogger("kvstore.test"), 60.0)
    assert breaker.run(fail, "miss") == "miss"
    assert breaker.run(lambda: "found", "miss") == "found"


def test_it_is_asked_again_later():
    breaker = Breaker(logging.getLogger("kvstore.test"), 0.0)
    breaker.failed(Unavailable("x"))
    assert breaker.run(lambda: "found", "miss") == "found"


def test_other_errors_are_not_hidden():
    breaker = Breaker(logging.getLogger("kvstore.test"), 60.0)
    with pytest.raises(ZeroDivisionError):
        breaker.run(lambda: 1 // 0, 0)


def test_holding_says_whether_all_are_there():
    spec = kvstore.KVSpec.dense("m", layers=1, kv_heads=1, head_dim=8, chunk_tokens=4)
    with HoldOptions(dram_mib=64).open() as client:
        refs = client.chain(spec, [1, 2, 3, 4, 5, 6, 7, 8]).refs
        client.put(spec, refs[0], bytearray(spec.part_bytes(spec.part(), 4)))
        assert hold(client, spec, [refs[0].key], 10.0)
        assert not hold(client, spec, [each.key for each in refs], 10.0)
        assert not hold(client, spec, [], 10.0)
        assert next(client.list()).pinned_until_ms > 0


def test_weights_are_named_by_their_content(tmp_path):
    assert weights_digest(str(tmp_path), None) == ""
    (tmp_path / "model.safetensors").write_bytes(bytes(10_000))
    (tmp_path / "notes.txt").write_text("a")
    first = weights_digest(str(tmp_path), None)
    (tmp_path / "notes.txt").write_text("b")
    assert weights_digest(str(tmp_path), None) == first
    (tmp_path / "config.json").write_text("{}")
    second = weights_digest(str(tmp_path), None)
    (tmp_path / "model.safetensors").write_bytes(bytes(9_999) + b"\1")
    assert len({first, second, weights_digest(str(tmp_path), None), ""}) == 4
