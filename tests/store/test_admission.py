"""The filter before tiers of a real store: on files, over restarts, and what it must never cost."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore.admission import FILE
from kvstore.config import Config, CxlConfig, DramConfig, NvmeConfig, RemoteConfig
from kvstore.core import DRAM, Core
from kvstore.errors import Shed
from kvstore.keys import Chain
from tests.store.conftest import LARGE, MiB, check_policies, content, prompt
from tests.store.test_leases import until
from tests.store.test_pressure import hammer

BUDGET = Path("nvme") / "catalog" / FILE
RECORD = 260 << 10  # of a chunk of LARGE
OF_NVME = {"capacity": 24 * MiB, "segment": MiB, "reserve": 0, "io_threads": 2}
# Where a test says policy="lru" it counts on it that what is new stays in DRAM and what was put before it goes down.
# Under the default the newest chunk of a prompt that nobody has used twice may be its own victim.


class Stores:
    """Stores of 2 MiB of DRAM with lower tiers in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[kvstore.Client] = []

    def open(self, dram: int = 2 * MiB, **below: Any) -> kvstore.Client:
        client = kvstore.open(Config(dram=DramConfig(dram, dram), put_wait_s=5.0, **below))
        self.opened.append(client)
        return client

    def nvme(self, **keys: Any) -> NvmeConfig:
        return NvmeConfig(self.folder / "nvme", **{**OF_NVME, **keys})

    def close(self) -> None:
        for client in self.opened:
            client.close()


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    found = Stores(tmp_path)
    yield found
    found.close()


def core_of(client: kvstore.Client) -> Core:
    return client.backend._store.core  # type: ignore[attr-defined, no-any-return]


def put(client: kvstore.Client, *chains: Chain, ack: str = "stored") -> None:
    for chain in chains:
        for ref in chain.refs:
            client.put(LARGE, ref, content(LARGE, ref, LARGE.part()), ack=ack)


def found(client: kvstore.Client, chain: Chain) -> int:
    """Chunks of a prompt that are there, by a look-up that is no use of them."""
    return sum(client.contains(LARGE, chain.refs))


def tier(client: kvstore.Client, name: str = "nvme") -> Any:
    return client.stats()["tiers"][name]


def prompts(count: int, first: int = 0, chunks: int = 5) -> list[Chain]:
    return [prompt(LARGE, chunks, seed) for seed in range(first, first + count)]


def fill(client: kvstore.Client, name: str = "nvme") -> None:
    """Put prompts until a tier is full: something there had to go. Then nothing is on its way down: what is held for
    that is passed over by whoever makes room, and what is newer goes in its place."""
    for seed in range(10_000, 10_100):
        put(client, prompt(LARGE, 5, seed))
        if not tier(client, name)["has_room"]:
            assert until(lambda: held(core_of(client)) == 0)
            return
    raise AssertionError(f"{name} does not fill")


def held(core: Core) -> int:
    """Readers of what lies in DRAM."""
    with core.lock:
        rows, _ = core.index.chunks(0, 1 << 16)
        return sum(core.index.placement(each).readers for row in rows.tolist() for each in core.placements(row, DRAM))


def test_without_settings_there_is_no_filter(stores: Stores) -> None:
    client = stores.open(nvme=stores.nvme())
    assert "admit" not in tier(client)
    assert "refused" not in tier(client)


def test_a_tier_with_room_takes_all_that_comes(stores: Stores) -> None:
    client, chains = stores.open(nvme=stores.nvme(capacity=64 * MiB, admit="second-touch")), prompts(30)
    put(client, *chains)
    assert [found(client, chain) for chain in chains] == [5] * 30
    assert tier(client)["refused"] == {"used_once": 0, "budget_low": 0, "budget_spent": 0}
    assert tier(client)["has_room"]
    assert tier(client)["written"] > 100


def test_a_full_tier_takes_what_was_used_or_comes_back(stores: Stores) -> None:
    client = stores.open(nvme=stores.nvme(admit="second-touch"), policy="lru")
    fill(client)
    before = tier(client)["written"]
    once, used, back = prompt(LARGE, 2, 1), prompt(LARGE, 2, 2), prompt(LARGE, 2, 3)
    put(client, once, back, used)
    client.lookup(LARGE, used, lease_s=5).release()
    put(client, *prompts(2, 100))
    assert [found(client, each) for each in (once, back)] == [0, 0]
    assert found(client, used) == 2
    put(client, back)
    put(client, *prompts(2, 200))
    assert [found(client, each) for each in (once, used, back)] == [0, 2, 2]
    assert until(lambda: tier(client)["written"] - before >= 4), "what came back may still be on its way"
    told = tier(client)
    assert told["written"] - before < 12, "some are let in, most of the other 22 are not"
    counters = client.stats()["counters"]
    assert told["refused"]["used_once"] == counters["refused_nvme_used_once"] > 10
    assert told["remembered"] >= told["refused"]["used_once"]
    for ref in (*used.refs, *back.refs):
        assert (client.get(LARGE, ref) == content(LARGE, ref, LARGE.part())).all()
    check_policies(core_of(client))


