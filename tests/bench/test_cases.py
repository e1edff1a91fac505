"""Every benchmark once in miniature: shape and content, never timing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvstore.bench import corpus, crowd, grpc, index, local, remote, torture
from kvstore.bench.models import model_spec
from kvstore.bench.processes import Server, child
from kvstore.bench.redis_peer import PROGRAM
from kvstore.client import Client
from kvstore.errors import Corrupt, InvalidArgument, Unavailable

from .conftest import assert_rows, connect_lying, lying

MiB = 1 << 20


def test_local_has_every_case() -> None:
    rows = local.run(rounds=2, sizes=(1 * MiB, 2 * MiB), working_set=16 * MiB, targets=16 * MiB)
    copies = ["memcpy", "get", "get-one", "get-verified"]
    small = [*copies, "get-batch", "put", "put-copy", "view"]
    large = [*copies, "put", "put-copy", "view"]
    assert [row["case"] for row in rows] == [*small, *large, "lookup-100", "lookup-100-leased"]
    assert_rows(rows)
    assert {row["mode"] for row in rows} == {"embedded"}
    assert all(row["server_cpu_s_per_gb"] is None for row in rows)
    assert [row["bytes"] for row in rows if row["case"] == "get-batch"] == [16 * MiB]
    assert [row["bytes"] for row in rows if row["case"] == "view"] == [1 * MiB, 2 * MiB]
    assert [row["bar"] for row in rows if row["case"] == "get"] == ["≥ 0.8", "≥ 0.8"]


def test_local_moves_the_chunks_of_a_model() -> None:
    spec = model_spec("gpt-oss-20b", tokens=32, tp=2)
    rows = local.run(rounds=1, model=spec, working_set=4 * MiB, targets=4 * MiB)
    assert_rows(rows)
    assert {row["bytes"] for row in rows} == {corpus.chunk_bytes(spec), 0}
    assert {(row["model"], row["chunk_tokens"], row["tp"]) for row in rows} == {("openai/gpt-oss-20b", 32, 2)}


def test_local_server_has_every_case_and_the_crowds() -> None:
    plan = crowd.Plan((1, 2), 2, seconds=0.05, pairs=2, working_set=4 * MiB, targets=2 * MiB, room=8 * MiB)
    size = {"sizes": (1 * MiB,), "working_set": 16 * MiB, "targets": 16 * MiB}
    rows = local.run_server(rounds=1, crowds=plan, **size)  # type: ignore[arg-type]
    alone = ["memcpy", "get", "get-one", "get-verified", "get-batch", "put", "put-copy", "view", "lookup-100"]
    together = ["memcpy-1", "readers-1", "memcpy-2", "readers-2"]
    loads = ["memcpy-beside-2", "loads-under-stores", "loads-under-stores-one"]
    assert [row["case"] for row in rows] == [*alone, "lookup-100-leased", *together, *loads]
    assert_rows(rows)
    for row in rows:
        # A copy has no server, everything else has one whose time counts.
        served = [row[name] for name in ("server_cpu_s_per_gb", "server_cpu_s_per_call") if row.get(name) is not None]
        assert bool(served) == (not row["case"].startswith("memcpy")), row
    readers = next(row for row in rows if row["case"] == "readers-2")
    assert (readers["baseline"], readers["bar"]) == ("memcpy-2", "≥ 0.9, p99 ≤ 1.3 ×")
    loading = next(row for row in rows if row["case"] == "loads-under-stores")
    assert loading["p99_ratio"] > 0
    assert loading["stores_gbps"] > 0


def test_local_finds_wrong_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus.Corpus, "arrived", lambda self, slot: slot != 3)
    with pytest.raises(Corrupt, match="chunk 3"):
        local.run(rounds=1, sizes=(1 * MiB,), working_set=16 * MiB, targets=16 * MiB)


def test_local_notices_a_store_that_flips_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = local.open_store

    @contextmanager
    def opened(capacity: int) -> Iterator[Client]:
        with honest(capacity) as client:
            yield lying(client)

    monkeypatch.setattr(local, "open_store", opened)
    with pytest.raises(Corrupt, match="get gave other bytes than were stored for chunk 0"):
        local.run(rounds=1, sizes=(1 * MiB,), working_set=16 * MiB, targets=16 * MiB)


def test_local_server_and_remote_notice_flipped_bytes() -> None:
    with pytest.raises(Corrupt, match="get gave other bytes"):
        local.run_server(
            rounds=1, sizes=(MiB,), working_set=4 * MiB, targets=4 * MiB, mode="grpc", connect=connect_lying
        )
    with pytest.raises(Corrupt, match="get gave other bytes"):
        remote.run(rounds=1, sizes=(MiB,), working_set=4 * MiB, mode="grpc", connect=connect_lying)


def test_remote_reads_beside_a_raw_stream_and_redis() -> None:
    rows = remote.run(rounds=1, sizes=(1 * MiB, 2 * MiB), working_set=16 * MiB)
    redis = ["redis"] if shutil.which(PROGRAM) else []
    assert [row["case"] for row in rows] == ["tcp-raw", "get", *redis, "get-batch", "put", "tcp-raw", "get", "put"]
    assert_rows(rows)
    # The clock of another process is behind by up to a tick, which may be all of one round.
    assert sum(row["server_cpu_s_per_gb"] for row in rows) > 0
    plan = crowd.Plan((1, 2), seconds=0.05, pairs=2, working_set=2 * MiB, targets=1 * MiB)
    rows2 = remote.run(rounds=1, sizes=(256 << 10,), working_set=1 * MiB, crowds=plan)
    assert [row["case"] for row in rows2][-4:] == ["tcp-raw-1", "get-1", "tcp-raw-2", "get-2"]
    assert_rows(rows2)
    get = rows[1]
    if redis:
        assert (get["bar"], get["met"]) == ("ahead of redis", get["redis_ratio"] > 1)
    else:
        assert "redis-server is not installed" in get["note"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_remote_over_tls_has_a_tls_baseline() -> None:
    rows = remote.run(rounds=1, sizes=(4 * MiB,), working_set=16 * MiB, tls=True)
    assert [(row["case"], row["bar"]) for row in rows] == [("tls-raw", None), ("get", "≥ 0.8"), ("put", None)]
    assert "over TLSv1." in rows[0]["note"]
    assert_rows(rows)


def test_grpc_has_its_cases() -> None:
    rows = grpc.run(rounds=1, sizes=(2 * MiB,), working_set=8 * MiB)
    assert [row["case"] for row in rows] == ["tcp-raw", "get", "put", "lookup-100"]
    assert_rows(rows)


def test_a_channel_that_the_server_lacks_is_told() -> None:
    ready = {"address": "127.0.0.1:1", "pid": 1}
    with pytest.raises(Unavailable, match="no bulk channel"):
        Server(ready, {}).url("bulk")
    with pytest.raises(InvalidArgument, match="'pigeon' is no way"):
        Server(ready, {}).url("pigeon")
    assert Server({**ready, "local": "/run/x"}, {}).url("local") == "local:/run/x"
    assert Server({**ready, "bulk": "127.0.0.1:2"}, {}).url("bulk") == "bulk://127.0.0.1:2"


def test_a_child_that_ends_early_is_told_with_its_last_words() -> None:
    with pytest.raises(Unavailable, match=r"status 3: no such luck"), child(
        [sys.executable, "-c", "import sys; print('no such luck', file=sys.stderr); sys.exit(3)"]
    ):  # fmt: skip
        pass


def test_a_corpus_is_distinct_and_read_only_once() -> None:
    made = corpus.Corpus(256 << 10, 3, 3)
    assert len({source.tobytes() for source in made.sources}) == 3
    made.target(1)[:] = made.sources[1]
    assert made.arrived(1)
    assert not made.arrived(1)
    assert np.array_equal(corpus.content(5, 1001), corpus.content(5, 1001))
    with pytest.raises(ValueError, match="multiple"):
        corpus.spec_of(1000)


def test_index_counts_its_memory_and_its_pauses() -> None:
    metadata, soak = index.run(chunks=2000, soak=500)
    assert (metadata["case"], metadata["chunks"], metadata["placements"]) == ("metadata-2000", 2000, 4000)
    assert metadata["bytes_per_chunk"] * 2000 == metadata["bytes"]
    assert metadata["longest_pause_s"] > 0
    assert (soak["case"], soak["chunks"]) == ("soak", soak["chunks_before"])


def test_torture_loses_nothing(tmp_path: Path) -> None:
    row = torture.torture(5, folder=tmp_path, seed=11)
    assert (row["rounds"], row["corrupt"], row["phantom"], row["lost"]) == (5, 0, 0, 0), row["details"]
    assert row["acknowledged"] > 0
    assert row["checks"] >= 3


def test_the_ledger_tells_lost_corrupt_and_phantom() -> None:
    ledger = torture.Ledger()
    for line in ("O 1 0", "A 1 0 persisted", "O 2 0", "A 2 0 stored", "O 3 0", "A 3 0 synced", "D 3", "X 3", "O 4 0"):
        ledger.read(line)
    for line in (f"K {'00' * 32}", "F 3 0 ok", "F 4 0 bad", "R"):
        ledger.read(line)
    assert ledger.lost == {(1, 0)}
    assert ledger.corrupt == {"4.0 bad"}
    assert ledger.phantom == {"00" * 32}
    assert ledger.undeleted == {3}
    assert ledger.acknowledged == 3
