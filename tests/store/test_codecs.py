"""Forms in the store: encoded on the way down or on put, never lossy where it may not be, never lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Fidelity
from kvstore.codecs import all_codecs
from kvstore.config import NamespaceConfig
from kvstore.errors import ConfigError, Corrupt, NotFound, Shed
from kvstore.keys import ChunkRef
from kvstore.removed import Removed
from kvstore.spec import OPAQUE, KVGroup, KVSpec, Part
from tests.store.codec_samples import Wrong, registered
from tests.store.conftest import LARGE, Box, MiB, content, prompt

# Of sizes that encoding makes smaller by whole blocks, tails of 20 tokens too.
SMALL = KVSpec.dense("small", layers=3, kv_heads=2, head_dim=64, chunk_tokens=32)
SHARDED = KVSpec.dense(
    "sharded", layers=4, kv_heads=4, head_dim=32, chunk_tokens=64, tp_size=2, pipeline=((0, 2), (2, 4))
)
MLA = KVSpec("mla", "", "bfloat16", (KVGroup((0, 1, 2), latent_dim=576),), chunk_tokens=64, tp_size=4)
SLIDING = KVSpec("sliding", "", "bfloat16", (KVGroup((0,), 2, 64), KVGroup((1, 2), 2, 64, window=96)), chunk_tokens=64)
PERMUTED = KVSpec.dense(
    "permuted", layers=2, kv_heads=2, head_dim=64, chunk_tokens=64, layout=("layer", "kv", "head", "dim", "token")
)
ALL = pytest.mark.parametrize("spec", [SMALL, LARGE, SHARDED, MLA, SLIDING, PERMUTED], ids=lambda spec: spec.model)
LOSSY = (NamespaceConfig("default", lossy=True),)
DISK = 64 * MiB


@pytest.fixture(autouse=True)
def codecs() -> Iterator[None]:
    with registered():
        yield


def values(spec: KVSpec, ref: ChunkRef, part: Part) -> np.ndarray[Any, Any]:
    """The array of a part: a function of its key, finite, and with something to encode in it."""
    return (content(spec, ref, part) & 0x0301) | 0x3C08


def rounded(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the lossy codec of these tests makes of it."""
    return array & 0xFF00


def fill(client: kvstore.Client, spec: KVSpec, refs: Sequence[ChunkRef], ack: str = "stored") -> None:
    for ref in refs:
        for part in spec.parts():
            client.put(spec, ref, values(spec, ref, part), part=part, ack=ack)


def drop_dram(box: Box, client: kvstore.Client) -> None:
    """Take every DRAM copy out, as an eviction would."""
    core, removed = box.store(client)._core, Removed()
    with core.lock:
        for row in core.index.chunks(0, 1_000_000)[0].tolist():
            assert core.drop_from(row, 0, removed)
    core.settle(removed)


def only_below(box: Box, client: kvstore.Client, spec: KVSpec, refs: Sequence[ChunkRef]) -> None:
    fill(client, spec, refs, "persisted")
    drop_dram(box, client)


def check(client: kvstore.Client, spec: KVSpec, refs: Sequence[ChunkRef], *, lossy: bool = False) -> None:
    """Every way to read: whole, verified, each layer, several at once, a view."""
    fidelity = Fidelity.LOSSY if lossy else Fidelity.EXACT
    for ref in refs:
        for part in spec.parts():
            right = rounded(values(spec, ref, part)) if lossy else values(spec, ref, part)
            for verify in (False, True):
                assert np.array_equal(client.get(spec, ref, part=part, fidelity=fidelity, verify=verify), right)
            for layer in range(len(right)):
                got = client.get(spec, ref, part=part, layers=(layer, layer + 1), fidelity=fidelity, verify=True)
                assert np.array_equal(got, right[layer : layer + 1])
            with client.view(spec, ref, part=part, fidelity=fidelity) as view:
                assert bytes(view.data) == right.tobytes()
                assert (view.record.form, view.record.exact) == (0, not lossy)


def forms(client: kvstore.Client) -> dict[str, set[str]]:
    """Per tier the forms of what is there."""
    found: dict[str, set[str]] = {}
    for info in client.list():
        for place in info.placements:
            found.setdefault(place.tier, set()).add(place.form)
    return found


