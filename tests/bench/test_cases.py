"""Every benchmark once in miniature: shape and content, never timing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvstore.bench import corpus, index, local, torture
from kvstore.errors import Corrupt

MiB = 1 << 20


def test_local_has_every_case() -> None:
    rows = local.run(rounds=2, sizes=(1 * MiB, 2 * MiB), working_set=16 * MiB, targets=16 * MiB)
    copies = ["memcpy", "get", "get-one", "get-verified"]
    small = [*copies, "get-batch", "put", "put-copy", "view"]
    large = [*copies, "put", "put-copy", "view"]
    assert [row["case"] for row in rows] == [*small, *large, "lookup-100", "lookup-100-leased"]
    for row in rows:
        assert (row["ratio"] is not None) == (row["baseline"] == "memcpy")
        assert row["mode"] == "embedded"
        assert row["note"]
    assert [row["bytes"] for row in rows if row["case"] == "get-batch"] == [16 * MiB]
    assert [row["bytes"] for row in rows if row["case"] == "view"] == [1 * MiB, 2 * MiB]


def test_local_finds_wrong_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus.Corpus, "arrived", lambda self, slot: slot != 3)
    with pytest.raises(Corrupt, match="chunk 3"):
        local.run(rounds=1, sizes=(1 * MiB,), working_set=16 * MiB, targets=16 * MiB)


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
    row = torture.torture(10, folder=tmp_path, seed=11)
    assert (row["rounds"], row["corrupt"], row["phantom"], row["lost"]) == (10, 0, 0, 0), row["details"]
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
