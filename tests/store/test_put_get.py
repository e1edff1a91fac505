"""What is put comes back bit for bit, in any array that fits, and nothing else does."""

from typing import Any

import numpy as np
import pytest
import torch

import kvstore
from kvstore.arrays import part_memory
from kvstore.errors import (
    Closed,
    ConfigError,
    Corrupt,
    InvalidArgument,
    NotFound,
    SpecMismatch,
    TooLarge,
    UnknownNamespace,
)
from kvstore.keys import Chain, ChunkRef
from kvstore.spec import OPAQUE, KVSpec, Part
from tests.store.conftest import LARGE, MLA, SHARDED, SLIDING, SMALL, Box, MiB, content, prompt

ALL = pytest.mark.parametrize("spec", [SMALL, LARGE, SHARDED, MLA, SLIDING], ids=lambda spec: spec.model)
DISK = pytest.mark.parametrize("nvme", [0, 64 * MiB], ids=["dram", "dram+nvme"])


@ALL
@DISK
def test_what_was_put_comes_back(box: Box, spec: KVSpec, nvme: int) -> None:
    client, chain = box.open(nvme=nvme), prompt(spec, 3, tail=5)
    assert client.lookup(spec, chain).tokens == 0
    box.fill(client, spec, chain.refs)
    box.check(client, spec, chain.refs)
    box.check(client, spec, chain.refs, verify=True)
    hit = client.lookup(spec, chain)
    assert (hit.tokens, hit.refs) == (len(chain.ids), chain.refs)
    box.settled(client)


@ALL
def test_what_only_the_disk_holds_comes_back(box: Box, spec: KVSpec) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(spec, 3, tail=5)
    box.only_on_disk(client, spec, chain.refs)
    assert {place.tier for info in client.list() for place in info.placements} == {"nvme"}
    assert client.lookup(spec, chain).tokens == len(chain.ids)
    box.check(client, spec, chain.refs)
    assert client.stats()["counters"]["loaded_nvme"] == len(chain.refs) * len(tuple(spec.parts()))
    box.settled(client)


def test_putting_again_says_that_it_was_there(box: Box) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    array = content(SMALL, ref, SMALL.part())
    assert client.put(SMALL, ref, array) is True
    assert client.put(SMALL, ref, array) is False
    assert client.stats()["counters"]["stored"] == 1
    box.settled(client)


def test_another_spec_is_a_miss(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 2)
    other = KVSpec.dense("small", layers=2, kv_heads=2, head_dim=32, chunk_tokens=16, rope={"theta": 1.0})
    box.fill(client, SMALL, chain.refs)
    assert client.lookup(other, chain).tokens == 0
    assert client.contains(other, chain.refs) == [False, False]
    with pytest.raises(NotFound, match=chain.refs[0].key.hex()):
        client.get(other, chain.refs[0])
    with pytest.raises(NotFound):
        client.view(other, chain.refs[0])
    assert client.delete(other, [ref.key for ref in chain.refs]) == 0


def test_the_same_key_at_another_position_is_a_miss(box: Box) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    box.fill(client, SMALL, [ref])
    moved = ChunkRef(ref.key, ref.parent, 16, 16)
    with pytest.raises(NotFound):
        client.get(SMALL, moved)
    with pytest.raises(InvalidArgument, match="16 tokens at 0, not 16 at 16"):
        client.put(SMALL, moved, content(SMALL, ref, SMALL.part()))
    with pytest.raises(InvalidArgument, match="16 tokens at position 0"):
        client.reserve(SMALL, moved).commit()
    box.check(client, SMALL, [ref])
    box.settled(client)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2", "int8", "uint8"])
def test_torch_tensors_go_in_and_out(box: Box, dtype: str) -> None:
    spec = KVSpec.dense("m", layers=2, kv_heads=2, head_dim=8, dtype=dtype, chunk_tokens=16)
    client, ref, shape = box.open(), prompt(spec, 1).refs[0], spec.part_shape(spec.part(), 16)
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * spec.itemsize), dtype=torch.uint8)
    tensor = raw.view(getattr(torch, dtype))
    client.put(spec, ref, tensor)
    out = torch.empty(shape, dtype=tensor.dtype)
    assert client.get(spec, ref, out=out) is out
    assert torch.equal(out.view(torch.uint8), tensor.view(torch.uint8))
    array = client.get(spec, ref)
    assert (array.shape, array.dtype.itemsize) == (shape, spec.itemsize)
    assert array.tobytes() == raw.numpy().tobytes()


