"""Many threads, little memory: every byte is checked, and nothing is left behind."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

import kvstore
from kvstore.errors import Closed, NotFound, Shed
from tests.store.conftest import LARGE, SHARDED, SLIDING, Box, MiB, content, prompt

SECONDS = float(os.environ.get("KVSTORE_TEST_PRESSURE_S", "3"))


def hammer(seconds: float, *jobs: Callable[[random.Random, Counter[str]], None]) -> Counter[str]:
    """Run each job in a thread of its own, over and over; the first failure of any ends all and is raised."""
    stop, failures, counts = threading.Event(), list[BaseException](), Counter[str]()

    def work(number: int, job: Callable[[random.Random, Counter[str]], None]) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            try:
                job(chance, counts)
            except BaseException as failure:  # noqa: BLE001 - the test tells of it
                failures.append(failure)
                stop.set()

    threads = [threading.Thread(target=work, args=(i, job), daemon=True) for i, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    for failure in failures:
        raise failure
    return counts


@pytest.mark.parametrize("nvme", [0, 5 * MiB], ids=["dram", "dram+nvme"])
@pytest.mark.parametrize("spec", [LARGE, SHARDED, SLIDING], ids=lambda spec: spec.model)
def test_what_a_look_up_reports_under_a_lease_can_be_got(box: Box, spec: kvstore.KVSpec, nvme: int) -> None:
    small = spec is SLIDING
    client = box.open(
        dram=MiB // 4 if small else 2 * MiB, extent=MiB // 8 if small else MiB, nvme=nvme and (MiB if small else nvme),
        segment=MiB // 16 * (1 if small else 8), put_wait_s=0.05,
    )  # fmt: skip
    chains = [prompt(spec, 4, seed, tail=3) for seed in range(12)]
    expected = {(ref.key, part): content(spec, ref, part) for c in chains for ref in c.refs for part in spec.parts()}

    def write(chance: random.Random, counts: Counter[str]) -> None:
        for ref in chance.choice(chains).refs:
            for part in spec.parts():
                ack = "persisted" if nvme and chance.random() < 0.2 else "stored"
                try:
                    client.put(spec, ref, expected[ref.key, part], part=part, ack=ack)
                    counts["put"] += 1
                except Shed:
                    counts["shed"] += 1

    def read(chance: random.Random, counts: Counter[str]) -> None:
        with client.lookup(spec, chance.choice(chains), lease_s=30) as hit:
            for ref in hit.refs:
                for part in spec.parts():
                    if ref not in hit.refs_for(part.group):
                        continue
                    got = client.get(spec, ref, part=part, verify=chance.random() < 0.3)
                    assert np.array_equal(got, expected[ref.key, part])
                    counts["read"] += 1

    def glance(chance: random.Random, counts: Counter[str]) -> None:
        ref = chance.choice(chance.choice(chains).refs)
        part = chance.choice(list(spec.parts()))
        try:
            with client.view(spec, ref, part=part) as view:
                assert view.data == expected[ref.key, part].tobytes()
                counts["viewed"] += 1
        except (NotFound, Shed):
            counts["missed"] += 1

    def meddle(chance: random.Random, counts: Counter[str]) -> None:
        keys = [ref.key for ref in chance.choice(chains).refs]
        chance.choice([client.delete, client.prefetch, client.unpin])(spec, keys)
        client.pin(spec, keys[:1], 0.05)
        for info in client.list():
            counts["listed"] += len(info.placements)
        time.sleep(0.02)

    counts = hammer(SECONDS if nvme else SECONDS / 2, write, write, read, read, glance, meddle)
    assert min(counts["put"], counts["read"]) > 20, counts
    assert all(not problem for _, _, problem in client.verify())
    counters = client.stats()["counters"]
    assert not {name for name in counters if "quarantined" in name or "corrupt" in name or "failures" in name}
    time.sleep(0.06)
    box.settled(client)


def test_closing_while_others_work_ends_all_of_them_in_order(box: Box) -> None:
    for round_ in range(4):
        client = box.open(dram=2 * MiB, extent=MiB, nvme=16 * MiB, segment=MiB, put_wait_s=0.2)
        chains = [prompt(LARGE, 3, seed) for seed in range(6)]
        others = [box.another(client) for _ in range(4)]
        wrong: list[BaseException] = []

        def work(mine: kvstore.Client, seed: int) -> None:
            chance = random.Random(seed)
            while True:
                ref = chance.choice(chance.choice(chains).refs)  # noqa: B023
                try:
                    box.fill(mine, LARGE, [ref], chance.choice(["stored", "persisted"]))
                    with mine.lookup(LARGE, [ref], lease_s=5):
                        box.check(mine, LARGE, [ref])
                    with mine.view(LARGE, ref) as view:
                        assert view.data == content(LARGE, ref, LARGE.part()).tobytes()
                    mine.reserve(LARGE, ref)
                except Closed:
                    return
                except (Shed, NotFound):
                    pass
                except BaseException as error:  # noqa: BLE001 - the test tells of it
                    wrong.append(error)  # noqa: B023
                    return

        threads = [threading.Thread(target=work, args=(c, i), daemon=True) for i, c in enumerate(others)]
        for thread in threads:
            thread.start()
        time.sleep(0.15 + 0.1 * round_)
        client.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert wrong == []
        reopened = box.open(nvme=16 * MiB, segment=MiB)
        for info in reopened.list():
            ref = next(ref for chain in chains for ref in chain.refs if ref.key == info.key)
            box.check(reopened, LARGE, [ref])
        box.settled(reopened)
        reopened.close()


def test_two_writers_of_one_part_store_it_once(box: Box) -> None:
    client = box.open(nvme=64 * MiB)
    refs = [prompt(LARGE, 1, seed).refs[0] for seed in range(20)]
    stored: list[bool] = []

    def write() -> None:
        for ref in refs:
            stored.append(client.put(LARGE, ref, content(LARGE, ref, LARGE.part()), ack="persisted"))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (stored.count(True), len(stored)) == (20, 80)
    box.check(client, LARGE, refs, verify=True)
    box.settled(client)
