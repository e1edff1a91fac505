"""`bench lookup` and `bench mix` in miniature, and the workloads that mix replays."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.bench import lookup, mix, replay, workloads
from kvstore.bench.corpus import chunk_bytes
from kvstore.bench.models import model_spec
from kvstore.config import Config, DramConfig
from kvstore.errors import Corrupt, InvalidArgument
from kvstore.policy import POLICIES
from kvstore.spec import KVSpec

from .conftest import FIELDS, assert_rows, lying

MiB = 1 << 20
# Beside the checkout, or where the variable says.
TRACES = Path(os.environ.get("TRACES_FOLDER", Path(__file__).resolve().parents[3] / "shared" / "traces"))


def test_lookup_asks_embedded_stores_and_servers() -> None:
    rows = lookup.run(entries=2000, clients=(1, 2), modes=("embedded", "grpc"), seconds=0.02)
    assert_rows(rows)
    names = [f"lookup-{n}-{kind}" for n in lookup.LENGTHS for kind in ("hit", "partial", "miss", "hit-leased")]
    names.remove("lookup-1-partial")
    for mode in ("embedded", "grpc"):
        mine = [row for row in rows if row["mode"] == mode]
        assert [row["case"] for row in mine if row["clients"] == 1] == names
        assert [row["case"] for row in mine if row["clients"] == 2] == [name for name in names if "-100-" in name]
    assert all(row["lookups_per_s"] > 0 for row in rows)
    assert {(row["case"], row["mode"]) for row in rows if row["bar"]} == {("lookup-100-hit", "embedded")}


def test_lookup_has_the_groups_of_a_model() -> None:
    spec = lookup.tiny(model_spec("gemma-3-12b", tp=2))
    assert [group.window for group in spec.groups] == [0, 4]
    assert len(spec.all_parts) == 4
    assert lookup.tiny(model_spec("deepseek-v3")).groups[0].latent_dim == 1
    rows = lookup.run(entries=2000, model=model_spec("gpt-oss-20b"), clients=(1,), modes=("embedded",), seconds=0.01)
    assert rows[0]["model"] == "openai/gpt-oss-20b"


def test_lookup_notices_a_wrong_answer() -> None:
    with kvstore.open(Config(dram=DramConfig(capacity=8 * MiB, extent=8 * MiB))) as client:
        asker = lookup.Asker(client, lookup.tiny(None), {100: 2, 1000: 1}, 0)
        asker.run("10 hit", float(np.nextafter(0, 1)))  # no time: nothing asked
        asker.check()
        asker.run("10 miss", lookup.time.monotonic() + 0.01)
        asker.check()
        asker.run("10 hit", lookup.time.monotonic() + 0.01)
        with pytest.raises(Corrupt, match="found 0 of 10 chunks, not 10"):
            asker.check()


@pytest.mark.parametrize(
    ("options", "words"), [({"entries": 10}, "at least 2000"), ({"modes": ("embedded", "pigeon")}, "no mode 'pigeon'")]
)
def test_lookup_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        lookup.run(**options)


def test_zipf_follows_its_seed_and_its_exponent() -> None:
    many = {"requests": 4000, "documents": 50, "tokens": 16}
    made = workloads.zipf(exponent=1.0, **many)
    assert made.requests == workloads.zipf(exponent=1.0, **many).requests
    assert made.requests != workloads.zipf(exponent=1.0, seed=1, **many).requests
    asked = [blocks[0][0] // workloads.LONGEST for blocks in made.requests]
    counts = np.bincount(asked, minlength=50)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.5)
    even = np.bincount([b[0][0] // workloads.LONGEST for b in workloads.zipf(exponent=0.0, **many).requests])
    assert even.max() < 2 * even.min() + 40
    with pytest.raises(InvalidArgument, match="exponent"):
        workloads.zipf(exponent=-1.0, **many)


def test_a_key_stands_for_its_block_and_all_before_it() -> None:
    one, two = workloads.chain_of([(1, 16), (2, 16), (3, 5)]), workloads.chain_of([(1, 16), (2, 16), (4, 16)])
    assert one[:2] == two[:2]
    assert one[2].key != two[2].key
    assert workloads.chain_of([(9, 16), (2, 16)])[1].key != one[1].key
    assert [ref.position for ref in one] == [0, 16, 32]
    assert one[2].parent == one[1].key


def write(path: Path, lines: list[Any]) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_traces_of_both_formats(tmp_path: Path) -> None:
    hashed = [{"input_length": 1300, "hash_ids": [1, 2, 3]}, {"input_length": 512, "hash_ids": [1]}]
    made = workloads.trace(write(tmp_path / "a.jsonl.gz", hashed), 10)
    assert (made.name, made.chunk_tokens) == ("a", 512)
    assert made.requests == [[(1, 512), (2, 512), (3, 276)], [(1, 512)]]
    whole = [{"input_length": 9691, "hash_ids": list(range(9))}]  # only whole blocks are listed
    assert workloads.trace(write(tmp_path / "b.jsonl", whole), 10).chunk_tokens == 1024
    parts = [{"segments": [[7, 100, "x"], [8, 5, "y"]]}, {"segments": []}]
    made = workloads.trace(write(tmp_path / "c.jsonl", parts), 10)
    assert (made.chunk_tokens, made.requests) == (100, [[(7, 100), (8, 5)]])
    assert len(workloads.trace(tmp_path / "a.jsonl.gz", 1).requests) == 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "no requests"),
        ([[1]], ":1: no JSON object"),
        ([{"x": 1}], "neither hash_ids nor segments"),
        ([{"hash_ids": [1]}], ":1: input_length"),
        ([{"input_length": 10, "hash_ids": [1, 2, 3]}, {"input_length": 9999, "hash_ids": [1]}], "no block length"),
        ([{"segments": [[1]]}], ":1: a segment is"),
        ([{"segments": [[1, 0, "x"]]}], ":1: segment 1 has 0 tokens"),
        ([{"segments": []}], "without tokens"),
    ],
)
def test_a_file_that_is_no_trace_is_told(tmp_path: Path, lines: list[Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        workloads.trace(write(tmp_path / "bad.jsonl", lines), 10)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        workloads.trace(tmp_path / "none.jsonl", 10)
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 9999)[:-20])
    with pytest.raises(InvalidArgument, match="cannot be read"):
        workloads.trace(tmp_path / "torn.jsonl.gz", 1 << 20)
    (tmp_path / "text.jsonl").write_text("hello\n")
    with pytest.raises(InvalidArgument, match=":1: no JSON"):
        workloads.trace(tmp_path / "text.jsonl", 10)


@pytest.mark.skipif(not TRACES.is_dir(), reason="the traces are not on this machine")
@pytest.mark.parametrize(
    ("name", "tokens"), [("mooncake_conversation", 512), ("agent_sessions", 1024), ("rag_segments", 512)]
)
def test_real_traces(name: str, tokens: int) -> None:
    made = workloads.trace(TRACES / f"{name}.jsonl.gz", 50)
    assert (made.name, made.chunk_tokens, len(made.requests)) == (name, tokens, 50)


def small(tmp_path: Path, **options: Any) -> mix.Plan:
    return mix.Plan(requests=40, dram=32 * MiB, working_set=3.0, **options)


@pytest.mark.parametrize("mode", ["embedded", "local", "bulk"])
def test_mix_reports_what_became_of_the_requests(tmp_path: Path, mode: str) -> None:
    spec = KVSpec.dense("m", layers=2, kv_heads=1, head_dim=32, chunk_tokens=256)
    rows = mix.run(small(tmp_path), model=spec, clients=(1, 2), mode=mode)
    assert [(row["case"], row["clients"], row["mode"]) for row in rows] == [("zipf-1", 1, mode), ("zipf-1", 2, mode)]
    assert_rows(rows)
    for row in rows:
        assert 0 < row["hit_ratio"] < 1
        assert row["hit_tokens"] / row["tokens"] == row["hit_ratio"]
        assert row["requests"] == 40
        assert row["checked"] > 0
        assert row["bytes"] == chunk_bytes(spec)
        assert row["moved_bytes"] > row["hit_tokens"] * 256
        assert {"lookup_p99_s", "put_p99_s", "sheds", "lost", "get_gbps"} <= row.keys()
    assert rows[0]["lost"] == 0


def test_mix_spills_to_nvme_and_moves_a_hybrid_models_parts(tmp_path: Path) -> None:
    plan = small(tmp_path, nvme=tmp_path, nvme_capacity=1 << 30)
    (row,) = mix.run(plan, model=model_spec("gpt-oss-20b", tokens=32, tp=2), clients=(2,), mode="embedded")
    assert row.keys() >= FIELDS
    assert row["nvme"]
    assert row["hit_ratio"] > 0
    assert list(tmp_path.iterdir()) == []


def test_mix_replays_a_trace(tmp_path: Path) -> None:
    lines = [{"input_length": 100, "hash_ids": [0, 1 + i % 3]} for i in range(12)]
    plan = mix.Plan(trace_path=write(tmp_path / "t.jsonl", lines), dram=64 * MiB)
    (row,) = mix.run(plan, clients=(1,), mode="embedded")
    # Of 100 tokens the first 64 are shared by all; three prompts are new once each.
    assert (row["case"], row["hit_tokens"], row["tokens"]) == ("t", 1200 - 3 * 36 - 64, 1200)


def test_a_mix_client_notices_flipped_bytes() -> None:
    spec = KVSpec.dense("m", layers=1, kv_heads=1, head_dim=8, chunk_tokens=16)
    with mix.pool(spec) as pool, kvstore.open(Config(dram=DramConfig(8 * MiB, 8 * MiB))) as client:
        prompt = [(1, 16), (2, 16)]
        assert replay.Replayer(client, spec, [prompt, prompt], pool).run("replay", 0.0)["checked"] == 2
        with pytest.raises(Corrupt, match="other bytes than were put"):
            replay.Replayer(lying(client), spec, [prompt], pool).run("replay", 0.0)


def test_mix_refuses(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no mode 'pigeon'"):
        mix.run(mix.Plan(), mode="pigeon")
    with pytest.raises(InvalidArgument, match="too little for chunks"):
        mix.run(mix.Plan(dram=1 << 20), mode="embedded")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_simulator_has_the_same_hit_ratio(policy: str) -> None:
    spec = KVSpec.dense("m", layers=2, kv_heads=1, head_dim=32, chunk_tokens=64)
    plan = mix.Plan(requests=600, dram=8 * MiB, working_set=4.0, policy=policy)
    (row,) = mix.run(plan, model=spec, clients=(1,), mode="embedded")
    assert (row["policy"], row["sheds"]) == (policy, {})
    assert 0.2 < row["hit_ratio"] < 0.9
    # Queues that are parts of the capacity begin to be in a store when it is told (every 15 s), and GDSF divides by the
    # bytes of a chunk, which a store counts without their header. `value` goes by the time of each event, of which the
    # simulator has that of the request alone.
    off = {"s3fifo": 0.02, "arc": 0.02, "gdsf": 0.02, "value": 0.01}.get(policy, 0.0)
    assert row["sim_hit_ratio"] == pytest.approx(row["hit_ratio"], rel=0.0, abs=off)
    assert row["slower_share"] is None  # no model is known, so no prefill


def test_mix_knows_its_policies() -> None:
    with pytest.raises(InvalidArgument, match="--policy = 'lry': there is no such policy"):
        mix.run(mix.Plan(policy="lry"), mode="embedded")