def fallbacks(client: kvstore.Client) -> dict[str, int]:
    found: dict[str, int] = client.stats()["codecs"]["fallbacks"]
    return found


@ALL
@pytest.mark.parametrize("codec", ["t-exact", "t-exact:small", "lossless"])
def test_what_moves_down_is_encoded_and_comes_back(box: Box, spec: KVSpec, codec: str) -> None:
    client, chain = box.open(nvme=DISK, nvme_codec=codec), prompt(spec, 3, tail=20)
    fill(client, spec, chain.refs, "persisted")
    name = codec.partition(":")[0]
    assert forms(client) == {"dram": {"raw"}, "nvme": {name}}
    drop_dram(box, client)
    assert client.lookup(spec, chain).tokens == len(chain.ids)
    check(client, spec, chain.refs)
    assert forms(client) == {"dram": {name}, "nvme": {name}}  # it lies in DRAM as it came
    assert fallbacks(client) == {}
    box.settled(client)


@ALL
def test_a_namespace_that_opted_in_gets_the_lossy_codec(box: Box, spec: KVSpec) -> None:
    client, chain = box.open(nvme=DISK, nvme_codec="t-lossy", namespaces=LOSSY), prompt(spec, 3, tail=20)
    only_below(box, client, spec, chain.refs)
    assert forms(client) == {"nvme": {"t-lossy"}}
    assert client.lookup(spec, chain).tokens == 0
    assert client.lookup(spec, chain, fidelity=Fidelity.LOSSY).tokens == len(chain.ids)
    with pytest.raises(NotFound):
        client.get(spec, chain.refs[0], part=next(spec.parts()))
    check(client, spec, chain.refs, lossy=True)
    with pytest.raises(NotFound):  # nor now that it is in DRAM
        client.get(spec, chain.refs[0], part=next(spec.parts()))
    box.settled(client)


def test_others_get_lossless_in_its_place(box: Box) -> None:
    both = (NamespaceConfig("default"), NamespaceConfig("open", lossy=True))
    client, chain = box.open(extent=4 * MiB, nvme=DISK, nvme_codec="t-lossy", namespaces=both), prompt(SMALL, 2)
    fill(client, SMALL, chain.refs, "persisted")
    opted = box.another(client, "open")
    fill(opted, SMALL, chain.refs, "persisted")
    assert forms(client) == {"dram": {"raw"}, "nvme": {"lossless"}}
    assert forms(opted) == {"dram": {"raw"}, "nvme": {"t-lossy"}}


@pytest.mark.parametrize(("dram", "name"), [("t-exact", None), ("raw", "t-exact")])
def test_puts_are_encoded_where_that_is_configured(box: Box, dram: str, name: str | None) -> None:
    spaces = (NamespaceConfig("default", codec=name),)
    client, chain = box.open(nvme=DISK, dram_codec=dram, namespaces=spaces), prompt(SHARDED, 2, tail=20)
    fill(client, SHARDED, chain.refs)
    assert forms(client) == {"dram": {"t-exact"}}
    check(client, SHARDED, chain.refs)
    assert (
        client.put(SHARDED, chain.refs[0], values(SHARDED, chain.refs[0], SHARDED.part()), part=SHARDED.part()) is False
    )
    fill(client, SHARDED, chain.refs, "persisted")  # on its way down it stays as it is
    assert forms(client) == {"dram": {"t-exact"}, "nvme": {"t-exact"}}
    drop_dram(box, client)
    check(client, SHARDED, chain.refs)
    box.settled(client)


def test_reservations_are_encoded_too(box: Box) -> None:
    client, ref = box.open(dram_codec="t-exact"), prompt(SMALL, 1).refs[0]
    for new in (True, False):
        with client.reserve(SMALL, ref) as reservation:
            reservation.data[:] = values(SMALL, ref, SMALL.part()).tobytes()
            assert reservation.commit() is new
    assert forms(client) == {"dram": {"t-exact"}}
    check(client, SMALL, [ref])
    box.settled(client)


