"""A process that writes to a tier until it is killed, and says on standard output what it was promised.

Lines are `w NUMBER` (about to write), `a NUMBER` (write returned), `g NUMBER` (the owner lets it go: said before the
tier hears of it), `d NUMBER` (delete returned).
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from kvstore.gate import Gate
from kvstore.record import Record
from kvstore.testing import BookOwner, Sample, make_sample, make_spec
from kvstore.testing.records import NAMESPACE
from kvstore.tiers.base import Tier, TierFull, Verdict
from kvstore.tiers.nvme import NvmeTier

THREADS = 3


def say(word: str, sample_number: int) -> None:
    os.write(1, f"{word} {sample_number}\n".encode())


def number_of(record: Record) -> int:
    return record.created_ms - 1_700_000_000_000


class TalkingOwner(BookOwner):
    """Says what it lets go before the tier hears of it."""

    def judge(self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int) -> Sequence[Verdict]:
        verdicts = super().judge(tier, records, since_ms, most)
        for (record, _), verdict in zip(records, verdicts, strict=True):
            if verdict is not Verdict.KEEP:
                say("g", number_of(record))
        return verdicts


class Writer:
    """What the threads share."""

    def __init__(self, tier: NvmeTier) -> None:
        self.tier, self.gate = tier, Gate()
        self.owner = TalkingOwner(lambda record: random.random() < 0.2)

    def write_forever(self, first: int) -> None:
        choose, number = random.Random(first), first
        while True:
            number += 1
            sample = make_sample(number, choose.randrange(1, 60_000), pad=bool(number % 3))
            say("w", number)
            while not self.write(number, sample):
                with self.gate.alone():
                    assert self.tier.make_room(sample.record.total_bytes, self.owner)
            if choose.random() < 0.2:
                self.delete_oldest()
            if choose.random() < 0.02:
                self.tier.sync()
            if choose.random() < 0.02:
                self.tier.checkpoint()

    def write(self, number: int, sample: Sample) -> bool:
        with self.gate.passing():
            try:
                location = sample.write_to(self.tier)
            except TierFull:
                return False
            self.owner.enter(location, sample)
        say("a", number)
        return True

    def delete_oldest(self) -> None:
        try:
            location, sample = self.owner.book.popitem()
        except KeyError:
            return
        say("g", number_of(sample.record))
        self.tier.delete(location, sample.record.total_bytes)
        say("d", number_of(sample.record))


def main() -> None:
    tier = NvmeTier(Path(sys.argv[1]), capacity=8 << 20, segment_bytes=1 << 20, reserve_bytes=0)
    tier.recover()
    tier.describe(NAMESPACE, make_spec())
    writer = Writer(tier)
    for index in range(THREADS):
        threading.Thread(target=writer.write_forever, args=(int(sys.argv[2]) + index * 10_000,)).start()


main()
