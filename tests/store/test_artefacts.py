"""Artefacts: chosen by model and shape, on disk before the first record that names them, gone with the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Fidelity
from kvstore.codecs import Artefact
from kvstore.codecs.shipped import shipped_artefacts
from kvstore.config import CodecsConfig, NamespaceConfig
from kvstore.errors import ConfigError, NotFound
from kvstore.removed import Removed
from kvstore.spec import KVSpec
from tests.store.codec_samples import learned_artefact, registered
from tests.store.conftest import Box, MiB, content, prompt
from tests.store.test_leases import until

SPEC = KVSpec.dense("org/Model", layers=3, kv_heads=2, head_dim=64, chunk_tokens=32)
LOSSY = (NamespaceConfig("default", lossy=True),)
CHAIN = prompt(SPEC, 2)


@pytest.fixture(autouse=True)
def codecs() -> Iterator[None]:
    with registered():
        yield


def values(number: int) -> np.ndarray[Any, Any]:
    return (content(SPEC, CHAIN.refs[number], SPEC.part()) & 0x0301) | 0x3C08


def save(folder: Path, artefact: Artefact) -> Path:
    path = folder / f"{artefact.digest.hex()[:6]}.safetensors"
    path.write_bytes(artefact.data)
    return path


def begin(box: Box, *files: Path) -> kvstore.Client:
    return box.open(
        nvme=64 * MiB, nvme_codec="t-learned", namespaces=LOSSY, codecs=CodecsConfig(files), flush_on_close=False
    )


def put(box: Box, client: kvstore.Client, number: int = 0) -> None:
    """Store a chunk durably and take its DRAM copy out."""
    client.put(SPEC, CHAIN.refs[number], values(number), ack="persisted")
    core, removed = box.store(client)._core, Removed()
    with core.lock:
        for row in core.index.chunks(0, 100)[0].tolist():
            core.drop_from(row, 0, removed)
    core.settle(removed)


def get(client: kvstore.Client, number: int = 0) -> Any:
    return client.get(SPEC, CHAIN.refs[number], fidelity=Fidelity.LOSSY)


def kept(box: Box) -> set[str]:
    return {path.name for path in (box.folder / "artefacts").glob("*")}


def test_a_record_names_the_artefact_that_it_was_made_with(box: Box, tmp_path: Path) -> None:
    first, second = learned_artefact(SPEC, 1), learned_artefact(SPEC, 2)
    client = begin(box, save(tmp_path, first))
    put(box, client)
    assert kept(box) == {f"{first.digest.hex()}.safetensors"}
    with client.view(SPEC, CHAIN.refs[0], fidelity=Fidelity.LOSSY, encoded=True) as view:
        assert view.record.artefact == first.digest
    assert np.array_equal(get(client), values(0) & 0xFF00)
    client.close()
    client = begin(box, save(tmp_path, second))  # another one from now on; the old one is still read
    put(box, client, 1)
    for number in (0, 1):
        assert np.array_equal(get(client, number), values(number) & 0xFF00)
    assert kept(box) == {f"{each.digest.hex()}.safetensors" for each in (first, second)}
    box.settled(client)


def test_none_or_one_of_another_model_falls_back(box: Box, tmp_path: Path) -> None:
    wrong_shape = KVSpec.dense("org/Model", layers=3, kv_heads=2, head_dim=32, chunk_tokens=32)
    others = [
        learned_artefact(SPEC, name="Other"),
        learned_artefact(wrong_shape),
        learned_artefact(SPEC, rope={"theta": 10_000.0}),
        learned_artefact(SPEC, levels=["another"]),
    ]
    client = begin(box, *(save(tmp_path, each) for each in others))
    put(box, client)
    assert {place.form for info in client.list() for place in info.placements} == {"lossless"}
    assert np.array_equal(client.get(SPEC, CHAIN.refs[0]), values(0))
    assert client.stats()["codecs"]["fallbacks"] == {"no_artefact": 1}
    assert kept(box) == set()


def test_a_models_folder_and_organisation_do_not_count(box: Box, tmp_path: Path) -> None:
    client = begin(box, save(tmp_path, learned_artefact(SPEC, name="/models/model/")))
    put(box, client)
    assert {place.form for info in client.list() for place in info.placements} == {"t-learned"}


@pytest.mark.parametrize("harm", ["missing", "damaged", "another"])
def test_a_chunk_whose_artefact_is_gone_is_a_miss_that_says_so(box: Box, tmp_path: Path, harm: str) -> None:
    artefact = learned_artefact(SPEC, 1)
    client = begin(box, save(tmp_path, artefact))
    put(box, client)
    client.close()
    (path,) = (box.folder / "artefacts").glob("*")
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(b"x" * 100)
    else:
        path.write_bytes(learned_artefact(SPEC, 2).data)
    client = begin(box)
    with pytest.raises(NotFound, match=artefact.digest.hex()):
        get(client)
    assert client.lookup(SPEC, CHAIN, fidelity=Fidelity.LOSSY).tokens == 0
    assert client.stats()["counters"]["undecodable"] == 1
    assert until(lambda: not box.store(client)._core.bad), "the sweep of artefacts may still be reading it"
    put(box, client)  # it can be stored again
    assert np.array_equal(client.get(SPEC, CHAIN.refs[0]), values(0))
    box.settled(client)


def test_an_artefact_that_cannot_be_kept_is_not_used(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kvstore.artefacts._write", fail)
    client = begin(box, save(tmp_path, learned_artefact(SPEC)))
    put(box, client)
    assert {place.form for info in client.list() for place in info.placements} == {"lossless"}
    assert client.stats()["codecs"]["fallbacks"] == {"failed": 1}
    assert np.array_equal(client.get(SPEC, CHAIN.refs[0]), values(0))


def test_files_that_are_none_are_told_at_the_start(box: Box, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        begin(box, tmp_path / "nowhere")
    (tmp_path / "text").write_text("hello, this is a text")
    with pytest.raises(ConfigError, match="no artefact of kvstore"):
        begin(box, tmp_path / "text")


def test_what_no_record_names_is_removed(box: Box, tmp_path: Path) -> None:
    first, second = learned_artefact(SPEC, 1), learned_artefact(SPEC, 2)
    client = begin(box, save(tmp_path, first))
    put(box, client)
    client.close()
    client = begin(box, save(tmp_path, second))
    put(box, client, 1)
    assert box.store(client).sweep_artefacts() == 0
    client.delete(SPEC, [CHAIN.refs[0].key])
    assert box.store(client).sweep_artefacts() == 1
    assert kept(box) == {f"{second.digest.hex()}.safetensors"}
    assert np.array_equal(get(client, 1), values(1) & 0xFF00)
    box.settled(client)


@pytest.mark.parametrize("form", ["transform:near", "transform:matches-int4", "cachegen:fine"])
def test_shipped_artefacts_encode_the_models_they_are_for(box: Box, form: str) -> None:
    name = form.partition(":")[0]
    kind = shipped_artefacts()[f"smollm2-135m-instruct-{'head' if name == 'transform' else name}"]
    rope = Artefact.load(kind).facts.get("rope", {})
    shape: dict[str, Any] = {"layers": 30, "kv_heads": 3, "head_dim": 64, "rope": rope}
    spec = KVSpec.dense("HuggingFaceTB/SmolLM2-135M-Instruct", chunk_tokens=64, **shape)
    client = box.open(nvme=64 * MiB, nvme_codec=form, namespaces=LOSSY, flush_on_close=False)
    (ref,) = prompt(spec, 1).refs
    values = np.random.default_rng(7).normal(0, 1, spec.part_shape(spec.part(), 64)).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    client.put(spec, ref, bits, ack="persisted")
    (stored,) = (place for info in client.list() for place in info.placements if place.tier == "nvme")
    assert (stored.form, stored.exact) == (name, False)
    assert stored.stored < stored.logical * 0.75
    core, removed = box.store(client)._core, Removed()
    with core.lock:
        for row in core.index.chunks(0, 100)[0].tolist():
            core.drop_from(row, 0, removed)
    core.settle(removed)
    with pytest.raises(NotFound):
        client.get(spec, ref)
    got = np.asarray(client.get(spec, ref, fidelity=Fidelity.LOSSY)).view(np.uint16)
    near = (got.astype(np.uint32) << 16).view(np.float32)
    assert 0 < np.mean((near - values) ** 2) < 1.0
    assert client.stats()["codecs"]["fallbacks"] == {}
