"""Where records lie: in turns by weight, balanced, followed by what devices give."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from kvstore import _native
from kvstore.errors import Closed, NotFound, TooLarge
from kvstore.testing import aligned_memory, make_sample
from kvstore.tiers.base import TierFull
from kvstore.tiers.cxl import CxlTier
from kvstore.tiers.cxl.weights import Balance, shares, units_for
from tests.tiers.cxl.conftest import MIB, MakeFiles, Opener


def bytes_on(tier: CxlTier, location: int, nbytes: int) -> Counter[int]:
    found: Counter[int] = Counter()
    for device, _, length in tier._memory.where(location, 0, nbytes):
        found[device] += length
    return found


def test_a_record_lies_on_devices_in_proportion_to_their_weights(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(8 * MIB, 8 * MIB, 8 * MIB), weights=[3, 1, 2], unit=4096)
    sample = make_sample(1, 6 * 40 * 4096 - 4096)
    location = sample.write_to(tier)
    assert bytes_on(tier, location, sample.record.total_bytes) == {0: 120 * 4096, 1: 40 * 4096, 2: 80 * 4096}
    runs = tier._memory.where(location, 0, 12 * 4096)
    assert [(device, nbytes // 4096) for device, _, nbytes in runs] == [(0, 3), (1, 1), (2, 2)] * 2
    sample.check_in(tier, location)


def test_what_lies_on_a_device_is_one_range_of_it(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(8 * MIB, 8 * MIB), weights=[1, 1], unit=8192)
    location = make_sample(1, 500_000).write_to(tier)
    ends: dict[int, int] = {}
    for device, offset, nbytes in tier._memory.where(location, 0, 500_000):
        assert ends.get(device, offset) == offset
        ends[device] = offset + nbytes


def test_small_records_go_where_the_least_lies(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(8 * MIB, 8 * MIB), weights=[3, 1])
    on: Counter[int] = Counter()
    for number in range(80):
        sample = make_sample(number, 8192)
        on += bytes_on(tier, sample.write_to(tier), sample.record.total_bytes)
    assert on[0] + on[1] == 80 * 12288
    assert 0.7 < on[0] / (80 * 12288) < 0.8


def test_a_full_device_leaves_the_rest_to_the_others(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(MIB, 8 * MIB), weights=[1, 1])
    places = []

    def fill() -> None:
        for sample in (make_sample(number, 1_000_000) for number in range(12)):
            places.append((sample.write_to(tier), sample))

    with pytest.raises(TierFull):
        fill()
    assert len(places) >= 8, "the second device alone has room for eight"
    for location, sample in places:
        sample.check_in(tier, location)
    for location, sample in places:
        tier.delete(location, sample.record.total_bytes)
    assert tier.used == 0
    assert make_sample(9, 7 * MIB).write_to(tier)


def test_the_longest_record_fits_an_empty_tier(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(4 * MIB, 4 * MIB), weights=[1, 1])
    assert tier.max_record == 8 * MIB
    sample = make_sample(1, 8 * MIB - 4096)
    sample.check_in(tier, sample.write_to(tier))
    with pytest.raises(TooLarge, match="8388608 at most"):
        make_sample(2, 8 * MIB).write_to(tier)


def test_the_table_of_records_is_bounded(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(4 * MIB), records=3)
    locations = [make_sample(number, 100).write_to(tier) for number in range(3)]
    with pytest.raises(TierFull, match="raise `records`"):
        make_sample(4, 100).write_to(tier)
    tier.delete(locations[1], 8192)
    assert make_sample(4, 100).write_to(tier) not in locations


def test_a_deleted_record_is_not_found_and_its_number_never_comes_back(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(4 * MIB))
    sample = make_sample(1, 5000)
    location = sample.write_to(tier)
    tier.delete(location, sample.record.total_bytes)
    tier.delete(location, sample.record.total_bytes)
    again = sample.write_to(tier)
    assert again != location
    with pytest.raises(NotFound):
        tier.read_into(location, 0, aligned_memory(4096))
    assert isinstance(tier.read_many([(location, 0, aligned_memory(4096))])[0], NotFound)
    sample.check_in(tier, again)


def test_what_is_read_stays_until_it_has_been(make_files: MakeFiles, opener: Opener) -> None:
    """Readers race deletes and writes over the same room: each read is whole or a miss."""
    tier = opener(paths=make_files(4 * MIB, 4 * MIB), weights=[1, 1], unit=4096, threads=2)
    samples = [make_sample(number, 3 * MIB) for number in range(2)]
    current = [(samples[0].write_to(tier), 0)]
    wrong: list[int] = []
    stop = threading.Event()

    def read() -> None:
        out = aligned_memory(3 * MIB)
        while not stop.is_set():
            location, number = current[0]
            try:
                tier.read_into(location, 4096, out)
            except NotFound:
                continue
            if out != samples[number].payload[: 3 * MIB]:
                wrong.append(number)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(60):
        number = (turn + 1) % 2
        tier.delete(current[0][0], samples[0].record.total_bytes)
        while True:
            try:
                current[0] = (samples[number].write_to(tier), number)
                break
            except TierFull:  # a reader holds what was deleted
                continue
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_closing_waits_for_what_is_under_way(make_files: MakeFiles) -> None:
    tier = CxlTier(paths=make_files(32 * MIB, 32 * MIB), weights=[1, 1], threads=2)
    sample = make_sample(1, 30 * MIB)
    location = sample.write_to(tier)
    started, outcomes = threading.Barrier(3), []

    def read() -> None:
        out = aligned_memory(30 * MIB)
        started.wait()
        try:
            while True:
                tier.read_into(location, 4096, out)
                assert out[-4096:] == sample.payload[30 * MIB - 4096 : 30 * MIB]
        except Closed:
            outcomes.append("closed")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    started.wait()
    tier.close()
    for reader in readers:
        reader.join()
    assert outcomes == ["closed"] * 2


@pytest.mark.parametrize(
    ("rates", "units"),
    [
        ([10.0], [1]), ([10.0, 10.4], [1, 1]), ([10.0, 12.0], [1, 1]), ([20.0, 10.0], [2, 1]),
        ([30.0, 20.0], [3, 2]), ([10.0, 10.0, 5.0], [2, 2, 1]), ([1.0, 100.0], [1, 16]),
    ],
)  # fmt: skip
def test_units_are_small_numbers_in_proportion(rates: list[float], units: list[int]) -> None:
    assert units_for(rates) == units


def test_shares_follow_units_up_to_their_limits() -> None:
    assert shares(300, [2, 1], [1000, 1000]) == [200, 100]
    assert shares(300, [2, 1], [150, 1000]) == [150, 150]
    assert shares(5000, [2, 1], [150, 1000]) == [150, 1000]
    assert shares(300, [1, 1, 1], [10, 1000, 20]) == [10, 270, 20]


def test_units_follow_what_devices_give() -> None:
    balance = Balance([1, 1])
    moved = 100 * MIB
    assert not balance.follow([(moved, 100, 1), (moved, 110, 1)]), "near enough"
    assert not balance.follow([(2 * moved, 200, 1), (moved + 10, 900, 1)]), "too few of the second's"
    assert balance.follow([(3 * moved, 300, 1), (3 * moved, 700, 1)])
    assert balance.units == [3, 1]
    assert not balance.follow([(4 * moved, 400, 1), (4 * moved, 1000, 1)]), "they are right now"


def test_records_of_other_weights_stay_readable(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(8 * MIB, 8 * MIB), unit=4096)
    old = make_sample(1, 400_000)
    before = old.write_to(tier)
    tier._memory.set_units([5, 1])
    new = make_sample(2, 400_000)
    after = new.write_to(tier)
    assert bytes_on(tier, after, 400_000)[0] > 4 * bytes_on(tier, after, 400_000)[1]
    old.check_in(tier, before)
    new.check_in(tier, after)
    tier.delete(before, old.record.total_bytes)
    tier.delete(after, new.record.total_bytes)
    assert tier.used == 0
    tier._memory.set_units([1, 1])
    assert make_sample(3, 15 * MIB).write_to(tier), "all room is whole again"


def test_weights_are_measured_where_none_are_given(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(16 * MIB, 16 * MIB))
    for number in range(130):
        sample = make_sample(number, 300_000)
        location = sample.write_to(tier)
        sample.check_in(tier, location)
        tier.delete(location, sample.record.total_bytes)
    told = tier.stats()
    assert all(1 <= int(each) <= 16 for each in str(told["weights"]).split(":"))
    assert float(told["device_0_bytes_per_s"]) > 1e6
    assert float(told["device_1_bytes_per_s"]) > 1e6
    assert told["to_populate_bytes"] == 0
    assert told["records_written"] == told["records_read"] == 130


def test_a_node_holds_what_is_bound_to_it(opener: Opener) -> None:
    tier = opener(16 * MIB, nodes=[0])
    (region,) = tier._regions
    assert [_native.node_of(region.view(at, 4096)) for at in (0, 4 * MIB, 16 * MIB - 4096)] == [0, 0, 0]
    assert str(tier.stats()["devices"]) == "node 0"
    assert tier.capacity == 16 * MIB
    assert not tier.persistent
