"""How far a look-up reaches: tails, alternatives, holes, sliding windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import InvalidArgument, Shed
from kvstore.keys import Chain
from kvstore.rows import REF_DTYPE
from kvstore.spec import KVGroup, KVSpec
from kvstore.walk import Reach, walk, within_windows
from tests.store.conftest import SLIDING, SMALL, Box, MiB, content, prompt

FULL, WINDOW = SLIDING.part(0), SLIDING.part(1)


def test_a_hit_ends_at_the_first_hole(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 6)
    box.fill(client, SMALL, [*chain.refs[:3], *chain.refs[4:]])
    hit = client.lookup(SMALL, chain)
    assert (hit.tokens, hit.refs) == (48, chain.refs[:3])
    assert client.contains(SMALL, chain.refs) == [True, True, True, False, True, True]


def test_a_tail_counts_when_it_is_the_prompts_own(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 2, tail=5)
    box.fill(client, SMALL, chain.refs)
    assert client.lookup(SMALL, chain).tokens == 37
    longer = Chain.of(np.concatenate([chain.ids, [1, 2, 3]]), 16)
    assert client.lookup(SMALL, longer).tokens == 32


def test_a_hit_may_end_inside_a_chunk_at_any_engine_block(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 2, tail=8)
    box.fill(client, SMALL, chain.refs)
    longer = Chain.of(np.concatenate([chain.ids, np.arange(100, dtype=np.uint32)]), 16)
    with client.lookup(SMALL, longer, block_tokens=4, lease_s=5) as hit:
        assert (hit.tokens, hit.refs) == (40, chain.refs)
        assert sorted(info.leases for info in client.list()) == [1, 1, 1]
        box.check(client, SMALL, hit.refs)
    assert client.lookup(SMALL, longer, block_tokens=3).tokens == 32, "8 is no multiple of 3"


def test_of_several_refs_at_one_position_the_longest_that_is_there_is_taken(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 2)
    tails = chain.tails(16, 4)
    box.fill(client, SMALL, [chain.refs[0], *tails[1:]])
    hit = client.lookup(SMALL, [*chain.refs, *tails])
    assert (hit.tokens, hit.refs) == (24, (chain.refs[0], tails[1]))


def test_a_leased_hit_counts_as_use(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 2)
    box.fill(client, SMALL, chain.refs)
    client.lookup(SMALL, chain)
    assert [info.hits for info in client.list()] == [0, 0], "a hint uses nothing"
    client.lookup(SMALL, chain, lease_s=1)
    assert [info.hits for info in client.list()] == [1, 1]


def put(client: object, refs: object, part: object, **options: object) -> None:
    for ref in refs:  # type: ignore[attr-defined]
        client.put(SLIDING, ref, content(SLIDING, ref, part), part=part, **options)  # type: ignore[attr-defined, arg-type]


def test_chunks_before_every_window_are_not_required(box: Box) -> None:
    client, chain = box.open(), prompt(SLIDING, 6)
    put(client, chain.refs, FULL)
    put(client, chain.refs[4:], WINDOW)
    # After token 96 the window of 24 reaches back to 73, which is in the fifth chunk (64 to 79).
    hit = client.lookup(SLIDING, chain)
    assert hit.tokens == 96
    assert hit.refs_for(0) == chain.refs
    assert hit.refs_for(1) == chain.refs[4:]
    for ref in hit.refs_for(1):
        assert np.array_equal(client.get(SLIDING, ref, part=WINDOW), content(SLIDING, ref, WINDOW))


def test_a_hole_inside_the_window_shortens_the_hit(box: Box) -> None:
    client, chain = box.open(), prompt(SLIDING, 6)
    put(client, chain.refs, FULL)
    put(client, [*chain.refs[:3], chain.refs[5]], WINDOW)
    assert client.lookup(SLIDING, chain).tokens == 48


def test_chunks_outside_a_window_are_neither_leased_nor_used_when_nobody_else_needs_them(box: Box) -> None:
    client, chain = box.open(), prompt(SLIDING, 6)
    put(client, chain.refs[3:], WINDOW)
    with client.lookup(SLIDING, chain, parts=[WINDOW], lease_s=5) as hit:
        assert (hit.tokens, hit.refs) == (96, chain.refs[4:])
        assert {info.position: info.leases for info in client.list()} == {48: 0, 64: 1, 80: 1}
    assert client.lookup(SLIDING, chain).tokens == 0


def test_first_valid_says_where_a_windowed_part_begins(box: Box) -> None:
    client, chain = box.open(), prompt(SLIDING, 6)
    put(client, chain.refs, FULL)
    put(client, [chain.refs[5]], WINDOW)
    put(client, [chain.refs[4]], WINDOW, first_valid=9)
    assert client.lookup(SLIDING, chain).tokens == 96, "valid from 73 on, and 73 is what is needed"
    other = prompt(SLIDING, 6, seed=1)
    put(client, other.refs, FULL)
    put(client, [other.refs[5]], WINDOW)
    put(client, [other.refs[4]], WINDOW, first_valid=10)
    assert client.lookup(SLIDING, other).tokens == 0


@pytest.mark.parametrize("nvme", [0, 64 * MiB], ids=["dram", "dram+nvme"])
def test_a_part_that_starts_earlier_replaces_one_that_starts_later(box: Box, nvme: int) -> None:
    client, ref = box.open(nvme=nvme), prompt(SLIDING, 1).refs[0]
    ack = "persisted" if nvme else "stored"
    array = content(SLIDING, ref, WINDOW)
    torn = array.copy()
    torn[:, :, :9] = 0xDEAD
    assert client.put(SLIDING, ref, torn, part=WINDOW, first_valid=9, ack=ack)
    assert not client.put(SLIDING, ref, torn, part=WINDOW, first_valid=10, ack=ack)
    assert client.put(SLIDING, ref, array, part=WINDOW, first_valid=0, ack=ack)
    assert not client.put(SLIDING, ref, torn, part=WINDOW, first_valid=9, ack=ack)
    assert np.array_equal(client.get(SLIDING, ref, part=WINDOW), array)
    box.settled(client)
    if nvme:
        client.close()
        client = box.open(nvme=nvme)
        assert np.array_equal(client.get(SLIDING, ref, part=WINDOW), array)


def test_a_part_that_starts_later_never_hides_one_that_starts_earlier(box: Box) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(SLIDING, 1).refs[0]
    box.only_on_disk(client, SLIDING, [ref])
    with client.reserve(SLIDING, ref, part=WINDOW, first_valid=9) as reservation:
        reservation.data[:] = bytes(len(reservation.data))
        assert reservation.commit() is False
    box.check(client, SLIDING, [ref])
    box.settled(client)


def test_a_part_that_is_leased_is_not_replaced_and_that_is_told(box: Box) -> None:
    client, chain = box.open(), prompt(SLIDING, 1)
    ref, array = chain.refs[0], content(SLIDING, chain.refs[0], WINDOW)
    put(client, [ref], FULL)
    client.put(SLIDING, ref, array, part=WINDOW, first_valid=1)
    with client.view(SLIDING, ref, part=WINDOW):
        with pytest.raises(Shed, match="from its token 1 on") as shed:
            client.put(SLIDING, ref, array, part=WINDOW)
        assert shed.value.reason == "leased"
    assert client.put(SLIDING, ref, array, part=WINDOW)
    box.settled(client)


@pytest.mark.parametrize("first_valid", [-1, 16, 17])
def test_first_valid_lies_inside_the_chunk(box: Box, first_valid: int) -> None:
    client, ref = box.open(), prompt(SLIDING, 1).refs[0]
    with pytest.raises(InvalidArgument, match=f"first_valid={first_valid}"):
        client.put(SLIDING, ref, content(SLIDING, ref, WINDOW), part=WINDOW, first_valid=first_valid)


def refs_of(spans: list[tuple[int, int]]) -> np.ndarray:  # type: ignore[type-arg]
    refs = np.zeros(len(spans), REF_DTYPE)
    refs["position"], refs["tokens"] = zip(*spans, strict=True) if spans else ((), ())
    return refs


spans = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), max_size=10).map(
    lambda several: sorted(several, key=lambda span: span[0])
)


@given(spans, st.data())
def test_a_walk_takes_the_longest_chunk_at_each_position(several: list[tuple[int, int]], data: st.DataObject) -> None:
    full = data.draw(st.lists(st.booleans(), min_size=len(several), max_size=len(several)))
    reach = walk(refs_of(several), np.array(full, np.uint8))
    at, used = several[0][0] if several else 0, []
    while True:
        here = [i for i, (start, _) in enumerate(several) if start == at and full[i]]
        if not here:
            break
        best = max(here, key=lambda i: (several[i][1], -i))
        used.append(best)
        at += several[best][1]
    assert (reach.tokens, list(reach.indexes())) == (at, used)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=9), st.integers(1, 20))
def test_a_window_is_satisfied_when_every_token_it_reaches_is_there(
    chunks: list[tuple[bool, int]], window: int
) -> None:
    refs = refs_of([(4 * i, 4) for i in range(len(chunks))])
    present = np.array([there for there, _ in chunks], np.uint8)
    valid = np.array([first for _, first in chunks], np.uint32)
    group = KVGroup((0,), 1, 1, window=window)
    everything = Reach(4 * len(chunks), np.arange(len(chunks), dtype=np.uint32))
    reach = within_windows(everything, refs, [(group, present, valid)], all_used=False)

    tokens = {4 * i + t for i, (there, first) in enumerate(chunks) if there for t in range(first, 4)}
    good = [
        end for end in range(4, 4 * len(chunks) + 1, 4) if set(range(max(0, end - window + 1), end)) <= tokens
        and present[end // 4 - 1]
    ]  # fmt: skip
    assert reach.tokens == max(good, default=0)
    for i in list(reach.indexes()):
        assert present[i]
        assert 4 * i + 4 > reach.tokens - window + 1


def test_a_group_of_sliding_layers_alone_is_a_spec_too(box: Box) -> None:
    spec = KVSpec("w", "", "bfloat16", (KVGroup((0,), 1, 8, window=10),), chunk_tokens=16)
    client, chain = box.open(), prompt(spec, 5)
    box.fill(client, spec, chain.refs[4:])
    hit = client.lookup(spec, chain, lease_s=1)
    assert (hit.tokens, hit.refs) == (80, chain.refs[4:])