@pytest.mark.parametrize("form", ["uint16", "flat uint8", "bytes", "memoryview", "torch", "flat torch"])
def test_bfloat16_goes_in_however_it_is_held(box: Box, form: str) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    array = content(SMALL, ref, SMALL.part())
    flat = array.reshape(-1).view(np.uint8).copy()
    held: Any = {
        "uint16": array,
        "flat uint8": flat,
        "bytes": array.tobytes(),
        "memoryview": memoryview(array),
        "torch": torch.from_numpy(array.copy()).view(torch.bfloat16),
        "flat torch": torch.from_numpy(flat),
    }[form]
    client.put(SMALL, ref, held)
    box.check(client, SMALL, [ref])


@DISK
@pytest.mark.parametrize("layers", [(0, 1), (1, 3), (3, 4), (0, 4)])
def test_a_range_of_layers_is_read_alone(box: Box, nvme: int, layers: tuple[int, int]) -> None:
    client, ref = box.open(nvme=nvme), prompt(LARGE, 1).refs[0]
    box.only_on_disk(client, LARGE, [ref]) if nvme else box.fill(client, LARGE, [ref])
    expected = content(LARGE, ref, LARGE.part())[slice(*layers)]
    assert np.array_equal(client.get(LARGE, ref, layers=layers), expected)
    out = np.zeros_like(expected)
    client.get(LARGE, ref, layers=layers, out=out, verify=True)
    assert np.array_equal(out, expected)


def test_an_opaque_layout_has_one_layer_group(box: Box) -> None:
    spec = KVSpec.dense("m", layers=3, kv_heads=2, head_dim=8, layout=OPAQUE, chunk_tokens=16)
    client, chain = box.open(nvme=64 * MiB), prompt(spec, 2)
    box.only_on_disk(client, spec, chain.refs)
    box.check(client, spec, chain.refs)
    assert np.array_equal(client.get(spec, chain.refs[0], layers=(0, 1)), content(spec, chain.refs[0], spec.part()))
    with pytest.raises(InvalidArgument, match="1 layer groups"):
        client.get(spec, chain.refs[0], layers=(0, 2))


@DISK
def test_many_are_read_in_one_call_and_a_miss_spoils_nothing(box: Box, nvme: int) -> None:
    client, chain = box.open(nvme=nvme), prompt(LARGE, 8)
    stored = [*chain.refs[:3], *chain.refs[4:]]
    box.only_on_disk(client, LARGE, stored) if nvme else box.fill(client, LARGE, stored)
    outs = [np.zeros(LARGE.part_shape(LARGE.part(), 64), np.uint16) for _ in chain.refs]
    wants = [client.want(LARGE, ref, out) for ref, out in zip(chain.refs, outs, strict=True)]
    outcomes = client.get_many(LARGE, wants)
    assert [type(each) for each in outcomes] == [type(None)] * 3 + [NotFound] + [type(None)] * 4
    for ref, out in zip(chain.refs, outs, strict=True):
        assert np.array_equal(out, content(LARGE, ref, LARGE.part())) == (ref != chain.refs[3])
    box.settled(client)


@DISK
def test_a_view_shows_the_bytes_where_they_lie(box: Box, nvme: int) -> None:
    client, ref = box.open(nvme=nvme), prompt(LARGE, 1).refs[0]
    box.only_on_disk(client, LARGE, [ref]) if nvme else box.fill(client, LARGE, [ref])
    with client.view(LARGE, ref) as view:
        assert view.data.readonly
        assert view.data == content(LARGE, ref, LARGE.part()).tobytes()
        assert (view.record.key, view.record.tokens) == (ref.key, 64)
    with pytest.raises(ValueError, match="released"):
        view.data.tobytes()
    with pytest.raises(Closed):
        _ = view.record
    view.close()
    box.settled(client)


def test_a_reservation_is_filled_in_place(box: Box) -> None:
    client, ref = box.open(), prompt(LARGE, 1).refs[0]
    with client.reserve(LARGE, ref) as reservation:
        reservation.data[:] = content(LARGE, ref, LARGE.part()).tobytes()
        assert client.lookup(LARGE, [ref]).tokens == 0
        assert reservation.commit()
        with pytest.raises(Closed):
            reservation.commit()
    box.check(client, LARGE, [ref], verify=True)
    box.settled(client)


