"""kill -9 of a process that writes, deletes, cleans and checkpoints: nothing corrupt, lost or back from the dead."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from kvstore.record import padded
from kvstore.tiers.nvme import NvmeTier
from tests.tiers.crash import read_all, run_and_kill

ROUNDS = 5
WRITER = Path(__file__).with_name("crash_writer.py")


def test_kill_9(tmp_path: Path) -> None:
    folder, choose = tmp_path / "nvme", random.Random(11)
    tried, acknowledged, gone, deleted = set[int](), set[int](), set[int](), set[int]()
    for round_ in range(ROUNDS):
        said = run_and_kill([WRITER, folder, 1 + round_ * 100_000], tmp_path / "said", choose.uniform(0.05, 1.2))
        tried |= said["w"]
        acknowledged |= said["a"]
        gone |= said["g"]
        deleted |= said["d"]
        keys = {number: hashlib.sha256(b"%d" % number).digest() for number in tried}
        tier = NvmeTier(folder, capacity=8 << 20, segment_bytes=1 << 20, reserve_bytes=0)
        found = tier.recover()
        assert not found.notes
        there = read_all(tier, found.rows)
        lost = [n for n in acknowledged - gone if keys[n] not in there]
        assert not lost, f"round {round_}: {lost} were acknowledged"
        phantoms = [n for n in deleted if keys[n] in there]
        assert not phantoms, f"round {round_}: {phantoms} were deleted"
        assert there <= {keys[n] for n in tried}
        # The next writer's owner does not know of these: it takes them for dead, so they go now.
        for row in found.rows:
            tier.delete(int(row["location"]), int(row["header_blocks"]) * 4096 + padded(int(row["stored"])))
        gone |= tried
        tier.close()
    assert len(acknowledged) > 100