def test_a_namespace_overrides_the_tier(box: Box) -> None:
    client = box.open(dram_codec="t-exact", namespaces=(NamespaceConfig("default", codec="raw"),))
    fill(client, SMALL, prompt(SMALL, 1).refs)
    assert forms(client) == {"dram": {"raw"}}


def test_a_lossy_put_form_needs_the_opt_in(box: Box) -> None:
    with pytest.raises(ConfigError, match="lossy = true"):
        box.open(namespaces=(NamespaceConfig("default", codec="t-lossy"),))
    client = box.open(dram_codec="t-lossy")
    fill(client, SMALL, prompt(SMALL, 1).refs)
    assert forms(client) == {"dram": {"lossless"}}


def test_lossy_is_never_made_of_lossy(box: Box) -> None:
    spaces = (NamespaceConfig("default", codec="t-lossy", lossy=True),)
    client, chain = box.open(nvme=DISK, nvme_codec="t-exact", namespaces=spaces), prompt(SMALL, 2)
    only_below(box, client, SMALL, chain.refs)
    assert forms(client) == {"nvme": {"t-lossy"}}  # as it was put, and not once more
    check(client, SMALL, chain.refs, lossy=True)
    assert client.stats()["codecs"]["forms"]["t-lossy"]["parts"] == len(chain.refs)
    box.settled(client)


def test_an_exact_form_becomes_lossy_by_way_of_its_raw_bytes(box: Box) -> None:
    client = box.open(nvme=DISK, dram_codec="t-exact", nvme_codec="t-lossy", namespaces=LOSSY)
    ref = prompt(SMALL, 1).refs[0]
    array = (content(SMALL, ref, SMALL.part()) & 0x0FFF) | 0x3000  # of which the lossy one leaves less
    client.put(SMALL, ref, array, ack="persisted")
    assert forms(client) == {"dram": {"t-exact"}, "nvme": {"t-lossy"}}
    drop_dram(box, client)
    assert np.array_equal(client.get(SMALL, ref, fidelity=Fidelity.LOSSY), rounded(array))


def test_an_exact_put_takes_the_place_of_lossy_copies(box: Box) -> None:
    client, chain = box.open(nvme=DISK, nvme_codec="t-lossy", namespaces=LOSSY), prompt(SMALL, 2)
    only_below(box, client, SMALL, chain.refs)
    check(client, SMALL, chain.refs, lossy=True)  # which brings them into DRAM
    array = values(SMALL, chain.refs[0], SMALL.part())
    with client.lookup(SMALL, chain, fidelity=Fidelity.LOSSY, lease_s=10), pytest.raises(Shed, match="lossy"):
        client.put(SMALL, chain.refs[0], array)
    assert client.put(SMALL, chain.refs[0], array) is True
    check(client, SMALL, chain.refs[:1])
    assert client.put(SMALL, chain.refs[0], array) is False
    drop_dram(box, client)  # the lossy copy below may again be its last
    with pytest.raises(NotFound):
        client.get(SMALL, chain.refs[0])
    box.settled(client)


def test_the_last_exact_copy_stays_once_the_opt_in_is_taken_back(box: Box) -> None:
    chain = prompt(SMALL, 2)
    client = box.open(nvme=DISK, nvme_codec="t-lossy", namespaces=LOSSY)
    only_below(box, client, SMALL, chain.refs)
    client.close()
    client = box.open(nvme=DISK, nvme_codec="t-lossy")
    assert client.lookup(SMALL, chain).tokens == 0
    only_below(box, client, SMALL, chain.refs)  # over the lossy ones
    assert forms(client) == {"nvme": {"lossless"}}
    check(client, SMALL, chain.refs)
    box.settled(client)


def test_values_that_a_lossy_codec_cannot_take_are_kept_exactly(box: Box) -> None:
    client, ref = box.open(nvme=DISK, nvme_codec="t-lossy", namespaces=LOSSY), prompt(SMALL, 1).refs[0]
    array = values(SMALL, ref, SMALL.part())
    array.flat[7] = 0x7F81  # a NaN
    client.put(SMALL, ref, array, ack="persisted")
    assert forms(client)["nvme"] == {"lossless"}
    drop_dram(box, client)
    assert np.array_equal(client.get(SMALL, ref), array)
    assert fallbacks(client) == {"not_encodable": 1}