def test_a_reservation_that_is_left_leaves_nothing(box: Box) -> None:
    client, ref = box.open(), prompt(LARGE, 1).refs[0]
    with client.reserve(LARGE, ref) as reservation:
        reservation.data[:10] = b"0123456789"
    assert client.stats()["tiers"]["dram"]["used"] == 0
    assert client.contains(LARGE, [ref]) == [False]
    box.settled(client)


def test_bytes_that_were_damaged_on_the_way_are_not_stored(box: Box) -> None:
    client, ref = box.open(), prompt(LARGE, 1).refs[0]
    with pytest.raises(Corrupt, match=ref.key.hex()), client.reserve(LARGE, ref) as reservation:
        reservation.commit(expect=bytes(16 * 4))
    assert client.contains(LARGE, [ref]) == [False]
    box.settled(client)


def test_of_two_reservations_for_a_part_the_first_to_commit_wins(box: Box) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    one, two = client.reserve(SMALL, ref), client.reserve(SMALL, ref)
    for each in (one, two):
        each.data[:] = content(SMALL, ref, SMALL.part()).tobytes()
    assert (two.commit(), one.commit()) == (True, False)
    box.check(client, SMALL, [ref])
    box.settled(client)


@DISK
def test_a_spec_without_its_layers_in_order_of_parts_keeps_them_apart(box: Box, nvme: int) -> None:
    client, chain = box.open(nvme=nvme), prompt(SHARDED, 1)
    parts = tuple(SHARDED.parts())
    for part in parts[:-1]:
        client.put(SHARDED, chain.refs[0], content(SHARDED, chain.refs[0], part), part=part)
        assert client.lookup(SHARDED, chain, parts=[part]).tokens == 64
    assert client.lookup(SHARDED, chain).tokens == 0, "a chunk counts when all its parts are there"
    assert client.lookup(SHARDED, chain, parts=parts[:-1]).tokens == 64
    client.put(SHARDED, chain.refs[0], content(SHARDED, chain.refs[0], parts[-1]), part=parts[-1])
    assert client.lookup(SHARDED, chain).tokens == 64
    box.check(client, SHARDED, chain.refs)


def bad_arrays() -> list[Any]:
    shape = SMALL.part_shape(SMALL.part(), 16)
    good = np.zeros(shape, np.uint16)
    return [
        pytest.param(np.zeros((2, 2, 15, 2, 32), np.uint16), SpecMismatch, "[2, 2, 15, 2, 32]", id="shorter"),
        pytest.param(np.zeros((2, 2, 17, 2, 32), np.uint16), SpecMismatch, "[2, 2, 17, 2, 32]", id="longer"),
        pytest.param(good.astype(np.float16), SpecMismatch, "float16", id="float16 for bfloat16"),
        pytest.param(good.astype(np.float32), SpecMismatch, "float32", id="float32"),
        pytest.param(good.astype(np.int16), SpecMismatch, "int16", id="int16"),
        pytest.param(good.astype(">u2"), SpecMismatch, ">u2", id="big-endian"),
        pytest.param(good.reshape(-1), SpecMismatch, "[4096]", id="flat uint16"),
        pytest.param(bytes(8191), SpecMismatch, "8191 bytes", id="too few bytes"),
        pytest.param(bytes(8193), SpecMismatch, "8193 bytes", id="too many bytes"),
        pytest.param(torch.zeros(shape), SpecMismatch, "float32", id="torch float32"),
        pytest.param(torch.zeros((1, *shape), dtype=torch.bfloat16), SpecMismatch, "[1, 2,", id="torch shape"),
        pytest.param(good.transpose(1, 0, 2, 3, 4), InvalidArgument, "ascontiguousarray", id="transposed"),
        pytest.param(
            torch.zeros(shape, dtype=torch.bfloat16).transpose(0, 1), InvalidArgument, "contiguous", id="torch strides"
        ),
        pytest.param(np.zeros((0,), np.uint8), InvalidArgument, "empty", id="empty"),
        pytest.param(b"", InvalidArgument, "empty", id="no bytes"),
        pytest.param([1, 2, 3], InvalidArgument, "list", id="list"),
        pytest.param(None, InvalidArgument, "NoneType", id="None"),
        pytest.param(torch.zeros(shape, dtype=torch.bfloat16, device="meta"), InvalidArgument, "meta", id="device"),
    ]


