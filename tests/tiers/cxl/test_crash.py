"""kill -9 of a process that writes to a persistent tier and deletes from it: nothing corrupt, lost or back."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from kvstore.record import padded
from kvstore.tiers.cxl import CxlTier
from tests.tiers.crash import read_all, run_and_kill
from tests.tiers.cxl.conftest import MIB, MakeFiles

ROUNDS = 4
WRITER = Path(__file__).with_name("crash_writer.py")


def test_kill_9(make_files: MakeFiles, tmp_path: Path) -> None:
    paths, choose = make_files(16 * MIB, 8 * MIB), random.Random(11)
    acknowledged = 0
    for round_ in range(ROUNDS):
        said = run_and_kill([WRITER, 1 + round_ * 100_000, *paths], tmp_path / "said", choose.uniform(0.05, 0.6))
        keys = {number: hashlib.sha256(b"%d" % number).digest() for number in said["w"]}
        tier = CxlTier(paths=paths, persistent=True)
        found = tier.recover()
        assert not found.clean
        assert all("whose writing had not ended" in note for note in found.notes), found.notes
        there = read_all(tier, found.rows)
        lost = [n for n in said["a"] - said["g"] if keys[n] not in there]
        assert not lost, f"round {round_}: {lost} were acknowledged"
        phantoms = [n for n in said["d"] if keys[n] in there]
        assert not phantoms, f"round {round_}: {phantoms} were deleted"
        assert there <= set(keys.values())
        acknowledged += len(said["a"])
        for row in found.rows:
            tier.delete(int(row["location"]), int(row["header_blocks"]) * 4096 + padded(int(row["stored"])))
        assert tier.used == 0
        tier.close()
    assert acknowledged > 100
