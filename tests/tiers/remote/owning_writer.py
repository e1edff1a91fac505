"""A process that fills its share of a folder, letting go of the oldest record for each new one, until it is killed."""

from __future__ import annotations

import itertools
import os
import sys
from collections import deque
from pathlib import Path

from kvstore.testing.records import NAMESPACE, make_sample, make_spec
from kvstore.tiers.base import TierFull
from kvstore.tiers.nvme.rows import row_bytes
from kvstore.tiers.remote import Ledger, RemoteTier
from kvstore.tiers.remote.posix import PosixEngine

place, folder, capacity, first = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
tier = RemoteTier(PosixEngine(place), capacity=capacity, ledger=Ledger(folder, "place"))
rows = tier.recover().rows
tier.describe(NAMESPACE, make_spec())
own = deque(zip(rows["location"].tolist(), row_bytes(rows).tolist(), strict=True))
for number in itertools.count(first):
    sample = make_sample(number, 9000)
    while True:
        try:
            own.append((sample.write_to(tier), sample.record.total_bytes))
            break
        except TierFull:
            tier.evict(*own.popleft())
    os.write(1, f"{number}\n".encode())