@pytest.mark.parametrize(("array", "error", "named"), bad_arrays())
def test_an_array_that_does_not_fit_is_refused_with_its_shape(
    box: Box, array: Any, error: type[Exception], named: str
) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    with pytest.raises(error) as put:
        client.put(SMALL, ref, array)
    assert named in str(put.value)
    box.fill(client, SMALL, [ref])
    if array is not None:
        with pytest.raises(error):
            client.get(SMALL, ref, out=array)
    box.settled(client)


@pytest.mark.parametrize("kind", ["numpy", "bytes"])
def test_a_destination_that_is_read_only_is_refused(box: Box, kind: str) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    box.fill(client, SMALL, [ref])
    out: Any = bytes(8192)
    if kind == "numpy":
        out = np.zeros(SMALL.part_shape(SMALL.part(), 16), np.uint16)
        out.flags.writeable = False
    with pytest.raises(InvalidArgument, match="read-only"):
        client.get(SMALL, ref, out=out)
    box.settled(client)


def test_part_memory_makes_no_copy() -> None:
    array = np.zeros(SMALL.part_shape(SMALL.part(), 16), np.uint16)
    part_memory(array, SMALL, SMALL.part(), 16, writable=True)[0] = 7
    assert array.flat[0] == 7


GOOD = prompt(SMALL, 1).refs[0]


@pytest.mark.parametrize(
    ("ref", "named"),
    [
        (ChunkRef(bytes(31), bytes(32), 0, 16), "31 bytes"),
        (ChunkRef(bytes(32), b"", 0, 16), "0 bytes"),
        (ChunkRef(bytes(32), bytes(32), 0, 0), "not 0"),
        (ChunkRef(bytes(32), bytes(32), 0, 17), "not 17"),
        (ChunkRef(bytes(32), bytes(32), -1, 16), "at -1"),
        (ChunkRef(bytes(32), bytes(32), 2**32, 16), str(2**32)),
    ],
)
def test_a_ref_that_is_no_chunk_is_refused_with_its_values(box: Box, ref: ChunkRef, named: str) -> None:
    client = box.open()
    with pytest.raises(InvalidArgument, match=named):
        client.put(SMALL, ref, np.zeros(SMALL.part_shape(SMALL.part(), 16), np.uint16))
    with pytest.raises(InvalidArgument, match=named):
        client.reserve(SMALL, ref)
    box.settled(client)


@pytest.mark.parametrize("layers", [(0, 0), (2, 1), (-1, 1), (0, 3), (2, 3)])
def test_layers_outside_the_part_are_refused(box: Box, layers: tuple[int, int]) -> None:
    client = box.open()
    box.fill(client, SMALL, [GOOD])
    with pytest.raises(InvalidArgument, match="2 layer groups"):
        client.get(SMALL, GOOD, layers=layers)