def test_what_is_refused_stays_until_its_policy_lets_it_go(stores: Stores) -> None:
    client = stores.open(nvme=stores.nvme(admit="second-touch"), policy="lru")
    fill(client)
    put(client, *prompts(1, 50, chunks=6))  # the newest, of the seven that DRAM has room for
    before = tier(client)["refused"]["used_once"]
    time.sleep(0.6)  # two rounds of the mover
    assert found(client, prompt(LARGE, 6, 50)) == 6
    assert tier(client)["refused"]["used_once"] == before, "nothing was lost, so nothing was refused"


def test_room_that_was_given_back_is_used(stores: Stores) -> None:
    client = stores.open(nvme=stores.nvme(admit="second-touch"))
    fill(client)
    gone = [info.key for info in client.list() if any(place.tier == "nvme" for place in info.placements)][:20]
    client.delete(LARGE, gone)
    assert tier(client)["has_room"]
    chains = prompts(3, 300)
    put(client, *chains)
    assert sum(found(client, chain) for chain in chains) == 15


def test_what_is_leased_or_pinned_is_never_lost_by_it(stores: Stores) -> None:
    client = stores.open(nvme=stores.nvme(admit="second-touch"), policy="lru")
    fill(client)
    pinned, leased = prompt(LARGE, 2, 1), prompt(LARGE, 2, 2)
    put(client, pinned, leased)
    client.pin(LARGE, [ref.key for ref in pinned.refs], 60)
    with client.lookup(LARGE, leased, lease_s=60):
        put(client, *prompts(8, 100, chunks=3))
        assert [found(client, each) for each in (pinned, leased)] == [2, 2]
        for ref in (*pinned.refs, *leased.refs):
            assert (client.get(LARGE, ref) == content(LARGE, ref, LARGE.part())).all()


def test_what_was_promised_to_be_on_disk_is_not_asked_about(stores: Stores) -> None:
    keys = {"admit": "second-touch", "write_bytes_per_day": 4 * MiB}
    client = stores.open(nvme=stores.nvme(**keys), policy="lru")
    put(client, *prompts(4))
    assert until(lambda: tier(client)["budget"] == "budget_spent")
    promised, other = prompts(2, 100, chunks=4), prompt(LARGE, 4, 200)
    put(client, *promised, ack="persisted")
    put(client, other)
    assert tier(client)["budget_left"] < -8 * RECORD, "and it is paid for"
    client.close()
    again = stores.open(nvme=stores.nvme(**keys), policy="lru")
    assert [found(again, each) for each in (*promised, other)] == [4, 4, 4]  # the last by the flush at the end


def test_a_budget_is_kept_told_and_outlives_the_store(stores: Stores, tmp_path: Path) -> None:
    keys = {"write_bytes_per_day": 8 * MiB}
    client = stores.open(nvme=stores.nvme(**keys))
    watch = client.watch()
    put(client, *prompts(10))
    told = tier(client)
    assert told["budget"] == "budget_spent"
    assert told["budget_most"] == 2 * MiB
    assert told["written_bytes"] < 2 * MiB + 16 * RECORD  # a batch at most is judged before it is written
    assert told["refused"]["budget_spent"] > 10
    assert told["budget_left"] == pytest.approx(2 * MiB - told["written_bytes"], abs=16 << 10)
    assert until(lambda: any("used up write_bytes_per_day" in note for note in client.stats()["notes"]))
    assert any(event.kind == "tier" and "used up" in event.note for event in _events(watch))
    watch.close()
    client.close()
    kept = json.loads((tmp_path / BUDGET).read_bytes())
    assert kept["left_bytes"]["nvme"] <= 0
    again = stores.open(nvme=stores.nvme(**keys))
    assert tier(again)["budget"] == "budget_spent"
    assert again.stats()["notes"] == []
    again.close()
    day_ago = {**kept, "at_ms": kept["at_ms"] - 86_400_000}
    (tmp_path / BUDGET).write_text(json.dumps(day_ago))
    assert tier(stores.open(nvme=stores.nvme(**keys)))["budget_left"] > 0


