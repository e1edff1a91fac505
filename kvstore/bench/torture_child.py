"""What `kvstore bench torture` kills: a process that checks its store, says what it found, then loads it.

Started as `python -m kvstore.bench.torture_child FOLDER SEED FIRST CHECK_ONLY`, with the numbers of all chunks ever
offered on standard input. Content, length and key of a chunk follow from its number, so whatever is read can be
told right or wrong. Every line is one `write`, so a kill leaves whole lines:

    K hex      a key that the store lists          F n part verdict   what reading a part gave
    R          checked, the load begins            O n part           about to be put
    A n part ack   acknowledged                    D n / X n          about to be deleted / deleted
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np

import kvstore
from kvstore.bench.corpus import content, ref_of
from kvstore.client import Client
from kvstore.config import Config, DramConfig, NvmeConfig
from kvstore.errors import Corrupt, NotFound, Shed
from kvstore.keys import ChunkRef
from kvstore.spec import KVGroup, KVSpec

MiB = 1 << 20
THREADS = 2
LIVE = 60  # chunks that a thread keeps before it deletes old ones
SPEC = KVSpec("torture", "", "uint8", (KVGroup((0, 1), 2, 64), KVGroup((2,), 2, 64, window=64)))
PARTS = tuple(SPEC.parts())
ACKS = ("stored", "persisted", "persisted", "synced")


def config(folder: Path) -> Config:
    """Little DRAM, so that the load evicts from it and demotes; more NVMe than the live chunks ever need.

    What is demoted or persisted is encoded, where that makes it smaller.
    """
    return Config(
        dram=DramConfig(capacity=16 * MiB, extent=16 * MiB),
        nvme=NvmeConfig(folder, capacity=96 * MiB, segment=4 * MiB, reserve=0, codec="zstd"),
        max_chunks=1 << 14,
    )


def chunk(number: int) -> ChunkRef:
    """A chunk by its number; its length too follows from it."""
    return ref_of(number, 8 + number * 37 % 249)


def data(number: int, part: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The bytes of a part; those of half of the chunks get smaller when they are encoded."""
    found = content(number * len(PARTS) + part, SPEC.part_bytes(PARTS[part], chunk(number).tokens))
    if number // THREADS % 2:
        found &= np.uint8(0x0F)
    return found


def say(line: str) -> None:
    """One line in one write: a kill never tears it."""
    os.write(1, f"{line}\n".encode())


def check(client: Client, numbers: Sequence[int]) -> list[int]:
    """Say what is there of all chunks ever offered; the numbers of those that are."""
    for listed in client.list():
        say(f"K {listed.key.hex()}")
    found = []
    for number in numbers:
        verdicts = [_verdict(client, number, part) for part in range(len(PARTS))]
        for part, verdict in enumerate(verdicts):
            if verdict:
                say(f"F {number} {part} {verdict}")
        if any(verdicts):
            found.append(number)
    return found


def load(client: Client, numbers: Sequence[int], fresh: Sequence[int] | count[int], seed: int) -> None:
    """Put, get and delete until killed."""
    dice, live = random.Random(seed), list(numbers)
    dice.shuffle(live)
    for number in fresh:
        for part in range(len(PARTS)):
            _put(client, number, part, dice.choice(ACKS))
        live.append(number)
        if dice.random() < 0.3:
            _verdict(client, dice.choice(live), 0)
        while len(live) > LIVE:
            old = live.pop(dice.randrange(len(live) // 2))
            say(f"D {old}")
            client.delete(SPEC, [chunk(old).key])
            say(f"X {old}")


def main() -> None:
    """Check, then load in several threads until the parent kills this process."""
    folder, seed, first, check_only = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    numbers = [int(text) for text in sys.stdin.read().split()]
    with kvstore.open(config(folder)) as client:
        found = check(client, numbers)
        say("R")
        if check_only:
            return
        threads = [
            threading.Thread(
                target=load, args=(client, found[i::THREADS], count(first + i, THREADS), seed + i), daemon=True
            )
            for i in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _put(client: Client, number: int, part: int, ack: str) -> None:
    say(f"O {number} {part}")
    try:
        client.put(SPEC, chunk(number), data(number, part), part=PARTS[part], ack=ack)
    except Shed:
        return
    say(f"A {number} {part} {ack}")


def _verdict(client: Client, number: int, part: int) -> str:
    """`ok`, `bad` (other bytes), `corrupt` (the store itself says so) or empty (not there)."""
    try:
        array = client.get(SPEC, chunk(number), part=PARTS[part], verify=True)
    except NotFound:
        return ""
    except Corrupt:
        return "corrupt"
    return "ok" if np.array_equal(array.reshape(-1), data(number, part)) else "bad"


if __name__ == "__main__":
    main()