def test_bad_calls_are_refused_with_their_values(box: Box) -> None:
    client = box.open()
    box.fill(client, SMALL, [GOOD])
    array = content(SMALL, GOOD, SMALL.part())
    for call, named in (
        (lambda: client.delete(SMALL, [b"short"]), "5 bytes"),
        (lambda: client.pin(SMALL, [bytes(33)], 1), "33 bytes"),
        (lambda: client.pin(SMALL, [GOOD.key], 0), "not 0"),
        (lambda: client.pin(SMALL, [GOOD.key], -1), "not -1"),
        (lambda: client.pin(SMALL, [GOOD.key], float("nan")), "nan"),
        (lambda: client.pin(SMALL, [GOOD.key], 1e30), "1e+30"),
        (lambda: client.prefetch(SMALL, [b""]), "0 bytes"),
        (lambda: client.put(SMALL, GOOD, array, part=Part(3)), "group=3"),
        (lambda: client.put(SMALL, GOOD, array, first_valid=3), "first_valid=3"),
        (lambda: client.put(SMALL, GOOD, array, ack="promised"), "promised"),
        (lambda: client.put(SMALL, GOOD, array, ack="persisted"), "persisted"),
        (lambda: client.put(SHARDED, prompt(SHARDED, 1).refs[0], array), "4 parts"),
        (lambda: client.lookup(SMALL, [GOOD], lease_s=61), "60 s here, not 61"),
        (lambda: client.lookup(SMALL, [GOOD], lease_s=-1), "-1"),
        (lambda: client.lookup(SMALL, [GOOD], parts=[Part(1)]), "group=1"),
        (lambda: client.page(-1), "-1"),
        (lambda: client.page(0, 0), "0"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            call()
        assert named in str(refused.value)
    box.check(client, SMALL, [GOOD])
    box.settled(client)


def test_a_value_larger_than_any_extent_is_refused(box: Box) -> None:
    client = box.open(dram=MiB, extent=MiB)
    spec = KVSpec.dense("huge", layers=16, kv_heads=8, head_dim=128, chunk_tokens=256)
    ref = prompt(spec, 1).refs[0]
    with pytest.raises(TooLarge, match="16777216 bytes does not fit an extent of 1048576"):
        client.put(spec, ref, np.zeros(spec.part_shape(spec.part(), 256), np.uint16))
    assert client.describe().max_part_bytes < MiB


def test_a_value_larger_than_a_segment_cannot_be_persisted(box: Box) -> None:
    client = box.open(dram=8 * MiB, nvme=64 * MiB, segment=MiB // 4)
    ref = prompt(LARGE, 1).refs[0]
    with pytest.raises(TooLarge, match="persisted"):
        client.put(LARGE, ref, content(LARGE, ref, LARGE.part()), ack="persisted")
    assert client.contains(LARGE, [ref]) == [False]
    box.fill(client, LARGE, [ref])
    box.check(client, LARGE, [ref])


def test_an_unknown_namespace_is_refused(box: Box) -> None:
    with pytest.raises(UnknownNamespace, match="'nobody'"):
        box.open(namespace="nobody")


@pytest.mark.parametrize("config", [7, {"dram": 1}, b"x"])
def test_what_is_no_configuration_is_refused(config: Any) -> None:
    with pytest.raises(InvalidArgument, match=type(config).__name__):
        kvstore.open(config)


def test_memory_too_small_for_anything_is_refused(box: Box) -> None:
    with pytest.raises(ConfigError, match="4096"):
        box.open(dram=100)


def test_an_empty_prompt_hits_nothing(box: Box) -> None:
    client = box.open()
    assert client.lookup(SMALL, Chain.of([], 16), lease_s=1).tokens == 0
    assert client.contains(SMALL, []) == []
    assert client.get_many(SMALL, []) == []


def test_lists_are_paged(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 300)
    box.fill(client, SMALL, chain.refs)
    assert {info.key for info in client.list()} == {ref.key for ref in chain.refs}
    pages, cursor = [], 0
    while not pages or cursor:
        page = client.page(cursor, 70)
        pages.append(len(page.chunks))
        cursor = page.cursor
    assert (sum(pages), max(pages)) == (300, 70)
    info = next(each for each in client.list() if each.key == chain.refs[1].key)
    assert (info.parent, info.position, info.tokens, info.spec) == (chain.refs[0].key, 16, 16, SMALL.digest)
    assert [(p.tier, p.form, p.exact, p.logical) for p in info.placements] == [("dram", "raw", True, 8192)]


def test_events_tell_what_happened(box: Box) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(SMALL, 1).refs[0]
    events = client.watch()
    box.fill(client, SMALL, [ref], "persisted")
    client.delete(SMALL, [ref.key])
    box.store(client)._core.events.close()
    told = [(event.kind, event.tier) for event in events]
    assert told[:2] == [("stored", "dram"), ("moved", "nvme")]
    assert sorted(told[2:]) == [("deleted", "dram"), ("deleted", "nvme")]


def test_a_client_that_was_closed_says_so(box: Box) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    second = box.another(client)
    second.close()
    for call in (
        lambda: second.lookup(SMALL, [ref]), lambda: second.get(SMALL, ref), second.describe,
        second.stats, lambda: second.delete(SMALL, [ref.key]), lambda: list(second.verify()), second.watch,
    ):  # fmt: skip
        with pytest.raises(Closed):
            call()
    box.fill(client, SMALL, [ref])
    client.close()
    client.close()
    with pytest.raises(Closed):
        client.get(SMALL, ref)