def test_a_budget_that_cannot_be_read_is_spent_and_one_that_nobody_knows_is_whole(
    stores: Stores, tmp_path: Path
) -> None:
    file, keys = tmp_path / BUDGET, {"write_bytes_per_day": 400 * MiB}
    first = stores.open(nvme=stores.nvme(**keys))
    assert until(file.is_file)
    first.close()
    said = '{"version": %s, "at_ms": %s, "left_bytes": {"nvme": %s}}'
    for broken in ("", "[1]", said % (1, 5, '"much"'), said % (1, 5, "NaN"), said % (1, -1, 7), said % (9, 5, 7)):
        file.write_text(broken)
        client = stores.open(nvme=stores.nvme(**keys))
        assert any("cannot be read: nothing is" in note for note in client.stats()["notes"]), broken
        assert tier(client)["budget"] == "budget_spent"
        client.close()
    file.unlink()
    assert tier(stores.open(nvme=stores.nvme(**keys)))["budget_left"] > 99 * MiB


def test_a_budget_is_on_every_drive(stores: Stores, tmp_path: Path) -> None:
    keys = {"paths": (tmp_path / "second",), "write_bytes_per_day": 8 * MiB}
    first = stores.open(nvme=stores.nvme(**keys))
    put(first, *prompts(10))
    assert tier(first)["budget"] == "budget_spent"
    first.close()
    second = tmp_path / "second" / "catalog" / FILE
    kept = json.loads(second.read_bytes())
    (tmp_path / BUDGET).write_text(json.dumps({**kept, "at_ms": 1}))  # of a time when the second was away: older
    again = stores.open(nvme=stores.nvme(**keys))
    assert tier(again)["budget"] == "budget_spent"
    again.close()
    (tmp_path / BUDGET).write_text("damaged")
    assert tier(stores.open(nvme=stores.nvme(**keys)))["budget"] == "budget_spent"


def test_little_that_is_left_is_for_what_was_used_twice(stores: Stores, tmp_path: Path) -> None:
    client = stores.open(nvme=stores.nvme())
    put(client, *prompts(40))
    client.close()
    now = time.time_ns() // 1_000_000
    kept = {"version": 1, "at_ms": now, "left_bytes": {"nvme": 40 * MiB}}
    (tmp_path / BUDGET).write_text(json.dumps(kept))
    client = stores.open(nvme=stores.nvme(write_bytes_per_day=400 * MiB), policy="lru")
    fill(client)
    assert tier(client)["budget"] == "budget_low"
    once, used = prompt(LARGE, 2, 1001), prompt(LARGE, 2, 1002)
    put(client, once, used)
    client.lookup(LARGE, used, lease_s=5).release()
    put(client, *prompts(2, 2000))
    assert [found(client, each) for each in (once, used)] == [0, 2]
    assert tier(client)["refused"]["budget_low"] >= 2
    assert tier(client)["refused"]["used_once"] == 0


def test_copies_of_the_clean_up_are_paid_for(stores: Stores) -> None:
    client = stores.open(nvme=stores.nvme(write_bytes_per_day=4096 * MiB))
    kept = prompts(4)
    for n in range(60):
        put(client, *kept, *prompts(1, 100 + n))
        for chain in kept:
            client.lookup(LARGE, chain, lease_s=5).release()
    assert until(lambda: tier(client)["moved_bytes"] > 0)
    told = core_of(client).admissions.stats(1) | tier(client)
    assert told["written_bytes"] > told["stored_bytes"] + told["moved_bytes"] > told["stored_bytes"]
    earned = 4096 * MiB // 86_400  # a second
    assert told["budget_left"] <= told["budget_most"] - told["written_bytes"] + 120 * earned


def test_a_drain_is_not_stopped_by_a_budget(stores: Stores, tmp_path: Path) -> None:
    remote = RemoteConfig(f"file://{tmp_path / 'place'}", write_bytes_per_day=MiB)
    (tmp_path / "place").mkdir()
    client, chains = stores.open(nvme=stores.nvme(), remote=remote), prompts(6)
    put(client, *chains, ack="persisted")
    assert until(lambda: tier(client, "remote")["budget"] == "budget_spent")
    assert until(lambda: client.stats()["gauges"]["through"] == 0)
    assert tier(client, "remote")["written"] < 10
    client.drain("nvme")
    assert until(lambda: tier(client)["state"] == "drained")
    assert [found(client, chain) for chain in chains] == [5] * 6
    assert tier(client, "remote")["written"] == 30


