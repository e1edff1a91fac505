"""Encoded chunks over every way in: they travel as they are stored and are decoded at their destination."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import xxhash

import kvstore
from kvstore import Client, Config, DramConfig, Fidelity, KVSpec, NamespaceConfig, NvmeConfig, ServerConfig, wire
from kvstore.channels import artefacts
from kvstore.codecs import base
from kvstore.config import CodecsConfig
from kvstore.errors import Corrupt, NotFound
from kvstore.keys import Chain
from kvstore.removed import Removed
from kvstore.server import Server, serve
from kvstore.store import Store
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.v1 import kvstore_pb2_grpc as rpc
from tests.store.codec_samples import learned_artefact, registered

MiB = 1 << 20
SPEC = KVSpec.dense("Model", layers=5, kv_heads=2, head_dim=64, chunk_tokens=64)
CHAIN = Chain.of(np.arange(3 * 64 + 20), 64)
FORMS = {"exact": "t-exact", "lossy": "t-lossy", "learned": "t-learned"}


class Serving:
    """A server whose chunks are encoded below; `push_down` leaves them only there."""

    def __init__(self, folder: Path, codec: str) -> None:
        file = folder / "artefact"
        file.write_bytes(learned_artefact(SPEC).data)
        config = Config(
            dram=DramConfig(64 * MiB, 64 * MiB),
            nvme=NvmeConfig(folder / "nvme", 64 * MiB, 2 * MiB, 0, 2, codec),
            namespaces=(NamespaceConfig("default", lossy=True),),
            server=ServerConfig("127.0.0.1:0"),
            codecs=CodecsConfig((file,)),
        )
        self.store = Store(config)
        self.server: Server = serve(self.store, config)

    def url(self, channel: str) -> str:
        server = self.server
        return {"grpc": f"grpc://{server.address}", "bulk": f"bulk://{server.bulk}", "local": f"local:{server.local}"}[
            channel
        ]

    def push_down(self) -> None:
        core, removed = self.store._core, Removed()
        with core.lock:
            for row in core.index.chunks(0, 100)[0].tolist():
                assert core.drop_from(row, 0, removed)
        core.settle(removed)

    def counters(self) -> dict[str, Any]:
        found: dict[str, Any] = self.store.session("default").stats()
        return found

    def close(self) -> None:
        self.server.stop(0.2)
        self.store.close()


@pytest.fixture(autouse=True)
def codecs() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(params=list(FORMS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serving(tmp_path: Path, kind: str) -> Iterator[Serving]:
    made = Serving(tmp_path, FORMS[kind])
    yield made
    made.close()


@pytest.fixture
def client(serving: Serving, channel: str) -> Iterator[Client]:
    artefacts._known.clear()
    with kvstore.connect(serving.url(channel), timeout=10) as made:
        for ref in CHAIN.refs:
            made.put(SPEC, ref, values(ref.position, ref.tokens), ack="persisted")
        serving.push_down()
        yield made


def values(position: int, tokens: int) -> np.ndarray[Any, Any]:
    shape = SPEC.part_shape(SPEC.part(), tokens)
    random = np.random.default_rng(position).integers(0, 1 << 16, shape, np.uint16)
    return (random & 0x0301) | 0x3C08


def right(kind: str, index: int) -> np.ndarray[Any, Any]:
    array = values(CHAIN.refs[index].position, CHAIN.refs[index].tokens)
    return array if kind == "exact" else array & 0xFF00


def fidelity(kind: str) -> Fidelity:
    return Fidelity.EXACT if kind == "exact" else Fidelity.LOSSY


def test_whole_parts_and_layers(client: Client, kind: str) -> None:
    assert client.lookup(SPEC, CHAIN, fidelity=fidelity(kind)).tokens == len(CHAIN.ids)
    for index, ref in enumerate(CHAIN.refs):
        for verify in (False, True):
            assert np.array_equal(client.get(SPEC, ref, fidelity=fidelity(kind), verify=verify), right(kind, index))
        for first, end in ((0, 1), (1, 2), (4, 5), (1, 4), (0, 5)):
            got = client.get(SPEC, ref, layers=(first, end), fidelity=fidelity(kind))
            assert np.array_equal(got, right(kind, index)[first:end])


def test_many_and_each(client: Client, kind: str) -> None:
    outs = [np.zeros_like(right(kind, index)) for index in range(len(CHAIN.refs))]
    wants = [
        client.want(SPEC, ref, out[layer : layer + 1], layers=(layer, layer + 1))
        for ref, out in zip(CHAIN.refs, outs, strict=True)
        for layer in range(5)
    ]
    outcomes = sorted(client.get_each(SPEC, wants, fidelity=fidelity(kind)))
    assert outcomes == [(index, None) for index in range(len(wants))]
    for index, out in enumerate(outs):
        assert np.array_equal(out, right(kind, index))
        out.fill(0)
    wholes = [client.want(SPEC, ref, out) for ref, out in zip(CHAIN.refs, outs, strict=True)]
    assert list(client.get_many(SPEC, wholes, fidelity=fidelity(kind))) == [None] * len(wholes)
    for index, out in enumerate(outs):
        assert np.array_equal(out, right(kind, index))


def test_under_a_lease(client: Client, kind: str) -> None:
    for _ in range(2):  # the second time it is in DRAM
        with client.lookup(SPEC, CHAIN, fidelity=fidelity(kind), lease_s=10) as hit:
            assert hit.refs == CHAIN.refs
            for index, ref in enumerate(hit.refs):
                assert np.array_equal(client.get(SPEC, ref, fidelity=fidelity(kind)), right(kind, index))


def test_exact_readers_miss_what_is_lossy(client: Client, kind: str) -> None:
    for lossy_first in (False, True):
        if lossy_first:
            client.get(SPEC, CHAIN.refs[0], fidelity=Fidelity.LOSSY)  # which brings it into DRAM
        if kind == "exact":
            assert client.lookup(SPEC, CHAIN).tokens == len(CHAIN.ids)
            continue
        assert client.lookup(SPEC, CHAIN).tokens == 0
        assert client.lookup(SPEC, CHAIN, lease_s=5).tokens == 0
        assert client.contains(SPEC, CHAIN.refs[:1]) == [False]
        with pytest.raises(NotFound):
            client.get(SPEC, CHAIN.refs[0])
    if kind != "exact":
        ref = CHAIN.refs[0]
        assert client.put(SPEC, ref, values(ref.position, ref.tokens)) is True
        assert np.array_equal(client.get(SPEC, ref), values(ref.position, ref.tokens))


def test_prefetch_and_list(client: Client, serving: Serving, kind: str) -> None:
    assert client.prefetch(SPEC, [ref.key for ref in CHAIN.refs], fidelity=fidelity(kind)) == len(CHAIN.refs)
    serving.store._loader._ahead.submit(int).result()
    places = [place for info in client.list() for place in info.placements]
    assert {(place.tier, place.form, place.exact) for place in places} == {
        (tier, FORMS[kind], kind == "exact") for tier in ("dram", "nvme")
    }
    assert all(place.stored < place.logical for place in places)


def test_they_travel_encoded(client: Client, serving: Serving, channel: str, kind: str) -> None:
    client.get(SPEC, CHAIN.refs[0], fidelity=fidelity(kind))
    forms = serving.counters()["codecs"]["forms"]
    assert forms[FORMS[kind]]["decoded_parts"] == 0, channel  # not by the server
    assert forms[FORMS[kind]]["parts"] == len(CHAIN.refs)


def test_a_client_that_does_not_know_the_codec_gets_raw_bytes(
    client: Client, serving: Serving, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.channels.control.known_forms", tuple)
    monkeypatch.setattr("kvstore.channels.receive.known_forms", tuple)
    monkeypatch.setattr("kvstore.channels.local_places.known_forms", tuple)
    got = client.get(SPEC, CHAIN.refs[0], fidelity=fidelity(kind))
    assert np.array_equal(got, right(kind, 0))
    got = client.get(SPEC, CHAIN.refs[1], layers=(1, 3), fidelity=fidelity(kind), verify=True)
    assert np.array_equal(got, right(kind, 1)[1:3])
    assert serving.counters()["codecs"]["forms"][FORMS[kind]]["decoded_parts"] >= 2


def test_views(client: Client, channel: str, kind: str) -> None:
    if channel != "local":
        pytest.skip("over a network there are no views")
    for _ in range(2):
        with client.view(SPEC, CHAIN.refs[1], fidelity=fidelity(kind)) as view:
            assert bytes(view.data) == right(kind, 1).tobytes()
            assert (view.record.form, view.record.exact) == (0, kind == "exact")
        with client.view(SPEC, CHAIN.refs[1], fidelity=fidelity(kind), encoded=True) as view:
            assert view.record.form == {"exact": 901, "lossy": 903, "learned": 904}[kind]
            assert len(view.data) == view.record.stored < view.record.logical


@pytest.mark.parametrize("kind", ["learned"], indirect=True)
def test_an_artefact_is_fetched_once_and_checked(
    client: Client, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = learned_artefact(SPEC).digest
    assert client.backend.artefact(digest) == learned_artefact(SPEC).data
    with pytest.raises(NotFound, match="00000000"):
        client.backend.artefact(bytes(16))
    client.get(SPEC, CHAIN.refs[0], fidelity=Fidelity.LOSSY)
    assert set(artefacts._known) == {digest}
    artefacts._known.clear()
    wrong = learned_artefact(SPEC, 9).data
    monkeypatch.setattr(type(serving.store.session()), "artefact", lambda self, digest: wrong)
    with pytest.raises(Corrupt, match=digest.hex()):
        client.get(SPEC, CHAIN.refs[0], fidelity=Fidelity.LOSSY)
    monkeypatch.undo()
    assert np.array_equal(client.get(SPEC, CHAIN.refs[0], fidelity=Fidelity.LOSSY), right("learned", 0))


@pytest.mark.parametrize("kind", ["learned"], indirect=True)
def test_a_missing_artefact_is_a_miss_that_says_so(client: Client, serving: Serving) -> None:
    digest = learned_artefact(SPEC).digest
    shelf = serving.store._core.coder.artefacts
    shelf.remove([digest])
    with pytest.raises(NotFound, match=digest.hex()):
        client.get(SPEC, CHAIN.refs[0], fidelity=Fidelity.LOSSY)
    assert client.contains(SPEC, CHAIN.refs, fidelity=Fidelity.LOSSY)[0] is False


def test_a_stock_client_gets_raw_or_what_it_accepts(serving: Serving, kind: str) -> None:
    with kvstore.connect(serving.url("bulk")) as client:
        for ref in CHAIN.refs:
            client.put(SPEC, ref, values(ref.position, ref.tokens), ack="persisted")
    serving.push_down()
    with grpc.insecure_channel(serving.server.address) as channel:
        stub: Any = rpc.KVStoreStub(channel)
        stub.RegisterSpec(pb.RegisterSpecRequest(spec=wire.spec_to_message(SPEC)))
        ask = _asker(stub, kind)
        record, data = ask()
        assert (record.form, record.exact, record.stored) == (0, kind == "exact", SPEC.part_bytes(SPEC.part(), 64))
        assert data == right(kind, 0).tobytes()
        number = {"exact": 901, "lossy": 903, "learned": 904}[kind]
        record, data = ask(accept_forms=[number, 77])
        assert (record.form, record.logical) == (number, SPEC.part_bytes(SPEC.part(), 64))
        assert len(data) == record.stored
        if kind == "learned":
            told = stub.GetArtefact(pb.GetArtefactRequest(digest=record.artefact))
            assert told.data == learned_artefact(SPEC).data
            assert told.bytes == len(told.data)


def _asker(stub: Any, kind: str) -> Callable[..., tuple[Any, bytes]]:
    items = wire.items_to_bytes([(CHAIN.refs[0], SPEC.part())])

    def ask(**more: Any) -> tuple[Any, bytes]:
        request = pb.GetRequest(spec=SPEC.digest, items=items, fidelity=int(fidelity(kind)), **more)
        first, *rest = stub.Get(request)
        assert not first.head.status, first.head.message
        data = b"".join(each.data for each in rest)
        for group in wire.groups_from_bytes(first.head.record.groups):
            start, length = int(group["offset"]), int(group["length"])
            assert xxhash.xxh3_128_digest(data[start : start + length]) == group["xxh3"].tobytes()
        return first.head.record, data

    return ask


def test_a_damaged_copy_in_dram_is_seen(client: Client, serving: Serving, kind: str) -> None:
    ref = CHAIN.refs[0]
    client.get(SPEC, ref, fidelity=fidelity(kind))
    core = serving.store._core
    with core.lock:
        scope = core.catalog.find(core.catalog.namespaces["default"].digest, SPEC.digest)
        assert scope is not None
        _, row = core.find_part(scope, ref.key, SPEC.part())
        place = core.index.placement(core.index.find_placement(row, 0))
    memory = core.dram.view(place.loc, 4096 + place.stored // 2, 1)
    memory[0] ^= 0x10
    got = None
    try:
        got = client.get(SPEC, ref, fidelity=fidelity(kind), verify=True)
    except (Corrupt, NotFound):
        got = client.get(SPEC, ref, fidelity=fidelity(kind), verify=True)  # from below
    assert np.array_equal(got, right(kind, 0))


def test_the_codecs_of_these_tests_are_known() -> None:
    assert {"t-exact", "t-lossy", "t-learned"} <= set(base.all_codecs())
