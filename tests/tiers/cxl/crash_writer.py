"""A process that writes to a persistent tier and deletes from it until it is killed, and says what it was promised.

Lines are `w NUMBER` (about to write), `a NUMBER` (write returned), `g NUMBER` (about to delete), `d NUMBER` (delete
returned).
"""

from __future__ import annotations

import os
import random
import sys
import threading

from kvstore.testing import Sample, make_sample, make_spec
from kvstore.testing.records import NAMESPACE
from kvstore.tiers.base import TierFull
from kvstore.tiers.cxl import CxlTier

THREADS = 3


def say(word: str, number: int) -> None:
    os.write(1, f"{word} {number}\n".encode())


def write_forever(tier: CxlTier, first: int) -> None:
    choose, number = random.Random(first), first
    mine: list[tuple[int, int, Sample]] = []
    while True:
        number += 1
        sample = make_sample(number, choose.randrange(1, 400_000), pad=bool(number % 3))
        say("w", number)
        while True:
            try:
                mine.append((sample.write_to(tier), number, sample))
                break
            except TierFull:
                delete_one(tier, mine, choose)
        say("a", number)
        if choose.random() < 0.3:
            delete_one(tier, mine, choose)
        if choose.random() < 0.05:
            tier.sync()


def delete_one(tier: CxlTier, mine: list[tuple[int, int, Sample]], choose: random.Random) -> None:
    if mine:
        location, number, sample = mine.pop(choose.randrange(len(mine)))
        say("g", number)
        tier.delete(location, sample.record.total_bytes)
        say("d", number)


def main() -> None:
    first, *paths = sys.argv[1:]
    tier = CxlTier(paths=paths, persistent=True, weights=[2, 1], unit=16384, threads=2)
    tier.recover()
    tier.describe(NAMESPACE, make_spec())
    for index in range(THREADS):
        threading.Thread(target=write_forever, args=(tier, int(first) + index * 10_000)).start()


main()