@pytest.mark.parametrize(
    ("mood", "reason"),
    [("wrong", "wrong_result"), ("raises", "failed"), ("cannot decode", "wrong_result"), ("larger", "not_smaller")],
)
@pytest.mark.parametrize("there", [True, False], ids=["lossless", "raw"])
def test_a_codec_that_fails_loses_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch, mood: str, reason: str, there: bool
) -> None:
    monkeypatch.setattr(Wrong, "mood", mood)
    if not there:
        monkeypatch.setattr("kvstore.coder.lossless", lambda: None)
    client, chain = box.open(nvme=DISK, nvme_codec="t-wrong"), prompt(SMALL, 2)
    only_below(box, client, SMALL, chain.refs)
    assert forms(client) == {"nvme": {"lossless" if there else "raw"}}
    check(client, SMALL, chain.refs)
    assert fallbacks(client) == {reason: len(chain.refs)}
    box.settled(client)


def test_frames_that_no_encoder_makes_are_quarantined(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.coder.Coder._proven", lambda *args: 0.1)  # or it would have been seen before
    monkeypatch.setattr(Wrong, "mood", "cut off")
    client, chain = box.open(nvme=DISK, nvme_codec="t-wrong"), prompt(SMALL, 2)
    only_below(box, client, SMALL, chain.refs)
    for ref in chain.refs:
        with pytest.raises(Corrupt):
            client.get(SMALL, ref)
        with pytest.raises(NotFound):  # nor from below, where the same bytes are
            client.view(SMALL, ref)
    counters = client.stats()["counters"]
    assert (counters["quarantined_dram"], counters["quarantined_nvme"], counters["undecodable"]) == (2, 2, 2)
    assert client.lookup(SMALL, chain).tokens == 0
    fill(client, SMALL, chain.refs)
    check(client, SMALL, chain.refs)
    box.settled(client)


@pytest.mark.parametrize("read", ["get", "each", "view"])
def test_a_decoder_with_a_bug_is_told_as_corrupt(box: Box, monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    monkeypatch.setattr(Wrong, "mood", "right")
    client, ref = box.open(nvme=DISK, nvme_codec="t-wrong"), prompt(SMALL, 1).refs[0]
    only_below(box, client, SMALL, [ref])
    assert forms(client) == {"nvme": {"t-wrong"}}
    monkeypatch.setattr(Wrong, "mood", "cannot decode")
    if read == "each":
        out = np.zeros(SMALL.part_shape(SMALL.part(), ref.tokens), np.uint16)
        ((_, problem),) = client.get_each(SMALL, [client.want(SMALL, ref, out)])
        assert isinstance(problem, Corrupt)
    else:
        with pytest.raises(Corrupt, match="OddError"):
            getattr(client, read)(SMALL, ref)
    assert client.lookup(SMALL, prompt(SMALL, 1)).tokens == 0
    box.settled(client)


def test_a_damaged_copy_in_dram_leaves_the_one_below(box: Box) -> None:
    client, chain = box.open(nvme=DISK, nvme_codec="t-exact"), prompt(SMALL, 1)
    only_below(box, client, SMALL, chain.refs)
    with client.view(SMALL, chain.refs[0], encoded=True) as view:
        record = view.record
    core = box.store(client)._core
    with core.lock:
        place = next(core.index.placement(each) for each in core.placements(core.index.chunks(0, 10)[0].tolist()[0], 0))
    core.dram.view(place.loc, record.header_bytes + 100, 1)[0] ^= 0x40
    with pytest.raises(Corrupt):
        client.get(SMALL, chain.refs[0], verify=True)
    check(client, SMALL, chain.refs)
    box.settled(client)


def test_what_does_not_get_smaller_stays_raw(box: Box) -> None:
    client, ref = box.open(nvme=DISK, nvme_codec="t-exact"), prompt(SMALL, 1).refs[0]
    box.only_on_disk(client, SMALL, [ref])  # random bits
    assert forms(client) == {"nvme": {"raw"}}
    box.check(client, SMALL, [ref])
    assert fallbacks(client)["not_smaller"] >= 1


def test_dtypes_and_layouts_that_a_codec_does_not_take_fall_back(box: Box) -> None:
    opaque = KVSpec.dense("opaque", layers=3, kv_heads=2, head_dim=32, chunk_tokens=16, layout=OPAQUE)
    wide = KVSpec.dense("wide", layers=3, kv_heads=2, head_dim=32, chunk_tokens=16, dtype="float32")
    client = box.open(nvme=DISK, nvme_codec="t-lossy", namespaces=LOSSY)
    for number, spec in enumerate((opaque, wide), 1):
        ref = prompt(spec, 1).refs[0]
        data = np.full(spec.part_bytes(spec.part(), 16), number, np.uint8)
        client.put(spec, ref, data, ack="persisted")
        drop_dram(box, client)
        out = np.zeros_like(data)
        client.get(spec, ref, out=out, verify=True)
        assert np.array_equal(out, data)
        if spec is opaque:
            client.get(spec, ref, out=out, layers=(0, 1))
    assert forms(client)["nvme"] == {"lossless", "raw"}  # opaque bytes are no floats for `lossless` either
    assert fallbacks(client) == {"not_taken": 3}


def test_capacity_and_quota_count_encoded_bytes(box: Box) -> None:
    spaces = (NamespaceConfig("default", quota=40 * LARGE.part_bytes(LARGE.part(), 64)),)
    client = box.open(dram=2 * MiB, extent=2 * MiB, dram_codec="t-exact:small", namespaces=spaces)
    chain = prompt(LARGE, 12)  # 3 MiB raw
    fill(client, LARGE, chain.refs)
    check(client, LARGE, chain.refs)
    stats = client.stats()
    places = [place for info in client.list() for place in info.placements]
    assert len(places) == 12
    assert stats["tiers"]["dram"]["used"] == sum(4096 + -(-place.stored // 4096) * 4096 for place in places) < 2 * MiB
    assert stats["counters"]["stored_bytes"] == sum(place.stored for place in places)
    assert {place.logical for place in places} == {LARGE.part_bytes(LARGE.part(), 64)}
    box.settled(client)


def test_pressure_demotes_and_encodes(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, nvme=DISK, nvme_codec="t-exact", put_wait_s=20)
    chain = prompt(LARGE, 24)
    fill(client, LARGE, chain.refs)
    hit = client.lookup(LARGE, chain)
    assert len(hit.refs) >= 20
    for ref in hit.refs:
        assert np.array_equal(client.get(LARGE, ref), values(LARGE, ref, LARGE.part()))
    assert forms(client)["nvme"] == {"t-exact"}
    box.settled(client)


def test_encoded_parts_are_read_past_a_dram_without_room(box: Box) -> None:
    client, chain = box.open(dram=MiB, extent=MiB, nvme=DISK, nvme_codec="t-exact"), prompt(LARGE, 4)
    only_below(box, client, LARGE, chain.refs)
    other = prompt(LARGE, 3, seed=9)
    fill(client, LARGE, other.refs)
    with client.lookup(LARGE, other, lease_s=30):
        for ref in chain.refs:
            assert np.array_equal(client.get(LARGE, ref), values(LARGE, ref, LARGE.part()))
            right = values(LARGE, ref, LARGE.part())[1:3]
            assert np.array_equal(client.get(LARGE, ref, layers=(1, 3)), right)
    box.settled(client)


def test_each_and_many(box: Box) -> None:
    client, chain = box.open(nvme=DISK, nvme_codec="t-lossy", namespaces=LOSSY), prompt(LARGE, 3)
    only_below(box, client, LARGE, chain.refs)
    for read in (client.get_each, lambda *args, **more: enumerate(client.get_many(*args, **more))):
        outs = [np.zeros(LARGE.part_shape(LARGE.part(), 64), np.uint16) for _ in chain.refs]
        wants = [
            client.want(LARGE, ref, out[layer : layer + 1], layers=(layer, layer + 1))
            for ref, out in zip(chain.refs, outs, strict=True)
            for layer in range(4)
        ]
        assert {index for index, problem in read(LARGE, wants, fidelity=Fidelity.LOSSY) if problem is None} == set(
            range(12)
        )
        for ref, out in zip(chain.refs, outs, strict=True):
            assert np.array_equal(out, rounded(values(LARGE, ref, LARGE.part())))


def test_headers_are_as_long_in_every_form(box: Box) -> None:
    tall = KVSpec.dense("tall", layers=131, kv_heads=1, head_dim=16, chunk_tokens=32)
    client, chain = box.open(nvme=DISK, nvme_codec="t-lossy", namespaces=LOSSY), prompt(tall, 2)
    only_below(box, client, tall, chain.refs)  # 66 frames, for which one block would be enough
    check(client, tall, chain.refs, lossy=True)
    client.close()
    client = box.open(nvme=DISK, namespaces=LOSSY)
    check(client, tall, chain.refs, lossy=True)
    assert client.lookup(tall, chain, fidelity=Fidelity.LOSSY).tokens == 64


def test_large_parts_are_decoded_by_several_threads(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.decoding.SHARED_BYTES", 1)
    client, chain = box.open(nvme=DISK, nvme_codec="t-exact"), prompt(LARGE, 2)
    only_below(box, client, LARGE, chain.refs)
    check(client, LARGE, chain.refs)


def test_a_restart_brings_encoded_records_back(box: Box) -> None:
    chain = prompt(SHARDED, 3, tail=20)
    client = box.open(nvme=DISK, nvme_codec="t-lossy", namespaces=LOSSY)
    fill(client, SHARDED, chain.refs)
    client.close()  # which writes down what only DRAM holds
    client = box.open(nvme=DISK, namespaces=LOSSY)
    assert forms(client) == {"nvme": {"t-lossy"}}
    assert client.lookup(SHARDED, chain, fidelity=Fidelity.LOSSY).tokens == len(chain.ids)
    check(client, SHARDED, chain.refs, lossy=True)
    assert [problem for _, _, problem in client.verify() if problem] == []
    box.settled(client)


def test_prefetches_are_as_exact_as_they_are_asked(box: Box) -> None:
    client, chain = box.open(nvme=DISK, nvme_codec="t-lossy", namespaces=LOSSY), prompt(SMALL, 1)
    only_below(box, client, SMALL, chain.refs)
    store = box.store(client)
    client.prefetch(SMALL, [chain.refs[0].key])
    store._loader._ahead.submit(int).result()
    assert forms(client) == {"nvme": {"t-lossy"}}
    client.prefetch(SMALL, [chain.refs[0].key], fidelity=Fidelity.LOSSY)
    store._loader._ahead.submit(int).result()
    assert forms(client) == {"dram": {"t-lossy"}, "nvme": {"t-lossy"}}


def test_an_unknown_codec_or_level_is_told_at_the_start(box: Box) -> None:
    with pytest.raises(ConfigError, match="did you mean 't-exact'"):
        box.open(nvme=DISK, nvme_codec="t-exat")
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        box.open(dram_codec="t-exact:smal")
    with pytest.raises(ConfigError, match="has no level 'x'; it has no levels"):
        box.open(namespaces=(NamespaceConfig("default", codec="lossless:x"),))


def test_a_codec_whose_package_is_missing_is_told_at_the_start(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "mood", "not installed")
    with pytest.raises(ConfigError, match=r"nvme.codec = 't-wrong' cannot be used here: No module named 'odd'"):
        box.open(nvme=DISK, nvme_codec="t-wrong")


def test_a_form_that_this_build_does_not_know_is_a_miss_that_says_so(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    client, chain = box.open(nvme=DISK, nvme_codec="t-exact"), prompt(SMALL, 2)
    only_below(box, client, SMALL, chain.refs)
    known = {name: codec for name, codec in all_codecs().items() if name != "t-exact"}
    with monkeypatch.context() as patch:
        patch.setattr("kvstore.codecs.base._CODECS", {codec.number: codec for codec in known.values()})
        with pytest.raises(NotFound, match="form 901, which this build does not know"):
            client.get(SMALL, chain.refs[0])
        assert client.lookup(SMALL, chain).tokens == 0
    assert client.stats()["counters"]["undecodable"] == 1
    fill(client, SMALL, chain.refs)
    check(client, SMALL, chain.refs)
    box.settled(client)
