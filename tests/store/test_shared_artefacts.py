"""Artefacts travel with the records that name them: two stores over a real Redis, and over a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Fidelity
from kvstore.bench.redis_server import RedisServer
from kvstore.codecs import Artefact
from kvstore.codecs.shipped import shipped_artefacts
from kvstore.config import CodecsConfig, Config, DramConfig, NamespaceConfig, NvmeConfig, RemoteConfig
from kvstore.keys import ChunkRef
from kvstore.tiers.remote import artefacts as shared
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.posix import PosixEngine
from kvstore.tiers.remote.valkey import ValkeyEngine
from tests.store.codec_samples import learned_artefact, registered
from tests.store.conftest import MiB, content, prompt
from tests.store.shared_tier import until

SPEC = kvstore.KVSpec.dense("org/Model", layers=3, kv_heads=2, head_dim=64, chunk_tokens=32)
REF = prompt(SPEC, 1).refs[0]


def values() -> np.ndarray[Any, Any]:
    return (content(SPEC, REF, SPEC.part()) & 0x0301) | 0x3C08


@dataclass
class Hosts:
    """Stores over one place, and a way to its objects."""

    url: str
    folder: Path
    engine: Engine
    opened: ExitStack = field(default_factory=ExitStack)

    def open(self, name: str, *files: Path, codec: str = "t-learned", disk: bool = True) -> kvstore.Client:
        nvme = NvmeConfig(self.folder / name, 64 * MiB, MiB, 0, 2) if disk else None
        config = Config(
            dram=DramConfig(8 * MiB, 8 * MiB), nvme=nvme, codecs=CodecsConfig(files),
            remote=RemoteConfig(self.url, codec=codec, lookup_wait_s=5.0),
            namespaces=(NamespaceConfig("default", lossy=True),), flush_on_close=False,
        )  # fmt: skip
        return self.opened.enter_context(kvstore.open(config))

    def save(self, artefact: Artefact) -> Path:
        path = self.folder / f"{artefact.digest.hex()[:6]}.safetensors"
        path.write_bytes(artefact.data)
        return path

    def put(self, client: kvstore.Client, array: np.ndarray[Any, Any] | None = None, spec: kvstore.KVSpec = SPEC,
            ref: ChunkRef = REF) -> None:  # fmt: skip
        client.put(spec, ref, values() if array is None else array)
        until(lambda: client.stats()["gauges"]["through"] == 0)

    def objects(self) -> dict[str, int]:
        return dict(self.engine.list("artefacts/"))

    def replace(self, name: str, data: bytes | None) -> None:
        self.engine.delete([name], 5.0)
        if data is not None:
            assert self.engine.put(name, [memoryview(data)], 5.0)


@pytest.fixture(params=["redis", "folder"])
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        stack.enter_context(registered())
        engine: Engine
        if request.param == "redis":
            server = RedisServer(tmp_path / "redis")
            stack.callback(server.stop)
            url, engine = server.url(), ValkeyEngine(server.url())
        else:
            place = tmp_path / "place"
            place.mkdir()
            url, engine = f"file://{place}", PosixEngine(place)
        stack.callback(engine.close)
        made = Hosts(url, tmp_path, engine)
        stack.enter_context(made.opened)
        yield made


def finds(client: kvstore.Client, spec: kvstore.KVSpec = SPEC, ref: ChunkRef = REF) -> bool:
    return bool(client.lookup(spec, [ref], fidelity=Fidelity.LOSSY).tokens)


def fetched(client: kvstore.Client) -> list[str]:
    """Digests of what is there and neither configured nor shipped."""
    return [each["digest"] for each in client.stats()["artefacts"] if not each["current"]]


def counted(client: kvstore.Client, counter: str) -> Callable[[], int]:
    return lambda: int(client.stats()["counters"].get(counter, 0))


def test_a_host_without_the_artefact_misses_once_and_then_hits(hosts: Hosts) -> None:
    artefact = learned_artefact(SPEC, 1)
    one, two = hosts.open("one", hosts.save(artefact)), hosts.open("two")
    hosts.put(one)
    assert hosts.objects() == {f"artefacts/{artefact.digest.hex()}": 16 + len(artefact.data)}
    assert not finds(two), "it is not waited for"
    until(lambda: finds(two))
    assert np.array_equal(two.get(SPEC, REF, fidelity=Fidelity.LOSSY), values() & 0xFF00)
    kept = hosts.folder / "two" / "artefacts" / f"{artefact.digest.hex()}.safetensors"
    assert kept.read_bytes() == artefact.data
    assert fetched(two) == [artefact.digest.hex()]
    store = two.backend._store  # type: ignore[attr-defined]
    assert store.sweep_artefacts() == 0
    one.delete(SPEC, [REF.key])
    two.delete(SPEC, [REF.key])
    assert store.sweep_artefacts() == 1
    assert not kept.exists()


def test_a_host_without_a_disk_keeps_it_in_memory(hosts: Hosts) -> None:
    one, two = hosts.open("one", hosts.save(learned_artefact(SPEC, 1))), hosts.open("two", disk=False)
    hosts.put(one)
    until(lambda: finds(two))
    assert np.array_equal(two.get(SPEC, REF, fidelity=Fidelity.LOSSY), values() & 0xFF00)
    two.delete(SPEC, [REF.key])
    assert two.backend._store.sweep_artefacts() == 1  # type: ignore[attr-defined]
    assert fetched(two) == []


@pytest.mark.parametrize("form", ["transform:near", "cachegen:fine"])
def test_what_real_codecs_have_learnt_travels(hosts: Hosts, form: str) -> None:
    name = form.partition(":")[0]
    file = shipped_artefacts()[f"smollm2-135m-instruct-{'head' if name == 'transform' else name}"]
    rope = Artefact.load(file).facts.get("rope", {})
    shape: dict[str, Any] = {"layers": 30, "kv_heads": 3, "head_dim": 64, "rope": rope}
    spec = kvstore.KVSpec.dense("HuggingFaceTB/SmolLM2-135M-Instruct", chunk_tokens=32, **shape)
    ref = prompt(spec, 1).refs[0]
    floats = np.random.default_rng(7).normal(0, 1, spec.part_shape(spec.part(), 32)).astype(np.float32)
    one, two = hosts.open("one", codec=form), hosts.open("two", codec="raw")  # which has no artefact for it
    hosts.put(one, (floats.view(np.uint32) >> 16).astype(np.uint16), spec, ref)
    assert fetched(two) == []
    until(lambda: finds(two, spec, ref))
    got = np.asarray(two.get(spec, ref, fidelity=Fidelity.LOSSY)).view(np.uint16)
    near = (got.astype(np.uint32) << 16).view(np.float32)
    assert 0 < np.mean((near - floats) ** 2) < 1.0
    three = hosts.open("three", codec=form)
    assert finds(three, spec, ref)
    assert np.array_equal(got, np.asarray(three.get(spec, ref, fidelity=Fidelity.LOSSY)).view(np.uint16))


@pytest.mark.parametrize("harm", ["missing", "cut off", "damaged", "another", "no artefact", "too long"])
def test_what_is_not_the_artefact_is_a_miss_until_its_writer_mends_it(
    hosts: Hosts, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.fetching.AGAIN_S", 0.05)
    monkeypatch.setattr("kvstore.tiers.remote.artefacts.LOOK_AGAIN_S", 0.0)
    artefact = learned_artefact(SPEC, 1)
    one, two = hosts.open("one", hosts.save(artefact)), hosts.open("two")
    hosts.put(one)
    name, whole = f"artefacts/{artefact.digest.hex()}", shared._HEAD.pack(b"KVSTART1", len(artefact.data))
    bad = {
        "missing": None, "cut off": whole + artefact.data[:-9], "damaged": whole + artefact.data[:-1] + b"?",
        "another": shared._HEAD.pack(b"KVSTART1", len(other := learned_artefact(SPEC, 2).data)) + other,
        "no artefact": b"hello", "too long": shared._HEAD.pack(b"KVSTART1", 1 << 60) + artefact.data,
    }  # fmt: skip
    hosts.replace(name, bad[harm])
    assert not finds(two)
    until(counted(two, "artefacts_not_found"))
    assert not finds(two)
    assert fetched(two) == []
    one.close()  # a host that begins anew looks at what lies there before its first record
    again = hosts.open("again", hosts.save(artefact))
    late = prompt(SPEC, 1, 5).refs[0]
    hosts.put(again, ref=late)
    until(lambda: finds(two))
    assert np.array_equal(two.get(SPEC, REF, fidelity=Fidelity.LOSSY), values() & 0xFF00)


def test_a_place_that_has_lost_it_gets_it_again_with_the_next_record(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.tiers.remote.artefacts.LOOK_AGAIN_S", 0.0)
    artefact = learned_artefact(SPEC, 1)
    one = hosts.open("one", hosts.save(artefact))
    hosts.put(one)
    hosts.replace(f"artefacts/{artefact.digest.hex()}", None)
    hosts.put(one, ref=prompt(SPEC, 1, 5).refs[0])
    assert len(hosts.objects()) == 1


def test_no_record_is_shared_before_its_artefact(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    one = hosts.open("one", hosts.save(learned_artefact(SPEC, 1)))

    def fail(self: object, digest: bytes, data: bytes) -> None:
        raise kvstore.StorageError("the place refuses it")

    monkeypatch.setattr(shared.SharedArtefacts, "keep", fail)
    hosts.put(one)
    assert [name for name, _ in hosts.engine.list("") if not name.startswith("meta/")] == []
    assert one.stats()["counters"]["through_failed"] == 1