def test_what_a_shared_place_refused_goes_there_when_it_was_used(stores: Stores, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    remote = RemoteConfig(f"file://{tmp_path / 'place'}", capacity=5 * MiB, admit="second-touch")
    client = stores.open(remote=remote, policy="lru")
    fill(client, "remote")
    used = prompt(LARGE, 2, 1)
    put(client, used)
    assert until(lambda: client.stats()["gauges"]["through"] == 0)
    written = tier(client, "remote")["written"]
    client.lookup(LARGE, used, lease_s=5).release()
    put(client, *prompts(2, 100))
    assert found(client, used) == 2
    assert tier(client, "remote")["written"] - written <= 3
    assert tier(client, "remote")["refused"]["used_once"] > 0


def test_memory_has_a_filter_as_well_and_what_it_lets_go_meets_the_next(stores: Stores, tmp_path: Path) -> None:
    device = tmp_path / "cxl"
    device.write_bytes(bytes(8 * MiB))
    cxl, nvme = CxlConfig(paths=(device,), admit="second-touch"), stores.nvme(admit="second-touch")
    client = stores.open(4 * MiB, cxl=cxl, nvme=nvme, policy="lru")
    fill(client, "cxl")
    below = tier(client)["written"]
    put(client, *prompts(20, 100))
    assert tier(client, "cxl")["refused"]["used_once"] > 50
    used = prompts(12, 1)  # 15 MiB: more than DRAM and CXL have
    for chain in used:
        put(client, chain)
        client.lookup(LARGE, chain, lease_s=5).release()
    put(client, *prompts(6, 200))
    lost = sum(5 - found(client, chain) for chain in used)
    assert lost <= client.stats()["counters"].get("dropped_no_space", 0), "several movers take what one has freed"
    assert lost < 6
    assert tier(client)["written"] - below > 10, "NVMe has room: all that CXL lets go comes there"
    assert tier(client, "cxl")["write_bytes_per_day"] == 0
    check_policies(core_of(client))


def test_what_memory_lets_go_is_judged_before_it_goes_on(stores: Stores, tmp_path: Path) -> None:
    device = tmp_path / "cxl"
    device.write_bytes(bytes(4 * MiB))
    client = stores.open(cxl=CxlConfig(paths=(device,)), nvme=stores.nvme(capacity=12 * MiB, admit="second-touch"))
    fill(client)
    before = tier(client)
    put(client, *prompts(12, 100))
    after = tier(client)
    assert after["refused"]["used_once"] - before["refused"]["used_once"] > 30
    assert after["written"] - before["written"] < 15


@pytest.mark.parametrize("keys", [{"admit": "second-touch"}, {"write_bytes_per_day": 40 * MiB}])
def test_under_pressure_nothing_leased_is_lost_and_no_byte_is_wrong(stores: Stores, keys: dict[str, Any]) -> None:
    client, chains = stores.open(4 * MiB, nvme=stores.nvme(**keys)), prompts(30, chunks=4)
    expected = {ref.key: content(LARGE, ref, LARGE.part()) for chain in chains for ref in chain.refs}
    put(client, *prompts(10, 1000), *chains)  # more than the tier has room for, or the budget

    def write(chance: random.Random, counts: Counter[str]) -> None:
        try:
            for ref in chance.choice(chains).refs:
                client.put(LARGE, ref, expected[ref.key], ack="persisted" if chance.random() < 0.1 else "stored")
                counts["put"] += 1
        except Shed:
            counts["shed"] += 1

    def read(chance: random.Random, counts: Counter[str]) -> None:
        with client.lookup(LARGE, chance.choice(chains), lease_s=30) as hit:
            for ref in hit.refs:
                assert (client.get(LARGE, ref) == expected[ref.key]).all()
                counts["read"] += 1

    counts = hammer(1.0, write, write, read, read)
    assert counts["put"] > 0
    assert counts["read"] > 0
    assert sum(tier(client)["refused"].values()) > 0
    check_policies(core_of(client))
    assert core_of(client).counters["mover_failures"] == 0


def test_a_drive_that_cannot_keep_the_budget_goes_on(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    client = stores.open(nvme=stores.nvme(write_bytes_per_day=4096 * MiB))
    core = core_of(client)
    monkeypatch.setattr(core.tiers[1], "put_aside", _full)
    core.admissions.put_aside()
    assert core.counters["budgets_not_kept"] == 1
    put(client, *prompts(10))
    assert sum(found(client, chain) for chain in prompts(10)) == 50


def _full(name: str, data: bytes) -> None:
    raise kvstore.errors.StorageError("the file system has no room left")


def _events(watch: Any) -> Iterator[Any]:
    while (event := watch.next_within(0.2)) is not None:
        yield event
