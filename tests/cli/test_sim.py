"""`kvstore sim` from the command line: table, JSON, picture, and what it says of wrong flags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvstore.policy import POLICIES

from .conftest import Run, only_json


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """A folder with a trace of each format."""
    linked = [
        {"timestamp": 1000 * n, "input_length": 160, "output_length": 1, "hash_ids": [*range(5), *range(5 + n, 10 + n)]}
        for n in range(60)
    ]
    parts = [{"timestamp": n, "segments": [[n % 7, 30, "doc"], [100 + n % 11, 40, "doc"]]} for n in range(60)]
    for name, lines in (("chat", linked), ("rag", parts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_trace_alone_plays_every_policy_at_three_sizes(cli: Run, traces: Path) -> None:
    told = only_json(cli("sim", "rag.jsonl", "--capacity", "20%", "--capacity", "50%", "--json"))
    assert (told["bench"], told["model"], told["warm"]) == ("sim", "llama-3.1-8b", 0.5)
    assert [row["case"] for row in told["rows"]] == ["no-cache", *[*POLICIES, "belady", "bound"] * 2]
    for row in told["rows"][1:]:
        assert {"hit_tokens", "flops_saved", "ttft_p50_s", "ttft_p99_s", "capacity", "baseline", "ratio"} <= row.keys()
    table = cli("sim", "chat.jsonl", "--capacity", "20%")
    assert table.returncode == 0, table.stderr
    assert table.stdout.splitlines()[0].split()[:4] == ["policy", "capacity", "hit", "of"]
    assert "60 requests, 600 ids, 69 distinct" in table.stdout


def test_tiers_policies_and_models(called: Run, traces: Path) -> None:
    told = only_json(called(
        "sim", "chat.jsonl", "rag.jsonl", "--tier", "dram=10%", "--tier", "nvme=40%,gbps=3", "--policy", "lru",
        "--model", "smollm2", "--warm", "0.2", "--touch", "put", "--overlap", "--json",
    ))  # fmt: skip
    assert (told["model"], told["touch"], told["overlap"]) == ("smollm2-135m", "put", True)
    assert [(row["mode"], row["case"]) for row in told["rows"]] == [
        (trace, case) for trace in ("chat", "rag") for case in ("no-cache", "lru", "belady", "bound")
    ]  # fmt: skip
    assert [tier["tier"] for tier in told["rows"][1]["tiers"]] == ["dram", "nvme"]


def test_a_filter_before_lower_tiers(called: Run, traces: Path) -> None:
    both = ("sim", "rag.jsonl", "--tier", "dram=10%", "--tier", "nvme=40%", "--policy", "lru", "--warm", "0")
    row = only_json(called(*both, "--admit", "second-touch", "--write-bytes-per-day", "1TB", "--json"))["rows"][1]
    assert row["tiers"][1]["used_once"] > 0
    assert row["tiers"][1]["budget_spent"] == 0
    spent = only_json(called(*both, "--write-bytes-per-day", "40MB", "--json"))["rows"][1]
    assert spent["tiers"][1]["budget_spent"] > 0
    assert spent["written_bytes"] < row["written_bytes"]
    for wrong, words in ((("--admit", "twice"), "second-touch"), (("--write-bytes-per-day", "much"), "no bytes a day")):
        refused = called(*both, *wrong)
        assert refused.returncode == 2
        assert words in refused.stderr
    assert called("sim", "rag.jsonl", "--capacity", "5%", "--admit", "second-touch").returncode == 2


def test_traces_at_once_or_one_after_the_other(called: Run, traces: Path) -> None:
    both = ("sim", "chat.jsonl", "rag.jsonl", "--policy", "lru", "--capacity", "30%", "--json")
    mixed = only_json(called(*both, "--mix", "--shares", "3,1"))["rows"][1]
    assert (mixed["mode"], set(mixed["tenants"])) == ("chat+rag", {"chat", "rag"})
    after = only_json(called(*both, "--then", "--warm", "0"))["rows"][1]
    assert (after["mode"], after["tenants"], after["requests"]) == ("chat>rag", {}, 120)


def test_the_picture(called: Run, traces: Path) -> None:
    pytest.importorskip("matplotlib")
    result = called("sim", "chat.jsonl", "--policy", "lru", "--capacity", "20%", "--capacity", "50%", "--plot", "x.png")
    assert result.returncode == 0, result.stderr
    assert (traces / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["which trace?", "--record"]),
        (("none.jsonl",), ["none.jsonl cannot be read"]),
        (("chat.jsonl", "--policy", "lry"), ["no policy 'lry'", "lru"]),
        (("chat.jsonl", "--capacity", "5"), ["that is no cache"]),
        (("chat.jsonl", "--capacity", "much"), ["'much' is no capacity"]),
        (("chat.jsonl", "--capacity", "5%", "--tier", "dram=5%"), ["give one of them"]),
        (("chat.jsonl", "--tier", "tape=5%"), ["'tape' is none of"]),
        (("chat.jsonl", "--mix"), ["two or more"]),
        (("chat.jsonl", "rag.jsonl", "--mix", "--then"), ["not allowed with"]),
        (("chat.jsonl", "--shares", "1,2", "--capacity", "50%"), ["1 tenants"]),
        (("chat.jsonl", "--shares", "1,x"), ["--shares", "'x'"]),
        (("chat.jsonl", "--warm", "1"), ["less than 1"]),
        (("chat.jsonl", "--block", "32"), ["chat.jsonl:1"]),
        (("rag.jsonl", "--whole-blocks", "--capacity", "50%"), ["no whole blocks"]),
        (("chat.jsonl", "--model", "gpt-7"), ["not in the table"]),
        (("chat.jsonl", "--prefill-tflops", "0"), ["above 0"]),
        (("chat.jsonl", "--plot", "x.png", "--tier", "dram=5%"), ["more than once"]),
        (("chat.jsonl", "--record", "127.0.0.1:1", "--out", "x"), ["give one of them"]),
        (("--record", "127.0.0.1:1"), ["--out FILE"]),
    ],
)
def test_what_is_wrong_is_told(called: Run, traces: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    result = called("sim", *arguments)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert result.stderr.count("\n") == 1


def test_a_server_that_is_not_there(called: Run, tmp_path: Path) -> None:
    result = called("sim", "--record", "grpc://127.0.0.1:1", "--out", "x.jsonl", "--seconds", "1")
    assert result.returncode == 8, result.stderr


def test_bench_sim(called: Run) -> None:
    told = only_json(called("bench", "sim", "--events", "2000", "--rounds", "1", "--json"))
    assert [row["case"] for row in told["rows"]] == [*POLICIES, "belady"]
    assert all(row["events_per_s"] > 0 for row in told["rows"])
